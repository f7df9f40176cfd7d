"""What plug-ins send, summed over the cohort; what they remember, over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.federation import random_adapter
from torch import Tensor

from aggregator_service.aggregation.composition import Recipe
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.registry import create_recipe
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.servable import servable_rank, write_servable
from aggregator_service.aggregation.slicing import slice_adapter
from fedlora.adapters.extras import extras_of, without_extras
from fedlora.adapters.names import Part, extra_key
from fedlora.runs.method import MethodSpec, RuleSpec

RECIPE = create_recipe(
    MethodSpec(name="fedit", weighting=RuleSpec(name="uniform")), [RuleSpec(name="scaffold")]
)


def update(folder: Path, u: int, round: int, weight: float = 1.0) -> Contribution:
    adapter = random_adapter(4, seed=10 * round + u)
    extras = {extra_key("scaffold/dc", n): torch.full_like(t, u) for n, t in adapter.items()}
    path = folder / f"{round}-{u}.safetensors"
    save_file({**adapter, **extras}, path)
    return Contribution(worker=f"w-{u}", weight=weight, path=path, scaling=2.0)


def round_of(
    folder: Path,
    round: int,
    cohort: list[Contribution],
    num_workers: int = 5,
    recipe: Recipe = RECIPE,
) -> dict[str, Tensor]:
    """A round on the one before, as a server that has just started would compute it."""
    start, state = folder / f"v{round - 1}.safetensors", folder / f"s{round - 1}.safetensors"
    if round == 1:
        save_file(random_adapter(4, seed=0), start)
    aggregate(
        cohort,
        recipe,
        output=folder / f"v{round}.safetensors",
        state_output=folder / f"s{round}.safetensors",
        context=RoundContext(
            round=round,
            start=StoredAdapter(path=start, scaling=2.0),
            state=state if round > 1 else None,
            num_workers=num_workers,
        ),
        output_scaling=2.0,
    )
    return load_file(folder / f"v{round}.safetensors")


def test_the_sum_is_over_the_cohort_and_the_mean_over_all_that_are_known(tmp_path: Path):
    one = round_of(tmp_path, 1, [update(tmp_path, u, 1) for u in (1, 2, 4)])
    c = extras_of(one, "scaffold/c")
    assert c.keys() == without_extras(one).keys()
    assert all(bool((t == torch.tensor(7 / 5)).all()) for t in c.values())
    two = round_of(tmp_path, 2, [update(tmp_path, u, 2) for u in (1, 3)], num_workers=8)
    assert all(bool((t == 11 / 8).all()) for t in extras_of(two, "scaffold/c").values())


def test_an_update_that_does_not_count_is_in_no_sum(tmp_path: Path):
    cohort = [update(tmp_path, 1, 1), update(tmp_path, 4, 1, weight=0.0)]
    c = extras_of(round_of(tmp_path, 1, cohort), "scaffold/c")
    assert all(bool((t == torch.tensor(1 / 5)).all()) for t in c.values())


def test_a_bound_on_updates_leaves_them_as_they_were_sent(tmp_path: Path):
    bound = RuleSpec(name="norm_bound", options={"max_ratio": 0.0, "max_norm": 1e-3})
    weighed = MethodSpec(name="fedit", weighting=RuleSpec(name="uniform"))
    bounded = create_recipe(weighed, [RuleSpec(name="scaffold"), bound])
    cohort = [update(tmp_path, u, 1) for u in (1, 2, 4)]
    for name in ("free", "cut"):
        (tmp_path / name).mkdir()
    free = round_of(tmp_path / "free", 1, cohort)
    cut = round_of(tmp_path / "cut", 1, cohort, recipe=bounded)
    start = load_file(tmp_path / "free" / "v0.safetensors")
    for name, tensor in extras_of(free, "scaffold/c").items():
        assert torch.equal(extras_of(cut, "scaffold/c")[name], tensor)
    # Of the updates themselves next to nothing counts.
    assert max(float((without_extras(cut)[n] - t).abs().max()) for n, t in start.items()) < 1e-2
    assert max(float((without_extras(free)[n] - t).abs().max()) for n, t in start.items()) > 1


def test_the_adapter_is_what_it_is_without_them(tmp_path: Path):
    cohort = [update(tmp_path, u, 1) for u in (1, 2)]
    with_extras = round_of(tmp_path, 1, cohort)
    plain = tmp_path / "plain.safetensors"
    recipe = create_recipe(MethodSpec(name="fedit", weighting=RuleSpec(name="uniform")))
    aggregate(cohort, recipe, output=plain, output_scaling=2.0)
    for name, tensor in load_file(plain).items():
        assert torch.equal(tensor, with_extras[name])


@pytest.mark.parametrize("parts", [frozenset(Part), frozenset({Part.A})])
def test_a_workers_copy_has_them_and_a_servable_one_has_not(tmp_path: Path, parts):
    published = round_of(tmp_path, 1, [update(tmp_path, u, 1) for u in (1, 2)])
    source, copy = tmp_path / "v1.safetensors", tmp_path / "copy.safetensors"
    slice_adapter(source, copy, rank=4, scaling=2.0, parts=parts)
    assert extras_of(load_file(copy), "scaffold/c").keys() == without_extras(published).keys()
    assert servable_rank(source, 2.0) == 0
    write_servable(source, copy, scaling=2.0)
    assert load_file(copy).keys() == without_extras(published).keys()
