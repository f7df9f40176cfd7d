"""`fedlora methods`: the aggregation methods, their properties and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.config.keys import Key, keys_of
from fedlora_cli.console import output, print_json

if TYPE_CHECKING:
    from aggregator_service.aggregation.registry import Method

__all__ = ["markdown", "methods"]

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
averaging the factors and the least possible at that rank (Eckart–Young). Nothing of size d × k is
formed. All methods work in float64 and round once, when the result is written.

Choose a method in a run's configuration, `[method] name = "flora_na"` with its options beside the
name, or combine saved adapters with `fedlora aggregate DIR... --method optimal`.
"""

_LEGEND = """\
Numbers sent are per client, round and layer; R is the sum of the cohort's ranks, U its size, q the
rank of the result. `modules_to_save` are averaged linearly, exactly, with the same weights, by
every method.
"""

_COLUMNS: Mapping[str, Callable[[Method], str]] = {
    "Method": lambda m: f"[`{m.name}`](#{m.name})",
    "Paper": lambda m: m.paper,
    "Exactness": lambda m: m.exactness,
    "Mixed ranks": lambda m: "yes" if m.mixed_ranks else "no",
    "Up": lambda m: m.up,
    "Down": lambda m: m.down,
    "Server flops": lambda m: m.cost,
    "Keeps the clients' basis": lambda m: "yes" if m.cls.keeps_basis else "no",
    "Take it when": lambda m: m.choose,
}


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/algorithms.md.")
    ] = False,
) -> None:
    """List the aggregation methods: paper, exactness, traffic, cost, options."""
    from aggregator_service.aggregation.registry import METHODS

    if as_markdown:
        print(markdown(), end="")
    elif as_json:
        print_json([_record(method) for method in METHODS.values()])
    else:
        _print_table(list(METHODS.values()))


def markdown() -> str:
    """The text of docs/algorithms.md."""
    from aggregator_service.aggregation.registry import METHODS

    rows = list(METHODS.values())
    head = " | ".join(_COLUMNS)
    lines = [f"| {head} |", "|" + " --- |" * len(_COLUMNS)]
    lines += ["| " + " | ".join(cell(row) for cell in _COLUMNS.values()) + " |" for row in rows]
    lines += ["", _LEGEND]
    return "\n".join([_INTRODUCTION, *lines, "", *(_section(row) for row in rows)]).rstrip() + "\n"


def _section(method: Method) -> str:
    module = inspect.getmodule(method.cls)
    text = inspect.getdoc(module) or ""
    path = method.cls.__module__.replace(".", "/") + ".py"
    tests = f"tests/unit/aggregator_service/aggregation/test_{method.name}.py"
    lines = [f"## {method.name}", "", f"**{method.title}.** Source `{path}`, tests `{tests}`.", ""]
    lines += ["```text", text, "```", ""]
    if keys := keys_of(method.cls):
        lines += ["| Option | Default | Value | Meaning |", "| --- | --- | --- | --- |"]
        for key in keys:
            lines.append(f"| `{key.name}` | `{_plain(key)}` | {key.expected} | {key.help} |")
    else:
        lines.append("No options.")
    return "\n".join([*lines, ""])


def _plain(key: Key) -> str:
    return f"{key.default:g}" if isinstance(key.default, float) else str(key.default)


def _record(method: Method) -> dict[str, object]:
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "exactness": method.exactness,
        "mixed_ranks": method.mixed_ranks,
        "keeps_basis": method.cls.keeps_basis,
        "up": method.up,
        "down": method.down,
        "cost": method.cost,
        "needs": method.needs,
        "choose": method.choose,
        "options": [
            {"name": k.name, "default": k.default, "choices": k.choices, "help": k.help}
            for k in keys_of(method.cls)
        ],
    }


def _print_table(rows: list[Method]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0))
    for name in ("method", "error", "mixed ranks", "take it when", "paper"):
        table.add_column(name, header_style="bold", overflow="fold")
    for row in rows:
        mixed = "yes" if row.mixed_ranks else "no"
        table.add_row(f"[cyan]{row.name}[/]", row.exactness, mixed, row.choose, row.paper)
    console = output()
    console.print(table)
    for row in rows:
        for key in keys_of(row.cls):
            console.print(
                f"[cyan]{row.name}[/]  {key.name} = {_plain(key)}  [dim]{key.help}[/]",
                highlight=False,
            )
