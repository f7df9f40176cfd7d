from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from support.runs import MachineDriver, run_spec

from aggregator_service.rounds.sampling import cohort_size, sample
from aggregator_service.rounds.state import RunState
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import RuleSpec
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


@pytest.mark.parametrize(("size", "share", "asked"), [(50, 0.1, 55), (100, 0.07, 107), (3, 0.1, 4)])
def test_a_share_that_is_a_whole_number_of_workers_is_not_rounded_up(
    size: int, share: float, asked: int
):
    rules = RoundRules(min_workers=size, cohort_size=size, over_selection=share)
    assert cohort_size(rules) == asked


EXAMPLES, LOSSES = (1, 0, 3, 4, 5, 60), (0.1, None, 0.3, 0.9, 0.2, 0.2)
DRAWN = {
    Sampling.UNIFORM: ("34 14 13 14 35 01", "245"),
    Sampling.BY_EXAMPLES: ("45 15 15 15 25 45", "135"),
    Sampling.POWER_OF_CHOICE: ("12 13 13 13 13 35", "123"),
}
"""numbers of those taken in rounds 1 to 6, and for a hand-out of round 4 without the first"""


@pytest.mark.parametrize("rule", Sampling)
def test_a_run_that_goes_on_under_a_newer_program_draws_as_it_did(rule: Sampling):
    cohorts, handed_out = DRAWN[rule]
    state = population(rule, examples=EXAMPLES, losses=LOSSES)
    for round, cohort in enumerate(cohorts.split(), start=1):
        assert sample(replace(state, round=round), NAMES, 2) == tuple(f"w-{n}" for n in cohort)
    again = sample(replace(state, round=4), NAMES[1:], 3, purpose="hand-out 2")
    assert again == tuple(f"w-{n}" for n in handed_out)


def test_a_rule_takes_the_same_by_either_name():
    named = population(Sampling.POWER_OF_CHOICE, losses=LOSSES, sampling_candidates=3)
    section = RuleSpec(name="power_of_choice", options={"candidates": 3})
    ruled = population(Sampling.UNIFORM, losses=LOSSES, sampler=section)
    for round in range(1, 20):
        expected = sample(replace(named, round=round), NAMES, 2)
        assert sample(replace(ruled, round=round), NAMES, 2) == expected


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"sampling": Sampling.BY_EXAMPLES}, 'rounds.sampling is "by_examples"'),
        ({"sampling_candidates": 4}, "with 4 sampling_candidates"),
        ({"cohort_size": 0}, 'sampler.name is "uniform", but all ready workers are taken'),
    ],
)
def test_a_sampler_beside_another_or_without_a_choice_to_make_is_refused(rules, words):
    with pytest.raises(FedLoraError) as caught:
        RoundRules(**{"cohort_size": 2, "sampler": RuleSpec(name="uniform"), **rules})
    assert words in caught.value.message
    assert caught.value.reason is Reason.INVALID_ARGUMENT
