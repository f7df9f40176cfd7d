"""How far updates moved, as the server finds it in their files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file
from support.builders import MODULES, contribution, write_update

from aggregator_service.aggregation.adapter_file import AdapterFile
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.driver import aggregate, certify
from aggregator_service.aggregation.registry import create_recipe
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from aggregator_service.aggregation.slicing import slice_adapter
from fedlora.adapters.names import PREFIX, Factor, lora_key
from fedlora.runs.method import MethodSpec, RuleSpec

FIRST, *_, LAST = MODULES


def scaling(rank: int) -> float:
    return 8 / rank


@pytest.fixture
def start(tmp_path):
    return write_update(tmp_path / "start", seed=1, saved={"head.weight": (2, 3)})


def norms(start, *updates):
    with (
        AdapterFile(start, scaling, "start") as begun,
        CohortFiles(updates, start=begun) as cohort,
    ):
        return cohort.change_norms()


def given(start, path, rank):
    slice_adapter(start, path, rank=rank, scaling=scaling)
    return replace(contribution(path, scaling=scaling), given_rank=rank)


@pytest.mark.parametrize("rank", [1, 3, 4])
def test_what_a_worker_was_given_has_not_moved_at_any_rank(start, tmp_path, rank):
    assert norms(start, given(start, tmp_path / "w", rank)) == (0.0,)


@pytest.mark.parametrize("rank", [2, 4])
def test_by_hand_over_both_factors_and_what_is_trained_in_full(start, tmp_path, rank):
    update = given(start, tmp_path / "w", rank)
    tensors = load_file(update.path)
    for key, change in (
        (lora_key(FIRST, Factor.LORA_A), 2.0),
        (lora_key(LAST, Factor.LORA_B), 3.0),
        (PREFIX + "head.weight", 6.0),
    ):
        tensors[key].view(-1)[0] += change
    save_file(tensors, update.path)
    assert norms(start, update) == pytest.approx((7.0,), rel=1e-6)


def test_each_update_has_its_own_and_the_order_of_the_names(start, tmp_path):
    updates = []
    for worker, change in (("b", 5.0), ("a", 1.0)):
        update = given(start, tmp_path / worker, 4)
        tensors = load_file(update.path)
        tensors[PREFIX + "head.weight"] += change / math.sqrt(6)
        save_file(tensors, update.path)
        updates.append(replace(update, worker=worker))
    assert norms(start, *updates) == pytest.approx((1.0, 5.0), rel=1e-6)


def test_without_a_version_before_nothing_is_known_to_have_moved(start):
    with CohortFiles([contribution(start, scaling=scaling)]) as cohort:
        assert cohort.change_norms() == (0.0,)


def test_a_huge_increment_is_cut_by_the_plug_in_that_bounds_changes(tmp_path):
    began = write_update(tmp_path / "start.safetensors", seed=1)
    stored = StoredAdapter(path=began, scaling=1.0)
    drifts = (0.1, 0.1, 50.0)
    cohort = [
        contribution(
            write_update(tmp_path / f"{u}.safetensors", seed=2 + u, origin=began, drift=drift)
        )
        for u, drift in enumerate(drifts)
    ]
    sizes = []
    for plugins in ((), (RuleSpec(name="norm_bound"),)):
        chosen = create_recipe(MethodSpec(name="fedhl"), plugins)
        output = tmp_path / f"out-{len(plugins)}"
        context = RoundContext(start=stored)
        outcome = aggregate(cohort, chosen, output=output, context=context)
        before, after = load_file(began), load_file(output)
        a, b = (lora_key("encoder.0.query", f) for f in (Factor.LORA_A, Factor.LORA_B))
        sizes.append(float((after[b] @ after[a] - before[b] @ before[a]).norm()))
    assert outcome.shares.keys() == {"2"}
    assert outcome.shares["2"] < 0.01
    assert sizes[1] < 0.01 * sizes[0]


def test_updates_that_their_weights_leave_out_have_no_say_in_the_bound(tmp_path):
    began = write_update(tmp_path / "start.safetensors", seed=1)
    context = RoundContext(start=StoredAdapter(path=began, scaling=1.0))
    cohort = [
        replace(
            contribution(
                write_update(tmp_path / f"{u}.safetensors", seed=2 + u, origin=began, drift=drift)
            ),
            metrics={"loss_reduction": reduction},
        )
        for u, (drift, reduction) in enumerate([(0.01, 0), (0.01, 0), (0.01, 0), (0.3, 1), (9, 1)])
    ]
    spec = MethodSpec(name="fedit", weighting=RuleSpec(name="loss_reduction"))
    chosen = create_recipe(spec, (RuleSpec(name="norm_bound"),))
    made = []
    for updates in (cohort, cohort[3:]):
        output = tmp_path / f"out-{len(updates)}"
        outcome = aggregate(updates, chosen, output=output, context=context)
        assert outcome.shares.keys() == {"4"}
        counted = [replace(c, weight=outcome.weights[c.worker]) for c in updates]
        published = StoredAdapter(path=output, scaling=1.0)
        certificate = certify(counted, chosen, published=published, context=context)
        made.append((output.read_bytes(), certificate.overall.relative_error))
    assert made[0] == made[1]
