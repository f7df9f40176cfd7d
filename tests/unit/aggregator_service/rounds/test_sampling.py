from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.sampling import cohort_size, sample
from aggregator_service.rounds.state import RunState
from fedlora.runs.rounds import RoundRules, Sampling

NAMES = tuple(f"w-{i}" for i in range(6))


def population(
    rule: Sampling,
    *,
    examples: tuple[int, ...] = (0,) * 6,
    losses: tuple[float | None, ...] = (None,) * 6,
    **rules: object,
) -> RunState:
    driver = MachineDriver(run_spec(num_workers=6, quorum=1, cohort_size=2, sampling=rule, **rules))
    driver.join(*NAMES)
    workers = {
        name: replace(driver.state.workers[name], num_examples=n, loss=loss)
        for name, n, loss in zip(NAMES, examples, losses, strict=True)
    }
    return replace(driver.state, workers=workers)


def draws(state: RunState, count: int, rounds: int = 3000) -> Counter[str]:
    return Counter(
        name for r in range(rounds) for name in sample(replace(state, round=r), NAMES, count)
    )


@pytest.mark.parametrize("rule", Sampling)
def test_a_draw_depends_on_the_round_alone_and_not_on_who_came_first(rule: Sampling):
    state = population(rule, examples=(1, 2, 3, 4, 5, 6))
    first = sample(replace(state, round=3), NAMES, 2)
    assert sample(replace(state, round=3), NAMES[::-1], 2) == first == tuple(sorted(first))
    assert len({sample(replace(state, round=r), NAMES, 2) for r in range(30)}) > 3
    assert sample(state, NAMES, 6) == sample(state, NAMES, 9) == NAMES


def test_uniform_takes_everybody_alike():
    counts = draws(population(Sampling.UNIFORM), 2)
    # 3000 draws of 2 among 6: mean 1000, standard deviation 26; 5 of them fail once in 300,000.
    assert all(abs(counts[n] - 1000) < 130 for n in NAMES)


def test_by_examples_takes_in_proportion():
    counts = draws(population(Sampling.BY_EXAMPLES, examples=(10, 10, 10, 10, 10, 50)), 1)
    assert abs(counts["w-5"] - 1500) < 140
    assert all(abs(counts[n] - 300) < 85 for n in NAMES[:5])


def test_a_worker_that_has_never_reported_counts_as_an_average_one():
    counts = draws(population(Sampling.BY_EXAMPLES, examples=(0, 10, 10, 10, 10, 10)), 1)
    assert abs(counts["w-0"] - 500) < 105


def test_power_of_choice_takes_the_highest_losses_of_its_candidates():
    losses = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    everybody = population(Sampling.POWER_OF_CHOICE, losses=losses, sampling_candidates=6)
    assert sample(everybody, NAMES, 2) == ("w-4", "w-5")
    # Three candidates of six, two taken: the lowest is taken only if drawn, and never as one of
    # the two highest of three.
    counts = draws(population(Sampling.POWER_OF_CHOICE, losses=losses, sampling_candidates=3), 2)
    assert counts["w-0"] == 0
    assert counts["w-5"] > counts["w-3"] > counts["w-1"] > 0


def test_a_worker_whose_loss_is_unknown_is_tried_first():
    losses = (9.0, None, 9.0, 9.0, None, 9.0)
    state = population(Sampling.POWER_OF_CHOICE, losses=losses, sampling_candidates=6)
    assert sample(state, NAMES, 2) == ("w-1", "w-4")


def test_over_selection_rounds_up():
    assert cohort_size(RoundRules(min_workers=10, cohort_size=10, over_selection=0.25)) == 13
    assert cohort_size(RoundRules()) == 0
