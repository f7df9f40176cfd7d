from __future__ import annotations

import pytest

from client_worker.training.schedule import round_factor, step_factor
from fedlora.runs.training import LearningRateSchedule as Schedule


@pytest.mark.parametrize("schedule", [Schedule.LINEAR, Schedule.COSINE])
def test_the_rate_falls_from_its_peak_in_the_first_round_to_a_tenth_in_the_last(schedule):
    factors = [round_factor(schedule, round=r, num_rounds=9) for r in range(1, 10)]
    assert factors[0] == 1.0
    assert factors[4] == pytest.approx(0.55)
    assert factors[-1] == pytest.approx(0.1)
    assert factors == sorted(factors, reverse=True)


def test_linear_falls_by_equal_steps_and_cosine_slowly_at_both_ends():
    linear = [round_factor(Schedule.LINEAR, round=r, num_rounds=4) for r in (1, 2, 3, 4)]
    assert linear == pytest.approx([1.0, 0.7, 0.4, 0.1])
    cosine = [round_factor(Schedule.COSINE, round=r, num_rounds=4) for r in (1, 2, 3, 4)]
    assert cosine == pytest.approx([1.0, 0.775, 0.325, 0.1])


def test_constant_stays_and_a_single_round_has_the_peak():
    assert {round_factor(Schedule.CONSTANT, round=r, num_rounds=5) for r in range(1, 6)} == {1.0}
    assert round_factor(Schedule.LINEAR, round=1, num_rounds=1) == 1.0


def test_the_rate_rises_over_the_warm_up_and_never_begins_at_zero():
    factors = [step_factor(s, num_steps=8, warmup_fraction=0.5) for s in range(8)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1])
    assert [step_factor(s, num_steps=3, warmup_fraction=0.0) for s in range(3)] == [1.0, 1.0, 1.0]
