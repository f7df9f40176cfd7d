"""A federation in one process: the numbers are those of processes that talk gRPC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from fedlora.config import CONFIG_VARIABLE
from fedlora_cli.configuration import load
from fedlora_cli.processes import child_environment
from fedlora_cli.simulation.federation import simulate

pytestmark = pytest.mark.timeout(300)

CONFIG = """
[run]
name = "{name}"
seed = 3
[model]
base = "random:bert"
task = "sequence_classification"
labels = ["a", "b"]
[adapter]
r = 3
target_modules = ["query", "value"]
modules_to_save = ["classifier"]
[method]
name = "flora_na"
[rounds]
num_rounds = 2
min_workers = 3
quorum = 3
test_share = 0.5
[training]
local_steps = 3
batch_size = 4
max_sequence_tokens = 16
learning_rate = 1e-2
[data]
path = "../rows.jsonl"
split_column = "split"
[data.partition]
scheme = "iid"
num_slots = 3
[workers]
count = 3
devices = ["cpu"]
threads_per_worker = 1
max_ranks = [3, 1, 2]
"""


def folder(tmp_path: Path, run: str, *changes: tuple[str, str]) -> Path:
    rows = [
        {
            "text": f"{'up' if i % 2 else 'down'} {i}",
            "label": "ab"[i % 2],
            "split": "test" if i % 4 == 0 else "train",
        }
        for i in range(96)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = tmp_path / run
    made.mkdir()
    text = CONFIG.replace("{name}", run)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (made / "config.toml").write_text(text)
    return made


def command(*arguments: str, config: Path) -> subprocess.CompletedProcess[str]:
    environment = child_environment(os.environ, threads=1)
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=environment | {CONFIG_VARIABLE: str(config / "config.toml")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def simulate_here(run: Path) -> None:
    """In this process, which has loaded torch already, as `python -m fedlora_cli.simulation`."""
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=run) as scratch:
        simulate(
            load(run / "config.toml"), device="cpu", export_dir=run.parent, scratch=Path(scratch)
        )


def rounds(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_one_process_gives_the_same_adapters_and_scores_as_grpc(tmp_path):
    direct = folder(tmp_path, "direct")
    simulate_here(direct)
    over_grpc = folder(tmp_path, "over-grpc")
    run_dir = tmp_path / "run"
    done = command(
        *("fedlora_cli", "run", str(over_grpc / "config.toml"), "--run-dir", str(run_dir)),
        config=over_grpc,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rounds(direct)) == 2
    for here, there in zip(rounds(direct), rounds(run_dir), strict=True):
        assert here["adapter_digest"] == there["adapter_digest"]
        assert here["metrics"] == there["metrics"]
        assert [u["rank"] for u in here["updates"]] == [3, 1, 2]
        assert here["bytes_up"] == there["bytes_up"]
    # Half of the 24 test examples after the first round, all of them after the last.
    assert [r["metrics"]["test_num_examples"] for r in rounds(direct)] == [12, 24]


def test_a_worker_with_public_data_refines_what_the_parties_came_to(tmp_path):
    run = folder(
        tmp_path,
        "public",
        ('"flora_na"', '"fedlora_optimizer"\nrefine_steps = 2\npersonal_epochs = 1'),
        ("max_ranks = [3, 1, 2]", "server_data = true"),
        ('split_column = "split"', 'split_column = "split"\npublic_fraction = 0.25'),
    )
    simulate_here(run)
    for report in rounds(run):
        assert [u["worker"] for u in report["updates"]] == ["worker-0", "worker-1", "worker-2"]
        # 72 training rows, 18 of them public, a tenth held out by each party.
        assert sum(u["num_examples"] for u in report["updates"]) == 54 - 6
        assert report["metrics"]["personal_num_examples"] == 6
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    refined = [
        e["round"]
        for e in events
        if e["worker"] == "server-data" and e["type"] == "update_committed"
    ]
    assert refined == [1, 2]


def test_a_worker_that_fails_ends_the_process_with_its_reason(tmp_path):
    wrong = folder(tmp_path, "wrong", ('"query", "value"', '"no_such_module"'))
    done = command("fedlora_cli.simulation", config=wrong)
    assert done.returncode == 1
    assert "cannot be attached" in done.stderr
    assert "worker-" in done.stderr
    assert not list(wrong.glob("scratch-*"))


def test_a_class_that_joins_later_is_learnt_and_scored(tmp_path):
    """Two classes, one after the other; the third worker has no example of the second."""
    stream = "[continual]\norder = ['b', 'a']\nsizes = [1, 1]\nrounds_per_experience = 1\n"
    run = folder(
        tmp_path,
        "stream",
        ('"flora_na"', '"fed_talora"'),
        ("max_ranks = [3, 1, 2]", ""),
        ('scheme = "iid"', 'scheme = "column"\ncolumn = "team"'),
        ("[training]", f"{stream}[training]"),
    )
    rows = [
        {
            "text": f"{'up' if i % 2 else 'down'} {i}",
            "label": "ab"[i % 2],
            "split": "test" if i % 8 < 2 else "train",
            "team": "only b" if i % 6 == 5 else f"team {i // 8 % 2}",
        }
        for i in range(96)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    simulate_here(run)
    first, second = rounds(run)
    assert all(u["num_examples"] > 0 for u in first["updates"])
    (without,) = [u for u in second["updates"] if u["num_examples"] == 0]
    assert without["weight"] == 0
    assert "train_loss" not in without["metrics"]
    # After the first round only "b" is asked for, and nothing else can be answered.
    assert first["metrics"]["test_accuracy"] == 1.0
    assert "test_experience_2_accuracy" not in first["metrics"]
    lost = 1.0 - second["metrics"]["test_experience_1_accuracy"]
    assert second["metrics"]["test_forgetting"] == pytest.approx(lost)
    assert "Accuracy by experience" in (run / "report.html").read_text()
