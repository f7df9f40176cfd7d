"""`fedlora export`: an adapter from an aggregator as a PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedlora_cli.commands.options import DEFAULT_SERVER, JsonOption, ServerOption

__all__ = ["export"]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name or id of the run.")],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    version: Annotated[
        int | None, typer.Option(help="Version of the adapter. Default: the newest.")
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Fetch an adapter as a folder that PeftModel.from_pretrained reads.

    Size and BLAKE3 are checked; the folder appears only once it is whole.
    """
    from fedlora_cli.adapter_download import download_adapter
    from fedlora_cli.admin_client import AdminClient
    from fedlora_cli.console import output, print_json

    with AdminClient(server) as client:
        done = download_adapter(client.export_adapter(run, version), out)
    if as_json:
        print_json(
            {
                "adapter": str(out),
                "version": done.adapter_version,
                "round": done.round,
                "bytes": done.total_bytes,
                "digest": done.digest,
            }
        )
    else:
        output().print(
            f"version {done.adapter_version} (round {done.round}), {done.total_bytes / 1e6:.3g} MB "
            f"-> {out}",
            highlight=False,
            soft_wrap=True,
        )
