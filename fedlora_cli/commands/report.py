"""`fedlora report`: a run's figures as a table, as JSON and as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import JsonOption

__all__ = ["report"]


def report(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Run directory; with --server, a run's name or id.")
    ],
    server: Annotated[
        str | None,
        typer.Option(help="Ask this aggregator (host:port) instead of reading a directory."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the page goes. Default: report.html in the run directory."),
    ] = None,
    as_json: JsonOption = False,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Show the rounds of a run and write report.html anew.

    The page holds everything it needs, so it can be sent to somebody as it is.
    """
    from fedlora_cli.configuration import need_service
    from fedlora_cli.console import errors, output, print_json
    from fedlora_cli.tables import rounds_table

    need_service("aggregator_service", "aggregator")
    from aggregator_service.reporting.page import report_html
    from aggregator_service.reporting.records import to_record
    from aggregator_service.reporting.run_directory import read_rounds, read_run

    if server is None:
        root = Path(run)
        found, rounds = read_run(root), read_rounds(root)
        page = out or root / "report.html"
    else:
        from fedlora_cli.connection import connect

        with connect(server) as client:
            found = client.get_run(run)
            rounds = tuple(
                client.round_report(run, r.round) for r in client.list_rounds(found.run_id)
            )
        page = out or Path(f"{found.spec.name}-report.html")
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(report_html(found, rounds), encoding="utf-8")
    if as_json:
        print_json({"run": to_record(found), "rounds": [to_record(r) for r in rounds]})
    else:
        output().print(rounds_table(rounds, title=f"{found.spec.name}: {found.phase.value}"))
    errors().print(f"page  {page}", markup=False, highlight=False, soft_wrap=True)
    if open_page:
        import webbrowser

        webbrowser.open(page.absolute().as_uri())
