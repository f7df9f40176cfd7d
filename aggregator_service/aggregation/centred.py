"""Products of a cohort in coordinates in which nothing large is subtracted.

With the means B~ = sum_u w_u B_u, A~ = sum_u w_u A_u and the deviations b_u = B_u - B~,
a_u = A_u - A~ (so sum_u w_u b_u = 0 and sum_u w_u a_u = 0):

    T = sum_u w_u B_u A_u = B~ A~ + sum_u w_u b_u a_u               the ideal aggregate
    T - B~ A~             = sum_u w_u b_u a_u                       what factor averaging loses
    B A - T               = (B - B~) A + B~ (A - A~) - sum_u w_u b_u a_u      for any (B, A)

Each right-hand side is a product of small, exactly known factors, so its norm has full relative
accuracy at any drift; |B A|^2 - 2 <B A, T> + |T|^2 has none below a relative error of 1e-7. An
adapter in another basis than the clients' (`optimal`) cancels against the means only as a
product; `product_norm` sees that and keeps the digits. Deviations are taken through a reference
near all clients (the adapter they started from, else the first client): B_u - B_ref is exact for
nearby floats, whereas B_u - B~ carries the rounding of the mean.

Clients of lower rank are padded with zero components, as in the factor mean they are part of.

Shape suffixes: U clients, R the cohort's largest rank, K in_features, D out_features.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import product_inner, product_norm, weighted_sum

__all__ = ["CentredCohort"]


@dataclass(frozen=True, eq=False)
class CentredCohort:
    """A cohort's means and deviations, in float64. Made by `of`."""

    weights_U: Tensor
    mean: LoraFactors
    """the factor means, of the cohort's largest rank"""
    deviations: tuple[LoraFactors, ...]
    """(a_u, b_u) per client, in the cohort's order"""

    @classmethod
    def of(
        cls,
        cohort: Sequence[LoraFactors],
        weights_U: Tensor,
        *,
        reference: LoraFactors | None = None,
    ) -> CentredCohort:
        """Centres a cohort.

        Args:
            cohort: members of positive weight.
            weights_U: float64 on the CPU, summing to 1 (`ModuleCohort.of`).
            reference: adapter near all members, of at least their rank; None takes the first.
        """
        rank = max(f.rank for f in cohort)
        members = [f.to(torch.float64).padded(rank) for f in cohort]
        if reference is None or reference.rank < rank:
            origin = members[0]
        else:
            wide = reference.to(torch.float64)
            origin = LoraFactors(wide.a_RK[:rank], wide.b_DR[:, :rank])
        drift_a = [f.a_RK - origin.a_RK for f in members]
        drift_b = [f.b_DR - origin.b_DR for f in members]
        shift_a, shift_b = weighted_sum(drift_a, weights_U), weighted_sum(drift_b, weights_U)
        return cls(
            weights_U,
            LoraFactors(origin.a_RK + shift_a, origin.b_DR + shift_b),
            tuple(
                LoraFactors(a - shift_a, b - shift_b) for a, b in zip(drift_a, drift_b, strict=True)
            ),
        )

    @property
    def rank(self) -> int:
        """The largest rank of the cohort."""
        return self.mean.rank

    @functools.cached_property
    def covariance(self) -> LoraFactors:
        """sum_u w_u b_u a_u as one product of rank U R: T minus the product of the means."""
        weighted = [
            f.b_DR * w for f, w in zip(self.deviations, self.weights_U.tolist(), strict=True)
        ]
        return LoraFactors(torch.cat([f.a_RK for f in self.deviations]), torch.cat(weighted, dim=1))

    def ideal_norm(self) -> float:
        """|T|."""
        lost = self.covariance
        return product_norm(
            torch.cat([self.mean.b_DR, lost.b_DR], dim=1), torch.cat([self.mean.a_RK, lost.a_RK])
        )

    def factor_mean_error(self) -> float:
        """|B~ A~ - T|."""
        lost = self.covariance
        return product_norm(lost.b_DR, lost.a_RK)

    def error_of(self, surrogate: LoraFactors, beside: Sequence[LoraFactors] = ()) -> float:
        """|B A + (the products beside it) - T| for any factors of this module, of any rank."""
        rank = max(self.rank, surrogate.rank)
        candidate, mean = surrogate.to(torch.float64).padded(rank), self.mean.padded(rank)
        lost = self.covariance
        more_b, more_a = [f.b_DR for f in beside], [f.a_RK for f in beside]
        return product_norm(
            torch.cat([candidate.b_DR - mean.b_DR, mean.b_DR, -lost.b_DR, *more_b], dim=1),
            torch.cat([candidate.a_RK, candidate.a_RK - mean.a_RK, lost.a_RK, *more_a]),
        )

    def excess_of(self, surrogate: LoraFactors) -> float:
        """|B A - T|^2 - |B~ A~ - T|^2: negative where the surrogate beats the factor mean.

        With X = B A - B~ A~ it is |X|^2 - 2 <X, T - B~ A~>, which costs r R (D + K) where
        `error_of` costs R^2 (D + K), and has the right sign however close the two are.

        Args:
            surrogate: of this module, at the cohort's largest rank, in about the clients' basis
                up to one scalar.
        """
        near = surrogate.to(torch.float64)
        # (t B, A / t) is the same product; this t leaves nothing large in X's factors.
        square, along = float(near.b_DR.square().sum()), float((near.b_DR * self.mean.b_DR).sum())
        t = along / square if square > 0 and along > 0 else 1.0
        a_RK, b_DR = near.a_RK / t, near.b_DR * t
        left = torch.cat([b_DR - self.mean.b_DR, self.mean.b_DR], dim=1)
        right = torch.cat([a_RK, a_RK - self.mean.a_RK])
        lost = self.covariance
        return product_norm(left, right) ** 2 - 2 * product_inner(left, right, lost.b_DR, lost.a_RK)

    def change_from(self, start: LoraFactors, ranks: Sequence[int]) -> float:
        """|T - T_prev|, T_prev the mean of the products that the clients started from.

        With B_u A_u - B0 A0 = (B_u - B0) A_u + B0 (A_u - A0), per client of rank r on the first
        r components of the start.

        Args:
            start: the adapter of which client u was sent the first `ranks[u]` components.
            ranks: the clients' own ranks.
        """
        origin = start.to(torch.float64)
        rank = max(self.rank, origin.rank)
        origin, mean = origin.padded(rank), self.mean.padded(rank)
        lefts, rights, shift_a = [origin.b_DR], list[Tensor](), torch.zeros_like(origin.a_RK)
        for deviation, weight, own in zip(
            self.deviations, self.weights_U.tolist(), ranks, strict=True
        ):
            gap = deviation.padded(rank)
            step_a = ((mean.a_RK - origin.a_RK) + gap.a_RK)[:own]
            step_b = ((mean.b_DR - origin.b_DR) + gap.b_DR)[:, :own]
            shift_a[:own] += weight * step_a
            lefts.append(weight * step_b)
            rights.append((mean.a_RK + gap.a_RK)[:own])
        return product_norm(torch.cat(lefts, dim=1), torch.cat([shift_a, *rights]))
