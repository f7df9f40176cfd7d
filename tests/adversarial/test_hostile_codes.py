"""Updates that no encoder writes are refused at the door of a real server, and leave nothing."""

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

from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.codecs.updates import coded_update, create_codec

KEY = "base_model.model.encoder.0.query.lora_B.weight"

Bend = Callable[[dict[str, Tensor]], None]


def setting(field: str, value: float) -> Bend:
    def bend(tensors: dict[str, Tensor]) -> None:
        tensors[f"{KEY}.{field}"].view(-1)[-1] = value

    return bend


def dropped(field: str) -> Bend:
    def bend(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{KEY}.{field}"]

    return bend


def wider(field: str) -> Bend:
    def bend(tensors: dict[str, Tensor]) -> None:
        name = f"{KEY}.{field}"
        tensors[name] = torch.cat([tensors[name], tensors[name]])

    return bend


def plain(tensors: dict[str, Tensor]) -> None:
    tensors.clear()
    tensors.update(random_adapter(4, seed=1))


CASES = [
    (CodecName.INT8, setting("codes", 0), "INVALID_PAYLOAD"),
    (CodecName.INT8, setting("scales", -1.0), "INVALID_PAYLOAD"),
    (CodecName.INT8, setting("scales", float("inf")), "NOT_FINITE"),
    (CodecName.INT8, setting("scales", float("nan")), "NOT_FINITE"),
    (CodecName.INT8, dropped("scales"), "MANIFEST_MISMATCH"),
    (CodecName.INT8, wider("codes"), "MANIFEST_MISMATCH"),
    (CodecName.INT8, plain, "MANIFEST_MISMATCH"),
    (CodecName.NF4, setting("scales", float("inf")), "NOT_FINITE"),
    (CodecName.NF4, setting("scales", -2.0), "INVALID_PAYLOAD"),
    (CodecName.TOP_K, setting("places", 255), "INVALID_PAYLOAD"),
    (CodecName.TOP_K, setting("values", float("nan")), "NOT_FINITE"),
    (CodecName.TOP_K, wider("values"), "MANIFEST_MISMATCH"),
    (CodecName.BF16, setting("values", float("-inf")), "NOT_FINITE"),
    (CodecName.F16, plain, "MANIFEST_MISMATCH"),
]


@pytest.mark.parametrize(("name", "bend", "reason"), CASES)
async def test_it_is_refused_and_the_honest_one_is_taken_after_it(
    tmp_path: Path, name: CodecName, bend: Bend, reason: str
):
    spec = replace(run_spec(num_rounds=1, num_workers=1), codec=CodecSpec(name=name))
    codec = create_codec(CodecSpec(name=name))
    async with asyncio.timeout(60), serving(tmp_path, spec) as served:
        worker = await served.worker("w")
        await worker.push(await worker.task(), random_adapter(4, seed=0), num_examples=0)
        task = await worker.task()
        given = await worker.pull_tensors(task.adapter_version)
        trained = {key: value + 0.01 for key, value in given.items()}
        honest = dict(coded_update(codec, trained, given, {}).tensors)
        bent = {key: value.clone() for key, value in honest.items()}
        bend(bent)
        blobs = _blobs(tmp_path)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await worker.push(task, bent)
        assert reason_of(error.value) == reason
        assert _blobs(tmp_path) == blobs
        assert not (await worker.push(task, honest)).replayed


def _blobs(tmp_path: Path) -> set[Path]:
    return {path for path in (tmp_path / "state" / "blobs").rglob("*") if path.is_file()}
