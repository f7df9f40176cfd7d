from __future__ import annotations

from dataclasses import replace

import pytest

from client_worker.training.stages import personal_axis, personal_stage, refinement, round_stage
from fedlora.adapters.axis import Axis
from fedlora.adapters.names import Part
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.plan import RoundPlan
from fedlora.runs.training import LearningRateSchedule, TrainingSpec

TRAINING = TrainingSpec(learning_rate=2e-4, local_epochs=3.0, local_steps=9, batch_size=5)


def test_a_round_moves_what_is_sent_what_is_private_and_the_full_modules():
    stage = round_stage(TRAINING, RoundPlan(trained=(Part.A,), private=(Part.B,)))
    assert stage.parts == {Part.A, Part.B}
    assert stage.full_modules
    assert stage.directions is None
    assert stage.training == TRAINING


def test_a_refinement_has_the_plans_steps_rate_and_axis_and_leaves_the_full_modules():
    settings = {"axis": 2.0, "refine_steps": 20.0, "refine_learning_rate": 1e-3}
    stage = refinement(TRAINING, RoundPlan(trained=(Part.A,), settings=settings))
    assert stage.parts == {Part.A}
    assert not stage.full_modules
    assert stage.directions is Axis.DORA
    assert (stage.training.local_steps, stage.training.learning_rate) == (20, 1e-3)
    assert stage.training.schedule is LearningRateSchedule.CONSTANT
    assert stage.training.batch_size == 5


def test_a_round_of_directions_alone_is_trained_as_a_refinement_is():
    settings = {
        "axis": 1.0,
        "refine_steps": 20.0,
        "refine_learning_rate": 1e-3,
        "directions_alone": 1.0,
    }
    plan = RoundPlan(trained=(Part.A, Part.MAGNITUDE), settings=settings)
    stage = round_stage(TRAINING, plan)
    # DoRA's magnitudes have no direction.
    assert stage.parts == {Part.A}
    assert not stage.full_modules
    assert stage.directions is Axis.ROW
    assert stage.training == refinement(TRAINING, plan).training


def test_without_an_axis_the_parts_themselves_are_refined_as_the_run_trains():
    stage = refinement(TRAINING, RoundPlan(trained=(Part.A,)))
    assert stage.directions is None
    assert (stage.training.local_steps, stage.training.learning_rate) == (9, 2e-4)


def test_the_personal_stage_has_the_plans_epochs_and_rate():
    plan = RoundPlan(settings={"personal_epochs": 2.0, "personal_learning_rate": 5e-3})
    stage = personal_stage(TRAINING, plan)
    assert stage.parts == {Part.B}
    assert not stage.full_modules
    training = stage.training
    assert (training.local_steps, training.local_epochs, training.learning_rate) == (0, 2.0, 5e-3)


def test_magnitudes_belong_to_components_unless_the_plan_says_otherwise():
    assert personal_axis(RoundPlan()) is Axis.RANK
    assert personal_axis(RoundPlan(settings={"axis": 1.0})) is Axis.ROW


def test_the_rate_of_a_stage_after_the_round_is_its_own_for_both_factors():
    fast = replace(TRAINING, b_learning_rate_ratio=16.0)
    assert round_stage(fast, RoundPlan()).training.b_learning_rate_ratio == 16
    for stage in (refinement(fast, RoundPlan()), personal_stage(fast, RoundPlan())):
        assert stage.training.b_learning_rate_ratio == 1


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_a_ratio_of_rates_that_is_none_is_refused(ratio):
    with pytest.raises(FedLoraError, match=r"training\.b_learning_rate_ratio must be positive"):
        TrainingSpec(b_learning_rate_ratio=ratio)


def test_a_number_that_is_no_axis_is_refused():
    with pytest.raises(FedLoraError, match=r"expected 0 \(rank\), 1 \(row\), 2 \(dora\), got 3"):
        Axis.of(3.0)
    with pytest.raises(FedLoraError) as caught:
        personal_axis(RoundPlan(settings={"axis": 0.5}))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
