import json
from pathlib import Path

from support.seeds import REGRESSIONS, seeds_for


def test_ci_runs_the_same_seeds_each_time_and_every_test_its_own():
    assert seeds_for("test_a", 5) == seeds_for("test_a", 5)
    assert len({*seeds_for("test_a", 5), *seeds_for("test_b", 5)}) == 10


def test_long_tests_draw_new_ones(monkeypatch):
    monkeypatch.delenv("PYTEST_XDIST_TESTRUNUID", raising=False)
    assert seeds_for("test_a", 5, fresh=True) != seeds_for("test_a", 5, fresh=True)


def test_processes_of_one_parallel_run_agree(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "one run")
    first = seeds_for("test_a", 5, fresh=True)
    assert seeds_for("test_a", 5, fresh=True) == first
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", "another")
    assert seeds_for("test_a", 5, fresh=True) != first


def test_what_failed_once_comes_first(tmp_path: Path):
    file = tmp_path / "regressions.json"
    file.write_text(json.dumps([{"test": "test_a", "seed": 7}, {"test": "test_b", "seed": 8}]))
    without = seeds_for("test_a", 3)
    assert seeds_for("test_a", 3, regressions=file) == [7, *without]


def test_every_recorded_seed_is_of_a_test_that_is_still_there():
    sources = "".join(p.read_text() for p in REGRESSIONS.parent.glob("test_*.py"))
    for record in json.loads(REGRESSIONS.read_text()):
        assert f'seeds_for("{record["test"]}"' in sources, record
