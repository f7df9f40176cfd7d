"""The certificate against a dense float64 recomputation from the same files."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import MODULES, contribution, folded, normal, write_update
from support.recipes import recipe
from support.reference import ideal, mean_product, tail_norm

from aggregator_service.aggregation import certify as certifying
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.registry import create_recipe
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from fedlora.adapters.factors import LoraFactors
from fedlora.adapters.names import Factor, lora_key
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.tensors.manifest import FLOATS, DataType

PLAIN = ("fedit", "flora_na", "optimal")
every_method = pytest.mark.parametrize("name", PLAIN)


def certify(
    contributions,
    *,
    published,
    published_scaling=1.0,
    base=None,
    base_scaling=1.0,
    method_name,
    **more,
):
    """The certificate of a file, of a round that began from the file `base`."""
    start = StoredAdapter(path=base, scaling=base_scaling) if base else None
    return certifying.certify(
        contributions,
        recipe(method_name),
        published=StoredAdapter(path=published, scaling=published_scaling),
        context=RoundContext(start=start),
        **more,
    )


def dense_norms(contributions, published, s_out, base, s_base):
    """Numerators and denominators by module, from d x k matrices."""
    rows = {}
    for module in MODULES:
        cohort = [folded(c.path, module, c.scaling) for c in contributions]
        w = torch.tensor([c.weight for c in contributions], dtype=torch.float64)
        target, sent = ideal(cohort, w), folded(published, module, s_out)
        start = folded(base, module, s_base)
        starts = [LoraFactors(start.a_RK[: f.rank], start.b_DR[:, : f.rank]) for f in cohort]
        values = torch.linalg.svdvals(target)
        rows[module] = {
            "ideal": float(target.norm()),
            "change": float((target - ideal(starts, w)).norm()),
            "error": float((sent.delta_weight() - target).norm()),
            "mean": float((mean_product(cohort, w) - target).norm()),
            "bound": tail_norm(target, sent.rank),
            "sum": float(values.sum()),
            "values": values,
        }
    return rows


def check(entry, row, rel):
    near = lambda value: pytest.approx(value, rel=rel, abs=1e-13)  # noqa: E731
    assert entry.ideal_norm == near(row["ideal"])
    assert entry.change_norm == near(row["change"])
    for field, name in (
        ("relative_error", "error"),
        ("factor_mean_error", "mean"),
        ("lower_bound", "bound"),
    ):
        assert getattr(entry, field) == near(row[name] / row["ideal"])
        assert getattr(entry, f"{field}_vs_change") == near(row[name] / row["change"])
    assert entry.effective_rank == near(row["sum"] ** 2 / row["ideal"] ** 2)


@every_method
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("drift", [0.3, 1e-2])
def test_it_agrees_with_the_dense_recomputation(name, dtype, drift, tmp_path):
    base = write_update(tmp_path / "base", seed=1, dtype=dtype.torch_dtype)
    cohort = [
        contribution(
            write_update(tmp_path / f"{u}", seed=2 + u, origin=base, drift=drift),
            weight=1.0 + u,
            scaling=2.0,
        )
        for u in range(4)
    ]
    output = tmp_path / "out"
    outcome = aggregate(cohort, recipe(name), output=output, output_scaling=2.0, dtype=dtype)
    certificate = certify(
        cohort,
        published=output,
        published_scaling=2.0,
        base=base,
        base_scaling=2.0,
        method_name=name,
        measurements=outcome.measurements,
    )
    rows = dense_norms(cohort, output, 2.0, base, 2.0)
    assert certificate.method == name
    assert [e.module for e in certificate.modules] == sorted(MODULES)
    for entry in certificate.modules:
        check(entry, rows[entry.module], rel=1e-7)
        assert outcome.measurements[entry.module].items() <= entry.measurements.items()
        spectrum, values = torch.tensor(entry.spectrum), rows[entry.module]["values"]
        # Rank 4: four times as many, or as many as the layer has.
        assert len(spectrum) == min(16, len(values))
        torch.testing.assert_close(
            spectrum.double(), values[: len(spectrum)], rtol=1e-6, atol=1e-6 * float(values[0])
        )
    assert certificate.overall.spectrum == ()
    whole = {
        key: math.hypot(*(row[key] for row in rows.values()))
        for key in ("ideal", "change", "error", "mean", "bound")
    }
    whole["sum"] = sum(row["sum"] for row in rows.values())
    check(certificate.overall, whole, rel=1e-7)


@pytest.mark.parametrize("name", ["flora_na", "optimal"])
def test_mixed_ranks_are_measured_against_slices_of_the_base(name, tmp_path):
    base = write_update(tmp_path / "base", seed=1, rank=5)
    cohort = [
        contribution(
            write_update(tmp_path / f"{u}", seed=2 + u, origin=base, rank=r), weight=1.0 + u
        )
        for u, r in enumerate((2, 5, 3))
    ]
    output = tmp_path / "out"
    aggregate(cohort, recipe(name), output=output)
    certificate = certify(
        cohort, published=output, published_scaling=1.0, base=base, method_name=name
    )
    rows = dense_norms(cohort, output, 1.0, base, 1.0)
    for entry in certificate.modules:
        check(entry, rows[entry.module], rel=1e-7)
        assert entry.rank == 5


def test_the_gap_closed_is_0_for_fedit_1_for_optimal_and_between_for_flora_na(tmp_path):
    cohort = [contribution(write_update(tmp_path / f"{u}", seed=u)) for u in range(4)]
    gaps = {}
    for name in PLAIN:
        output = tmp_path / name
        aggregate(cohort, recipe(name), output=output)
        certificate = certify(
            cohort, published=output, published_scaling=1.0, base=None, method_name=name
        )
        gaps[name] = certificate.overall.gap_closed
    # f32 rounding is 6e-8 of the norm, and the errors are of its order one.
    assert gaps["fedit"] == pytest.approx(0.0, abs=1e-6)
    assert gaps["optimal"] == pytest.approx(1.0, abs=1e-6)
    assert 0.01 < gaps["flora_na"] < 0.99


@every_method
def test_there_is_no_gap_to_close_where_rounding_is_all_there_is(name, tmp_path):
    path = write_update(tmp_path / "only", seed=3)
    cohort = [contribution(path, worker=w) for w in "ab"]
    output = tmp_path / "out"
    aggregate(cohort, recipe(name), output=output, dtype=DataType.BF16)
    certificate = certify(
        cohort, published=output, published_scaling=1.0, base=path, method_name=name
    )
    for entry in (certificate.overall, *certificate.modules):
        assert math.isnan(entry.gap_closed)
        assert entry.factor_mean_error == 0.0
        # eight bits of mantissa in each of two factors
        assert 1e-4 < entry.relative_error < 2**-7
        assert entry.change_norm == 0.0


def test_an_error_planted_in_the_file_is_found(tmp_path):
    cohort = [
        contribution(write_update(tmp_path / f"{u}", seed=u, modules={"x": (24, 17)}))
        for u in range(2)
    ]
    output = tmp_path / "out"
    aggregate(cohort, recipe("optimal"), output=output, rank=8)
    tensors = {k: v.double() for k, v in load_file(output).items()}
    a, b = (lora_key("x", f) for f in (Factor.LORA_A, Factor.LORA_B))
    target = ideal([folded(c.path, "x", 1.0) for c in cohort], torch.ones(2).double())
    for size in (1e-2, 1e-5, 1e-8):
        # Float64 tensors stand for a publication that rounds nothing.
        u, s, vh = torch.linalg.svd(target, full_matrices=False)
        left, right = u[:, :8] * s[:8], vh[:8]
        planted = normal(5, 24, 8)
        planted *= size * float(target.norm()) / float((planted @ right).norm())
        tensors[a], tensors[b] = right.contiguous(), (left + planted).contiguous()
        save_file(tensors, output)
        certificate = certify(
            cohort, published=output, published_scaling=1.0, base=None, method_name="optimal"
        )
        assert certificate.overall.relative_error == pytest.approx(size, rel=5e-3)


def test_without_a_base_the_change_is_unknown(tmp_path):
    cohort = [contribution(write_update(tmp_path / f"{u}", seed=u)) for u in range(2)]
    aggregate(cohort, recipe("fedit"), output=tmp_path / "out")
    overall = certify(
        cohort,
        published=tmp_path / "out",
        published_scaling=1.0,
        base=None,
        method_name="fedit",
    ).overall
    assert math.isnan(overall.change_norm)
    assert math.isnan(overall.relative_error_vs_change)
    assert overall.relative_error > 0


def test_updates_that_are_all_zero_lose_nothing(tmp_path):
    path = write_update(tmp_path / "u", seed=1)
    tensors = {k: torch.zeros_like(v) if "lora_B" in k else v for k, v in load_file(path).items()}
    save_file(tensors, path)
    cohort = [contribution(path)]
    aggregate(cohort, recipe("optimal"), output=tmp_path / "out")
    overall = certify(
        cohort, published=tmp_path / "out", published_scaling=1.0, base=path, method_name="optimal"
    ).overall
    assert (overall.relative_error, overall.lower_bound, overall.effective_rank) == (0.0, 0.0, 0.0)


def test_measurements_of_the_whole_are_means_over_modules(tmp_path):
    cohort = [contribution(write_update(tmp_path / "u", seed=1))]
    aggregate(cohort, recipe("fedit"), output=tmp_path / "out")
    given = {m: {"sweeps": float(i), "p[u]": 0.5} for i, m in enumerate(sorted(MODULES))}
    certificate = certify(
        cohort,
        published=tmp_path / "out",
        published_scaling=1.0,
        base=None,
        method_name="fedit",
        measurements=given,
    )
    # What belongs to one worker in one layer has no mean.
    assert certificate.overall.measurements == {"sweeps": 1.0}
    assert all(entry.measurements["p[u]"] == 0.5 for entry in certificate.modules)


def test_every_certificate_says_how_far_workers_moved_a_and_b(tmp_path):
    base = write_update(tmp_path / "base", seed=1)
    # One worker has not moved; the other, of weight 3/4, has made A twice as long.
    told = load_file(base)
    still = tmp_path / "still"
    longer = {key: 2 * t if ".lora_A." in key else t for key, t in told.items()}
    for path, tensors in ((still, told), (tmp_path / "longer", longer)):
        save_file(tensors, path, metadata={"format": "pt"})
    cohort = [contribution(still), contribution(tmp_path / "longer", weight=3.0)]
    aggregate(cohort, recipe("fedit"), output=tmp_path / "out")
    certificate = certify(
        cohort,
        published=tmp_path / "out",
        published_scaling=1.0,
        base=base,
        method_name="fedit",
    )
    changes = []
    for entry in certificate.modules:
        a = told[lora_key(entry.module, Factor.LORA_A)]
        changes.append(0.75 * float(a.double().norm(dim=1).mean()))
        assert entry.measurements == pytest.approx(
            {
                "magnitude_change_a": changes[-1],
                "direction_change_a": 0.0,
                "magnitude_change_b": 0.0,
                "direction_change_b": 0.0,
            },
            abs=1e-12,
        )
    overall = certificate.overall.measurements
    assert overall["magnitude_change_a"] == pytest.approx(sum(changes) / len(changes))


def test_a_file_of_other_modules_is_refused(tmp_path):
    cohort = [contribution(write_update(tmp_path / "u", seed=1))]
    other = write_update(tmp_path / "other", seed=1, modules={"encoder.0.query": (24, 17)})
    with pytest.raises(FedLoraError, match="the published adapter does not fit") as caught:
        certify(cohort, published=other, published_scaling=1.0, base=None, method_name="fedit")
    assert caught.value.reason is Reason.LAYOUT_MISMATCH


def test_changes_count_in_the_certificate_for_as_much_as_they_counted(tmp_path):
    """One that has no weight takes part where bounds are found, and not where is measured."""
    origin = write_update(tmp_path / "start", seed=1)
    context = RoundContext(start=StoredAdapter(path=origin, scaling=1.0))
    bounded = create_recipe(
        MethodSpec(name="fedit", weighting=RuleSpec(name="loss_reduction")),
        [RuleSpec(name="norm_bound", options={"max_ratio": 1.0})],
    )
    cohort = [
        replace(
            contribution(write_update(tmp_path / f"{u}", seed=2 + u, origin=origin, drift=drift)),
            metrics={"loss_reduction": reduction},
        )
        for u, (drift, reduction) in enumerate([(0.01, -1.0), (0.1, 0.5), (0.5, 0.5), (0.6, 0.5)])
    ]
    outcome = aggregate(cohort, bounded, output=tmp_path / "out", context=context)
    assert outcome.weights["0"] == 0
    found = certifying.certify(
        [replace(c, weight=outcome.weights[c.worker]) for c in cohort],
        bounded,
        published=StoredAdapter(path=tmp_path / "out", scaling=1.0),
        context=context,
        shares=outcome.shares,
    ).overall
    # The mean of the factors is what was published.
    assert found.relative_error == pytest.approx(found.factor_mean_error, rel=1e-4)
