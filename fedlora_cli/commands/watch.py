"""`fedlora watch`: a run as it happens."""

from __future__ import annotations

from typing import Annotated

import typer

from fedlora_cli.commands.options import DEFAULT_SERVER, EventsJsonOption, PlainOption, ServerOption

__all__ = ["watch"]


def watch(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the run.")],
    server: ServerOption = DEFAULT_SERVER,
    plain: PlainOption = False,
    as_json: EventsJsonOption = False,
) -> None:
    """Follow a run until it has ended. Ctrl-C leaves the run alone."""
    from fedlora.exit_codes import ExitCode
    from fedlora.runs.phase import RunPhase
    from fedlora.runs.report import EventType
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output
    from fedlora_cli.display import display_for
    from fedlora_cli.tables import rounds_table

    with connect(server) as client:
        found = client.get_run(run)
        rounds = found.spec.rounds.num_rounds
        with display_for(rounds, plain=plain, as_json=as_json) as display:
            for event in client.watch_run(found.run_id):
                display.event(event)
                if event.type in (EventType.ROUND_COMPLETED, EventType.CERTIFICATE_READY):
                    display.rounds(client.list_rounds(found.run_id))
        found = client.get_run(found.run_id)
        if not as_json:
            title = f"{found.spec.name}: {found.phase.value}"
            output().print(rounds_table(client.list_rounds(found.run_id), title=title))
    if found.phase is RunPhase.FAILED:
        raise typer.Exit(ExitCode.RUN_FAILED)
