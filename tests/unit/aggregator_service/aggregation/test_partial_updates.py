"""Methods whose workers send part of an adapter, from files: arrival order, and what stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.builders import METRICS, MODULES, normal
from support.recipes import recipe, whole_adapter_methods

from aggregator_service.aggregation.contribution import Contribution
from aggregator_service.aggregation.driver import aggregate
from aggregator_service.aggregation.registry import METHODS
from aggregator_service.aggregation.round_context import RoundContext, StoredAdapter
from fedlora.adapters.names import Part, parse_key, part_key
from fedlora.runs.plan import RoundPlan, Selection, plan_for

RANK, SCALE, COUNT = 4, 2.0, 5
PARTIAL = sorted({*METHODS} - {*whole_adapter_methods()})
ROUNDS = [(name, t) for name in PARTIAL for t in range(1, len(METHODS[name].plans) + 1)]


def part_of(module: str, part: Part, seed: int) -> torch.Tensor:
    d, k = MODULES[module]
    shape = {Part.A: (RANK, k), Part.B: (d, RANK), Part.CORE: (RANK, RANK)}[part]
    return normal(seed, *shape).float()


def start_of(name: str, path):
    parts = [Part.A, Part.B, *([Part.CORE] if name == "fed_sb" else [])]
    tensors = {
        part_key(module, part): part_of(module, part, 10 * i + j)
        for i, module in enumerate(MODULES)
        for j, part in enumerate(parts)
    }
    save_file(tensors, path)
    return StoredAdapter(path=path, scaling=SCALE)


def update_of(plan: RoundPlan, u: int, path) -> Contribution:
    """As a worker sends it; the last one leaves a component out, where it may choose.

    The others' large parts cancel in the weighted sum: what is left of them depends on the order of
    the sum in digits that a float32 file shows.
    """
    weight = 1.0 + u * u / 3
    large = (-1) ** u * 1e7 / weight if u < COUNT - 1 else 0.0
    tensors = {}
    for i, module in enumerate(MODULES):
        chosen = torch.ones(RANK)
        if plan.selection is not Selection.ALL:
            chosen[i % RANK] = float(u < COUNT - 1)
            tensors[part_key(module, Part.SELECTED)] = chosen
        here = chosen.nonzero().flatten()
        for j, part in enumerate(plan.trained):
            whole = part_of(module, part, 1000 + 100 * u + 10 * i + j)
            whole += large * part_of(module, part, 900 + 10 * i + j)
            kept = {Part.A: whole[here], Part.B: whole[:, here]}.get(part, whole)
            tensors[part_key(module, part)] = kept.contiguous()
    save_file(tensors, path)
    return Contribution(
        worker=path.stem,
        weight=weight,
        path=path,
        scaling=SCALE,
        given_rank=RANK,
        metrics=METRICS,
    )


@pytest.fixture(params=ROUNDS, ids=lambda case: f"{case[0]}-{case[1]}")
def round_of(request, tmp_path):
    """(method, its plan, what the round began from, five updates)."""
    name, t = request.param
    plan = plan_for(recipe(name).plans(), t)
    began = RoundContext(start=start_of(name, tmp_path / "start.safetensors"), round=t)
    return name, plan, began, [update_of(plan, u, tmp_path / f"worker-{u}") for u in range(COUNT)]


def test_these_are_all_that_send_less_than_an_adapter():
    assert PARTIAL == [
        "aflora",
        "fed_sb",
        "fedsa_lora",
        "fedsvd",
        "ffa_lora",
        "lora_a2",
        "rac_lora",
        "rolora",
    ]


def test_arrival_order_absent_workers_and_threads_change_no_byte(round_of, tmp_path):
    name, _, began, cohort = round_of
    absent = replace(cohort[0], worker="worker-1b", weight=0.0, path=tmp_path / "never-opened")
    turned = [cohort[i] for i in (3, 0, 4, 2, 1)]
    same = {"seed": 3, "context": began}
    outputs = []
    for order, threads in ((cohort, 1), (cohort[::-1], 1), ([*turned, absent], 3)):
        outputs.append(tmp_path / f"out-{len(outputs)}")
        aggregate(order, recipe(name), output=outputs[-1], threads=threads, **same)
    assert outputs[0].read_bytes() == outputs[1].read_bytes() == outputs[2].read_bytes()


def test_what_the_round_does_not_publish_is_copied_bit_for_bit(round_of, tmp_path):
    name, plan, began, cohort = round_of
    output = tmp_path / "out"
    aggregate(cohort, recipe(name), output=output, output_scaling=SCALE, context=began)
    before, after = load_file(began.start.path), load_file(output)
    for key, tensor in before.items():
        kept = parse_key(key).part not in plan.published
        assert torch.equal(after[key], tensor) == kept, key
