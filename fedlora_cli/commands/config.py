"""`fedlora config`: what a configuration means, and every key there is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_cli.commands.options import JsonOption, OverridesOption

if TYPE_CHECKING:
    from fedlora.runs.spec import RunSpec

__all__ = ["app"]

app = typer.Typer(help="Explain a configuration, or all keys there are.", no_args_is_help=True)


@app.command()
def check(
    config_file: Annotated[Path, typer.Argument(metavar="CONFIG", help="The file.")],
    overrides: OverridesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a configuration and show every value with its origin.

    Origins are default, the file, a FEDLORA_ variable or --set; later ones win. A run that no
    aggregator would take is refused with what an aggregator would say.
    """
    from fedlora.config import OriginKind, toml_value
    from fedlora_cli.configuration import load
    from fedlora_cli.console import output, print_json

    config = load(config_file, overrides or ())
    if config.run is not None:
        _check_run(config.run, base_weights=config.section("server").get("base_weights"))
    if as_json:
        rows = [
            {
                "section": e.section,
                "key": e.key,
                "value": e.value
                if isinstance(e.value, bool | int | float | None)
                else (list(e.value) if isinstance(e.value, tuple) else str(e.value)),
                "origin": e.origin.kind.value,
                "place": e.origin.place,
            }
            for e in config.entries
        ]
        print_json({"file": str(config_file), "values": rows})
        return

    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("key", "value", "from"):
        table.add_column(name, header_style="bold", overflow="fold")
    section = ""
    for entry in config.entries:
        if entry.section != section:
            section = entry.section
            table.add_row(f"\n[bold]\\[{section}][/]", "", "")
        is_default = entry.origin.kind is OriginKind.DEFAULT
        value = "unset" if entry.value is None else escape(toml_value(entry.value))
        style = "dim" if is_default else ""
        table.add_row(f"  {entry.key}", value, escape(str(entry.origin)), style=style)
    output().print(table)


def _check_run(spec: RunSpec, *, base_weights: Path | None) -> None:
    """Raises what a server would; tells what depends on the server."""
    import importlib.util

    from fedlora_cli.console import errors

    if importlib.util.find_spec("aggregator_service") is None:
        errors().print(
            "whether an aggregator would take this run is not checked: the package "
            "aggregator_service is not installed (pip install 'fedlora\\[aggregator]')",
            highlight=False,
        )
        return
    from aggregator_service.new_run import checked_recipe

    recipe = checked_recipe(spec, has_base_weights=True)
    if recipe.method.reads_base and base_weights is None:
        errors().print(
            f"{recipe.method.name} with these options reads the frozen weights of the base model: "
            "an aggregator without server.base_weights (--base-weights) will refuse this run",
            highlight=False,
        )


@app.command()
def reference() -> None:
    """Print docs/configuration.md: every key, its default and what it means."""
    from fedlora.config import reference_markdown
    from fedlora_cli.configuration import section_types

    typer.echo(reference_markdown(section_types()), nl=False)
