"""`fedlora worker enroll`, and how `fedlora worker` is a command and a group at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedlora_cli.commands.worker import worker

__all__ = ["app", "enroll"]

_DEFAULT = "run"


class _WorkerGroup(TyperGroup):
    """`fedlora worker CONFIG` is `fedlora worker run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the default command's name before what is not the name of one."""
        if not args or args[0] not in self.commands:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_WorkerGroup, help="Train for a federation, or become a member of one.")
app.command(_DEFAULT)(worker)


@app.command()
def enroll(
    invitation: Annotated[
        Path, typer.Argument(metavar="INVITATION", help="From `fedlora pki token`.")
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Identity folder to write; the same as identity_dir.")
    ],
) -> None:
    """Exchange an invitation for an identity; its key is made here and never leaves.

    The invitation is good once. `worker.invitation` does the same at a worker's first start.
    """
    from client_worker.transport.enrolment import enrol
    from fedlora.identity.invitation import read_invitation
    from fedlora_cli.commands.pki import show

    enrol(read_invitation(invitation), out)
    show(out)
