"""`fedlora export`: an adapter from an aggregator as a PEFT folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedlora_cli.commands.options import DEFAULT_SERVER, JsonOption, ServerOption

if TYPE_CHECKING:
    from fedlora.runs.report import Run

__all__ = ["export"]


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="Name or id of the run; with --worker a run directory, too."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist.")],
    version: Annotated[
        int | None, typer.Option(help="Version of the adapter. Default: the newest.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The version of the best round, by rounds.best_by.")
    ] = False,
    worker: Annotated[
        str | None,
        typer.Option(help="A worker's own adapter instead, on the worker's machine; no server."),
    ] = None,
    cache_dir: Annotated[
        Path | None,
        typer.Option(help="With --worker: its worker.cache_dir. Default: that of a run directory."),
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    as_json: JsonOption = False,
) -> None:
    """Fetch an adapter as a folder that PeftModel.from_pretrained reads.

    Size and BLAKE3 are checked; the folder appears only once it is whole.
    """
    from fedlora.errors import FedLoraError, Reason

    chosen = {"--version": version is not None, "--best": best, "--worker": worker is not None}
    given = [name for name, is_given in chosen.items() if is_given]
    if len(given) > 1:
        raise FedLoraError(
            Reason.INVALID_CONFIG, f"expected one of {', '.join(chosen)}, got {' and '.join(given)}"
        )
    if cache_dir is not None and worker is None:
        raise FedLoraError(Reason.INVALID_CONFIG, "expected --worker with --cache-dir, got none")
    if worker is None:
        _export_version(run, out, version, best=best, server=server, as_json=as_json)
    else:
        _export_own(run, out, worker, cache_dir, as_json=as_json)


def _export_version(
    run: str, out: Path, version: int | None, *, best: bool, server: str, as_json: bool
) -> None:
    from fedlora_cli.adapter_download import download_adapter
    from fedlora_cli.connection import connect
    from fedlora_cli.console import output, print_json

    with connect(server) as client:
        if best:
            version = _best_version(client.get_run(run))
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
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _export_own(run: str, out: Path, worker: str, cache_dir: Path | None, *, as_json: bool) -> None:
    from fedlora_cli.console import output, print_json
    from fedlora_cli.own_adapter import export_own_adapter, own_adapter_file

    note = export_own_adapter(own_adapter_file(run, worker, cache_dir), out)
    if as_json:
        print_json(
            {
                "adapter": str(out),
                "worker": note.worker,
                "version": note.adapter_version,
                "round": note.round,
                "trained": note.is_trained,
            }
        )
        return
    what = (
        f"as trained in round {note.round}, before aggregation"
        if note.is_trained
        else f"version {note.adapter_version} (round {note.round}) with what is its own"
    )
    said = f"{note.worker}'s own adapter, {what} -> {out}"
    output().print(said, markup=False, highlight=False, soft_wrap=True)


def _best_version(run: Run) -> int:
    from fedlora.errors import FedLoraError, Reason

    if run.best is None:
        by = run.spec.rounds.best_by
        why = f"no round has a {by} yet" if by else "rounds.best_by is empty"
        raise FedLoraError(
            Reason.NOT_FOUND,
            f"run {run.spec.name!r} has no best round: {why}",
            hint="Name a version with --version, or leave --best out for the newest",
        )
    return run.best.adapter_version
