"""The law of the device: every aggregation method does on CUDA what it does on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.builders import drifted, weights
from support.recipes import admissible, change, combine
from support.reference import relative_error

from aggregator_service.aggregation.registry import METHODS
from fedlora.adapters.factors import LoraFactors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_cuda(value):
    if isinstance(value, LoraFactors):
        return LoraFactors(value.a_RK.cuda(), value.b_DR.cuda())
    return value.cuda() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_gives_on_cuda_what_it_gives_on_the_cpu(name):
    cohort, w = drifted(4), weights(1, 2, 3, 4)
    for round in range(1, len(METHODS[name].plans) + 1):
        context = admissible(METHODS[name], cohort, round=round)
        members = context.pop("members")
        here = combine(METHODS[name], members, w, **context)
        start = context["start"]
        context |= {
            "sent": [on_cuda(f) for f in context["sent"]],
            "extras": [{p: on_cuda(t) for p, t in held.items()} for held in context["extras"]],
            "start": replace(
                start,
                factors=on_cuda(start.factors),
                extras={p: on_cuda(t) for p, t in start.extras.items()},
            ),
        }
        there = combine(METHODS[name], [on_cuda(f) for f in members], w, **context)
        assert there.factors.a_RK.is_cuda
        assert relative_error(change(there).cpu(), change(here)) < 1e-6
