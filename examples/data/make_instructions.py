"""Makes instructions.jsonl, prompts with completions, from debian_sections.jsonl.

Of each section the first rows of each split, in the order of the file: equal numbers of each, so
that no section can be guessed from its frequency. Run it again and nothing changes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROWS_PER_SECTION = {"train": 60, "test": 10}


def instructions() -> str:
    """The text of instructions.jsonl."""
    taken: Counter[tuple[str, str]] = Counter()
    lines = []
    for line in (HERE / "debian_sections.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        place = (row["split"], row["label"])
        if taken[place] == ROWS_PER_SECTION[row["split"]]:
            continue
        taken[place] += 1
        example = {
            "prompt": f"Debian package: {row['text']}\nArchive section:",
            "completion": f" {row['label']}",
            "label": row["label"],
            "split": row["split"],
        }
        lines.append(json.dumps(example, ensure_ascii=False))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "instructions.jsonl").write_text(instructions(), encoding="utf-8")
