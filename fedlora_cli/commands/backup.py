"""`fedlora backup`: a copy of a server's state, made while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import JsonOption

__all__ = ["backup"]


def backup(
    state_dir: Annotated[
        Path, typer.Argument(metavar="STATE_DIR", help="The server's state directory.")
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Folder to write; new or empty, on any disk.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy a server's state, whether or not the server runs.

    The copy is the state at one moment, every file in it is checked, and OUT appears only once all
    of it is on disk. `fedlora serve` on a copy of OUT restores it.
    """
    from fedlora_cli.configuration import need_service
    from fedlora_cli.console import output, print_json

    need_service("aggregator_service", "aggregator")
    from aggregator_service.store.backup import back_up

    with _progress(quiet=as_json) as on_progress:
        done = back_up(state_dir, out, on_progress=on_progress)
    if as_json:
        print_json(
            {
                "backup": str(out),
                "runs": list(done.runs),
                "files": done.num_blobs,
                "bytes": done.total_bytes,
            }
        )
    else:
        output().print(
            f"{len(done.runs)} run{'s' * (len(done.runs) != 1)}, {done.num_blobs} adapters and "
            f"updates, {done.total_bytes / 1e6:.3g} MB -> {out}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    from fedlora_cli.console import errors

    console = errors()
    if quiet or not console.is_terminal:
        yield lambda _done, _total: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("copying"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("copying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
