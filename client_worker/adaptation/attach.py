"""Attaches a run's LoRA to a base model, and moves adapters in and out of it."""

from __future__ import annotations

import difflib
import math
import re
import warnings
from collections.abc import Collection, Mapping
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from client_worker.adaptation.base_model import LoadedBase
from fedlora.adapters.names import PREFIX, Factor, Part, parse_key
from fedlora.adapters.spec import AdaptedModule, AdapterKind, AdapterLayout, AdapterSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.seeds import derive_seed
from fedlora.tensors.manifest import DataType, TensorInfo, TensorManifest

__all__ = ["AdaptedModel", "attach_adapter"]


class AdaptedModel:
    """A base model with an adapter on it.

    `attach_adapter` makes it.

    Attributes:
        module: the torch module to call; only adapter and modules_to_save need gradients.
        tokenizer: the base model's.
        layout: where the adapter sits.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        layout: AdapterLayout,
        *,
        rank: int,
        dtype: DataType,
    ) -> None:
        self.module: Any = module
        self.tokenizer = tokenizer
        self.layout = layout
        self._dtype = dtype
        self._manifest = layout.manifest(rank, dtype)

    def state(self, dtype: DataType | None = None) -> dict[str, Tensor]:
        """The adapter under PEFT's names: on the CPU, contiguous, a copy.

        Args:
            dtype: element type; None takes the wire's.
        """
        state, wanted = _peft_state(self.module), (dtype or self._dtype).torch_dtype
        return {
            name: state[name].detach().to("cpu", wanted, copy=True).contiguous()
            for name in sorted(state)
        }

    def load_state(
        self, tensors: Mapping[str, Tensor], instead: Mapping[str, Tensor] | None = None
    ) -> None:
        """Puts an adapter in, all of it or none.

        Args:
            tensors: the whole adapter, in the wire's dtype.
            instead: tensors of this worker's own that take the place of some of them, of the same
                shapes, in whatever precision they were kept.

        Raises:
            FedLoraError: MANIFEST_MISMATCH unless names, shapes and dtypes are exactly this
                adapter's; the model is then as before.
        """
        if difference := self._manifest.difference(TensorManifest.of(tensors)):
            raise FedLoraError(
                Reason.MANIFEST_MISMATCH,
                f"these tensors are not an adapter of this model: {difference}",
                hint="Workers of a run need the same base model, rank and peft version",
            )
        # peft reports what it did not take, and does not raise.
        result = set_peft_model_state_dict(self.module, {**tensors, **(instead or {})})
        left = [*result.unexpected_keys, *(k for k in result.missing_keys if _is_adapter(k))]
        if left:
            raise AssertionError(f"peft left {left} out of an adapter that fits its own layout")

    @property
    def pad_id(self) -> int:
        """Token that fills up the rows of a batch."""
        return int(self.tokenizer.pad_token_id)

    def enable_gradient_checkpointing(self) -> None:
        """Forgets activations and computes them again in the backward pass.

        Raises:
            FedLoraError: INVALID_MODEL if the base model cannot.
        """
        base = self.module.get_base_model()
        if not base.supports_gradient_checkpointing:
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"{type(base).__name__} has no gradient checkpointing",
                hint="Set training.gradient_checkpointing = false",
            )
        # The reentrant kind gives no gradients below frozen inputs.
        if hasattr(base, "activation_checkpointing_enable"):
            base.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": False}
            )
        else:  # its name in the first releases of transformers 5
            base.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )

    def trainable(
        self, parts: Collection[Part] = (Part.A, Part.B)
    ) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Frees these parts of every module for training and freezes the others.

        Returns:
            The factors to train, and the parameters of modules_to_save, which always are.
        """
        for layer in self.module.modules():
            if isinstance(layer, LoraLayer):
                layer.lora_A.requires_grad_(Part.A in parts)
                layer.lora_B.requires_grad_(Part.B in parts)
        factors: list[nn.Parameter] = []
        head: list[nn.Parameter] = []
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                (head if ".modules_to_save." in name else factors).append(parameter)
        return factors, head


def attach_adapter(
    base: LoadedBase, spec: AdapterSpec, *, rank: int, seed: int, dtype: DataType
) -> AdaptedModel:
    """Attaches a fresh adapter: A uniform in +-1/sqrt(in_features), B = 0.

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
            or what fits is no linear layer; UNSUPPORTED_METHOD for a kind other than lora.
    """
    if spec.kind is not AdapterKind.LORA:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"this worker trains adapters of the kind 'lora', got adapter.kind {spec.kind.value!r}",
            hint='Use adapter.kind = "lora"; fedlora aggregate combines saved adapters of any kind',
        )
    _require_modules(base.model, spec.modules_to_save, "modules_to_save")
    config = LoraConfig(
        r=rank,
        lora_alpha=spec.lora_alpha,
        use_rslora=spec.use_rslora,
        lora_dropout=spec.lora_dropout,
        target_modules=_targets(spec.target_modules),
        modules_to_save=list(spec.modules_to_save) or None,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5 by the older of two names.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        try:
            # Without a task type: peft would add heads of its own choice to modules_to_save.
            module = get_peft_model(base.model, config)
        except ValueError as error:
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"the adapter cannot be attached to {spec.base_model.model_id!r}: {error}",
                hint=f"Linear layers of this model: {', '.join(_linear_names(base.model))}",
            ) from error
    _require_linear(module)
    _initialise(module, seed)
    # Trained in float32 whatever the base's dtype: small steps are lost in 16 bits.
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    layout = _layout(_peft_state(module), base.fingerprint, dtype)
    return AdaptedModel(module, base.tokenizer, layout, rank=rank, dtype=dtype)


def _targets(modules: tuple[str, ...]) -> str | list[str]:
    """For peft a string is a regular expression, a list holds trailing parts of names."""
    if len(modules) == 1 and (modules[0] == "all-linear" or re.search(r"[^\w.-]", modules[0])):
        return modules[0]
    return list(modules)


def _require_modules(model: nn.Module, wanted: tuple[str, ...], option: str) -> None:
    """Refuses names that fit nothing, which peft passes over."""
    paths = [path for path, _ in model.named_modules() if path]
    for name in wanted:
        if not any(path == name or path.endswith(f".{name}") for path in paths):
            last = sorted({path.split(".")[-1] for path in paths if not path[-1].isdigit()})
            near = difflib.get_close_matches(name, last, n=1)
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"adapter.{option}: the base model has no module {name!r}",
                hint=f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(last)}",
            )


def _require_linear(module: nn.Module) -> None:
    for path, layer in module.named_modules():
        if isinstance(layer, LoraLayer):
            kind = layer.get_base_layer()
            if not isinstance(kind, nn.Linear | Conv1D):
                raise FedLoraError(
                    Reason.INVALID_MODEL,
                    f"module {path.removeprefix(PREFIX)!r} is no linear layer but "
                    f"{type(kind).__name__}",
                    hint="Name linear layers only in adapter.target_modules",
                )


def _linear_names(model: nn.Module) -> list[str]:
    return sorted({p.split(".")[-1] for p, m in model.named_modules() if isinstance(m, nn.Linear)})


def _peft_state(module: nn.Module) -> dict[str, Tensor]:
    # Embeddings are saved with modules_to_save or not at all; "auto" would ask the hub.
    state: dict[str, Tensor] = get_peft_model_state_dict(module, save_embedding_layers=False)
    return state


def _initialise(module: nn.Module, seed: int) -> None:
    for name, tensor in _peft_state(module).items():
        parsed = parse_key(name)
        if parsed.factor is not Factor.LORA_A:
            continue
        generator = torch.Generator().manual_seed(derive_seed(seed, "lora_A", parsed.path))
        bound = 1 / math.sqrt(tensor.shape[1])
        # The tensors of the state dict share the parameters' memory.
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (2 * bound) - bound)


def _layout(state: Mapping[str, Tensor], base_fingerprint: str, dtype: DataType) -> AdapterLayout:
    """Read off the state dict, so that nothing is exchanged that the layout does not name."""
    out_features: dict[str, int] = {}
    in_features: dict[str, int] = {}
    saved = []
    for name, tensor in state.items():
        parsed = parse_key(name)
        if parsed.factor is Factor.SAVED:
            saved.append(TensorInfo(name=name, shape=tuple(tensor.shape), dtype=dtype))
        elif parsed.factor is Factor.LORA_A:
            in_features[parsed.path] = tensor.shape[1]
        else:
            out_features[parsed.path] = tensor.shape[0]
    return AdapterLayout(
        modules=tuple(
            AdaptedModule(path=path, in_features=width, out_features=out_features[path])
            for path, width in in_features.items()
        ),
        saved_tensors=tuple(saved),
        base_fingerprint=base_fingerprint,
    )


def _is_adapter(live_name: str) -> bool:
    """Whether a parameter's name in the live model is the adapter's."""
    return live_name.startswith(PREFIX) and (
        ".lora_" in live_name or ".modules_to_save." in live_name
    )
