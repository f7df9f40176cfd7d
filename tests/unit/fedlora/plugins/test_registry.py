from __future__ import annotations

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import PLUGINS, create_plugins
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.proximal import Space
from fedlora.runs.method import RuleSpec


def test_options_are_those_of_the_dataclass():
    spec = RuleSpec(name="fedprox", options={"mu": 1, "space": "product"})
    assert create_plugins([spec]) == (FedProx(mu=1.0, space=Space.PRODUCT),)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(FedLoraError, match="Did you mean 'fedprox'") as caught:
        create_plugins([RuleSpec(name="fed-prox")])
    assert caught.value.reason is Reason.UNSUPPORTED_METHOD


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(FedLoraError, match="plug-in fedprox has no option 'mue'") as caught:
        create_plugins([RuleSpec(name="fedprox", options={"mue": 1})])
    assert "Did you mean 'mu'" in caught.value.hint


def test_every_name_is_its_plug_ins():
    assert [plugin.name for plugin in PLUGINS.values()] == [*PLUGINS]
