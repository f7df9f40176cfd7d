"""A base model with an adapter on it: adapters go in and out under PEFT's names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn

from client_worker.adaptation.base_change import BaseChange
from client_worker.adaptation.core import Core, principal_factors
from client_worker.adaptation.layers import (
    adapted_layers,
    frozen_weight,
    map_by_a,
    parameters_of,
    resize,
)
from fedlora.adapters.names import PREFIX, Part, parse_key, part_key
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.tensors.manifest import DataType, TensorManifest

__all__ = ["AdaptedModel", "peft_state"]

_OURS = frozenset({Part.BASE_A, Part.BASE_B, Part.CORE})
"""parts that peft does not know"""


_SAVED_COPY = ".modules_to_save.default."
"""in a live model's names: peft's copy of a module that is trained in full"""


class AdaptedModel:
    """What `attach_adapter` makes of a base model.

    Attributes:
        module: the torch module to call; only adapter and modules_to_save need gradients.
        tokenizer: the base model's.
        shape: where the adapter sits, and its tensors as they are now.

    Args:
        module: a peft model.
        tokenizer: the base model's.
        shape: of the adapter as attached; its rank is the highest that versions may have.
        scaling: s at a rank.
    """

    def __init__(
        self,
        module: nn.Module,
        tokenizer: Any,
        shape: AdapterShape,
        scaling: Callable[[int], float],
    ) -> None:
        self.module: Any = module
        self.tokenizer = tokenizer
        self.shape = shape
        self._largest_rank = shape.rank
        self._scaling = scaling
        self._layers = adapted_layers(module)
        self._base = {path: BaseChange(layer) for path, layer in self._layers.items()}
        self._cores: dict[str, Core] = {}

    def state(self, dtype: DataType | None = None) -> dict[str, Tensor]:
        """The adapter under PEFT's names: on the CPU, contiguous, a copy.

        Args:
            dtype: element type; None takes the wire's.
        """
        cores = {part_key(path, Part.CORE): core.matrix for path, core in self._cores.items()}
        state = {**peft_state(self.module), **cores}
        wanted = (dtype or self.shape.dtype).torch_dtype
        return {
            name: state[name].detach().to("cpu", wanted, copy=True).contiguous()
            for name in sorted(state)
        }

    def load_state(
        self, tensors: Mapping[str, Tensor], instead: Mapping[str, Tensor] | None = None
    ) -> None:
        """Puts a version in, all of it or none.

        Args:
            tensors: the whole adapter, with what has been added to the base model, in the wire's
                dtype. It may have fewer components than were attached: the server's copy of a
                worker's adapter has, once that was pruned. Cores are attached with the first ones.
            instead: tensors of this worker's own that take the place of some of them, of the same
                shapes, in whatever precision they were kept.

        Raises:
            FedLoraError: MANIFEST_MISMATCH unless names, shapes and dtypes are exactly this
                adapter's; the model is then as before.
        """
        found = TensorManifest.of(tensors)
        shape = self._shape_of(found)
        if difference := shape.version(found).difference(found):
            raise FedLoraError(
                Reason.MANIFEST_MISMATCH,
                f"these tensors are not an adapter of this model: {difference}",
                hint="Workers of a run need the same base model, rank and peft version",
            )
        self.resize(shape.rank)
        theirs = {n: t for n, t in tensors.items() if parse_key(n).part not in _OURS}
        # peft reports what it did not take, and does not raise.
        result = set_peft_model_state_dict(self.module, {**theirs, **(instead or {})})
        left = [*result.unexpected_keys, *(k for k in result.missing_keys if _is_adapter(k))]
        if left:
            raise AssertionError(f"peft left {left} out of an adapter that fits its own layout")
        for path, change in self._base.items():
            keys = [part_key(path, part) for part in (Part.BASE_A, Part.BASE_B)]
            like = parameters_of(self._layers[path])[Part.A]
            if keys[0] in tensors:
                a, b = (tensors[key].to(like.device, like.dtype) for key in keys)
                change.set((a, b))
            else:
                change.set(None)
        if part_key(next(iter(self._layers)), Part.CORE) in tensors:
            self._attach_cores()
            for path, core in self._cores.items():
                core.matrix.data.copy_(tensors[part_key(path, Part.CORE)])

    def resize(self, rank: int) -> None:
        """Gives the adapter another rank; the components that stay keep their products."""
        if rank != self.shape.rank:
            for layer in self._layers.values():
                resize(layer, rank, self._scaling(rank))
            self.shape = replace(self.shape, rank=rank)

    def begin_with_cores(self, seed: int) -> None:
        """Makes a freshly attached adapter one with cores (`client_worker.adaptation.core`).

        Args:
            seed: the run's.
        """
        self._attach_cores()
        for path, layer in self._layers.items():
            a, b = principal_factors(frozen_weight(layer), self.shape.rank, seed=seed, path=path)
            parameters = parameters_of(layer)
            parameters[Part.A].data.copy_(a)
            parameters[Part.B].data.copy_(b)

    def _attach_cores(self) -> None:
        if not self._cores:
            self._cores = {
                path: Core(map_by_a(layer), self.shape.rank) for path, layer in self._layers.items()
            }

    def _shape_of(self, found: TensorManifest) -> AdapterShape:
        """This adapter's shape at the rank that a version has, if that is one it may have."""
        first = next(iter(self._layers))
        key = part_key(first, Part.A, hira=self.shape.kind is AdapterKind.HIRA)
        held = found.by_name.get(key)
        rank = held.shape[0] if held is not None and held.shape else self._largest_rank
        return replace(self.shape, rank=min(rank, self._largest_rank))

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

    def factors(self, part: Part) -> dict[str, nn.Parameter]:
        """A part of every module, by the module's path."""
        if part is Part.CORE:
            return {path: core.matrix for path, core in self._cores.items()}
        return {path: parameters_of(layer)[part] for path, layer in self._layers.items()}

    def trainable(
        self, parts: Collection[Part] = (Part.A, Part.B), *, full_modules: bool = True
    ) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Frees these parts of every module for training and freezes the others.

        Args:
            parts: of the adapter.
            full_modules: free modules_to_save as well.

        Returns:
            The factors to train, and the parameters of modules_to_save to train.
        """
        factors: list[nn.Parameter] = []
        for layer in self._layers.values():
            for part, parameter in parameters_of(layer).items():
                parameter.requires_grad_(part in parts)
                if part in parts:
                    factors.append(parameter)
        if Part.CORE in parts:
            factors += self.factors(Part.CORE).values()
        head = [*self._head().values()]
        for parameter in head:
            parameter.requires_grad_(full_modules)
        return factors, head if full_modules else []

    def named(
        self, parts: Collection[Part] = (Part.A, Part.B), *, full_modules: bool = True
    ) -> dict[str, nn.Parameter]:
        """What `trainable` frees, by the name under which PEFT saves it; sorted by it."""
        hira = self.shape.kind is AdapterKind.HIRA
        found = {
            part_key(path, part, hira=hira): parameter
            for part in parts
            for path, parameter in self.factors(part).items()
        }
        found |= self._head() if full_modules else {}
        return {name: found[name] for name in sorted(found)}

    def _head(self) -> dict[str, nn.Parameter]:
        """The parameters of modules_to_save, by the name under which PEFT saves them."""
        return {
            name.replace(_SAVED_COPY, "."): parameter
            for name, parameter in self.module.named_parameters()
            if _SAVED_COPY in name
        }


def peft_state(module: nn.Module) -> dict[str, Tensor]:
    """A peft model's adapter; the tensors share the parameters' memory."""
    # Embeddings are saved with modules_to_save or not at all; "auto" would ask the hub.
    state: dict[str, Tensor] = get_peft_model_state_dict(module, save_embedding_layers=False)
    return state


def _is_adapter(live_name: str) -> bool:
    """Whether a parameter's name in the live model is the adapter's."""
    marks = (".lora_", ".hira_", ".modules_to_save.")
    return live_name.startswith(PREFIX) and any(mark in live_name for mark in marks)
