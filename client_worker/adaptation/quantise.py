"""Base models in 4 bits: frozen linear layers as NormalFloat, the adapter above them in float32.

Paper   Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA: Efficient Finetuning of Quantized LLMs",
        2023, arXiv:2305.14314, section 3: NF4 in blocks of 64, scales quantised once more.
Cost    4.13 bits a weight instead of 32; each use of a layer decodes it.

Quantised on the CPU before an adapter is attached, so that all workers of a run hold the same
weights whatever they compute on, and DoRA's magnitudes and Fed-SB's factors are those of the
weights that are there. The run's fingerprint is that of the weights before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from fedlora.adapters.names import is_inside
from fedlora.errors import FedLoraError, Reason

__all__ = ["BITS", "compute_in", "decoded", "quantise", "quantised_layers"]


BITS = 4.13
"""of one quantised weight, with its share of the scales"""


def quantised_layers(model: Any, *, trained: Collection[str]) -> dict[str, nn.Linear]:
    """The layers of a model that `quantise` replaces, by path.

    Args:
        model: a transformers model, with weights or without.
        trained: paths of modules that are trained in full.
    """
    output = model.get_output_embeddings()
    return {
        path: layer
        for path, layer in model.named_modules()
        if type(layer) is nn.Linear and layer is not output and not is_inside(f"{path}.", trained)
    }


def quantise(model: Any, *, trained: Collection[str]) -> None:
    """Puts 4-bit layers in the place of a model's linear layers.

    Modules that are trained in full stay as they are, and so does what gives the output logits: it
    may share its weights with the embeddings.

    Args:
        model: a transformers model in float32, on the CPU; changed in place.
        trained: paths of modules that are trained in full.

    Raises:
        FedLoraError: MISSING_EXTRA without bitsandbytes.
    """
    layers = _bitsandbytes().nn
    for path, layer in quantised_layers(model, trained=trained).items():
        small = layers.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, quant_type="nf4"
        )
        small.weight = layers.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", module=small
        )
        small.bias = layer.bias
        # A shortcut of some CPUs: it repacks the weights at the first look, and takes only widths
        # that its kernel likes.
        small.support_avx512bf16_for_cpu = False
        parent, _, name = path.rpartition(".")
        # Moving a layer to a device, even its own, is what quantises it.
        setattr(model.get_submodule(parent), name, small.to("cpu"))
    # What peft asks, to attach layers that know how to decode the weights below them.
    model.is_loaded_in_4bit = True


def compute_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Sets the type in which 4-bit layers multiply."""
    layer: Any
    for layer in model.modules():
        if hasattr(layer, "compute_dtype"):
            # Otherwise the first input's type decides, which is float32 also under autocast.
            layer.compute_dtype, layer.compute_type_is_set = dtype, True


def decoded(weight: Tensor) -> Tensor:
    """A frozen weight as numbers, D x K, whether it is quantised or not."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach()
    wide: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, state)
    return wide


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ModuleNotFoundError as error:
        raise FedLoraError(
            Reason.MISSING_EXTRA,
            f"model.quantization needs the package {error.name}, which is not installed",
            hint="Install it with: pip install 'fedlora[quant]'",
        ) from error
    return bitsandbytes
