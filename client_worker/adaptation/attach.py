"""Attaches a run's adapter to a base model: LoRA, DoRA or HiRA, as peft has them."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from peft import HiraConfig, LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client_worker.adaptation.adapted_model import AdaptedModel, peft_state
from client_worker.adaptation.base_model import LoadedBase
from client_worker.adaptation.layers import adapted_layers, parameters_of
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.peft_files import peft_target_modules
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdaptedModule, AdapterKind, AdapterLayout, AdapterSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.seeds import derive_seed
from fedlora.tensors.manifest import DataType, TensorInfo

__all__ = ["attach_adapter", "numbers_per_rank"]


def attach_adapter(
    base: LoadedBase, spec: AdapterSpec, *, rank: int, seed: int, dtype: DataType
) -> AdaptedModel:
    """Attaches a fresh adapter: A uniform in +-1/sqrt(in_features), B = 0, magnitudes as they are.

    A is drawn row by row from a generator of its own for each module, so that all workers of a run
    begin with the same A, and one of rank r with the first r rows of a larger one.

    Args:
        base: changed in place.
        spec: the run's adapter.
        rank: this worker's.
        seed: the run's.
        dtype: element type in which the adapter is handed out and taken in.

    Raises:
        FedLoraError: INVALID_MODEL if nothing in the base fits target_modules or modules_to_save,
            or what fits is no linear layer.
    """
    module = _peft_model(base.model, spec, rank)
    _initialise(module, seed)
    # Trained in float32 whatever the base's dtype: small steps are lost in 16 bits.
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    layout = _layout(peft_state(module), base.fingerprint, dtype)
    shape = AdapterShape(layout=layout, kind=spec.kind, rank=rank, dtype=dtype)
    return AdaptedModel(module, base.tokenizer, shape, spec.scaling)


def numbers_per_rank(model: nn.Module, spec: AdapterSpec) -> int:
    """How many numbers A and B of all adapted layers have in one component.

    Args:
        model: changed in place; it may be without weights.
        spec: the run's adapter.

    Raises:
        FedLoraError: as `attach_adapter`.
    """
    # Magnitudes do not grow with the rank, and would have to be computed from weights.
    plain = replace(spec, kind=AdapterKind.LORA)
    layers = adapted_layers(_peft_model(model, plain, 1)).values()
    return sum(parameters_of(layer)[part].numel() for layer in layers for part in (Part.A, Part.B))


def _peft_model(model: Any, spec: AdapterSpec, rank: int) -> Any:
    _require_modules(model, spec.modules_to_save)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by the older of two names.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        try:
            # Without a task type: peft would add heads of its own choice to modules_to_save.
            module = get_peft_model(model, _config(spec, rank))
        except ValueError as error:
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"the adapter cannot be attached to {spec.base_model.model_id!r}: "
                f"{str(error).rstrip('.')}",
                hint=f"Linear layers of this model: {', '.join(_linear_names(model))}",
            ) from error
    _require_linear(module)
    return module


def _config(spec: AdapterSpec, rank: int) -> LoraConfig | HiraConfig:
    everywhere: dict[str, Any] = {
        "r": rank,
        "target_modules": peft_target_modules(spec.target_modules),
        "modules_to_save": list(spec.modules_to_save) or None,
    }
    if spec.kind is AdapterKind.HIRA:
        return HiraConfig(hira_dropout=spec.lora_dropout, **everywhere)
    return LoraConfig(
        lora_alpha=spec.lora_alpha,
        use_rslora=spec.use_rslora,
        use_dora=spec.kind is AdapterKind.DORA,
        lora_dropout=spec.lora_dropout,
        bias="none",
        **everywhere,
    )


def _require_modules(model: nn.Module, wanted: tuple[str, ...]) -> None:
    """Refuses names that fit nothing, which peft passes over."""
    paths = [path for path, _ in model.named_modules() if path]
    for name in wanted:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            last = sorted({path.split(".")[-1] for path in paths if not path[-1].isdigit()})
            near = difflib.get_close_matches(name, last, n=1)
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"adapter.modules_to_save: the base model has no module {name!r}",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(last)}",
            )


def _require_linear(module: nn.Module) -> None:
    for path, layer in adapted_layers(module).items():
        kind = layer.get_base_layer()
        if not isinstance(kind, nn.Linear | Conv1D):
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"module {path!r} is no linear layer but {type(kind).__name__}",
                hint="Name linear layers only in adapter.target_modules",
            )


def _linear_names(model: nn.Module) -> list[str]:
    return sorted({p.split(".")[-1] for p, m in model.named_modules() if isinstance(m, nn.Linear)})


def _initialise(module: nn.Module, seed: int) -> None:
    for name, tensor in peft_state(module).items():
        parsed = parse_key(name)
        if parsed.part is not Part.A:
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora_A", parsed.path))
        bound = 1 / math.sqrt(tensor.shape[1])
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (2 * bound) - bound)


def _layout(state: Mapping[str, Tensor], base_fingerprint: str, dtype: DataType) -> AdapterLayout:
    """Read off the state dict, so that nothing is exchanged that the layout does not name."""
    out_features: dict[str, int] = {}
    in_features: dict[str, int] = {}
    saved = []
    for name, tensor in state.items():
        parsed = parse_key(name)
        if parsed.part is None:
            saved.append(TensorInfo(name=name, shape=tuple(tensor.shape), dtype=dtype))
        elif parsed.part is Part.A:
            in_features[parsed.path] = tensor.shape[1]
        elif parsed.part is Part.B:
            out_features[parsed.path] = tensor.shape[0]
    return AdapterLayout(
        modules=tuple(
            AdaptedModule(path=path, in_features=width, out_features=out_features[path])
            for path, width in in_features.items()
        ),
        saved_tensors=tuple(saved),
        base_fingerprint=base_fingerprint,
    )
