"""FedHL's figures in the reports of a real run, against the paper's definitions.

Workers of ranks 4, 3 and 2 over gRPC; everything is computed once more from the payloads that
crossed the wire, on d x k matrices in float64: D by adding increments, tails by a dense singular
value decomposition, weights as the solution of the linear system that makes their objective least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from support.method_federation import Dense, Finished, check, parts_of, spec_of
from support.planned_worker import PlannedWorker
from support.runs import LAYOUT
from torch import Tensor

from fedlora.adapters.names import Part, parse_key
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.proto.v1 import run_pb2
from fedlora.runs.method import MethodSpec

RANKS = {"w-0": 4, "w-1": 3, "w-2": 2}
PATHS = [module.path for module in LAYOUT.modules]
ROUNDING = 1e-5
"""of figures whose inputs are float32 adapters: some hundred units in the last place"""


@dataclass
class Figures:
    """One round's, from the delta that it began with."""

    delta: dict[str, Tensor]
    data_U: Tensor
    errors_U: Tensor
    """e_u: squared tails over all modules"""

    @property
    def norm(self) -> float:
        """|D|; 1 for none, which is what no error is divided by."""
        return sum(float(d.square().sum()) for d in self.delta.values()) ** 0.5 or 1.0

    def bound(self, weights_U: Tensor) -> float:
        """sqrt(U sum_u p_u^2 e_u) / |D|."""
        squares = float((weights_U**2 * self.errors_U).sum())
        return (len(weights_U) * squares) ** 0.5 / self.norm

    def start_bias(self, weights_U: Tensor) -> float:
        """|sum_u p_u (D - D_u)| / |D|."""
        lacking = [
            sum(p * (d - truncated(d, r)) for p, r in zip(weights_U, RANKS.values(), strict=True))
            for d in self.delta.values()
        ]
        return sum(float(m.square().sum()) for m in lacking) ** 0.5 / self.norm


def truncated(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]


def least(errors_U: Tensor, pull: Tensor | float, towards_U: Tensor) -> Tensor:
    """What minimises sum p^2 e + sum pull (p - towards)^2 where sum p = 1, by Lagrange."""
    num_workers = len(errors_U)
    system = torch.zeros(num_workers + 1, num_workers + 1, dtype=torch.float64)
    system[:-1, :-1] = torch.diag(errors_U + pull)
    system[:-1, -1] = system[-1, :-1] = 1.0
    right = torch.cat([pull * towards_U, torch.ones(1, dtype=torch.float64)])
    return torch.linalg.solve(system, right)[:-1]


def data_aware(errors_U: Tensor, data_U: Tensor) -> Tensor:
    if not errors_U.any():
        return data_U
    return least(errors_U, errors_U.mean(), data_U)


def power(errors_U: Tensor, data_U: Tensor, c: int) -> Tensor:
    if not errors_U.any():
        return data_U
    eps = (1e-2 * errors_U.mean()) ** c
    return least(errors_U**c + eps, 0.0, torch.zeros_like(errors_U))


FORMS = {
    "data_aware": ({}, data_aware),
    "power 1": ({"form": "power"}, lambda e, w: power(e, w, 1)),
    "power 2": ({"form": "power", "power": 2}, lambda e, w: power(e, w, 2)),
    "data": ({"form": "data"}, lambda e, w: w),
}


def figures(delta: dict[str, Tensor], report: run_pb2.RoundReport) -> Figures:
    assert {u.worker: u.rank for u in report.updates} == RANKS
    examples = {u.worker: float(u.num_examples) for u in report.updates}
    data_U = torch.tensor([examples[name] for name in RANKS], dtype=torch.float64)
    values = [torch.linalg.svdvals(d) for d in delta.values()]
    errors = [sum(float((v[rank:] ** 2).sum()) for v in values) for rank in RANKS.values()]
    return Figures(dict(delta), data_U / data_U.sum(), torch.tensor(errors, dtype=torch.float64))


def increments(done: Finished, round: int, worker: str) -> dict[str, Tensor]:
    """What a worker has added to what it was sent, by module."""
    dense = Dense(done)
    sent, given = done.updates(round)[worker], done.givens[round - 1][worker]
    return {
        path: dense.product(parts_of(sent, path)) - dense.product(parts_of(given, path))
        for path in PATHS
    }


async def initialize(worker: PlannedWorker, task: pb.Task, shapes: dict[str, Any]) -> None:
    """Version 0 as real workers make it, with B = 0: D begins as nothing."""
    generator = torch.Generator().manual_seed(1)
    tensors = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for key, tensor in tensors.items():
        if parse_key(key).part is Part.B:
            tensor.zero_()
    await worker.push(task, tensors, num_examples=0)


@pytest.mark.parametrize("form", FORMS)
async def test_errors_drift_and_weights_are_those_of_the_definitions(form, tmp_path, monkeypatch):
    monkeypatch.setattr(PlannedWorker, "initialize", initialize)
    options, weights_of = FORMS[form]
    spec = replace(spec_of("fedhl"), method=MethodSpec(name="fedhl", options=options))
    done = await check(tmp_path, monkeypatch, spec, ranks=(0, 3, 2))
    dense = Dense(done)
    delta = {path: dense.product(parts_of(done.versions[0], path)) for path in PATHS}
    moved = []
    for report in done.reports:
        wanted = figures(delta, report)
        weights_U = weights_of(wanted.errors_U, wanted.data_U)
        found = {u.worker: u.weight for u in report.updates}
        assert [found[name] for name in RANKS] == pytest.approx(weights_U.tolist(), rel=ROUNDING)
        tails = {
            f"truncation_error_rank_{rank}": float(error.sqrt()) / wanted.norm
            for rank, error in zip(RANKS.values(), wanted.errors_U, strict=True)
        }
        moved.append(float((weights_U - wanted.data_U).abs().sum()) / 2)
        expected = {
            **tails,
            "largest_truncation_error": max(tails.values()),
            "start_bias": wanted.start_bias(weights_U),
            "drift_bound": wanted.bound(weights_U),
            "drift_bound_at_data_weights": wanted.bound(wanted.data_U),
            "moved_from_data_weights": moved[-1],
        }
        measured = report.certificate.overall.measurements
        assert {name: measured[name] for name in expected} == pytest.approx(
            expected, rel=ROUNDING, abs=ROUNDING
        )
        for name, weight in zip(RANKS, weights_U, strict=True):
            for path, step in increments(done, report.round, name).items():
                delta[path] = delta[path] + weight * step
            for path in PATHS:
                # What it began from was the best of its rank, which is what the errors are of.
                given = dense.product(parts_of(done.givens[report.round - 1][name], path))
                best = truncated(wanted.delta[path], RANKS[name])
                torch.testing.assert_close(given, best, rtol=1e-4, atol=1e-5)
    assert measured["truncation_error_rank_2"] > measured["truncation_error_rank_4"] > 0.01
    # In the first round D is nothing, and no rank lacks anything of it.
    assert moved[0] == 0.0
    assert (min(moved[1:]) > 0.01) == (form != "data")
