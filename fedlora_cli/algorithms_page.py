"""docs/algorithms.md, from the code: the table of methods, and each file's own account."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from fedlora.config.keys import keys_of
from fedlora_cli.method_words import (
    asked,
    method_rows,
    plain,
    promised,
    rule_rows,
    runs,
    saved,
    traffic,
    yes_or_no,
)

if TYPE_CHECKING:
    from aggregator_service.aggregation.base import Method
    from fedlora.runs.method import Gauge
    from fedlora_cli.method_words import Rule

__all__ = ["RULES", "markdown"]

_INTRODUCTION = """\
<!-- Written by `fedlora methods --markdown`; change aggregator_service/aggregation and run
     `make docs`. -->

# Aggregation methods

Client *u* of a round sends the factors of each adapted layer, `lora_A_u` (r_u × k) and `lora_B_u`
(d × r_u), and trains with scale s_u. The server's first act is to fold the scale,
**B_u = s_u · lora_B_u**; after that no formula holds a scale. What the clients learnt together is
the weighted mean of their products, the **ideal aggregate**

    T = Σ_u w_u B_u A_u        w_u = n_u / Σ n, rank up to Σ r_u

which no adapter of rank q can hold in general. The methods differ in which adapter they send
instead, and every round's certificate says what that lost: its `relative_error` beside that of
averaging the factors and the least possible at that rank (Eckart–Young). Where the ranks of a
cohort add up to more than 256, and to more than a quarter of a layer's smaller side, these are
estimates, good to about 2 %, and say so (`is_estimate`); differences between the three stay exact.
Nothing of size d × k is formed. All methods work in float64 and round once, when the result is
written.

Choose a method in a run's configuration, `[method] name = "flora_na"` with its options beside the
name, or combine saved adapters with `fedlora aggregate DIR... --method optimal`. Some methods ask
workers for more than training A and B, by their round plans ([protocol.md](protocol.md)); the table
says which of them the worker that comes with fedlora can follow by now. Saved adapters lack what
only a round's workers can tell: the table says which of them a method can combine. `fedlora methods
NAME` prints a method's row with its options.
"""


_LEGEND = """\
Numbers sent are per worker, round and layer, and a test holds them to what crosses a wire. r is the
worker's rank, m the number of components that it chose, U the cohort's size, R the sum of its
ranks and t the round; "then" parts the rounds of a cycle. A worker that holds the version before
fetches what has changed since, and the whole adapter the first time. What was added to the base
model is one stack, which is sent whole every round; `max_base_rank` bounds it below min(d, k).
DoRA's magnitudes are d more each way. `modules_to_save` are averaged linearly, exactly, with the
same weights, by every method.

Exact is meant of T, the mean of products. DoRA divides W0 + B A by its row norms, so a mean of
products is not the mean of the workers' weights there, whatever the method.

Among a certificate's `measurements` are those that a method names in its own account below, and
how far the workers moved the factors, for every method that trains them: `magnitude_change_a` and
`direction_change_a`, weighted means over workers of |m − m₀| and of 1 − cos(v, v₀), with m and v
the lengths and directions of A's vectors as they were sent and m₀ and v₀ as they were given, and
the same of B. A vector is a component's, unless the method has an `axis`. A factor that began at
zero has no direction, and nothing is said of it. The whole adapter's are means over layers.

One `relative_error` is of the adapter as it is published. What workers of a lower rank are given of
it, its first components, is not measured apart; `fedhl` tells what those copies lack. No solver has
anything to fall back to, so there is no such figure: where no iterate is better than the factor
mean, that is published, and `kept_factor_mean` is 1.
"""


_EVIDENCE = """\
# What it matters on real training

On adapters from real training ([benchmarks/certificate.md](../benchmarks/certificate.md): MiniLM, 4
or 10 workers, ranks 4 to 16, two seeds) averaging the factors misses the ideal aggregate by 11 to
28 % in the first round. By the fourth it is 3 to 8 % of the whole adapter – but still 12 to 21 % of
what that round changed: T grows, and hides that every round loses about the same share of what it
learns. FLoRA-NA's scalars lower the error by 7 to 13 % in the first round and by 1 to 3 % in the
fourth, diagonal coefficients by 10 to 26 % and 3 to 8 %; no adapter of that rank could do better
than 13 to 41 % and 5 to 15 %, which `optimal` reaches. That scalars make the product nearly equal
the mean of products, as the paper has it, is not what we find. More local steps raise the loss far
more than unequal data. With four unequal workers most of the scalars' gain comes from one worker's
share (`concentration` in the certificate tells). After four rounds, test accuracy showed no
difference between the methods. What did differ is how the next rounds learn: `optimal` publishes
balanced factors by default, from which the same local training moves little more than half as far
as from the clients' own basis; `gauge = "closest_a"`, there nearest to the factor mean, keeps that.
"""


_COLUMNS: Mapping[str, Callable[[Method], str]] = {
    "Method": lambda m: f"[`{m.name}`](#{m.name})",
    "Paper": lambda m: m.about.paper,
    "Exactness": lambda m: m.about.exactness,
    "Mixed ranks": lambda m: yes_or_no(promised(m).mixed_ranks),
    "Up": lambda m: traffic(m)[0],
    "Down": lambda m: traffic(m)[1],
    "Server flops": lambda m: m.about.cost,
    "Keeps the clients' basis": lambda m: yes_or_no(promised(m).keeps_basis),
    "Asks of workers": asked,
    "Runs with `fedlora worker`": runs,
    "Combines saved adapters": saved,
    "Take it when": lambda m: m.about.choose,
}


RULES: Mapping[str, tuple[str, str]] = {
    "weighting": (
        "Weighting rules",
        """\
How much each update counts: `[weighting]` with a name and the rule's options beside it. A method
with weights of its own takes no other.""",
    ),
    "compression": (
        "Compression rules",
        """\
How what a method makes of the updates becomes an adapter of the run's rank: `[compression]`. Every
method has one of its own.""",
    ),
    "server_optimizer": (
        "Server optimisers",
        """\
How far the global adapter follows a round's result: `[server_optimizer]`, for methods that keep the
clients' basis.""",
    ),
    "sampler": (
        "Client samplers",
        """\
Which workers a round takes, where `rounds.cohort_size` or `rounds.concurrency` asks for fewer than
are ready: `[sampler]` with a name and the sampler's options beside it, or one of the names below as
`rounds.sampling`.""",
    ),
    "plugins": (
        "Plug-ins",
        """\
What goes into local training beside the method: `[plugins.<name>]`, any number of them. A run whose
plug-ins do not go with its method, its rounds or each other is refused when it is created.""",
    ),
}
"""section of the rule -> title and introduction"""


_GAUGES = """\
# Gauges

In which factors the product is published: `gauge` in `[method]`, or `--gauge` of `fedlora
aggregate`. A gauge changes no model, and how the next round trains from it. Methods whose workers
hold factors of the method's choice take none but `own`, and neither does a rule that changes the
base model.
"""


def markdown() -> str:
    """The text of docs/algorithms.md."""
    rows = method_rows(others=False)
    head = " | ".join(_COLUMNS)
    lines = [f"| {head} |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in _COLUMNS.values()) + " |" for row in rows]
    lines += ["", _LEGEND]
    sections = [_section(row) for row in rows]
    for kind, (title, text) in RULES.items():
        sections += [f"# {title}\n\n{text}\n"]
        sections += [_rule_section(rule) for rule in rule_rows(others=False)[kind].values()]
    sections += [_gauge_section(rows)]
    return "\n".join([_INTRODUCTION, *lines, "", *sections, _EVIDENCE]).rstrip() + "\n"


def _section(method: Method) -> str:
    cls = type(method)
    path = cls.__module__.replace(".", "/") + ".py"
    tests = f"tests/unit/aggregator_service/aggregation/methods/test_{method.name}.py"
    lines = [
        f"## {method.name}",
        "",
        f"**{method.about.title}.** Source `{path}`, tests `{tests}`.",
    ]
    needs = "" if method.about.needs == "nothing" else f" Needs {method.about.needs}."
    lines[-1] += needs
    return "\n".join([*lines, "", *_told(cls)])


def _rule_section(rule: Rule) -> str:
    cls = type(rule)
    path = cls.__module__.replace(".", "/") + ".py"
    summary = (inspect.getdoc(cls) or "").splitlines()[0]
    return "\n".join([f"## {rule.name}", "", f"{summary} Source `{path}`.", "", *_told(cls)])


def _gauge_section(rows: list[Method]) -> str:
    from aggregator_service.aggregation import composition, gauge

    lines = [_GAUGES, "| Gauges | Methods with their own rules |", "| --- | --- |"]
    taken: dict[tuple[Gauge, ...], list[str]] = {}
    for row in rows:
        taken.setdefault(composition.gauges_of(row), []).append(f"[`{row.name}`](#{row.name})")
    for each, names in taken.items():
        lines.append(f"| {', '.join(f'`{g.value}`' for g in each)} | {', '.join(names)} |")
    return "\n".join([*lines, "", *_account(gauge)])


def _account(module: ModuleType | None) -> list[str]:
    return ["```text", inspect.getdoc(module) or "", "```", ""]


def _told(cls: type) -> list[str]:
    """The file's own account of the method, and the options."""
    lines = _account(inspect.getmodule(cls))
    if keys := keys_of(cls):
        lines += ["| Option | Default | Value | Meaning |", "| --- | --- | --- | --- |"]
        for key in keys:
            lines.append(f"| `{key.name}` | `{plain(key)}` | {key.expected} | {key.help} |")
    else:
        lines.append("No options.")
    return [*lines, ""]
