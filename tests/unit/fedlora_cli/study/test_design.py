"""STUDY.toml: what a grid comes to, and what is refused."""

from __future__ import annotations

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.study.design import read_study

HEAD = """
[study]
name = "s"
title = "A study"
config = "run.toml"
seeds = [0, 1]
baseline = "fedit"
metrics = ["test_accuracy"]
"""

VARIANTS = """
[settings]
rounds.num_rounds = 3
clients = 4
[variants]
fedit.method.name = "fedit"
[variants.optimal.method]
name = "optimal"
gauge = "balanced"
"""


def read(tmp_path, text):
    file = tmp_path / "study.toml"
    file.write_text(text)
    return read_study(file)


def test_without_a_grid_every_variant_is_one_condition(tmp_path):
    study = read(tmp_path, HEAD + VARIANTS)
    assert study.config == (tmp_path / "run.toml").resolve()
    assert [c.variant for c in study.conditions] == ["fedit", "optimal"]
    assert study.conditions[1].settings == {
        "rounds.num_rounds": 3,
        "workers.count": 4,
        "rounds.min_workers": 4,
        "rounds.quorum": 4,
        "data.partition.num_slots": 4,
        "method.name": "optimal",
        "method.gauge": "balanced",
    }


def test_grids_add_up_and_what_is_in_two_of_them_counts_once(tmp_path):
    grids = """
[[grid]]
[[grid]]
variants = ["fedit"]
vary = { clients = [2, 4], "data.partition.dirichlet_alpha" = [0.1, 1.0] }
[[grid]]
variants = ["fedit"]
vary = { clients = [2], "data.partition.dirichlet_alpha" = [0.1] }
"""
    study = read(tmp_path, HEAD + VARIANTS + grids)
    assert len(study.conditions) == 2 + 4
    last = study.conditions[-1]
    assert last.varied == {"clients": 4, "data.partition.dirichlet_alpha": 1.0}
    assert last.settings["rounds.min_workers"] == 4


def test_what_is_varied_wins_over_the_variant_and_that_over_the_settings(tmp_path):
    text = VARIANTS + '[variants.short]\nrounds.num_rounds = 2\nmethod.name = "fedit"\n'
    grid = '[[grid]]\nvariants = ["short"]\nvary = { "method.name" = ["flora_na"] }\n'
    (condition,) = read(tmp_path, HEAD + text + grid).conditions
    assert condition.settings["rounds.num_rounds"] == 2
    assert condition.settings["method.name"] == "flora_na"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD, "variants"),
        (HEAD + VARIANTS + "[stuff]\n", "stuff"),
        (HEAD.replace('"fedit"', '"none"') + VARIANTS, "no variant 'none'"),
        (HEAD.replace("[0, 1]", "[1, 1]") + VARIANTS, "twice"),
        (HEAD.replace("[0, 1]", "[]") + VARIANTS, "study.seeds"),
        (HEAD + VARIANTS + '[[grid]]\nvariants = ["fedavg"]\n', "there are: fedit, optimal"),
        (HEAD + VARIANTS + '[variants."a b".method]\nname = "fedit"\n', "variant 'a b'"),
        ("[study", "no TOML"),
        (HEAD.replace("accuracy", "acuracy") + VARIANTS, "did you mean 'test_accuracy'"),
        (HEAD.replace("test_accuracy", "mean_gap_close") + VARIANTS, "did you mean 'gap_closed'"),
        (
            HEAD + 'reach = { metric = "test_acc", levels = [0.5] }\n' + VARIANTS,
            "no cell measures 'test_acc'",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_place(tmp_path, text, words):
    with pytest.raises(FedLoraError) as caught:
        read(tmp_path, text)
    assert caught.value.reason is Reason.INVALID_CONFIG
    assert "study.toml" in caught.value.message
    assert words in caught.value.message


def test_a_byte_order_mark_is_left_aside(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(HEAD + VARIANTS, encoding="utf-8-sig")
    assert read_study(file).name == "s"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FedLoraError, match=r"none\.toml: No such file"):
        read_study(tmp_path / "none.toml")
