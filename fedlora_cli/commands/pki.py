"""`fedlora pki`: a federation's authority, its members, and who is one no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora.identity.names import AccessRole
from fedlora_cli.commands.options import DEFAULT_SERVER, JsonOption, ServerOption

__all__ = ["app"]

app = typer.Typer(
    help="A federation's authority: who is a member, in which role, and until when.",
    no_args_is_help=True,
)

_DAY = 86400.0
_Role = Annotated[AccessRole, typer.Option(help="What the member may do.")]
_ServerNames = Annotated[
    list[str] | None,
    typer.Option(
        "--server-name", help="Host name or address at which the server is dialled; repeatable."
    ),
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Gets three folders.")],
    server_names: _ServerNames = None,
    federation: Annotated[str, typer.Option(help="Name of the federation.")] = "fedlora",
    days: Annotated[float, typer.Option(help="How long all three are good.")] = 3650.0,
) -> None:
    """Make a federation's authority, and the identities of its server and its first operator.

    DIR/authority signs: keep it where only the operator, or the server that enrols, can read it.
    """
    from fedlora.identity.setup import init_federation
    from fedlora_cli.console import output

    names = server_names or ["localhost", "127.0.0.1"]
    init_federation(folder, federation=federation, server_names=names, days=days)
    for said in (
        f"authority  {folder / 'authority'}   ca.key signs: keep it secret",
        f"server     {folder / 'server'}   for {', '.join(names)}",
        f"operator   {folder / 'operator'}   FEDLORA_IDENTITY_DIR of whoever runs it",
    ):
        output().print(said, markup=False, highlight=False, soft_wrap=True)


@app.command()
def issue(
    authority: Annotated[Path, typer.Argument(metavar="AUTHORITY", help="With ca.crt and ca.key.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a worker its name in runs.")],
    out: Annotated[Path, typer.Option(help="Identity folder to write.")],
    role: _Role = AccessRole.WORKER,
    server_names: _ServerNames = None,
    days: Annotated[float, typer.Option(help="How long it is good.")] = 365.0,
) -> None:
    """Make an identity where the authority is, key and all, for members that do not enrol.

    The key is then made here and has to travel; `fedlora pki token` avoids that.
    """
    from fedlora.identity.setup import issue_to

    issue_to(out, authority, role=role, name=name, hosts=server_names or (), days=days)
    show(out)


@app.command()
def show(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An identity folder.")],
) -> None:
    """Say whose identity a folder holds, and until when."""
    import time

    from fedlora.identity.folder import read_identity
    from fedlora_cli.console import output

    files = read_identity(folder, now=time.time())
    until = _day(files.certified.not_after)
    output().print(
        f"{files.identity.uri}  good until {until}", markup=False, highlight=False, soft_wrap=True
    )


@app.command()
def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a worker its name in runs.")],
    enrolment: Annotated[
        str, typer.Option(help="host:port at which the member reaches server.enrolment_address.")
    ],
    out: Annotated[Path, typer.Option(help="Invitation to write; it must not exist.")],
    role: _Role = AccessRole.WORKER,
    hours: Annotated[float, typer.Option(help="How long the invitation is good.")] = 24.0,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Invite somebody: write a file with a join token that is good once.

    The member turns it into an identity with `fedlora worker enroll`, and its key never leaves it.
    """
    from fedlora.identity.folder import read_authorities
    from fedlora.identity.invitation import InvitationFile, write_invitation
    from fedlora_cli.connection import SECURITY, connect
    from fedlora_cli.console import output

    own = SECURITY.get().identity_dir
    if own is None:
        raise _no_identity()
    if out.exists():
        raise _is_there(out)
    authorities = read_authorities(own).decode()
    with connect(server) as client:
        invited = client.invite(role, name, seconds=hours * 3600)
    write_invitation(
        out,
        InvitationFile(
            enrolment=enrolment,
            role=role,
            name=name,
            join_token=invited.join_token,
            expires_at=invited.expires_at,
            authorities_pem=authorities,
        ),
    )
    said = f"{out}: {role.value} {name!r} may enrol once until {_day(invited.expires_at)}"
    output().print(said, markup=False, highlight=False, soft_wrap=True)


@app.command()
def bearer(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The server's tokens_file.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of a worker its name in runs.")],
    role: _Role = AccessRole.WORKER,
    days: Annotated[float, typer.Option(help="How long the token is good.")] = 90.0,
) -> None:
    """Make a bearer token, for federations without certificates: its digest goes into FILE.

    The token is printed once. Taking its line out of FILE revokes it.
    """
    import time

    from fedlora.identity.bearer import add_bearer_token

    now = time.time()
    typer.echo(add_bearer_token(file, role, name, issued_at=now, expires_at=now + days * _DAY))


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose identity is refused.")],
    role: _Role = AccessRole.WORKER,
    server: ServerOption = DEFAULT_SERVER,
) -> None:
    """Refuse at once what was issued to a member until now; a new invitation lets it back in."""
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output

    with connect(server) as client:
        client.revoke(role, name)
    output().print(f"{role.value} {name!r} is revoked", highlight=False)


@app.command()
def members(server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """List those whom the server has certified or revoked."""
    from dataclasses import asdict

    from rich.table import Table

    from fedlora_cli.connection import connect
    from fedlora_cli.console import output, print_json

    with connect(server) as client:
        found = client.members()
    if as_json:
        print_json([asdict(member) for member in found])
        return
    table = Table("role", "name", "certified until", "revoked", box=None, header_style="bold")
    for member in found:
        until, revoked = (
            "" if at is None else _day(at) for at in (member.certified_until, member.revoked_at)
        )
        table.add_row(member.role.value, member.name, until, revoked)
    output().print(table)


def _day(seconds: float) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _is_there(out: Path) -> Exception:
    from fedlora.errors import FedLoraError, Reason

    return FedLoraError(
        Reason.ALREADY_EXISTS,
        f"{out} is there, and may be an invitation that is good still",
        hint="Name another file with --out, or remove that one",
    )


def _no_identity() -> Exception:
    from fedlora.errors import FedLoraError, Reason

    return FedLoraError(
        Reason.INVALID_CONFIG,
        "an invitation carries the authority's certificates, and there is no identity to take "
        "them from",
        hint="fedlora --identity-dir DIR/operator pki token ..., or FEDLORA_IDENTITY_DIR",
    )
