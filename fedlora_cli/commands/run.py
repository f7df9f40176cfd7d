"""`fedlora run`: a whole federation on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import EventsJsonOption, OverridesOption, PlainOption

__all__ = ["run"]


def run(
    config_file: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="Configuration, for example quickstart.toml.")
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Where state, logs and results go. Default: runs/<run name>."),
    ] = None,
    overrides: OverridesOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove an earlier run in that folder and start anew.")
    ] = False,
    plain: PlainOption = False,
    as_json: EventsJsonOption = False,
) -> None:
    """Run an aggregator and its workers on this machine until the run is complete.

    They are separate processes that talk gRPC over the loopback interface. Stopped with Ctrl-C, the
    same command resumes the run where it was. The result is a PEFT adapter in RUN_DIR/final and a
    page to read, RUN_DIR/report.html.
    """
    from fedlora.errors import FedLoraError, Reason
    from fedlora.exit_codes import ExitCode
    from fedlora.runs.phase import RunPhase
    from fedlora_cli.configuration import load, need_service
    from fedlora_cli.console import errors
    from fedlora_cli.display import display_for
    from fedlora_cli.local_federation import LocalFederation, check_workers
    from fedlora_cli.run_folder import RunFolder
    from fedlora_cli.summary import print_summary

    need_service("aggregator_service", "aggregator")
    need_service("client_worker", "worker")
    config = load(config_file, overrides or ())
    spec = config.need_run()
    check_workers(config)
    folder = RunFolder(run_dir or Path("runs") / spec.name)
    with folder.held():
        resuming = folder.prepare(config, fresh=fresh)
        earlier = folder.run() if resuming else None
        if earlier is not None and earlier.phase.is_final:
            if earlier.phase is RunPhase.COMPLETED:
                print_summary(folder, as_json=as_json, headline="this run is complete already")
                return
            raise FedLoraError(
                Reason.WRONG_PHASE,
                f"the run in {str(folder.root)!r} has {earlier.phase.value}: {earlier.reason}",
                hint="Start anew with --fresh",
            )
        display = display_for(spec.rounds.num_rounds, plain=plain, as_json=as_json)
        federation = LocalFederation(config, folder, display)
        if resuming:
            display.notice(f"resuming the run in {folder.root}")
        code = federation.run()
        if code is ExitCode.OK:
            print_summary(folder, as_json=as_json, headline="complete")
            return
        if code is ExitCode.INTERRUPTED:
            errors().print("stopped; the same command resumes the run", highlight=False)
        else:
            errors().print("[bold red]the run has failed[/]", highlight=False)
            errors().print(federation.failure, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(code)
