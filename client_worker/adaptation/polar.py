"""Training the directions of a factor without its magnitudes, or the magnitudes without them.

    directions   x = m v / |v|    v is trained, m stays
    magnitudes   x = b v          b is trained, the unit vector v stays

The model computes with x. What is trained stands in for it: `pull` takes the gradient of x to what
x is made of, by the chain rule, and `push` makes x anew. So the layers stay peft's own, whatever
their family. A vector that has no direction (`fedlora.adapters.axis`) stays as it is.

Shape suffix: N vectors of a factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedlora.adapters.axis import MIN_NORM

__all__ = ["StandIns", "direction_stand_ins", "magnitude_stand_ins"]


@dataclass(frozen=True, slots=True, eq=False)
class _StandIn:
    """What is trained in the place of one tensor of the model."""

    trained: nn.Parameter
    tensor: nn.Parameter
    made: Callable[[Tensor], Tensor]


class StandIns:
    """What is trained in the place of some factors of a model.

    Args:
        members: by path of the module.
    """

    def __init__(self, members: Mapping[str, _StandIn]) -> None:
        self._members = members
        self.push()

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """What an optimiser is given, by path of the module."""
        return {path: member.trained for path, member in self._members.items()}

    def pull(self) -> None:
        """Turns gradients of the model's tensors into those of what is trained."""
        for member in self._members.values():
            gradient, member.tensor.grad = member.tensor.grad, None
            # A layer that took no part in the forward pass has none.
            if gradient is not None:
                made = member.made(member.trained)
                (member.trained.grad,) = torch.autograd.grad(made, member.trained, gradient)

    @torch.no_grad()
    def push(self) -> None:
        """Puts what was trained into the model."""
        for member in self._members.values():
            member.tensor.copy_(member.made(member.trained))


def direction_stand_ins(tensors: Mapping[str, nn.Parameter], *, dim: int) -> StandIns:
    """Directions of vectors whose lengths stay.

    Args:
        tensors: a factor of each module, by its path.
        dim: along which the vectors lie.
    """

    def stand_in(tensor: nn.Parameter) -> _StandIn:
        fixed = tensor.detach().clone()
        lengths = torch.linalg.vector_norm(fixed, dim=dim, keepdim=True)

        def made(v: Tensor) -> Tensor:
            norms = torch.linalg.vector_norm(v, dim=dim, keepdim=True).clamp(min=MIN_NORM)
            return torch.where(lengths >= MIN_NORM, lengths * v / norms, fixed)

        return _StandIn(nn.Parameter(fixed.clone()), tensor, made)

    return StandIns({path: stand_in(tensor) for path, tensor in tensors.items()})


def magnitude_stand_ins(
    tensors: Mapping[str, nn.Parameter], own: Mapping[str, Tensor] | None, *, dim: int
) -> StandIns:
    """Magnitudes of vectors whose directions stay.

    Args:
        tensors: a factor of each module, by its path.
        own: the magnitudes to begin with, N of each module; None for the vectors' lengths.
        dim: along which the vectors lie.
    """

    def stand_in(path: str, tensor: nn.Parameter) -> _StandIn:
        fixed = tensor.detach().clone()
        lengths = torch.linalg.vector_norm(fixed, dim=dim, keepdim=True)
        units = fixed / lengths.clamp(min=MIN_NORM)

        def made(b_N: Tensor) -> Tensor:
            return torch.where(lengths >= MIN_NORM, b_N.unsqueeze(dim) * units, fixed)

        b_N = lengths.squeeze(dim) if own is None else own[path].to(lengths)
        return _StandIn(nn.Parameter(b_N.clone()), tensor, made)

    return StandIns({path: stand_in(path, tensor) for path, tensor in tensors.items()})
