"""Figures of a certificate, exact: by Gram matrices, and otherwise where those cannot tell.

Norms come from one pair of Gram matrices in coordinates near the adapter that the workers started
from (`cohort_frame`). What is too small for squares is answered again: norms in centred coordinates
(`centred`), so an error of 1e-8 is as accurate as one of 0.1, and the singular values by the QR
core, whose small ones are right.

Cost: R^2 (D + K) for the sum of ranks R, and matrices of R x R.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from aggregator_service.aggregation.centred import CentredCohort
from aggregator_service.aggregation.cohort_frame import CohortFrame
from aggregator_service.aggregation.module_cohort import ModuleCohort
from aggregator_service.aggregation.singular_values import Values
from fedlora.adapters.factors import LoraFactors
from fedlora.numerics import GRAM_TAIL, gram_core_values, qr_core_svd, terms_norm

__all__ = ["ExactFigures"]


class ExactFigures:
    """What is measured of one module.

    Args:
        cohort: the updates, with the start of the round where it is known.
        published: as rounded and read back.
        added: what it has added to the base model, as factors whose products are to be summed.
    """

    def __init__(
        self, cohort: ModuleCohort, published: LoraFactors, added: Sequence[LoraFactors]
    ) -> None:
        self._cohort, self._published, self._added = cohort, published, added
        start = cohort.start.factors if cohort.start else None
        widest = max(cohort.members, key=lambda f: f.rank)
        self._origin = start if start is not None and start.rank >= widest.rank else widest
        self._start = start
        more = (published, *added)
        grams = cohort.grams if self._origin is start else None
        self._frame = CohortFrame(cohort.members, cohort.weights_U, self._origin, more, grams)

    @functools.cached_property
    def _centred(self) -> CentredCohort:
        cohort = self._cohort
        return CentredCohort.of(cohort.members, cohort.weights_U, reference=self._origin)

    def ideal(self) -> float:
        """|T|."""
        norm = self._frame.norm(self._frame.of.ideal)
        return self._centred.ideal_norm() if norm is None else norm

    def error(self) -> float:
        """Of what was published, with what it added to the base model."""
        norm = self._frame.norm(self._frame.of.error)
        return self._centred.error_of(self._published, self._added) if norm is None else norm

    def lost_by_the_mean(self) -> float:
        """Error of the product of the factor means."""
        norm = self._frame.norm(self._frame.of.lost_by_the_mean)
        return self._centred.factor_mean_error() if norm is None else norm

    def change(self) -> float:
        """|T - T_prev|; NaN without a start."""
        if self._start is None:
            return math.nan
        known = self._start is self._origin
        norm = self._frame.norm(self._frame.of.change) if known else None
        ranks = [f.rank for f in self._cohort.members]
        return self._centred.change_from(self._start, ranks) if norm is None else norm

    @property
    def values(self) -> Values:
        """Right in what lies beyond the published rank."""
        rank, cohort = self._published.rank, self._cohort
        first = cohort.members[0]
        ranks = torch.tensor([f.rank for f in cohort.members])
        weights_R = cohort.weights_U.repeat_interleave(ranks)
        left_RR, right_RR = self._frame.gram_of_clients()
        values_R = gram_core_values(left_RR, right_RR, weights_R)
        # More values than T can have are rounding noise of the Gram matrices.
        values_N = values_R[: min(first.out_features, first.in_features)]
        tail = float(torch.linalg.vector_norm(values_N[rank:]))
        if tail <= GRAM_TAIL * terms_norm(left_RR, right_RR, weights_R):
            stack = cohort.stack()
            values_N = qr_core_svd([stack.b_DR], [stack.a_RK], rank=1).values_N
        return Values(values_N)
