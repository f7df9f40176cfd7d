"""Blocks made while updates arrive: the same bits in any order, and the right result."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from safetensors.torch import load_file
from support.builders import contribution, write_update
from support.recipes import recipe
from support.reference import relative_error

from aggregator_service.aggregation.certify import certify
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.gram_blocks import RoundGrams, pays
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from fedlora.adapters.names import Part, part_key

SHAPES = {"wide": (64, 80), "narrow": (12, 80)}
"""with three updates of rank 4, ahead of the close pays in the first one only"""


@pytest.fixture
def cohort(tmp_path):
    origin = write_update(tmp_path / "start.safetensors", seed=1, modules=SHAPES)
    return [
        contribution(
            write_update(tmp_path / f"w-{u}", seed=2 + u, origin=origin, modules=SHAPES),
            weight=1.0 + u,
            scaling=2.0,
        )
        for u in range(3)
    ]


def began(tmp_path):
    return StoredAdapter(path=tmp_path / "start.safetensors", scaling=2.0)


def closed(tmp_path, cohort, grams, name="optimal"):
    context = RoundContext(start=began(tmp_path), grams=grams)
    aggregate(cohort, recipe(name), output=tmp_path / "out", context=context)
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("name", ["optimal", "flexlora", "flora_na", "auto"])
def test_no_bit_depends_on_the_order_of_arrival_or_on_what_was_made_ahead(name, cohort, tmp_path):
    found = set()
    for order in itertools.permutations(cohort):
        grams = RoundGrams(began(tmp_path))
        for count in range(1, len(order) + 1):
            grams.add(order[:count])
        found.add(closed(tmp_path, cohort, grams, name))
    # A server that was restarted has made nothing ahead.
    late = RoundGrams(began(tmp_path), threads=2)
    late.add(cohort)
    found.add(closed(tmp_path, cohort, late, name))
    assert len(found) == 1


@pytest.mark.parametrize("name", ["optimal", "flexlora", "flora_na", "auto"])
def test_the_result_is_that_of_a_close_without_them(name, cohort, tmp_path):
    grams = RoundGrams(began(tmp_path))
    grams.add(cohort)
    closed(tmp_path, cohort, grams, name)
    with_them = load_file(tmp_path / "out")
    closed(tmp_path, cohort, None, name)
    without = load_file(tmp_path / "out")
    for module in SHAPES:
        a, b = (part_key(module, part) for part in (Part.A, Part.B))
        product = without[b].double() @ without[a].double()
        assert relative_error(with_them[b].double() @ with_them[a].double(), product) < 1e-6


def test_they_are_made_where_they_pay_and_for_the_cohort_that_is_there(cohort, tmp_path):
    grams = RoundGrams(began(tmp_path))
    with CohortFiles(cohort) as files:
        assert grams.of("wide", files) is None
        grams.add(cohort[:2])
        # Somebody whose update has not come by then.
        assert grams.of("wide", files) is None
        grams.add(cohort)
        found = grams.of("wide", files)
        assert found is not None
        assert found.left.shape == (16, 16)
        assert grams.of("narrow", files) is None


def test_a_certificate_with_them_is_that_without(cohort, tmp_path):
    grams = RoundGrams(began(tmp_path))
    grams.add(cohort)
    closed(tmp_path, cohort, grams)
    published = StoredAdapter(path=tmp_path / "out", scaling=1.0)
    context = RoundContext(start=began(tmp_path))
    found, expected = (
        certify(
            cohort,
            recipe("optimal"),
            published=published,
            context=replace(context, grams=given),
        ).overall
        for given in (grams, None)
    )
    for name in ("ideal_norm", "change_norm", "relative_error", "factor_mean_error", "lower_bound"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)


def test_a_layer_published_at_a_lower_rank_than_workers_train_is_left_to_the_close(
    cohort, tmp_path
):
    write_update(tmp_path / "start.safetensors", seed=1, modules=SHAPES, ranks={"wide": 2})
    grams = RoundGrams(began(tmp_path))
    grams.add(cohort)
    with_them = closed(tmp_path, cohort, grams)
    assert with_them == closed(tmp_path, cohort, None)


def test_ranks_beyond_what_may_lie_in_memory_are_not_made_ahead():
    assert pays(512, 65536, 65536)
    assert not pays(513, 65536, 65536)
    assert not pays(65, 256, 4096)


def test_an_update_without_weight_changes_no_bit(cohort, tmp_path):
    grams = RoundGrams(began(tmp_path))
    grams.add([*cohort[:2], replace(cohort[2], weight=0.0)])
    grams.add(cohort[:2])
    two = closed(tmp_path, cohort[:2], grams)
    grams = RoundGrams(began(tmp_path))
    grams.add(cohort)
    assert closed(tmp_path, cohort[:2], grams) == two
