"""What do codecs save, and what do they cost in accuracy?

    python benchmarks/codecs.py [--work FOLDER] [--seeds 2 3] [--rounds 5] [--steps 5]

Runs the quickstart's model and data with every codec under three aggregation methods, at equal
rounds and with paired seeds (`codec_runs/federations.py`), and writes benchmarks/codecs.md. The
training is shrunk to a few steps and rounds: compare rows, no accuracy is the quickstart's. With a
--work that is kept, a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

import torch
from codec_runs.federations import (
    Federation,
    Result,
    Shrunk,
    changes_after,
    federate,
    parties,
    results,
    write_tensors,
)
from codec_runs.formats import (
    Loss,
    loss_of,
    low_rank,
    seconds_per_gb,
    tensors_in_bf16,
    uniform_int4,
)
from torch import Tensor

from aggregator_service.aggregation.adapter_file import read_manifest
from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import create_codec
from fedlora.tensors.safetensors_io import decode

METHODS = ("fedit", "flora_na", "optimal")
CODECS = (None, *(CodecSpec(name=name) for name in CodecName))
"""None sends plain float32"""
WITHOUT_FEEDBACK = tuple(
    CodecSpec(name=name, error_feedback=False)
    for name in (CodecName.BF16, CodecName.NF4, CodecName.TOP_K)
)
"""under fedit only: what the residual is good for"""
STEPS = (5, 17, 50)
"""of a first round: of these federations, of the quickstart's, and of a longer one"""
PAGE = Path(__file__).with_suffix(".md")


def main() -> None:
    arguments = _parser().parse_args()
    shrunk = Shrunk(rounds=arguments.rounds, steps=arguments.steps)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        for seed in arguments.seeds:
            _measure(seed, shrunk, work)
        seed = arguments.seeds[0]
        first, changed = _tensors(work / f"first-{seed}"), _tensors(work / f"changed-{seed}")
        PAGE.write_text(_page(results(work), first, changed, shrunk))


def _measure(seed: int, shrunk: Shrunk, work: Path) -> None:
    """Runs what is missing of a seed."""
    done = {(r.seed, r.method, r.codec) for r in results(work)}
    wanted = [
        Federation(seed=seed, method=method, codec=codec)
        for codec in (*CODECS, *WITHOUT_FEEDBACK)
        for method in (METHODS if codec is None or codec.error_feedback else METHODS[:1])
    ]
    missing = [f for f in wanted if (seed, f.method, f.label) not in done]
    if not missing:
        return
    run, workers = parties(seed, shrunk)
    given = workers[0].trainer.adapter()
    first = write_tensors(work / f"first-{seed}", given)
    for federation in missing:
        print(federate(federation, run, workers, first, work), flush=True)
    trained = workers[0].first
    changed = {name: value - given[name] for name, value in trained.items()}
    write_tensors(work / f"changed-{seed}", changed)


def _tensors(path: Path) -> dict[str, Tensor]:
    return decode(path, read_manifest(path))


# --- the page ------------------------------------------------------------------------------


_PAGE = """\
# Codecs, measured

`python benchmarks/codecs.py --rounds {rounds} --steps {steps} --seeds {seeds}`, torch {torch} on
the CPU: the quickstart's model, data and four workers, {rounds} rounds of {steps} steps instead of
the quickstart's 12 of half an epoch. Seeds are paired: the same data, first adapter and order of
examples in every row.

## Size, error and time

Bytes of one worker's update. Error of the product B A that the server reads, over what the round's
training changed of it, mean of all rounds: of the codec alone (optimal, whose workers feed nothing
back), and with feedback (fedit), where what an update makes up for counts as its error. CPU seconds
per GB of float32.

{formats}

## Accuracy on the test set after the last round

Mean over the seeds in per cent; behind it the mean difference to no codec in points, and the
smallest and the largest in brackets.

{accuracies}

## Loss on the test set after the last round

It shows what a codec takes where the accuracy, of some thousand examples, does not.

{losses}

## Tried and left out

Error of the tensors of one worker's first update, without feedback, over what training changed of
them, at their bits per value. Equal steps are a four-bit format with nf4's blocks and scales. "Best
rank" is the nearest matrix of that rank to each factor's change: no sketch, such as PowerSGD's,
comes closer with so many numbers.

{tried}

Which four bits are better depends on the shape of the changes. The few steps of a short round move
all numbers about as far, which suits equal steps; over more steps they come to be distributed like
sums, which suits nf4, whose error is the same in both. Error of the tensors of a worker's first
update, by its steps:

{four_bits}
"""


def _page(
    found: Sequence[Result],
    first: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    shrunk: Shrunk,
) -> str:
    return _PAGE.format(
        rounds=shrunk.rounds,
        steps=shrunk.steps,
        seeds=" ".join(str(s) for s in sorted({r.seed for r in found})),
        torch=torch.__version__.partition("+")[0],
        formats=_formats(found),
        accuracies=_by_method(found, "accuracy", 100.0, 1),
        losses=_by_method(found, "loss", 1.0, 3),
        tried=_tried(first, changed),
        four_bits=_four_bits(),
    )


def _formats(found: Sequence[Result]) -> str:
    lines = ["| codec | bytes | share | error, alone | error, with feedback | encode | decode |"]
    lines.append("|---|---|---|---|---|---|---|")
    plain = _cells(found, "fedit", "none")[0].update_bytes
    lines.append(f"| none | {plain:,} | 100.0 % | 0 | 0 | | |")
    for codec in CODECS:
        if codec is None:
            continue
        cells, fed_back = (_cells(found, m, codec.name.value) for m in ("optimal", "fedit"))
        alone, made_up = (_percent(mean(_errors(c))) for c in (cells, fed_back))
        encode_seconds, decode_seconds = seconds_per_gb(create_codec(codec))
        size = cells[0].update_bytes
        lines.append(
            f"| {codec.name.value} | {size:,} | {100 * size / plain:.1f} % | {alone} "
            f"| {made_up} | {encode_seconds:.1f} s | {decode_seconds:.1f} s |"
        )
    return "\n".join(lines)


def _errors(cells: Sequence[Result]) -> list[float]:
    return [error for cell in cells for error in cell.product_errors]


def _by_method(found: Sequence[Result], figure: str, unit: float, digits: int) -> str:
    lines = [f"| codec | {' | '.join(METHODS)} |", "|---" * (1 + len(METHODS)) + "|"]
    for codec in (*CODECS, *WITHOUT_FEEDBACK):
        label = Federation(seed=0, method="", codec=codec).label
        row = []
        for method in METHODS:
            cells, plain = _cells(found, method, label), _cells(found, method, "none")
            pairs = [
                (unit * getattr(c, figure), unit * getattr(p, figure))
                for c in cells
                for p in plain
                if p.seed == c.seed
            ]
            row.append(_cell(pairs, digits, is_plain=codec is None))
        lines.append(f"| {label} | {' | '.join(row)} |")
    return "\n".join(lines)


def _cell(pairs: Sequence[tuple[float, float]], digits: int, *, is_plain: bool) -> str:
    if not pairs:
        return ""
    value = f"{mean(c for c, _ in pairs):.{digits}f}"
    if is_plain:
        return value
    apart = [c - p for c, p in pairs]
    spread = f" [{min(apart):+z.{digits}f}, {max(apart):+z.{digits}f}]" if len(apart) > 1 else ""
    return f"{value} ({mean(apart):+z.{digits}f}{spread})"


def _tried(first: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> str:
    losses: dict[str, Loss] = {
        spec.name.value: loss_of(create_codec(spec), changed) for spec in CODECS if spec
    }
    losses["bf16 of the tensors, not of their change"] = tensors_in_bf16(first, changed)
    losses["four bits, equal steps"] = uniform_int4(changed)
    for rank in (1, 2, 4):
        losses[f"best rank {rank}, float32"] = low_rank(changed, rank)
    lines = ["| format | bits | error |", "|---|---|---|"]
    lines += [
        f"| {name} | {loss.bits:.2f} | {_percent(loss.error)} |" for name, loss in losses.items()
    ]
    return "\n".join(lines)


def _four_bits() -> str:
    lines = ["| steps | nf4 | equal steps |", "|---|---|---|"]
    nf4 = create_codec(CodecSpec(name=CodecName.NF4))
    for steps in STEPS:
        changes = changes_after(2, steps)
        errors = (loss_of(nf4, changes).error, uniform_int4(changes).error)
        lines.append(f"| {steps} | {_percent(errors[0])} | {_percent(errors[1])} |")
    return "\n".join(lines)


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


def _cells(found: Sequence[Result], method: str, label: str) -> list[Result]:
    return sorted(
        (r for r in found if (r.method, r.codec) == (method, label)), key=lambda r: r.seed
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder to keep results in, to go on later")
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    return parser


if __name__ == "__main__":
    main()
