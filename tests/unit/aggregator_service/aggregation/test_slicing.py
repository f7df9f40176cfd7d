"""An adapter at a worker's lower rank: its first components, served unchanged."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support.builders import MODULES, contribution, folded, write_update
from support.recipes import recipe
from support.reference import best_of_rank, ideal, relative_error

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.slicing import given_factors, slice_adapter
from fedlora.adapters.names import PREFIX, Part


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_the_kept_components_give_the_same_product_under_the_lower_ranks_scaling(rank, tmp_path):
    source = write_update(tmp_path / "source", seed=1, saved={"head.weight": (2, 3)})
    slice_adapter(source, tmp_path / "out", rank=rank, scaling=lambda r: 8 / r)
    for module in MODULES:
        whole, part = folded(source, module, 8 / 4), folded(tmp_path / "out", module, 8 / rank)
        kept = whole.b_DR[:, :rank] @ whole.a_RK[:rank]
        assert part.rank == rank
        assert relative_error(part.delta_weight(), kept) < 1e-6
    head = PREFIX + "head.weight"
    assert torch.equal(load_file(source)[head], load_file(tmp_path / "out")[head])


def test_slices_of_optimal_are_optimal_at_their_rank(tmp_path):
    cohort = [contribution(write_update(tmp_path / f"{u}", seed=u)) for u in range(3)]
    aggregate(cohort, recipe("optimal"), output=tmp_path / "whole", rank=8)
    slice_adapter(tmp_path / "whole", tmp_path / "part", rank=3, scaling=1.0)
    for module in MODULES:
        target = ideal([folded(c.path, module, 1.0) for c in cohort], torch.ones(3).double())
        part = folded(tmp_path / "part", module, 1.0).delta_weight()
        assert relative_error(part, best_of_rank(target, 3)) < 1e-6


def test_a_module_of_lower_rank_gets_components_that_can_learn(tmp_path):
    source = write_update(tmp_path / "source", seed=1, ranks={"encoder.0.query": 2})
    slice_adapter(source, tmp_path / "out", rank=4, scaling=lambda r: 8 / r)
    whole = folded(source, "encoder.0.query", 8 / 2)
    part = folded(tmp_path / "out", "encoder.0.query", 8 / 4)
    assert part.rank == 4
    assert relative_error(part.delta_weight(), whole.delta_weight()) < 1e-6
    assert not bool(part.b_DR[:, 2:].any())
    assert bool((part.a_RK[2:].norm(dim=1) > 0.5).all())


def test_only_the_parts_asked_for_are_written_and_the_rest_of_the_file_is_left(tmp_path):
    source = write_update(tmp_path / "source", seed=1, saved={"head.weight": (2, 3)})
    slice_adapter(source, tmp_path / "out", rank=4, scaling=2.0, parts={Part.B})
    written = load_file(tmp_path / "out")
    assert sorted(written) == sorted(k for k in load_file(source) if "lora_A" not in k)
    for key, tensor in written.items():
        assert torch.equal(tensor, load_file(source)[key])


def test_what_a_worker_was_given_can_be_computed_again_to_the_bit(tmp_path):
    source = write_update(tmp_path / "source", seed=1, dtype=torch.bfloat16)
    slice_adapter(source, tmp_path / "out", rank=3, scaling=lambda r: 8 / r)
    with AdapterFile(source, lambda r: 8 / r, "source") as file:
        for module in MODULES:
            given, read = given_factors(file, module, 3), folded(tmp_path / "out", module, 8 / 3)
            assert torch.equal(given.a_RK, read.a_RK)
            assert torch.equal(given.b_DR, read.b_DR)
