from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_worker.data.partition import partition
from fedlora.errors import FedLoraError
from fedlora.runs.partition import PartitionScheme, PartitionSpec

EXPECTED_IID = ((0, 2, 7), (8, 10, 11), (1, 3, 9), (4, 5, 6))
EXPECTED_DIRICHLET = ((7,), (0, 2, 3, 6, 8, 9), (5,), (1, 4, 10, 11))


@st.composite
def experiments(draw):
    scheme = draw(st.sampled_from(PartitionScheme))
    num_slots = draw(st.integers(1, 7))
    keys = draw(st.lists(st.sampled_from("abcdefgh"), min_size=num_slots, max_size=80))
    if scheme is PartitionScheme.COLUMN:
        keys += list("abcdefgh")
    spec = PartitionSpec(
        scheme=scheme,
        num_slots=num_slots,
        dirichlet_alpha=draw(st.sampled_from([1e-3, 0.1, 0.5, 1.0, 100.0])),
        column="team",
        seed=draw(st.integers(0, 2**40)),
    )
    return spec, keys


@given(experiments())
def test_slots_are_disjoint_cover_everything_and_none_is_empty(experiment):
    spec, keys = experiment
    slots = partition(spec, keys)
    assert len(slots) == spec.num_slots
    assert all(slots)
    assert sorted(itertools.chain(*slots)) == list(range(len(keys)))
    assert slots == partition(spec, keys)


@given(experiments())
def test_rows_of_one_group_stay_together(experiment):
    spec, keys = experiment
    if spec.scheme is PartitionScheme.COLUMN:
        places = {
            (keys[row], slot) for slot, rows in enumerate(partition(spec, keys)) for row in rows
        }
        assert len(places) == len(set(keys))


def spec_of(scheme: str, **changes) -> PartitionSpec:
    return PartitionSpec(scheme=PartitionScheme(scheme), num_slots=4, **changes)


def test_iid_slots_differ_by_at_most_one_row():
    sizes = [len(s) for s in partition(spec_of("iid"), [""] * 30)]
    assert sorted(sizes) == [7, 7, 8, 8]


def test_groups_are_balanced_greedily():
    keys = ["a"] * 10 + ["b"] * 9 + ["c"] * 6 + ["d"] * 5 + ["e"] * 4 + ["f"] * 2
    sizes = [len(s) for s in partition(spec_of("column", column="team"), keys)]
    assert sorted(sizes) == [8, 9, 9, 10]


def test_a_small_alpha_gives_slots_few_labels_and_a_large_one_all():
    keys = [label for label in "abcdefgh" for _ in range(200)]

    def largest_shares(alpha: float) -> float:
        shares = []
        for seed in range(20):
            slots = partition(spec_of("dirichlet", dirichlet_alpha=alpha, seed=seed), keys)
            owners = Counter((keys[row], slot) for slot, rows in enumerate(slots) for row in rows)
            shares += [max(owners[label, s] for s in range(4)) / 200 for label in "abcdefgh"]
        return sum(shares) / len(shares)

    # Expected largest of four Dirichlet shares: 0.25 for alpha to infinity, 1 for alpha to 0.
    assert largest_shares(0.05) > 0.85
    assert largest_shares(1000.0) < 0.3


def test_another_seed_gives_another_split():
    keys = ["a", "b"] * 50
    for scheme in ("iid", "dirichlet"):
        assert partition(spec_of(scheme, seed=1), keys) != partition(spec_of(scheme, seed=2), keys)


def test_the_split_is_the_same_on_every_machine():
    # Worked out once; a worker that disagrees would train on another's rows.
    keys = ["a", "b", "c"] * 4
    assert partition(spec_of("iid", seed=5), keys) == EXPECTED_IID
    assert partition(spec_of("dirichlet", seed=5), keys) == EXPECTED_DIRICHLET


def test_more_slots_than_rows_or_groups_is_refused():
    with pytest.raises(FedLoraError, match="3 training rows cannot be split over 4 slots"):
        partition(spec_of("iid"), ["a"] * 3)
    with pytest.raises(FedLoraError, match="column 'team' has 2 values, too few for 4 slots"):
        partition(spec_of("column", column="team"), ["a", "b"] * 10)
