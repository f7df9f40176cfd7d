"""`python -m aggregator_service.local_identities DIR`: identities of a cluster on one machine.

Makes what is missing of DIR/authority, DIR/server, DIR/operator and DIR/worker-1, worker-2 and so
on, for `docker compose up`. Parties on machines of their own enrol instead, so that no key ever
leaves the machine that it is for (docs/security.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedlora.errors import FedLoraError
from fedlora.exit_codes import ExitCode, exit_code_of
from fedlora.identity.folder import AUTHORITY_KEY, CERTIFICATE
from fedlora.identity.names import AccessRole
from fedlora.identity.setup import AUTHORITY_FOLDER, init_federation, issue_to
from fedlora.identity.swap import holds

__all__ = ["main", "make_identities"]

_DAYS = 365.0


def make_identities(folder: Path, *, server_names: list[str], workers: int) -> list[str]:
    """Makes the identities that are not there; returns their folders' names."""
    made = []
    authority_dir = folder / AUTHORITY_FOLDER
    if not holds(authority_dir, AUTHORITY_KEY):
        init_federation(folder, federation="local", server_names=server_names, days=_DAYS)
        made += ["authority", "server", "operator"]
    for name in (f"worker-{number}" for number in range(1, workers + 1)):
        if not holds(folder / name, CERTIFICATE):
            issue_to(folder / name, authority_dir, role=AccessRole.WORKER, name=name, days=_DAYS)
            made.append(name)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Makes them; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m aggregator_service.local_identities")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--workers", type=int, default=2, help="how many workers")
    parser.add_argument(
        "--server-name",
        action="append",
        dest="server_names",
        help="host name or address of the server; may be repeated. Default: localhost, 127.0.0.1",
    )
    given = parser.parse_args(arguments)
    try:
        made = make_identities(
            given.folder,
            server_names=given.server_names or ["localhost", "127.0.0.1"],
            workers=given.workers,
        )
    except FedLoraError as error:
        print(f"fedlora: {error}", file=sys.stderr)  # noqa: T201
        return exit_code_of(error)
    print("made: " + (", ".join(made) or "nothing, all are there"))  # noqa: T201
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
