"""The port to the frozen weights: rows, shapes, shards, and whether it is the run's model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from support.builders import normal

from aggregator_service.aggregation import base_weights as module
from aggregator_service.aggregation.base_weights import BaseWeights
from client_worker.adaptation.fingerprint import fingerprint
from fedlora.adapters.spec import AdaptedModule
from fedlora.errors import FedLoraError, Reason

QUERY, HEAD = "encoder.query", "classifier"
MODULES = [AdaptedModule(path=QUERY, out_features=24, in_features=17)]


def state():
    return {
        f"{QUERY}.weight": normal(1, 24, 17).float(),
        f"{QUERY}.bias": normal(2, 24).float(),
        "embeddings.weight": normal(3, 50, 17).float(),
        "embeddings.position_ids": torch.arange(50)[None],
        "scale": torch.tensor(3.0),
        f"{HEAD}.weight": normal(4, 3, 24).float(),
        f"pre_{HEAD}.weight": normal(5, 24, 24).float(),
    }


def single(folder, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    return folder


def sharded(folder, tensors):
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    files = {"model-00001.safetensors": names[:3], "model-00002.safetensors": names[3:]}
    for file, held in files.items():
        save_file({k: tensors[k] for k in held}, folder / file)
    where = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize("layout", [single, sharded])
def test_rows_are_those_of_the_weight_in_float64(layout, tmp_path):
    with BaseWeights(layout(tmp_path, state())) as weights:
        weights.check_modules(MODULES)
        rows = weights.rows(QUERY, 5, 9)
    assert rows.dtype == torch.float64
    assert torch.equal(rows, state()[f"{QUERY}.weight"][5:9].double())


def test_a_file_is_as_good_as_its_folder(tmp_path):
    with BaseWeights(single(tmp_path, state()) / "model.safetensors") as weights:
        assert weights.rows(QUERY, 0, 24).shape == (24, 17)


def test_weights_stored_in_by_out_are_turned(tmp_path):
    turned = state() | {f"{QUERY}.weight": state()[f"{QUERY}.weight"].T.contiguous()}
    with BaseWeights(single(tmp_path, turned), fan_in_fan_out=True) as weights:
        weights.check_modules(MODULES)
        assert torch.equal(weights.rows(QUERY, 20, 24), state()[f"{QUERY}.weight"][20:].double())
    with (
        BaseWeights(tmp_path) as weights,
        pytest.raises(FedLoraError, match=r"\[17, 24\], expected \[24, 17\]") as caught,
    ):
        weights.check_modules(MODULES)
    assert caught.value.reason is Reason.BASE_MISMATCH
    assert "base_fan_in_fan_out = true" in caught.value.hint


@pytest.mark.parametrize("layout", [single, sharded])
@pytest.mark.parametrize("trained", [(), (HEAD,)])
def test_the_fingerprint_is_the_one_a_worker_makes(layout, trained, tmp_path, monkeypatch):
    # Small pieces, so that tensors are hashed in several.
    monkeypatch.setattr(module, "_PIECE_NUMBERS", 40)
    with BaseWeights(layout(tmp_path, state())) as weights:
        expected = fingerprint(state(), trained=trained)
        assert weights.fingerprint(trained=trained) == expected
        weights.check_fingerprint(expected, trained=trained)


def test_half_precision_files_have_the_fingerprint_of_the_model_in_float32(tmp_path):
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state().items()}
    loaded = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    with BaseWeights(single(tmp_path, half)) as weights:
        assert weights.fingerprint() == fingerprint(loaded, trained=())


def test_another_model_is_refused(tmp_path):
    other = state() | {f"{QUERY}.bias": torch.zeros(24)}
    with (
        BaseWeights(single(tmp_path, other)) as weights,
        pytest.raises(FedLoraError, match=r"fingerprint sha256:\w+, expected sha256:\w+") as caught,
    ):
        weights.check_fingerprint(fingerprint(state(), trained=()))
    assert caught.value.reason is Reason.BASE_MISMATCH
    assert "save_file" in caught.value.hint


def test_a_module_that_is_not_there_is_named_with_the_nearest(tmp_path):
    prefixed = {f"bert.{k}": v for k, v in state().items()}
    with (
        BaseWeights(single(tmp_path, prefixed)) as weights,
        pytest.raises(FedLoraError, match=r"no tensor 'encoder.query.weight'; .*'bert.encoder"),
    ):
        weights.check_modules(MODULES)


def test_quantised_weights_are_refused(tmp_path):
    packed = state() | {f"{QUERY}.weight": torch.zeros(24, 17, dtype=torch.uint8)}
    with (
        BaseWeights(single(tmp_path, packed)) as weights,
        pytest.raises(
            FedLoraError, match=r"expected a matrix of floating numbers, got U8"
        ) as caught,
    ):
        weights.rows(QUERY, 0, 1)
    assert "Quantised" in caught.value.hint


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(FedLoraError, match=r"one safetensors file, got none"):
        BaseWeights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no header")
    with pytest.raises(FedLoraError, match="cannot be opened"):
        BaseWeights(tmp_path)
    folder = sharded(tmp_path / "shards", state())
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../outside.safetensors"}}')
    with pytest.raises(FedLoraError, match="no file of the folder"):
        BaseWeights(folder)
    index.write_text("{")
    with pytest.raises(FedLoraError, match=r"index\.json cannot be read"):
        BaseWeights(folder)
