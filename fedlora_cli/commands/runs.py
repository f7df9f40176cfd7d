"""`fedlora runs`: what an aggregator is doing."""

from __future__ import annotations

from fedlora_cli.commands.options import DEFAULT_SERVER, JsonOption, ServerOption

__all__ = ["runs"]


def runs(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """List the runs of an aggregator."""
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output, print_json
    from fedlora_cli.records import to_record
    from fedlora_cli.tables import runs_table

    with connect(server) as client:
        found = client.list_runs()
    if as_json:
        print_json([to_record(run) for run in found])
    elif found:
        output().print(runs_table(found))
    else:
        output().print(f"{server} has no runs; `fedlora create CONFIG` makes one")
