"""What a run has added to the frozen weights, computed beside them.

    y = W0 x + s B A x  +  B_b (A_b x)

The weights stay as they were loaded. So a change is put in place of the one before it and never on
top of it: a version counts once, however often and after whichever other it is loaded; no rounding
adds up over rounds; and a quantised base, into which nothing can be added, is as good as any.

Shape suffixes: Q rank of the change, K in_features, D out_features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["BaseChange"]


class BaseChange:
    """The change of one frozen layer; nothing at first.

    Args:
        layer: the adapted layer, on the device on which it computes; its output is what grows.
    """

    def __init__(self, layer: nn.Module) -> None:
        self._factors: tuple[Tensor, Tensor] | None = None
        layer.register_forward_hook(self._add)

    def set(self, factors: tuple[Tensor, Tensor] | None) -> None:
        """Replaces the change.

        Args:
            factors: A_b, Q x K, and B_b, D x Q, where the layer is; None for nothing.
        """
        self._factors = factors

    def _add(self, _: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self._factors is None:
            return output
        a_QK, b_DQ = self._factors
        return output + linear(linear(inputs[0], a_QK), b_DQ)
