"""Configuration from file, environment and flags."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedlora.codecs.spec import CodecName, CodecSpec
from fedlora.config import (
    CONFIG_VARIABLE,
    LocalWorkers,
    OriginKind,
    load_config,
    run_entries,
    toml_text,
    toml_value,
)
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.method import Gauge, RuleSpec
from fedlora.runs.partition import PartitionScheme
from fedlora.runs.spec import RunSpec
from fedlora.runs.training import LearningRateSchedule
from fedlora.tensors.manifest import DataType

RUN = """
[run]
name = "t"
wire_dtype = "bf16"
[model]
base = "some/model"
task = "causal_lm"
[adapter]
target_modules = ["q_proj"]
[method]
name = "optimal"
core = "qr"
gauge = "balanced"
[training]
schedule = "cosine"
learning_rate = 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service's settings."""

    path: str
    """required"""
    folder: Path | None = None
    """a path"""
    limit: int = 3
    """a number"""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise FedLoraError(Reason.INVALID_ARGUMENT, f"data.limit is negative: {self.limit}")


SERVICES = {"data": Service, "workers": LocalWorkers}


@pytest.fixture
def write(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "site.toml"
        file.write_text(text)
        return file

    return write


def load(file=None, *overrides, **environ):
    return load_config(file, services=SERVICES, overrides=overrides, environ=environ)


def refused(*arguments, **environ) -> str:
    with pytest.raises(FedLoraError) as caught:
        load(*arguments, **environ).build("data", Service)
    assert caught.value.reason is Reason.INVALID_CONFIG
    return str(caught.value)


# --- what comes out ----------------------------------------------------------------------


def test_a_file_becomes_the_dataclasses_of_the_run(write):
    run = load(write(RUN)).need_run()
    assert isinstance(run, RunSpec)
    assert run.name == "t"
    assert run.wire_dtype is DataType.BF16
    assert run.adapter.base_model.model_id == "some/model"
    assert run.adapter.target_modules == ("q_proj",)
    assert run.training.schedule is LearningRateSchedule.COSINE
    assert run.training.learning_rate == 1.0
    assert run.partition is None


def test_method_options_stand_beside_the_name(write):
    method = load(write(RUN)).need_run().method
    assert method.options == {"core": "qr"}
    assert method.gauge is Gauge.BALANCED


def test_a_sampler_with_a_section_has_its_options_beside_its_name(write):
    text = RUN + "[rounds]\ncohort_size = 2\n"
    assert load(write(text)).need_run().rounds.sampler is None
    text += "[sampler]\nname = 'power_of_choice'\ncandidates = 5\n"
    run = load(write(text)).need_run()
    assert run.rounds.sampler == RuleSpec(name="power_of_choice", options={"candidates": 5})
    assert load(write(toml_text(run_entries(run)))).need_run() == run
    assert "site.toml" in refused(write(text), "rounds.sampling=by_examples")
    assert load(None, *overrides_of(text)).need_run().rounds == run.rounds


def overrides_of(text: str) -> list[str]:
    values = tomllib.loads(text)
    return [f"{s}.{k}={toml_value(v)}" for s, keys in values.items() for k, v in keys.items()]


def test_keys_left_out_have_the_default_of_the_dataclass(write):
    run = load(write(RUN)).need_run()
    assert run.rounds.num_rounds == 8
    assert run.adapter.r == 8


def test_the_partition_is_part_of_the_run_and_not_of_the_data_section(write):
    config = load(write(RUN + "[data.partition]\nnum_slots = 3\nscheme = 'iid'\n"))
    assert config.need_run().partition.num_slots == 3
    assert config.need_run().partition.scheme is PartitionScheme.IID
    assert config.section("data") == {}


def test_the_codec_is_part_of_the_run_and_absent_unless_written(write):
    assert load(write(RUN)).need_run().codec is None
    run = load(write(RUN + "[codec]\nname = 'top_k'\nkept_share = 0.01\n")).need_run()
    assert run.codec == CodecSpec(name=CodecName.TOP_K, kept_share=0.01)
    shown = {e.name: e.value for e in run_entries(run) if e.section == "codec"}
    assert shown == {
        "codec.name": CodecName.TOP_K,
        "codec.error_feedback": True,
        "codec.kept_share": 0.01,
    }


def test_only_numbers_are_types_of_an_adapter(write):
    with pytest.raises(FedLoraError, match='one of "f32", "f16", "bf16"'):
        load(write(RUN), "run.wire_dtype=u9")
    with pytest.raises(FedLoraError, match="wire_dtype must be one of f32, f16, bf16, got u8"):
        load(write(RUN), "run.wire_dtype=u8")


def test_a_file_without_a_run_describes_none(write):
    config = load(write("[data]\npath = 'x'\n"))
    assert config.run is None
    with pytest.raises(FedLoraError, match="describes no run"):
        config.need_run()


def test_the_environment_names_the_file_where_no_argument_does(write):
    assert load(None, **{CONFIG_VARIABLE: str(write(RUN))}).need_run().name == "t"


def test_sections_of_services_that_are_absent_are_read_past(write):
    text = RUN + "[server]\nnonsense = 1\n[data]\npath = 'x'\nnonsense = 2\n"
    config = load_config(write(text), environ={})
    assert {e.section for e in config.entries}.isdisjoint({"server", "data"})


# --- precedence and origin ---------------------------------------------------------------


def test_flags_win_over_the_environment_and_the_environment_over_the_file(write):
    file = write(RUN + "[rounds]\nnum_rounds = 1\nquorum = 1\nmin_workers = 5\n")
    config = load(
        file,
        "rounds.num_rounds=3",
        FEDLORA_ROUNDS__NUM_ROUNDS="2",
        FEDLORA_ROUNDS__QUORUM="2",
    )
    origins = {e.name: (e.value, e.origin.kind, str(e.origin)) for e in config.entries}
    assert origins["rounds.num_rounds"] == (3, OriginKind.FLAG, "--set")
    assert origins["rounds.quorum"] == (2, OriginKind.ENVIRONMENT, "FEDLORA_ROUNDS__QUORUM")
    assert origins["rounds.min_workers"] == (5, OriginKind.FILE, "site.toml")
    assert origins["rounds.evaluate"] == (True, OriginKind.DEFAULT, "default")


def test_lists_and_booleans_are_read_from_flags_and_variables(write):
    config = load(
        write(RUN),
        "adapter.target_modules=a,b",
        "rounds.evaluate=false",
        "method.max_sweeps=7",
        FEDLORA_MODEL__LABELS='["x, y", "z"]',
    )
    run = config.need_run()
    assert run.adapter.target_modules == ("a", "b")
    assert run.adapter.labels == ("x, y", "z")
    assert run.rounds.evaluate is False
    assert run.method.options == {"core": "qr", "max_sweeps": 7}


def test_the_partition_can_come_from_the_environment_alone(write):
    config = load(write(RUN), FEDLORA_DATA__PARTITION__NUM_SLOTS="2")
    assert config.need_run().partition.num_slots == 2


# --- paths -------------------------------------------------------------------------------


def test_paths_in_the_file_are_meant_from_its_folder(write, tmp_path):
    service = load(write("[data]\npath = 'd/x.jsonl'\nfolder = 'cache'\n")).build("data", Service)
    assert service.path == str(tmp_path / "d" / "x.jsonl")
    assert service.folder == tmp_path / "cache"


def test_paths_in_flags_are_meant_from_the_current_folder(write, tmp_path, monkeypatch):
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    service = load(write("[data]\npath = 'x.csv'\n"), "data.folder=c").build("data", Service)
    assert service.path == str(tmp_path / "x.csv")
    assert service.folder == here / "c"


def test_the_id_of_a_data_set_is_no_path(write):
    service = load(write("[data]\npath = 'owner/set'\n")).build("data", Service)
    assert service.path == "owner/set"


# --- refusals ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[rounds]\nnum_round = 3\n", ["site.toml", "num_round", "[rounds]", "'num_rounds'?"]),
        ("[roundz]\nx = 1\n", ["unknown section 'roundz'", "Did you mean 'rounds'?"]),
        ("num_rounds = 3\n", ["outside any section", "'num_rounds'"]),
        ("[rounds]\nnum_rounds = '8'\n", ["rounds.num_rounds", "expected an integer", "'8'"]),
        ("[rounds]\nevaluate = 1\n", ["rounds.evaluate", "expected true or false"]),
        ("[rounds]\nnum_rounds = true\n", ["rounds.num_rounds", "expected an integer"]),
        ("[training]\nschedule = 'linaer'\n", ["training.schedule", "Did you mean 'linear'?"]),
        ("[adapter]\ntarget_modules = 'q'\n", ["adapter.target_modules", "a list of strings"]),
        ("[data.partition]\nnum_slot = 3\n", ["[data.partition]", "'num_slots'?"]),
        ("[data.partition]\nscheme = 'iid'\n", ["data.partition.num_slots is missing"]),
        ("[rounds]\nquorum = 9\n", ["rounds.quorum is 9", "(site.toml)"]),
        ("[rounds]\ndeadline_seconds = inf\n", ["positive and finite, got inf (site.toml)"]),
        ("[rounds\n", ["is no TOML", "line"]),
        ("rounds = 3\n", ["[rounds] is a section"]),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_place_and_the_way_out(write, text, words):
    rest = RUN if not text.startswith(("[training]", "[adapter]")) else RUN.split("[adapter]")[0]
    if text.startswith(("num_rounds", "rounds =")):
        message = refused(write(text + RUN))
    else:
        message = refused(write(rest + text))
    assert [word for word in words if word not in message] == []


def test_a_file_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "site.toml"
    file.write_bytes("[data]\npath = 'daten/\u00fc.jsonl'\n".encode("latin-1"))
    with pytest.raises(FedLoraError, match=r"site\.toml is no TOML: .*utf-8"):
        load_config(file, environ={})


def test_a_byte_order_mark_before_the_first_section_is_left_aside(write):
    file = write(RUN)
    expected = load_config(file, environ={}).run
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_config(file, environ={}).run == expected


def test_a_missing_required_key_is_told_with_its_meaning(write):
    message = refused(write("[run]\nname = 'x'\n"))
    assert "model.base is missing" in message
    assert "hub id" in message


def test_the_section_of_a_service_may_be_absent_until_it_is_built(write):
    config = load(write(RUN))
    with pytest.raises(FedLoraError, match=r"data\.path is missing"):
        config.build("data", Service)


def test_a_value_the_dataclass_refuses_is_told_with_the_flag_that_set_it(write):
    message = refused(write("[data]\npath = 'x'\n"), "data.limit=-1")
    assert message == "data.limit is negative: -1 (--set)"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rounds.num_rounds", ["expected section.key=value"]),
        ("num_rounds=3", ["expected section.key=value"]),
        ("rounds.=3", ["expected section.key=value"]),
        ("round.num_rounds=3", ["unknown section 'round'", "'rounds'?"]),
        ("rounds.num_rounds=three", ["expected an integer", "'three'"]),
        ("data.partition=3", ["data.partition", "a section"]),
    ],
)
def test_a_mistaken_flag_is_told(write, override, words):
    message = refused(write(RUN), override)
    assert [word for word in words if word not in message] == []


def test_one_underscore_instead_of_two_is_told(write):
    message = refused(write(RUN), FEDLORA_ROUNDS_NUM_ROUNDS="3")
    assert "FEDLORA_ROUNDS__NUM_ROUNDS" in message


def test_variables_that_are_no_key_are_not_ours_to_judge(write):
    assert load(write(RUN), FEDLORA_SERVER_PORT="1", FEDLORA_LOG_LEVEL="debug").run is not None


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert "there is no configuration file" in refused(tmp_path / "none.toml")
