"""Plug-ins in a configuration: each has a section of its own."""

from __future__ import annotations

import pytest

from fedlora.config import load_config, run_entries, toml_text
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import RuleSpec

RUN = """
[run]
name = "t"
[model]
base = "some/model"
task = "causal_lm"
[adapter]
target_modules = ["q_proj"]
"""


@pytest.fixture
def load(tmp_path):
    def loaded(text: str = "", *overrides: str, environ: dict[str, str] | None = None):
        file = tmp_path / "site.toml"
        file.write_text(RUN + text)
        return load_config(file, overrides=overrides, environ=environ or {})

    return loaded


def test_a_run_has_no_plug_in_that_nobody_writes(load):
    assert load().run.plugins == ()


def test_a_section_is_a_plug_in_with_its_options(load):
    (plugin,) = load("[plugins.fedprox]\nmu = 0.5").run.plugins
    assert plugin == RuleSpec(name="fedprox", options={"mu": 0.5, "space": "factors"})


def test_an_empty_section_takes_the_defaults(load):
    (plugin,) = load("[plugins.fedprox]").run.plugins
    assert plugin.options == {"mu": 0.01, "space": "factors"}


def test_a_flag_or_a_variable_turns_a_plug_in_on_and_off(load):
    assert load("", "plugins.fedprox.enabled=true").run.plugins
    assert not load("[plugins.fedprox]\nmu = 1.0", "plugins.fedprox.enabled=false").run.plugins
    (plugin,) = load(environ={"FEDLORA_PLUGINS__FEDPROX__MU": "0.25"}).run.plugins
    assert plugin.options["mu"] == 0.25


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[plugins.fedprux]", "there is no plug-in 'fedprux'. Did you mean 'fedprox'"),
        ("[plugins.fedprox]\nmy = 1.0", "unknown key 'my' in section .plugins.fedprox."),
        ('[plugins.fedprox]\nmu = "big"', "plugins.fedprox.mu: expected a number, got 'big'"),
        ('[plugins.fedprox]\nspace = "product_"', "Did you mean 'product'"),
        ("[plugins.fedprox]\nmu = -1.0", r"plugins.fedprox.mu: .* got -1.0 \(site.toml\)"),
        ("[plugins]\nfedprox = 1", "plugins.fedprox"),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_the_nearest_right_one(load, text, expected):
    with pytest.raises(FedLoraError, match=expected) as caught:
        load(text)
    assert caught.value.reason is Reason.INVALID_CONFIG


def test_a_runs_plug_ins_come_back_from_the_configuration_written_of_it(load, tmp_path):
    run = load('[plugins.fedprox]\nspace = "product"').run
    written = tmp_path / "written.toml"
    written.write_text(toml_text(run_entries(run)))
    assert load_config(written, environ={}).run == run
