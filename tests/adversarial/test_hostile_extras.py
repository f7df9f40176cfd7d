"""Updates whose tensors beside the adapter are not those that the run's plug-ins send."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from support.federation import random_adapter, reason_of, serving
from support.runs import run_spec
from torch import Tensor

from fedlora.adapters.names import extra_key
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.spec import RunSpec

Bend = Callable[[dict[str, Tensor]], None]


def run_with_scaffold() -> RunSpec:
    spec = run_spec(num_rounds=1, num_workers=1)
    method = MethodSpec(name="fedit", weighting=RuleSpec(name="uniform"))
    return replace(spec, method=method, plugins=(RuleSpec(name="scaffold"),))


def one_of(tensors: dict[str, Tensor]) -> str:
    return max(key for key in tensors if key.startswith("scaffold/dc"))


def without(tensors: dict[str, Tensor]) -> None:
    del tensors[one_of(tensors)]


def wider(tensors: dict[str, Tensor]) -> None:
    key = one_of(tensors)
    tensors[key] = torch.cat([tensors[key]] * 2).contiguous()


def narrower_type(tensors: dict[str, Tensor]) -> None:
    tensors[one_of(tensors)] = tensors[one_of(tensors)].half()


def another_name(tensors: dict[str, Tensor]) -> None:
    tensors["scaffold/secret:" + next(iter(tensors)).partition(":")[2]] = torch.zeros(3)


def no_such_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["scaffold/dc:base_model.model.elsewhere"] = torch.zeros(3)


def not_a_number(tensors: dict[str, Tensor]) -> None:
    tensors[one_of(tensors)].view(-1)[0] = torch.nan


CASES: list[tuple[Bend, str]] = [
    (without, "MANIFEST_MISMATCH"),
    (wider, "MANIFEST_MISMATCH"),
    (narrower_type, "MANIFEST_MISMATCH"),
    (another_name, "MANIFEST_MISMATCH"),
    (no_such_tensor, "MANIFEST_MISMATCH"),
    (not_a_number, "NOT_FINITE"),
]


@pytest.mark.parametrize(("bend", "reason"), CASES, ids=lambda v: getattr(v, "__name__", v))
async def test_it_is_refused_and_the_honest_one_is_taken_after_it(
    tmp_path: Path, bend: Bend, reason: str
):
    async with asyncio.timeout(60), serving(tmp_path, run_with_scaffold()) as served:
        worker = await served.worker("w")
        await worker.push(await worker.task(), random_adapter(4, seed=0), num_examples=0)
        task = await worker.task()
        assert [*task.plan.sent_extras] == ["scaffold/dc"]
        trained = random_adapter(4, seed=1)
        change = {extra_key("scaffold/dc", n): torch.ones_like(t) for n, t in trained.items()}
        bent = {**trained, **{key: tensor.clone() for key, tensor in change.items()}}
        bend(bent)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await worker.push(task, bent)
        assert reason_of(error.value) == reason
        assert not (await worker.push(task, {**trained, **change})).replayed


async def test_tensors_of_a_plug_in_are_refused_where_the_run_has_none(tmp_path: Path):
    async with (
        asyncio.timeout(60),
        serving(tmp_path, run_spec(num_rounds=1, num_workers=1)) as served,
    ):
        worker = await served.worker("w")
        await worker.push(await worker.task(), random_adapter(4, seed=0), num_examples=0)
        task, trained = await worker.task(), random_adapter(4, seed=1)
        extra = {extra_key("scaffold/dc", n): torch.ones_like(t) for n, t in trained.items()}
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await worker.push(task, {**trained, **extra})
        assert reason_of(error.value) == "MANIFEST_MISMATCH"
