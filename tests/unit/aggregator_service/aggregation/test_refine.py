"""What a worker with the server's data trained, put into what a round came to."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from support.builders import MODULES, write_update
from support.recipes import recipe

from aggregator_service.aggregation.refine import refine
from aggregator_service.aggregation.round_context import StoredAdapter
from fedlora.adapters.names import PREFIX, Part, parse_key, part_key
from fedlora.tensors.manifest import DataType

HEAD = PREFIX + "head.weight"


def refined_by(method, combined, refined, parts, *, scaling=2.0):
    """What the files hold: of the round, of the refiner, and of what is made of both."""
    output = combined.with_name("out")
    refine(
        recipe(method),
        combined=StoredAdapter(path=combined, scaling=scaling),
        refined=StoredAdapter(path=refined, scaling=scaling),
        parts=parts,
        output=output,
        dtype=DataType.F32,
    )
    return tuple(load_file(path) for path in (combined, refined, output))


@pytest.mark.parametrize("parts", [(Part.A,), (Part.B,), (Part.A, Part.B)])
def test_only_the_parts_named_and_the_modules_trained_in_full_change(parts, tmp_path):
    combined, refined = (
        write_update(tmp_path / str(seed), seed=seed, saved={"head.weight": (2, 3)})
        for seed in (1, 2)
    )
    before, after, made = refined_by("fedit", combined, refined, parts)
    assert made.keys() == before.keys()
    for key, tensor in made.items():
        wanted = after if key == HEAD or parse_key(key).part in parts else before
        torch.testing.assert_close(tensor, wanted[key], rtol=1e-6, atol=0)
        if wanted is before:
            assert torch.equal(tensor, before[key])


def test_how_the_refinement_changes_the_adapter_is_the_methods_to_say(tmp_path):
    combined, refined = (write_update(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    before, after, made = refined_by("fedlora_optimizer", combined, refined, (Part.A,))
    for module in MODULES:
        key = part_key(module, Part.A)
        # Directions are the refinement's, lengths are what the round came to.
        rows, wanted = made[key], torch.nn.functional.normalize(after[key], dim=1)
        torch.testing.assert_close(torch.nn.functional.normalize(rows, dim=1), wanted)
        torch.testing.assert_close(rows.norm(dim=1), before[key].norm(dim=1))
        assert torch.equal(made[part_key(module, Part.B)], before[part_key(module, Part.B)])


def test_components_beyond_the_rank_of_who_refines_stay(tmp_path):
    def scaling(rank):
        return 8 / rank

    combined = write_update(tmp_path / "combined", seed=1, rank=4)
    refined = write_update(tmp_path / "refined", seed=2, rank=2)
    before, after, made = refined_by("aflora", combined, refined, (Part.A, Part.B), scaling=scaling)
    for module in MODULES:
        a, b = part_key(module, Part.A), part_key(module, Part.B)
        assert torch.equal(made[a], torch.cat([after[a], before[a][2:]]))
        # s = 4 of its own rank is s = 2 of the adapter's.
        assert torch.equal(made[b], torch.cat([after[b] * 2, before[b][:, 2:]], dim=1))


def test_spare_components_of_who_refines_are_not_the_adapters(tmp_path):
    combined = write_update(tmp_path / "combined", seed=1, rank=2)
    refined = write_update(tmp_path / "refined", seed=2, rank=4)
    before, after, made = refined_by("fedit", combined, refined, (Part.A,))
    for module in MODULES:
        a, b = part_key(module, Part.A), part_key(module, Part.B)
        assert torch.equal(made[a], after[a][:2])
        assert torch.equal(made[b], before[b])
