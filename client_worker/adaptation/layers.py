"""The adapted layers of a live peft model, and their parameters by part.

The only module that knows what peft calls the insides of its layers (0.21, measured).
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.hira.layer import HiraLayer
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from client_worker.adaptation.quantise import decoded
from fedlora.adapters.names import PREFIX, Part

__all__ = ["adapted_layers", "frozen_weight", "map_by_a", "parameters_of", "resize"]

_ADAPTER = "default"
"""the name under which peft keeps a model's only adapter"""


def adapted_layers(module: nn.Module) -> dict[str, Any]:
    """The layers that carry the adapter, by path in the base model."""
    return {
        path.removeprefix(PREFIX): layer
        for path, layer in module.named_modules()
        if isinstance(layer, LoraLayer | HiraLayer)
    }


def parameters_of(layer: Any) -> dict[Part, nn.Parameter]:
    """What peft trains of one adapted layer: A (R x K), B (D x R), of DoRA the magnitudes (D)."""
    if isinstance(layer, HiraLayer):
        return {Part.A: layer.hira_A[_ADAPTER], Part.B: layer.hira_B[_ADAPTER]}
    found = {Part.A: layer.lora_A[_ADAPTER].weight, Part.B: layer.lora_B[_ADAPTER].weight}
    if _ADAPTER in layer.lora_magnitude_vector:
        found[Part.MAGNITUDE] = layer.lora_magnitude_vector[_ADAPTER].weight
    return found


def map_by_a(layer: Any) -> nn.Module:
    """The module that maps x to A x, of a LoRA layer."""
    found: nn.Module = layer.lora_A[_ADAPTER]
    return found


def frozen_weight(layer: Any) -> Tensor:
    """W0, D x K, whichever way the base model stores it."""
    weight = decoded(layer.get_base_layer().weight)
    return weight.T if layer.fan_in_fan_out else weight


@torch.no_grad()
def resize(layer: Any, rank: int, scaling: float) -> None:
    """Gives a LoRA layer another rank: components that stay keep their products, new ones are 0.

    Args:
        layer: to change.
        rank: its new rank.
        scaling: s at that rank.
    """
    a, b = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
    kept = min(rank, a.weight.shape[0])
    lora_a = a.weight.new_zeros(rank, a.weight.shape[1])
    lora_b = b.weight.new_zeros(b.weight.shape[0], rank)
    lora_a[:kept] = a.weight[:kept]
    lora_b[:, :kept] = b.weight[:, :kept] * (layer.scaling[_ADAPTER] / scaling)
    a.weight, a.out_features = nn.Parameter(lora_a), rank
    b.weight, b.in_features = nn.Parameter(lora_b), rank
    layer.r[_ADAPTER], layer.scaling[_ADAPTER] = rank, scaling
