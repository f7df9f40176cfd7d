"""A configuration that any machine runs in seconds, and its data."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["TINY_RUN", "write_tiny_run"]

TINY_RUN = """
[run]
name = "tiny"
[model]
base = "random:bert"
task = "sequence_classification"
labels = ["a", "b"]
[adapter]
r = 2
target_modules = ["query"]
modules_to_save = ["classifier"]
[method]
name = "fedit"
[rounds]
num_rounds = 2
[training]
local_steps = 2
batch_size = 4
max_sequence_tokens = 16
[data]
path = "rows.jsonl"
split_column = "split"
[data.partition]
scheme = "iid"
num_slots = 2
[workers]
devices = ["cpu"]
"""


def write_tiny_run(folder: Path, *, num_rows: int = 40) -> Path:
    """The configuration and its rows, a quarter of them for testing; returns the configuration."""
    rows = [
        {
            "text": f"{'up' if i % 2 else 'down'} {i}",
            "label": "ab"[i % 2],
            "split": "test" if i % 4 == 0 else "train",
        }
        for i in range(num_rows)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    file = folder / "tiny.toml"
    file.write_text(TINY_RUN)
    return file
