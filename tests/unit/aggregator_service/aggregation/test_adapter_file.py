"""Which element type a cohort is read in, and that none of it changes a number."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import contribution, write_update

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.cohort_files import CohortFiles
from fedlora.adapters.names import Factor, Part, lora_key
from fedlora.runs.plan import RoundPlan

MODULE = "encoder.0.query"


@pytest.mark.parametrize(
    ("scaling", "dtype", "narrow"),
    [
        (2.0, torch.float32, True),
        (1.0, torch.float32, True),
        (0.125, torch.bfloat16, True),
        (4.0, torch.float16, True),
        (1.5, torch.float32, False),
        (16 / 8**0.5, torch.bfloat16, False),
        (2.0, torch.float64, False),
    ],
)
def test_updates_are_read_in_float32_where_that_holds_them_exactly(
    scaling, dtype, narrow, tmp_path
):
    path = write_update(tmp_path / "w.safetensors", seed=3, dtype=dtype)
    with AdapterFile(path, scaling, "w") as file:
        assert file.is_narrow(MODULE) is narrow
    with CohortFiles([contribution(path, scaling=scaling)]) as cohort:
        (found,) = cohort.factors(MODULE)
    assert found.dtype is (torch.float32 if narrow else torch.float64)
    stored = load_file(path)
    a, b = (stored[lora_key(MODULE, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
    assert torch.equal(found.a_RK.double(), a)
    assert torch.equal(found.b_DR.double(), b * scaling)


def test_one_update_that_needs_float64_is_enough(tmp_path):
    paths = [write_update(tmp_path / f"{u}.safetensors", seed=u) for u in range(2)]
    updates = [contribution(p, scaling=s) for p, s in zip(paths, (2.0, 3.0), strict=True)]
    with CohortFiles(updates) as cohort:
        assert {f.dtype for f in cohort.factors(MODULE)} == {torch.float64}


def test_updates_that_are_completed_are_float64(tmp_path):
    start = write_update(tmp_path / "start.safetensors", seed=1)
    update = write_update(tmp_path / "w.safetensors", seed=2)
    tensors = {k: v for k, v in load_file(update).items() if "lora_A" not in k}
    save_file(tensors, update)
    plan = RoundPlan(trained=(Part.B,), published=(Part.B,))
    with (
        AdapterFile(start, 2.0, "the start") as before,
        CohortFiles([contribution(update, scaling=2.0)], plan=plan, start=before) as cohort,
    ):
        (found,) = cohort.factors(MODULE)
        assert found.dtype is torch.float64
        assert torch.equal(found.a_RK, before.part(MODULE, Part.A))


def test_numbers_that_a_scale_lifts_out_of_float32_are_read_in_float64(tmp_path):
    path = write_update(tmp_path / "w.safetensors", seed=3)
    tensors = load_file(path)
    tensors[lora_key(MODULE, Factor.LORA_B)][0, 0] = 3e38
    save_file(tensors, path)
    with CohortFiles([contribution(path, scaling=4.0)]) as cohort:
        (found,) = cohort.factors(MODULE)
    assert found.dtype is torch.float64
    assert float(found.b_DR[0, 0]) == pytest.approx(1.2e39)
