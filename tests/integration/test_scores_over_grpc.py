"""Scores in the reports of real runs, against what plain transformers and peft compute."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel, set_peft_model_state_dict
from support.planned_worker import Recording
from support.tiny_models import save_tiny_llama
from support.worker_federation import federate, run_of
from support.worker_runs import LABELS, causal_spec, classifier_spec, labelled_rows
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

PAIRS = (("file", "system"), ("network", "protocol"), ("small", "game"), ("sound", "library"))
UNSEEN = (("cards", "games of cards"),)
"""asked for, but never trained on"""


def completion_rows(pairs: tuple[tuple[str, str], ...], split: str) -> list[dict[str, object]]:
    return [{"prompt": p, "completion": c, "split": split} for p, c in pairs]


def tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def of_one(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> tuple[float, bool]:
    """Mean loss of the completion's tokens and the end's, and whether greedy decoding gives it."""
    head = [tokenizer.bos_token_id, *tokens(tokenizer, prompt)]
    tail = [*tokens(tokenizer, completion), tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([head + tail])).logits[0].double()
    log_p = logits.log_softmax(-1)[len(head) - 1 : -1]
    loss = -log_p[torch.arange(len(tail)), torch.tensor(tail)].mean()
    ids = torch.tensor([head])
    given = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=len(tail),
    )
    return float(loss), given[0, len(head) :].tolist() == tail


async def test_perplexity_and_exact_match_are_what_the_exported_adapter_gives(tmp_path: Path):
    llama = save_tiny_llama(tmp_path / "llama")
    asked = (*PAIRS, *UNSEEN)
    # Of the five test rows one worker scores three, the other two.
    rows = {
        name: completion_rows(PAIRS * 3, "train") + completion_rows(asked, "test")
        for name in ("w-0", "w-1")
    }
    spec = run_of(
        causal_spec(llama, target_modules=("q_proj", "v_proj", "o_proj", "down_proj")),
        "fedit",
        num_rounds=1,
        local_steps=30,
        learning_rate=5e-2,
    )
    done = await federate(tmp_path, spec, rows=rows)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), done.final)
    found = [of_one(model.eval(), tokenizer, *pair) for pair in asked]
    loss = math.fsum(loss for loss, _ in found) / len(found)
    metrics = done.reports[-1].metrics
    assert metrics["test_num_examples"] == len(asked)
    assert metrics["test_loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["test_perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)
    exact = [match for _, match in found]
    assert metrics["test_exact_match"] == pytest.approx(sum(exact) / len(exact))
    # Some and not all: a figure that is 0 or 1 whatever happens would tell nothing.
    assert 0 < sum(exact) < len(exact)
    # Pooled: neither worker's own figure, nor their mean.
    own = [
        e.metrics["perplexity"]
        for of_worker in done.reports[-1].evaluations
        for e in of_worker.evaluations
        if e.metrics["perplexity"]
    ]
    assert metrics["test_perplexity"] not in [*own, sum(own) / len(own)]


@torch.no_grad()
def accuracy(model: nn.Module, examples: list) -> float:
    right = [
        int(model(input_ids=torch.tensor([e.input_ids])).logits.argmax()) == e.targets[0]
        for e in examples
    ]
    return sum(right) / len(right)


async def test_the_gap_is_between_what_workers_sent_and_what_was_published(
    tmp_path: Path, bert: Path, recording: Recording
):
    # Each has one label nearly everywhere, and not the other's: both learn that, nothing fits both.
    rows = {"w-0": labelled_rows(30, test=3), "w-1": labelled_rows(33, test=3)}
    for own, mine in zip((LABELS[0], LABELS[2]), rows.values(), strict=True):
        for i, row in enumerate(mine):
            row["label"] = own if i % 9 else row["label"]
    spec = run_of(classifier_spec(bert), "fedit", num_rounds=1, local_steps=12)
    done = await federate(tmp_path, spec, rows=rows)
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=len(LABELS))
    model = PeftModel.from_pretrained(base, done.final).eval()
    held_out = {name: t._data.held_out for name, t in done.trainers.items()}
    published = {name: accuracy(model, examples) for name, examples in held_out.items()}
    local = {}
    for name, examples in held_out.items():
        (sent,) = [
            p.tensors
            for p in recording.up
            if p.header.round == 1 and p.header.task_id.endswith(f"/{name}")
        ]
        set_peft_model_state_dict(model, sent)
        local[name] = accuracy(model, examples)
    total = sum(map(len, held_out.values()))
    gap = sum((local[n] - published[n]) * len(held_out[n]) for n in held_out) / total
    metrics = done.reports[-1].metrics
    assert metrics["local_global_gap"] == pytest.approx(gap)
    assert gap > 0.1
    assert metrics["local_accuracy"] - metrics["held_out_accuracy"] == pytest.approx(gap)
