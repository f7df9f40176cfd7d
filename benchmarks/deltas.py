"""What sending a version as its exact difference to the one before would save.

    python benchmarks/deltas.py RUN_DIRECTORY ... [--out PAGE]

Every pair of consecutive versions of real runs, in float32 as they are published. The difference is
of the bit patterns, as whole numbers, so that the older version and the difference give the newer
one bit for bit; its bytes are sorted by their place in the value, which is what compressors like.
Beside it the newer version alone, treated alike.
"""

from __future__ import annotations

import argparse
import itertools
import lzma
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from shared.processes import commit, machine

from aggregator_service.reporting.run_directory import read_run

Bits: TypeAlias = NDArray[np.uint32]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib, level 6": lambda data: zlib.compress(data, 6),
    "xz, level 6": lambda data: lzma.compress(data, preset=6),
}


def bits(path: Path) -> Bits:
    """Bit patterns of all values of an adapter, in the order of their names."""
    tensors: dict[str, NDArray[Any]] = load_file(path)
    whole = np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
    if whole.dtype != np.float32:
        raise SystemExit(f"expected float32 in {path}, got {whole.dtype}")
    return whole.view(np.uint32)


def by_place(values: Bits) -> bytes:
    """The lowest bytes of all values, then the next, and so on."""
    return values.view(np.uint8).reshape(-1, 4).T.tobytes()


def rows_of(run_dir: Path) -> list[str]:
    """A run's rows of the table."""
    paths = sorted(run_dir.glob("rounds/*/adapter_model.safetensors"))
    if len(paths) < 2:
        raise SystemExit(f"expected two versions at least in {run_dir}, got {len(paths)}")
    versions = [bits(path) for path in paths]
    differences = [after - before for before, after in itertools.pairwise(versions)]
    same = np.mean([(of == 0).mean() for of in differences])
    name = f"`{read_run(run_dir).spec.method.name}`"
    rows = []
    for compressor, compress in COMPRESSORS.items():
        began = time.process_time()
        shares = _shares(differences, compress)
        seconds = time.process_time() - began
        alone = _shares(versions[1:], compress)
        speed = sum(of.nbytes for of in differences) / seconds / 1e6
        rows.append(
            f"| {name} | {len(differences)} | {versions[0].nbytes / 1e6:.2g} | {same:.1%} | "
            f"{compressor} | {np.mean(shares):.2f} | {min(shares):.2f} | {np.mean(alone):.2f} | "
            f"{speed:.0f} |"
        )
    return rows


def _shares(values: Sequence[Bits], compress: Callable[[bytes], bytes]) -> list[float]:
    """Compressed bytes of plain ones, of each."""
    return [len(compress(by_place(of))) / of.nbytes for of in values]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run_dir", type=Path, nargs="+", help="directory of a run")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    intro = " ".join((__doc__ or "").split("\n\n")[2].split())
    lines = [
        "# A version as a difference",
        "",
        (
            f"Measured by `python benchmarks/deltas.py RUN_DIRECTORY ...` at commit {commit()} on "
            f"{machine()}. {intro}"
        ),
        "",
        (
            "| method | pairs | MB | values that stay | compressor | difference, of the plain "
            "bytes | least | the version itself | MB/s |"
        ),
        "|---|---:|---:|---:|---|---:|---:|---:|---:|",
        *(row for run_dir in given.run_dir for row in rows_of(run_dir)),
    ]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
