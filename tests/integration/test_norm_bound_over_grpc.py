"""One hostile worker among four, over gRPC: how far it moves the model with a bound and without."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.federation import random_adapter, serving
from support.runs import run_spec
from support.worker_federation import stored
from torch import Tensor

from fedlora.runs.method import RuleSpec

HOSTILE = "w-4"
NAMES = ("w-0", "w-1", "w-2", "w-3", HOSTILE)
NUM_EXAMPLES = {name: 10 + i for i, name in enumerate(NAMES)}


def update(given: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    noise = random_adapter(4, seed=100 + NAMES.index(name))
    scale = 1e6 if name == HOSTILE else 0.01
    return {key: tensor + scale * noise[key] for key, tensor in given.items()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    squares = [float((after[k].double() - t.double()).square().sum()) for k, t in before.items()]
    return sum(squares) ** 0.5


@pytest.mark.parametrize("is_bounded", [False, True])
async def test_one_hostile_update_among_five(tmp_path: Path, is_bounded: bool):
    plugins = (RuleSpec(name="norm_bound", options={"max_ratio": 2.0}),) if is_bounded else ()
    spec = replace(run_spec(num_rounds=1, num_workers=len(NAMES), evaluate=False), plugins=plugins)
    given = random_adapter(4, seed=0)
    async with serving(tmp_path, spec) as served:
        workers = {name: await served.worker(name) for name in NAMES}
        first = workers[NAMES[0]]
        await first.push(await first.task(), given, num_examples=0)
        for name, worker in workers.items():
            task = await worker.task()
            await worker.push(task, update(given, name), num_examples=NUM_EXAMPLES[name])
        await served.aggregator.wait_until_settled()
        (report,) = await served.rounds("test")
        published = await stored(served, report.adapter_version)

    changes = {name: moved(given, update(given, name)) for name in NAMES}
    middle = statistics.median_low(changes.values())
    shares = {u.worker: u.share for u in report.updates if u.HasField("share")}
    if not is_bounded:
        assert not shares
        assert moved(given, published) > 1e4 * middle
        return

    # An oracle in words of the paper, from what was sent.
    bound = 2.0 * middle
    assert shares == pytest.approx({HOSTILE: bound / changes[HOSTILE]}, rel=1e-9)
    total = sum(NUM_EXAMPLES.values())
    for key, start in given.items():
        expected = start.double()
        for name in NAMES:
            change = update(given, name)[key].double() - start.double()
            cut = min(1.0, bound / changes[name])
            expected = expected + NUM_EXAMPLES[name] / total * cut * change
        assert torch.allclose(published[key].double(), expected, rtol=1e-6, atol=1e-7)
    assert moved(given, published) <= bound
    figures = report.certificate.overall
    assert figures.relative_error == pytest.approx(figures.factor_mean_error, rel=1e-3)
