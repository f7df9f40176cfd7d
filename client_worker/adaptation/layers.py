"""The adapted layers of a live peft model, and their parameters by part.

The only module that knows what peft calls the insides of its layers (0.21, measured).
"""

from __future__ import annotations

from typing import Any

from peft.tuners.hira.layer import HiraLayer
from peft.tuners.lora import LoraLayer
from torch import nn

from fedlora.adapters.names import PREFIX, Part

__all__ = ["adapted_layers", "parameters_of"]

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
