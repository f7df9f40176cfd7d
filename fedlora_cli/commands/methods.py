"""`fedlora methods`: the aggregation methods, their properties and options."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora.config.keys import keys_of
from fedlora.errors import FedLoraError
from fedlora.runs.installed import METHODS_GROUP, PLUGINS_GROUP, SAMPLERS_GROUP, installed
from fedlora_cli.algorithms_page import RULES, markdown
from fedlora_cli.console import output, print_json
from fedlora_cli.method_words import (
    gauges,
    lacking,
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
    from fedlora_cli.method_words import Rule

__all__ = ["methods"]


def methods(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One method: all that is known of it.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/algorithms.md.")
    ] = False,
) -> None:
    """List the aggregation methods, gauges and rules; of one: paper, exactness, traffic, cost."""
    shown = [_found(name)] if name else method_rows()
    if as_markdown:
        print(markdown(), end="")
    elif name and not as_json:
        _print_one(shown[0])
    elif as_json:
        records = [_record(method) for method in shown]
        rules = {
            kind: [_rule_record(rule) for rule in rows.values()]
            for kind, rows in rule_rows().items()
        }
        print_json({"methods": records, **rules})
    else:
        _print_table(method_rows())


def _found(name: str) -> Method:
    from aggregator_service.aggregation.registry import create

    return create(name)


def _record(method: Method) -> dict[str, object]:
    from aggregator_service.aggregation.composition import compose

    recipe, about = compose(method), method.about
    up, down = traffic(method)
    promised = recipe.properties
    return {
        "name": method.name,
        "title": about.title,
        "paper": about.paper,
        "exactness": about.exactness,
        "exact": promised.exact,
        "linear": promised.linear,
        "mixed_ranks": promised.mixed_ranks,
        "keeps_basis": promised.keeps_basis,
        "changes_base": promised.changes_base,
        "min_clients": promised.min_clients,
        "kinds": sorted(kind.value for kind in promised.kinds),
        "weighting": recipe.weighting.name,
        "compression": recipe.compression.name,
        "gauges": gauges(method),
        "runs_with_shipped_worker": not lacking(method),
        "combines_saved_adapters": saved(method),
        "plans": [dataclasses.asdict(plan) for plan in recipe.plans()],
        "up": up,
        "down": down,
        "cost": about.cost,
        "needs": about.needs,
        "choose": about.choose,
        "options": _options(type(method)),
    }


def _rule_record(rule: Rule) -> dict[str, object]:
    return {"name": rule.name, "options": _options(type(rule))}


def _options(cls: type) -> list[dict[str, object]]:
    return [
        {"name": k.name, "default": k.default, "choices": k.choices, "help": k.help}
        for k in keys_of(cls)
    ]


def _print_table(rows: list[Method]) -> None:
    from rich.table import Table

    from fedlora.runs.method import Gauge

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("method", "error", "mixed ranks", "in a run", "files", "take it when", "paper"):
        table.add_column(name, header_style="bold", overflow="fold", no_wrap=name == "method")
    for row in rows:
        about = row.about
        mixed = yes_or_no(promised(row).mixed_ranks)
        trained = "no" if lacking(row) else "yes"
        files = saved(row).split(":")[0]
        cells = (about.exactness, mixed, trained, files, about.choose, about.paper)
        table.add_row(f"[cyan]{row.name}[/]", *cells)
    console = output()
    console.print(table)
    for kind, known in rule_rows().items():
        title = RULES[kind][0].lower()
        console.print(f"{title} [dim]\\[{kind}][/]: [cyan]{', '.join(known)}[/]", highlight=False)
    console.print(f"gauges [dim]\\[method.gauge][/]: [cyan]{', '.join(Gauge)}[/]", highlight=False)
    console.print(
        "in a run: whether the worker that comes with fedlora can follow the method; files: which "
        "saved adapters fedlora aggregate combines with it"
    )
    console.print(
        "traffic, cost, needs and options: fedlora methods NAME, docs/algorithms.md, or --json"
    )
    for error in _broken():
        console.print(f"not usable: {error}", style="red", markup=False, highlight=False)


def _print_one(row: Method) -> None:
    from rich.table import Table
    from rich.text import Text

    record = _record(row)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for what, text in {
        "method": f"{row.name}, {row.about.title}",
        "paper": row.about.paper,
        "error": row.about.exactness,
        "sent up": str(record["up"]),
        "sent down": str(record["down"]),
        "server flops": row.about.cost,
        "needs": row.about.needs,
        "take it when": row.about.choose,
        "mixed ranks": yes_or_no(promised(row).mixed_ranks),
        "keeps the basis": yes_or_no(promised(row).keeps_basis),
        "needs single updates": "no, weighted sums" if promised(row).linear else "yes",
        "families": ", ".join(sorted(promised(row).kinds)),
        "weighting": str(record["weighting"]),
        "compression": str(record["compression"]),
        "gauges": ", ".join(gauges(row)),
        "in a run": runs(row),
        "files": saved(row),
        **{f"option {key.name}": f"{plain(key)}: {key.help}" for key in keys_of(type(row))},
    }.items():
        table.add_row(what, Text(text))
    console = output()
    console.print(table)
    console.print(
        "per worker, round and layer d x k: r the worker's rank, m the components that it chose, "
        "U workers, R the sum of their ranks, t the round"
    )


def _broken() -> list[FedLoraError]:
    """Of other packages: what cannot be loaded."""
    groups = (METHODS_GROUP, PLUGINS_GROUP, SAMPLERS_GROUP)
    return [error for group in groups for error in installed(group).broken.values()]
