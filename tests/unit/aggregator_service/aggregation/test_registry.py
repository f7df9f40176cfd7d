"""Names and options become methods, or a message that says what would have."""

from __future__ import annotations

import pytest

from aggregator_service.aggregation.compression.truncate import Core, Truncate
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.registry import METHODS, create, create_recipe
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import MethodSpec, RuleSpec
from fedlora.runs.options import options


def test_rows_are_methods_with_the_defaults_of_their_options():
    for name, row in METHODS.items():
        method = create(name)
        assert method.name == row.name == name
        assert method == row


@pytest.mark.parametrize(
    ("wrong", "right"), [("flora-na", "flora_na"), ("FedIT", "fedit"), ("optimum", "optimal")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, right):
    with pytest.raises(FedLoraError, match=f"Did you mean '{right}'") as caught:
        create(wrong)
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


def test_a_name_near_nothing_is_answered_with_all():
    with pytest.raises(FedLoraError, match="Known: " + ", ".join(METHODS)):
        create("zzz")


def test_options_are_the_fields_of_the_method():
    assert [o.name for o in options(Optimal)] == ["core"]
    assert options(FedIT) == ()
    assert create("optimal", {"core": "gram"}).core is Core.GRAM


def test_a_field_that_is_for_other_code_is_no_option():
    assert Truncate().gauge
    assert [o.name for o in options(Truncate)] == ["core"]


@pytest.mark.parametrize(
    "spec",
    [
        MethodSpec(name="optimal", options={"gauge": "closest_a"}),
        MethodSpec(name="fedit", options={"gauge": "closest_a"}),
        MethodSpec(compression=RuleSpec(name="energy", options={"gauge": "closest_a"})),
    ],
)
def test_a_gauge_among_the_options_of_a_method_or_rule_is_told_where_it_belongs(spec):
    with pytest.raises(FedLoraError, match="has no option 'gauge'") as caught:
        create_recipe(spec)
    assert "set gauge in [method], or --gauge" in caught.value.hint


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(FedLoraError, match="Did you mean 'max_sweeps'") as caught:
        create("flora_na", {"max_sweep": 3})
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    with pytest.raises(FedLoraError, match="fedit has no options"):
        create("fedit", {"rank": 3})


def test_whole_floats_are_integers_as_on_wires_without_integers():
    assert create("flora_na", {"max_sweeps": 50.0}).max_sweeps == 50
    assert create("flora_na", {"tolerance": 0}).tolerance == 0.0


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("flora_na", {"max_sweeps": 2.5}, "an integer"),
        ("flora_na", {"max_sweeps": True}, "an integer"),
        ("flora_na", {"ridge": "small"}, "a number"),
        ("optimal", {"core": "best"}, "one of auto"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name, given, expected):
    with pytest.raises(FedLoraError, match=f"expected {expected}") as caught:
        create(name, given)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
