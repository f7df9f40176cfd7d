from __future__ import annotations

import pytest

from aggregator_service.rounds.samplers.power_of_choice import PowerOfChoice
from aggregator_service.rounds.samplers.registry import SAMPLERS, create_sampler
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import RuleSpec
from fedlora.runs.rounds import RoundRules, Sampling


def created(name: str, **options: object):
    return create_sampler(RoundRules(cohort_size=2, sampler=RuleSpec(name=name, options=options)))


@pytest.mark.parametrize("rule", Sampling)
def test_every_short_name_is_a_samplers(rule: Sampling):
    rules = RoundRules(cohort_size=2, sampling=rule, sampling_candidates=5)
    assert create_sampler(rules).name == SAMPLERS[rule].name == rule


def test_options_are_those_of_the_dataclass():
    assert created("power_of_choice", candidates=7.0) == PowerOfChoice(candidates=7)
    short = RoundRules(cohort_size=2, sampling=Sampling.POWER_OF_CHOICE, sampling_candidates=5)
    assert create_sampler(short) == PowerOfChoice(candidates=5)


@pytest.mark.parametrize(
    ("name", "options", "reason", "words"),
    [
        ("unifrom", {}, Reason.UNSUPPORTED_METHOD, "Did you mean 'uniform'"),
        ("uniform", {"candidates": 1}, Reason.INVALID_ARGUMENT, "uniform has no options"),
        ("power_of_choice", {"candidate": 1}, Reason.INVALID_ARGUMENT, "Did you mean 'candidates'"),
        ("power_of_choice", {"candidates": "a"}, Reason.INVALID_ARGUMENT, "expected an integer"),
        ("power_of_choice", {"candidates": -1}, Reason.INVALID_ARGUMENT, "must not be negative"),
    ],
)
def test_what_is_misspelt_or_out_of_range_is_refused(name, options, reason, words):
    with pytest.raises(FedLoraError, match=words) as caught:
        created(name, **options)
    assert caught.value.reason is reason
