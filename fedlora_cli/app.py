"""The `fedlora` command: its sub-commands, and what happens to an error that reaches the top."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from fedlora import __version__
from fedlora.errors import FedLoraError
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora_cli.commands import (
    aggregate,
    backup,
    config,
    create,
    enroll,
    export,
    methods,
    pki,
    report,
    run,
    runs,
    serve,
    study,
    watch,
    worker,
)
from fedlora_cli.console import errors
from fedlora_cli.server_error import ServerError

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedlora",
    help="Federated LoRA fine-tuning: many parties, one adapter, and a certificate of what "
    "aggregation lost. Start with **fedlora run examples/quickstart.toml**.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_ONE_MACHINE = "A federation on this machine"
_MANY_MACHINES = "A federation over machines"
_LOOKING = "Looking at runs"
_FILES = "Adapters and configuration"

app.command("run", rich_help_panel=_ONE_MACHINE)(run.run)
app.command("study", rich_help_panel=_ONE_MACHINE)(study.study)
app.command("serve", rich_help_panel=_MANY_MACHINES)(serve.serve)
app.add_typer(enroll.app, name="worker", rich_help_panel=_MANY_MACHINES)
app.command("workers", rich_help_panel=_MANY_MACHINES)(worker.workers)
app.add_typer(pki.app, name="pki", rich_help_panel=_MANY_MACHINES)
app.command("backup", rich_help_panel=_MANY_MACHINES)(backup.backup)
app.command("create", rich_help_panel=_MANY_MACHINES)(create.create)
app.command("stop", rich_help_panel=_MANY_MACHINES)(create.stop)
app.command("runs", rich_help_panel=_LOOKING)(runs.runs)
app.command("watch", rich_help_panel=_LOOKING)(watch.watch)
app.command("report", rich_help_panel=_LOOKING)(report.report)
app.command("export", rich_help_panel=_FILES)(export.export)
app.command("aggregate", rich_help_panel=_FILES)(aggregate.aggregate)
app.command("methods", rich_help_panel=_FILES)(methods.methods)
app.add_typer(config.app, name="config", rich_help_panel=_FILES)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedlora {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    identity_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="FEDLORA_IDENTITY_DIR",
            help="Who you are to an aggregator: a folder with ca.crt, tls.crt and tls.key.",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="FEDLORA_TOKEN_FILE", help="A bearer token in place of a certificate."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Plain text to an aggregator on another machine."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    del version
    from fedlora.rpc.security import ClientSecurity
    from fedlora_cli.connection import SECURITY

    SECURITY.set(
        ClientSecurity(identity_dir=identity_dir, token_file=token_file, insecure=insecure)
    )


def main() -> None:
    """Runs the command line and ends the process with a documented exit code (docs/cli.md)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding lacks is a question mark there, and not the end of the command.
        sys.stdout.reconfigure(errors="replace")
    try:
        app()
    except FedLoraError as error:
        _tell(error.reason.value, error.message, error.hint)
        sys.exit(exit_code_of(error, from_server=isinstance(error, ServerError)))
    except OSError as error:
        # A file that cannot be read or written, a full disk: the text of the system says which.
        _tell(type(error).__name__, str(error), "")
        sys.exit(ExitCode.USAGE)


def _tell(kind: str, message: str, hint: str) -> None:
    console = errors()
    console.print(f"[bold red]error[/] [dim]{kind}[/]", highlight=False)
    console.print(message, markup=False, highlight=False, soft_wrap=True)
    if hint:
        console.print(hint, markup=False, highlight=False, soft_wrap=True, style="cyan")
