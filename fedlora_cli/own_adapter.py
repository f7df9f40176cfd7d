"""Makes a PEFT folder of the adapter that a worker keeps as its own, on the worker's machine."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from fedlora.adapters.own_note import OwnNote, note_in
from fedlora.adapters.peft_files import write_peft_folder
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.configuration import need_service
from fedlora_cli.run_folder import RunFolder

__all__ = ["export_own_adapter", "own_adapter_file"]


def own_adapter_file(run: str, worker: str, cache_dir: Path | None) -> Path:
    """Where a worker keeps its own adapter.

    Args:
        run: a run directory of this machine; with `cache_dir` the run's name.
        worker: its name.
        cache_dir: the worker's `worker.cache_dir`; None for a worker of a run directory.

    Raises:
        FedLoraError: NOT_FOUND if it is not there: such a file never leaves its machine.
    """
    if cache_dir is None:
        folder = RunFolder(Path(run))
        described = folder.run()
        if described is None:
            raise FedLoraError(
                Reason.NOT_FOUND,
                f"{run!r} is no run directory: it has no run.json",
                hint="A worker's own adapter is on the worker's machine only: name a run directory "
                "of this one, or the run with --cache-dir, the worker.cache_dir of the worker",
            )
        cache_dir, run = folder.worker_cache_dir(worker), described.spec.name
    path = cache_dir / "workers" / worker / "own" / f"{run}.safetensors"
    if not path.is_file():
        raise FedLoraError(
            Reason.NOT_FOUND,
            f"worker {worker!r} has no adapter of its own for run {run!r} here: there is no file "
            f"{str(path)!r}",
            hint="It is there after the worker's first round, where worker.cache_dir is set",
        )
    return path


def export_own_adapter(source: Path, out: Path) -> OwnNote:
    """Writes a worker's own adapter as a folder that `PeftModel.from_pretrained` reads.

    Args:
        source: what the worker keeps.
        out: must not exist; it appears complete or not at all.

    Returns:
        What the file says of itself.

    Raises:
        FedLoraError: ALREADY_EXISTS for a folder that is there, INVALID_PAYLOAD for a file that
            is none of a worker's.
    """
    need_service("aggregator_service", "aggregator")
    from aggregator_service.aggregation.servable import servable_rank, write_servable
    from aggregator_service.reporting.records import from_record

    if out.exists():
        raise FedLoraError(
            Reason.ALREADY_EXISTS, f"{str(out)!r} is there already", hint="Name a new folder"
        )
    note = from_record(json.loads(note_in(source)), OwnNote)
    scaling = note.spec.scaling
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        # A copy even where it is servable as it is: the worker replaces its file.
        weights = scratch / "weights"
        rank = servable_rank(source, scaling)
        if rank:
            shutil.copyfile(source, weights)
        else:
            rank = write_servable(source, weights, scaling=scaling)
        write_peft_folder(out, spec=note.spec, rank=rank, weights=weights)
    finally:
        shutil.rmtree(scratch)
    return note
