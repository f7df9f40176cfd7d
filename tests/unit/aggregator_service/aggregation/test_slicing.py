"""An adapter at a worker's lower rank: its first components, served unchanged."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support.builders import MODULES, contribution, write_update
from support.reference import best_of_rank, ideal, relative_error

from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.registry import create
from aggregator_service.aggregation.slicing import slice_rank
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import PREFIX, Factor, lora_key


def folded(path, module, scaling):
    tensors = load_file(path)
    a, b = (tensors[lora_key(module, f)].double() for f in (Factor.LORA_A, Factor.LORA_B))
    return LoraFactors.fold(a, b, scaling)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_kept_components_give_the_same_product_under_the_lower_ranks_scaling(rank, tmp_path):
    source = write_update(tmp_path / "source", seed=1, saved={"head.weight": (2, 3)})
    slice_rank(source, tmp_path / "out", rank=rank, rescale=(8 / 4) / (8 / rank))
    for module in MODULES:
        whole, part = folded(source, module, 8 / 4), folded(tmp_path / "out", module, 8 / rank)
        kept = whole.b_DR[:, :rank] @ whole.a_RK[:rank]
        assert part.rank == rank
        assert relative_error(part.delta_weight(), kept) < 1e-6
    head = PREFIX + "head.weight"
    assert torch.equal(load_file(source)[head], load_file(tmp_path / "out")[head])


def test_slices_of_optimal_are_optimal_at_their_rank(tmp_path):
    cohort = [contribution(write_update(tmp_path / f"{u}", seed=u)) for u in range(3)]
    aggregate(cohort, create("optimal"), output=tmp_path / "whole", rank=8)
    slice_rank(tmp_path / "whole", tmp_path / "part", rank=3, rescale=1.0)
    for module in MODULES:
        target = ideal([folded(c.path, module, 1.0) for c in cohort], torch.ones(3).double())
        part = folded(tmp_path / "part", module, 1.0).delta_weight()
        assert relative_error(part, best_of_rank(target, 3)) < 1e-6
