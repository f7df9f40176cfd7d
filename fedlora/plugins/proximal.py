"""How far training has gone from where it began: (mu/2) |theta - theta_g|^2, the one half included.

    factors   the squared distance of every trained number
    product   |s B A - s B_g A_g|^2 of every module, and of what is no factor the distance as above

The product's distance is found from r x r matrices, D x K are never multiplied:
|B A - B_g A_g|^2 = <B'B, AA'> - 2 <B'B_g, A A_g'> + <B_g'B_g, A_g A_g'>.

Shape suffixes: R rank, K in_features, D out_features.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from fedlora.plugins.base import LocalRound

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Space", "proximal_penalty"]


class Space(enum.StrEnum):
    """Between what a distance is taken."""

    FACTORS = "factors"
    PRODUCT = "product"


def proximal_penalty(round: LocalRound, mu: float, space: Space) -> Callable[[], Tensor] | None:
    """The penalty for a step; None for mu = 0, which adds no operation."""
    if mu == 0:
        return None
    pairs = round.factors if space is Space.PRODUCT else ()
    in_products = {name for pair in pairs for name in pair}
    alone = [name for name in round.trained if name not in in_products]

    def penalty() -> Tensor:
        parts = [(round.trained[n] - round.given[n]).square().sum() for n in alone]
        parts += [round.scaling**2 * _product_distance(round, *pair) for pair in pairs]
        return mu / 2 * sum(parts[1:], start=parts[0])

    return penalty


def _product_distance(round: LocalRound, a_name: str, b_name: str) -> Tensor:
    """|B A - B_g A_g|^2, in float64: it is a small difference of large numbers."""
    a_RK, b_DR = round.trained[a_name].double(), round.trained[b_name].double()
    start_a_RK, start_b_DR = round.given[a_name].double(), round.given[b_name].double()
    own = (b_DR.T @ b_DR) * (a_RK @ a_RK.T)
    cross = (b_DR.T @ start_b_DR) * (a_RK @ start_a_RK.T)
    start = (start_b_DR.T @ start_b_DR) * (start_a_RK @ start_a_RK.T)
    return own.sum() - 2 * cross.sum() + start.sum()
