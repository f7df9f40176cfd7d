"""How many modules fit, and what is refused."""

from __future__ import annotations

import pytest
from support.builders import MODULES, contribution, write_update
from support.recipes import recipe

from aggregator_service.aggregation import memory
from aggregator_service.aggregation.cohort_files import CohortFiles
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.memory import measured_at_a_time, modules_at_a_time
from aggregator_service.aggregation.registry import METHODS
from fedlora.errors import FedLoraError, Reason

WIDEST = max(d + k for d, k in MODULES.values())


@pytest.fixture
def updates(tmp_path):
    return [contribution(write_update(tmp_path / f"w-{u}", seed=u)) for u in range(5)]


def fits(updates, name, budget, threads=8):
    with CohortFiles(updates) as cohort:
        return modules_at_a_time(recipe(name), cohort, budget=budget, threads=threads)


def test_two_cohorts_worked_by_hand(updates):
    # Ranks add up to 20; 24 x 17 is the widest layer: 8 * 20 * 41 = 6,560 bytes in one pass.
    assert WIDEST == 41
    assert fits(updates, "fedit", 2 * 6560) == 2
    assert fits(updates, "fedit", 3 * 6560 - 1) == 2
    # 8 * (4 * 20 * 41 + 3 * 20 * 20) = 35,840 side by side.
    assert fits(updates, "flora_na", 35840) == 1
    assert fits(updates, "flora_na", 10**9) == 8


def test_a_certificate_takes_what_fits_and_one_module_at_least(updates):
    def measured(budget: int) -> int:
        with CohortFiles(updates) as cohort:
            return measured_at_a_time(recipe("fedit"), cohort, rank=4, budget=budget, threads=8)

    # Its figures are exact here, and stacked: 35,840 bytes a module, as above.
    assert measured(10**9) == 8
    assert measured(3 * 35840) == 3
    assert measured(1) == 1


def test_a_certificate_of_a_cohort_too_large_to_stack_goes_through_the_updates(
    updates, monkeypatch
):
    monkeypatch.setattr(memory, "is_estimated", lambda *_, **__: True)
    with CohortFiles(updates) as cohort:
        chosen = {"rank": 4, "budget": 3 * 35840, "threads": 99}
        assert measured_at_a_time(recipe("fedit"), cohort, **chosen) == 3 * 35840 // 6560
        # An ideal of one's own is made of stacked factors all the same.
        assert measured_at_a_time(recipe("fedhl"), cohort, **chosen) == 3


@pytest.mark.parametrize("name", ["fedit", "optimal", "hetlora", "replication", "rolora", "fedsvd"])
def test_methods_that_go_through_the_updates_need_no_more_than_one_module_of_them(name):
    if name == "hetlora":
        # Its weights are norms of whole updates.
        assert recipe(name).stacks
    else:
        assert not recipe(name).stacks


def test_every_method_says_which_it_is():
    assert {name for name in METHODS if recipe(name).stacks} >= {"flora_na", "auto", "florist"}
    assert recipe("optimal", {"core": "gram"}).stacks


def test_what_does_not_fit_is_refused_with_the_figures_and_what_would(updates, tmp_path):
    with pytest.raises(FedLoraError) as caught:
        aggregate(updates, recipe("flora_na"), output=tmp_path / "out", memory_bytes=35839)
    error = caught.value
    assert error.reason is Reason.UNSUPPORTED_METHOD
    for words in ("flora_na", "20 over 5 updates", "encoder.0.query", "3.58e-05 GB"):
        assert words in error.message
    assert "fedit or optimal" in error.hint
    assert not (tmp_path / "out").exists()
    aggregate(updates, recipe("optimal"), output=tmp_path / "out", memory_bytes=35839)
