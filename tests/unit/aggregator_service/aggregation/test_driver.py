"""From files to a file: order, scale, dtype, the head, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.builders import MODULES, contribution, folded, write_update
from support.recipes import recipe, whole_adapter_methods
from support.reference import ideal, mean_product, relative_error

from aggregator_service.aggregation.composition import compose
from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.registry import METHODS
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import PREFIX, Factor, Part, lora_key, part_key
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import FLOATS, DataType

every_method = pytest.mark.parametrize("name", whole_adapter_methods())
plain_methods = pytest.mark.parametrize("name", ["fedit", "flora_na", "optimal"])
HEAD = {"classifier.weight": (3, 7), "classifier.bias": (3,)}


@pytest.fixture
def cohort(tmp_path):
    origin = write_update(tmp_path / "start.safetensors", seed=1, saved=HEAD)
    return [
        contribution(
            write_update(
                tmp_path / f"worker-{u}.safetensors", seed=2 + u, origin=origin, saved=HEAD
            ),
            weight=1.0 + u,
            scaling=2.0,
        )
        for u in range(3)
    ]


def began(tmp_path) -> RoundContext:
    """A round that began from the file all workers started from."""
    return RoundContext(start=StoredAdapter(path=tmp_path / "start.safetensors", scaling=2.0))


def target(contributions, module):
    factors = [folded(c.path, module, c.scaling) for c in contributions]
    return ideal(factors, torch.tensor([c.weight for c in contributions], dtype=torch.float64))


@every_method
def test_arrival_order_and_absent_workers_change_no_byte(name, cohort, tmp_path):
    method = recipe(name)
    absent = replace(cohort[0], worker="worker-1b", weight=0.0, path=tmp_path / "never-opened")
    files = []
    for i, order in enumerate([cohort, cohort[::-1], [cohort[1], absent, cohort[0], cohort[2]]]):
        files.append(tmp_path / f"out-{i}")
        aggregate(order, method, output=files[-1], rank=6, seed=3, context=began(tmp_path))
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()


@plain_methods
def test_the_result_is_served_with_its_own_scaling(name, cohort, tmp_path):
    outputs = {}
    for s in (1.0, 0.25, 16.0):
        outputs[s] = tmp_path / f"out-{s}"
        aggregate(cohort, recipe(name), output=outputs[s], output_scaling=s)
    for module in MODULES:
        products = [folded(path, module, s).delta_weight() for s, path in outputs.items()]
        for other in products[1:]:
            torch.testing.assert_close(other, products[0], rtol=0, atol=1e-5)


def test_scales_of_workers_may_differ_and_are_folded_once(cohort, tmp_path):
    scaled = [replace(c, scaling=s) for c, s in zip(cohort, (2.0, 0.5, 3.0), strict=True)]
    output = tmp_path / "out"
    aggregate(scaled, recipe("optimal"), output=output, rank=12, output_scaling=lambda r: 24 / r)
    for module in MODULES:
        published = folded(output, module, 2.0).delta_weight()
        assert relative_error(published, target(scaled, module)) < 1e-6


def test_scaling_may_be_given_by_module(cohort, tmp_path):
    by_module = {m: 1.0 + i for i, m in enumerate(MODULES)}
    one = [replace(cohort[0], scaling=by_module)]
    aggregate(one, recipe("fedit"), output=tmp_path / "out")
    for module, s in by_module.items():
        expected = folded(cohort[0].path, module, s).delta_weight()
        published = folded(tmp_path / "out", module).delta_weight()
        assert relative_error(published, expected) < 1e-6
    missing = [replace(cohort[0], scaling={"encoder.0.query": 1.0})]
    with pytest.raises(FedLoraError, match=r"no scaling for module 'encoder\.0\.value'"):
        aggregate(missing, recipe("fedit"), output=tmp_path / "out2")


@every_method
def test_modules_trained_in_full_are_averaged_exactly(name, cohort, tmp_path):
    output = tmp_path / "out"
    outcome = aggregate(cohort, recipe(name), output=output, context=began(tmp_path))
    for tensor in HEAD:
        mean = sum(
            outcome.weights[c.worker] * load_file(c.path)[PREFIX + tensor].double() for c in cohort
        )
        published = load_file(output)[PREFIX + tensor]
        torch.testing.assert_close(published, mean.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_file_is_plain_safetensors_in_the_dtype_asked_for(dtype, cohort, tmp_path):
    output = tmp_path / "out"
    outcome = aggregate(
        cohort, recipe("optimal"), output=output, dtype=dtype, metadata={"format": "pt"}
    )
    tensors = load_file(output)
    assert {t.dtype for t in tensors.values()} == {dtype.torch_dtype}
    assert outcome.num_bytes == output.stat().st_size
    assert outcome.rank == 4
    with safe_open(output, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    # The library's own writer lays the same bytes out, but for the order of equal dtypes.
    save_file(tensors, tmp_path / "again")
    assert load_file(tmp_path / "again").keys() == tensors.keys()


def test_low_precision_updates_are_combined_in_float64(tmp_path):
    # In bfloat16 each product with 1/3 would be rounded before the sum.
    paths = [
        write_update(tmp_path / f"{u}.safetensors", seed=u, dtype=torch.bfloat16) for u in range(3)
    ]
    cohort = [contribution(p, scaling=1 / 3) for p in paths]
    aggregate(cohort, recipe("optimal"), output=tmp_path / "out", rank=12)
    for module in MODULES:
        published = folded(tmp_path / "out", module).delta_weight()
        assert relative_error(published, target(cohort, module)) < 1e-6


def test_mixed_ranks_give_the_largest_unless_told(tmp_path):
    cohort = [
        contribution(write_update(tmp_path / f"{r}.safetensors", seed=r, rank=r)) for r in (2, 5)
    ]
    assert aggregate(cohort, recipe("optimal"), output=tmp_path / "a").rank == 5
    assert aggregate(cohort, recipe("optimal"), output=tmp_path / "b", rank=3).rank == 3
    with pytest.raises(FedLoraError, match=r"module 'encoder.0.query': fedit needs one rank"):
        aggregate(cohort, recipe("fedit"), output=tmp_path / "c")


def test_measurements_come_by_module(cohort, tmp_path):
    seen = []
    outcome = aggregate(
        cohort,
        recipe("flora_na"),
        output=tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert set(outcome.measurements) == set(MODULES)
    assert all(math.isfinite(v) for m in outcome.measurements.values() for v in m.values())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_equal_seeds_give_equal_files_and_modules_their_own_randomness(tmp_path):
    square = {"x": (9, 9), "y": (9, 9)}
    path = write_update(tmp_path / "u.safetensors", seed=1, rank=2, modules=square)
    outputs = []
    for i, seed in enumerate((1, 1, 2)):
        outputs.append(tmp_path / f"out-{i}")
        aggregate([contribution(path)], recipe("optimal"), output=outputs[-1], rank=4, seed=seed)
    first, same, other = (p.read_bytes() for p in outputs)
    assert first == same != other
    tensors = load_file(outputs[0])
    assert not torch.equal(
        tensors[lora_key("x", Factor.LORA_A)][2:], tensors[lora_key("y", Factor.LORA_A)][2:]
    )


@pytest.mark.parametrize("factor", [Factor.MAGNITUDE, Factor.HIRA_A])
def test_families_of_adapters_are_not_mixed(factor, tmp_path, cohort):
    tensors = load_file(cohort[0].path)
    tensors[lora_key("encoder.0.query", factor)] = torch.zeros(3)
    save_file(tensors, tmp_path / "other")
    with pytest.raises(FedLoraError, match=r"DoRA|HiRA") as caught:
        aggregate(
            [*cohort[1:], contribution(tmp_path / "other", worker="w")],
            recipe("fedit"),
            output=tmp_path / "out",
        )
    assert caught.value.reason is Reason.LAYOUT_MISMATCH


def _without(key):
    return lambda tensors: tensors.pop(lora_key("encoder.0.query", key))


def _nan(tensors):
    tensors[lora_key("encoder.0.query", Factor.LORA_A)][0, 0] = math.nan


def _narrow(tensors):
    key = lora_key("encoder.0.query", Factor.LORA_A)
    tensors[key] = tensors[key][:, :-1].contiguous()


def _headless(tensors):
    tensors.pop(PREFIX + "classifier.bias")


def _whole_module(tensors):
    _without(Factor.LORA_A)(tensors)
    _without(Factor.LORA_B)(tensors)


@pytest.mark.parametrize(
    ("damage", "reason", "words"),
    [
        (_without(Factor.LORA_A), Reason.INVALID_PAYLOAD, "has no lora_A"),
        (_without(Factor.LORA_B), Reason.INVALID_PAYLOAD, "has no lora_B"),
        (_nan, Reason.NOT_FINITE, "NaN"),
        (_narrow, Reason.LAYOUT_MISMATCH, "24x17"),
        (_headless, Reason.LAYOUT_MISMATCH, "classifier.bias"),
        (_whole_module, Reason.LAYOUT_MISMATCH, "encoder.0.query"),
    ],
)
def test_a_damaged_update_is_refused_and_named(damage, reason, words, cohort, tmp_path):
    tensors = load_file(cohort[1].path)
    damage(tensors)
    save_file(tensors, tmp_path / "damaged")
    cohort[1] = replace(cohort[1], path=tmp_path / "damaged")
    with pytest.raises(FedLoraError, match=words) as caught:
        aggregate(cohort, recipe("fedit"), output=tmp_path / "out")
    assert caught.value.reason is reason
    assert "worker-1" in str(caught.value)


def test_a_file_that_is_no_safetensors_is_refused(cohort, tmp_path):
    (tmp_path / "junk").write_bytes(b"not tensors at all")
    cohort[1] = replace(cohort[1], path=tmp_path / "junk")
    with pytest.raises(FedLoraError, match="worker-1: cannot read junk"):
        aggregate(cohort, recipe("fedit"), output=tmp_path / "out")


@pytest.mark.parametrize("weights", [(0, 0, 0), (1, -1, 1), (1, math.inf, 1), (1, math.nan, 1)])
def test_weights_that_make_no_cohort_are_refused(weights, cohort, tmp_path):
    cohort = [replace(c, weight=float(w)) for c, w in zip(cohort, weights, strict=True)]
    with pytest.raises(FedLoraError, match="weight") as caught:
        aggregate(cohort, recipe("fedit"), output=tmp_path / "out")
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_worker_may_not_occur_twice(cohort, tmp_path):
    with pytest.raises(FedLoraError, match="twice"):
        aggregate([*cohort, cohort[0]], recipe("fedit"), output=tmp_path / "out")


def test_values_beyond_the_output_dtype_are_refused(tmp_path):
    big = LoraFactors(torch.ones(1, 5), torch.full((7, 1), 1e6))
    save_file(
        {lora_key("x", Factor.LORA_A): big.a_RK, lora_key("x", Factor.LORA_B): big.b_DR},
        tmp_path / "big",
    )
    one = [Contribution(worker="w", weight=1, path=tmp_path / "big", scaling=1.0)]
    with pytest.raises(FedLoraError, match="does not fit f16") as caught:
        aggregate(one, recipe("fedit"), output=tmp_path / "out", dtype=DataType.F16)
    assert caught.value.reason is Reason.NOT_FINITE


@every_method
def test_no_bit_depends_on_how_many_modules_are_combined_at_a_time(name, cohort, tmp_path):
    for threads in (1, 2, 5):
        aggregate(
            cohort,
            recipe(name),
            output=tmp_path / str(threads),
            context=began(tmp_path),
            threads=threads,
        )
    first, *others = ((tmp_path / n).read_bytes() for n in "125")
    assert all(other == first for other in others)


ONE_RANK = sorted(n for n, m in METHODS.items() if not compose(m).properties.mixed_ranks)


@pytest.mark.parametrize("name", ONE_RANK)
def test_a_rank_that_does_not_fit_is_told_with_its_module_and_worker(name, tmp_path):
    files = [
        write_update(tmp_path / "anna.safetensors", seed=1),
        write_update(tmp_path / "ben.safetensors", seed=2, ranks={"encoder.0.value": 3}),
    ]
    common = [c.with_suffix(".common.safetensors") for c in files]
    first = load_file(files[0])
    for source, path in zip(files, common, strict=True):
        # One A, and cores, so that nothing else is in the way.
        own = load_file(source)
        for module in MODULES:
            a, r = lora_key(module, Factor.LORA_A), own[lora_key(module, Factor.LORA_A)].shape[0]
            own[a] = first[a][:r].contiguous()
            own[part_key(module, Part.CORE)] = torch.eye(r)
        save_file(own, path)
    contributions = [
        contribution(path, worker=who) for who, path in zip(("anna", "ben"), common, strict=True)
    ]
    output, whole = tmp_path / "out.safetensors", compose(METHODS[name])
    stored = StoredAdapter(path=files[0], scaling=1.0)
    began = RoundContext(start=stored if whole.properties.needs_start else None)
    with pytest.raises(FedLoraError) as caught:
        aggregate(contributions, whole, output=output, rank=4, context=began)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD
    assert caught.value.message == (
        f"module 'encoder.0.value': {name} needs one rank for the whole cohort, got [3, 4]: "
        "3 from 'ben', 4 from 'anna'"
    )
    assert "flora_na, optimal, auto" in caught.value.hint


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_cohort_without_updates_or_weights_is_refused_with_names(name, cohort, tmp_path):
    output = tmp_path / "out.safetensors"
    with pytest.raises(FedLoraError, match="a cohort needs updates, got none") as caught:
        aggregate([], compose(METHODS[name]), output=output)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    absent = [replace(c, weight=0.0) for c in cohort]
    with pytest.raises(FedLoraError) as caught:
        aggregate(absent, compose(METHODS[name]), output=output)
    assert caught.value.message == (
        "none of the 3 updates has a positive weight: worker-0, worker-1, worker-2"
    )
    assert caught.value.hint
    assert not output.exists()


@pytest.mark.parametrize("name", ["fedit", "ffa_lora", "flora_na", "optimal"])
def test_a_rank_that_equals_a_side_of_the_layer_does_not_turn_its_factors_round(name, tmp_path):
    # lora_A and lora_B are told by their keys: here each may have the other's shape.
    sizes = {"wide": (4, 9), "tall": (9, 4), "square": (4, 4)}
    paths = [
        write_update(tmp_path / f"{u}.safetensors", seed=1 + u, modules=sizes) for u in range(3)
    ]
    first = load_file(paths[0])
    if name == "ffa_lora":
        for path in paths[1:]:
            own = load_file(path)
            save_file({k: first[k] if "lora_A" in k else own[k] for k in own}, path)
    contributions = [contribution(path, weight=1.0 + u) for u, path in enumerate(paths)]
    output = tmp_path / "out"
    aggregate(contributions, recipe(name), output=output, rank=4)
    members = {m: [folded(c.path, m) for c in contributions] for m in sizes}
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    for module, (d, k) in sizes.items():
        published = folded(output, module)
        assert (published.out_features, published.in_features) == (d, k)
        goal = ideal(members[module], w)
        mean = relative_error(mean_product(members[module], w), goal)
        error = relative_error(published.delta_weight(), goal)
        # No layer has a rank above 4, so that the best adapter is T itself.
        assert error <= (1e-6 if name in ("optimal", "ffa_lora") else mean + 1e-6)
