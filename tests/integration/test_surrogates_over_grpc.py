"""FLoRA-NA's surrogates in real federations, for every family of adapters.

`check` recomputes each certificate densely. Beyond it, what was published must lie in the span that
its coefficients allow, of the factors that crossed the wire, and not in that of fewer coefficients.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.method_federation import Finished, check, parts_of, spec_of, versions_of
from support.runs import LAYOUT
from torch import Tensor

from aggregator_service.aggregation.methods.flora_na import Coefficients
from aggregator_service.aggregation.surrogates import Member
from fedlora.adapters.names import Part
from fedlora.adapters.spec import AdapterKind
from fedlora.proto.v1 import run_pb2
from fedlora.runs.method import MethodSpec

ROUNDING = 1e-5
MEMBERS = {
    Coefficients.SCALAR: Member.SCALAR,
    Coefficients.DIAGONAL: Member.DIAGONAL,
    Coefficients.FULL: Member.OPTIMAL,
}


def beyond_span(vectors: Tensor, targets: Tensor) -> float:
    """The share of the targets, as columns, that no combination of the vectors reaches."""
    reached = vectors @ torch.linalg.lstsq(vectors, targets).solution
    return float((targets - reached).norm() / targets.norm())


def beyond(coefficients: Coefficients, sent: list[Tensor], published: Tensor) -> float:
    """Factors are D x R here: B as it is, A transposed."""
    if coefficients is Coefficients.SCALAR:
        return beyond_span(torch.stack([f.flatten() for f in sent], 1), published.reshape(-1, 1))
    if coefficients is Coefficients.FULL:
        return beyond_span(torch.cat(sent, 1), published)
    columns = range(published.shape[1])
    return max(
        beyond_span(torch.stack([f[:, j] for f in sent], 1), published[:, j : j + 1])
        for j in columns
    )


def factor(tensors: dict[str, Tensor], path: str, part: Part) -> Tensor:
    found = parts_of(tensors, path)[part]
    return found if part is Part.B else found.T


def check_round(done: Finished, report: run_pb2.RoundReport, asked: Coefficients) -> None:
    after = done.versions[min(versions_of(done, report))]
    sent = done.updates(report.round)
    narrower = list(Coefficients)[: list(Coefficients).index(asked)]
    for entry in report.certificate.modules:
        assert entry.measurements["member"] == MEMBERS[asked]
        for part in (Part.A, Part.B):
            theirs = [factor(tensors, entry.module, part) for tensors in sent.values()]
            mine = factor(after, entry.module, part)
            assert beyond(asked, theirs, mine) < ROUNDING
            assert all(beyond(less, theirs, mine) > 0.01 for less in narrower)
        assert entry.relative_error < entry.factor_mean_error * (1 - 1e-3)
        if done.spec.adapter.kind is AdapterKind.DORA:
            of_each = [parts_of(t, entry.module)[Part.MAGNITUDE] for t in sent.values()]
            shares = {u.worker: u.weight for u in report.updates}
            mean = sum(shares[name] * m for name, m in zip(sent, of_each, strict=True))
            found = parts_of(after, entry.module)[Part.MAGNITUDE]
            torch.testing.assert_close(found, mean, rtol=ROUNDING, atol=ROUNDING)
        if asked is Coefficients.FULL:
            assert entry.relative_error == pytest.approx(entry.lower_bound, rel=1e-4)
        else:
            assert entry.relative_error > entry.lower_bound * (1 + 1e-3)


@pytest.mark.parametrize("kind", sorted(AdapterKind))
@pytest.mark.parametrize("asked", list(Coefficients))
async def test_what_is_published_is_made_as_it_was_asked(asked, kind, tmp_path, monkeypatch):
    method = MethodSpec(name="flora_na", options={"coefficients": asked.value})
    spec = replace(spec_of("flora_na", kind), method=method)
    done = await check(tmp_path, monkeypatch, spec)
    for report in done.reports:
        assert len(report.certificate.modules) == len(LAYOUT.modules)
        check_round(done, report, asked)


@pytest.mark.parametrize("asked", list(Coefficients))
async def test_workers_of_mixed_ranks_get_every_surrogate(asked, tmp_path, monkeypatch):
    method = MethodSpec(name="flora_na", options={"coefficients": asked.value})
    spec = replace(spec_of("flora_na"), method=method)
    done = await check(tmp_path, monkeypatch, spec, ranks=(0, 3, 2))
    assert {u.worker: u.rank for u in done.reports[-1].updates} == {"w-0": 4, "w-1": 3, "w-2": 2}
