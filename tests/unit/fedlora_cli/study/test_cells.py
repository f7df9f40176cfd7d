"""Cells: when two are the same, and what is found before anything runs."""

from __future__ import annotations

import dataclasses

import pytest
from support.tiny_run import write_tiny_run

from fedlora.errors import FedLoraError
from fedlora_cli.study.cells import cells_of
from fedlora_cli.study.design import Condition, Study


@pytest.fixture
def config(tmp_path):
    return write_tiny_run(tmp_path)


def study(config, *settings, seeds=(0,)):
    return Study(
        name="s",
        title="",
        question="",
        config=config,
        seeds=seeds,
        baseline="v0",
        metrics=("test_accuracy",),
        conditions=tuple(
            Condition(variant=f"v{i}", varied={}, settings=s) for i, s in enumerate(settings)
        ),
    )


def keys(config, *settings, **others):
    return [cell.key for cell in cells_of(study(config, *settings, **others))]


def test_whatever_decides_a_result_changes_the_key(config):
    found = keys(
        config,
        {},
        {"method.name": "flora_na"},
        {"method.name": "flora_na", "method.coefficients": "diagonal"},
        {"weighting.name": "uniform"},
        {"training.learning_rate": 1e-3},
        {"rounds.num_rounds": 3},
        {"data.partition.dirichlet_alpha": 0.1},
        {"data.max_examples": 5},
        {"workers.max_ranks": [1, 2], "method.name": "flora"},
        {"codec.name": "int8"},
    )
    assert len({*found}) == len(found)
    assert not {*found} & {*keys(config, {}, seeds=(1,))}


def test_names_places_devices_and_threads_do_not(config, tmp_path):
    (first,) = keys(config, {})
    names = {"run.name": "other", "workers.threads_per_worker": 2, "workers.devices": ["cpu"]}
    assert keys(config, names) == [first]
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("rows.jsonl", "tiny.toml"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert keys(moved / "tiny.toml", {}) == [first]


def test_other_data_is_another_cell(config, tmp_path):
    (first,) = keys(config, {})
    (tmp_path / "rows.jsonl").write_text('{"text": "y", "label": "a"}\n')
    assert keys(config, {}) != [first]


def test_a_base_model_in_a_folder_is_known_by_its_files_and_not_by_its_place(config, tmp_path):
    def key_with(folder):
        (key,) = keys(config, {"model.base": str(folder)})
        return key

    here, there = tmp_path / "base", tmp_path / "copied" / "base"
    for folder in (here, there):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    first = key_with(here)
    assert key_with(there) == first
    (there / "model.safetensors").write_bytes(b"1")
    second = key_with(there)
    (there / "model.safetensors").write_bytes(b"2")
    assert len({first, second, key_with(there)}) == 3


def test_cells_of_one_key_all_have_their_place_in_the_tables(config):
    """A value that is varied and also the configuration's own: nothing is left out of its table."""
    plain = study(config, {"data.partition.dirichlet_alpha": 0.3}, {"method.name": "optimal"})
    varied = tuple(
        dataclasses.replace(
            condition,
            varied={"data.partition.dirichlet_alpha": 0.3},
            settings={**condition.settings, "data.partition.dirichlet_alpha": 0.3},
        )
        for condition in plain.conditions
    )
    both = dataclasses.replace(plain, conditions=plain.conditions + varied)
    cells = cells_of(both)
    assert [cell.condition for cell in cells] == [*both.conditions]
    assert cells[0].key == cells[2].key


def test_seeds_come_first_so_that_a_part_of_a_study_is_paired(config):
    cells = cells_of(study(config, {}, {"method.name": "optimal"}, seeds=(0, 1)))
    assert [(c.seed, c.condition.variant) for c in cells] == [
        (0, "v0"), (0, "v1"), (1, "v0"), (1, "v1"),
    ]  # fmt: skip
    assert [c.overrides[-2:] for c in cells[:2]] == [("run.seed=0", "data.partition.seed=0")] * 2


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method.name": "fedti"}, "fedit"),
        ({"training.learning_rat": 1.0}, "learning_rat"),
        ({"server_optimizer.name": "nothing"}, "nothing"),
        ({"rounds.min_workers": 3}, "workers.count"),
        ({"workers.max_ranks": [0, 1]}, "fedit as configured needs rank 2 of every worker"),
    ],
)
def test_a_cell_that_cannot_run_is_refused_before_any_has_begun(config, settings, words):
    with pytest.raises(FedLoraError) as caught:
        cells_of(study(config, {}, settings))
    assert "variant 'v1'" in caught.value.message
    assert words in f"{caught.value.message} {caught.value.hint}"


def test_workers_with_data_of_their_own_have_no_partition_to_seed(config):
    text, _, rest = config.read_text().partition("[data.partition]")
    config.write_text(text + rest[rest.index("[workers]") :])
    (cell,) = cells_of(study(config, {}))
    assert cell.overrides == ("run.seed=0",)


def test_a_cell_says_how_to_run_it_over_grpc(config):
    (cell,) = cells_of(study(config, {"method.name": "optimal"}))
    assert 'method.name="optimal"' in cell.overrides
    assert dataclasses.replace(cell, key="a" * 24).run_name == "v0-s0-aaaaaaaaaaaa"
