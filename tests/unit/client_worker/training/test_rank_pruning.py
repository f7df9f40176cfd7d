from __future__ import annotations

import pytest
import torch
from torch import nn

from client_worker.training.rank_pruning import Tail
from fedlora.runs.plan import RoundPlan

RANK = 8
HETLORA = {"tail_fraction": 0.75, "tail_penalty": 0.5, "min_rank": 2.0}


def factors(rank=RANK, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = {p: nn.Parameter(torch.randn(rank, 5, generator=generator)) for p in ("one", "two")}
    b = {p: nn.Parameter(torch.randn(7, rank, generator=generator)) for p in ("one", "two")}
    return a, b


def tail(a, b, *, rank=RANK, may=True, **changes):
    plan = RoundPlan(may_lower_rank=may, settings={**HETLORA, **changes})
    return Tail(plan, rank, a, b)


def test_the_penalty_is_the_product_of_the_tails_norms_summed_over_modules():
    a, b = factors()
    expected = 0.5 * sum(b[p][:, 6:].norm() * a[p][6:].norm() for p in a)
    assert torch.allclose(tail(a, b).hooks.penalty(), expected)


def test_a_tail_that_shrank_is_cut_off_and_one_that_grew_is_not():
    for factor, rank in ((0.9, 6), (1.1, RANK), (1.0, RANK)):
        a, b = factors()
        begun = tail(a, b)
        for tensor in b.values():
            tensor.data[:, 6:] *= factor
        assert begun.rank_at_end() == rank


def test_no_worker_goes_below_the_least_rank():
    a, b = factors()
    begun = tail(a, b, min_rank=7.0)
    for tensor in b.values():
        tensor.data *= 0.5
    assert begun.rank_at_end() == 7
    a, b = factors(rank=2)
    begun = tail(a, b, rank=2)
    for tensor in b.values():
        tensor.data *= 0.5
    assert begun.rank_at_end() == 2
    assert begun.hooks.penalty is None


@pytest.mark.parametrize("changes", [{"may": False}, {"tail_fraction": 1.0}, {"tail_penalty": 0.0}])
def test_what_a_plan_does_not_ask_for_is_not_added_to_the_loss(changes):
    assert tail(*factors(), **changes).hooks.penalty is None


def test_a_tail_of_zeros_has_a_finite_gradient():
    a, b = factors()
    for tensor in b.values():
        tensor.data.zero_()
    tail(a, b).hooks.penalty().backward()
    assert all(t.grad is None or t.grad.isfinite().all() for t in (*a.values(), *b.values()))
