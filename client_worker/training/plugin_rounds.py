"""What a round of local training looks like to the plug-ins of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from client_worker.adaptation.adapted_model import AdaptedModel
from client_worker.training.stages import Stage
from fedlora.adapters.extras import extras_of, flat
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind, AdapterSpec
from fedlora.errors import FedLoraError, Reason
from fedlora.plugins import Ending, LocalHooks, LocalRound, Plugin

__all__ = ["checked", "flat_endings", "local_round", "snapshot", "with_memory"]


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that training leaves alone, on the same device."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def local_round(
    plugins: tuple[Plugin, ...],
    model: AdaptedModel,
    stage: Stage,
    adapter: AdapterSpec,
    given: Mapping[str, Tensor],
    class_counts: tuple[int, ...] = (),
) -> LocalRound:
    """A round as plug-ins see it.

    Args:
        plugins: of the run.
        model: holds what is trained.
        stage: what that is, and how it is trained.
        adapter: the run's.
        given: what the worker was given of what is trained (`snapshot`).
        class_counts: examples of each label; empty for a causal language model.
    """
    trained = model.named(stage.parts, full_modules=stage.full_modules)
    training = stage.training
    hira = adapter.kind is AdapterKind.HIRA
    pairs = [
        (part_key(m.path, Part.A, hira=hira), part_key(m.path, Part.B, hira=hira))
        for m in model.shape.layout.modules
    ]
    rates = dict.fromkeys(trained, training.learning_rate)
    for _, b in pairs:
        if b in rates:
            rates[b] *= training.b_learning_rate_ratio
    for info in model.shape.layout.saved_tensors:
        rates[info.name] = training.head_learning_rate or training.learning_rate
    return LocalRound(
        trained=trained,
        given=given,
        factors=tuple(pair for pair in pairs if {*pair} <= trained.keys()),
        scaling=adapter.scaling(model.shape.rank),
        rates=rates,
        training=training,
        plugins=plugins,
        class_counts=class_counts,
    )


def checked(plugin: Plugin, hooks: LocalHooks) -> LocalHooks:
    """The hooks of a plug-in, once they are seen to be what its traits have said to the server.

    Raises:
        FedLoraError: INVALID_CONFIG for a criterion or a step that was not declared, beside which
            another may stand.
    """
    traits = plugin.traits
    for has, declared, hook, trait in (
        (hooks.criterion is not None, traits.replaces_criterion, "criterion", "replaces_criterion"),
        (hooks.step is not None, traits.owns_step, "step", "owns_step"),
    ):
        if has and not declared:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"the plug-in {plugin.name} has a {hook}, and its traits do not say {trait}",
                hint="Correct that package (docs/extending.md), or leave the section "
                f"[plugins.{plugin.name}] out",
            )
    return hooks


def with_memory(round: LocalRound, plugin: Plugin, extras: Mapping[str, Tensor]) -> LocalRound:
    """The round as one plug-in sees it, with its own tensors; zeros where there are none yet.

    Args:
        round: as all of them see it.
        plugin: one of them.
        extras: what plug-ins keep and are given, by `extra_key`.
    """

    def found(name: str) -> dict[str, Tensor]:
        held = extras_of(extras, f"{plugin.name}/{name}")
        return {
            key: held[key].to(tensor) if key in held else torch.zeros_like(tensor)
            for key, tensor in round.given.items()
        }

    traits = plugin.traits
    return replace(
        round,
        kept={name: found(name) for name in traits.kept},
        extras={name: found(name) for name in traits.given},
    )


def flat_endings(
    endings: Mapping[str, Ending],
) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Metrics, and what is sent and kept by `extra_key`: on the CPU, in float32.

    Args:
        endings: by plug-in.
    """
    metrics: dict[str, float] = {}
    sent: dict[str, Tensor] = {}
    kept: dict[str, Tensor] = {}
    for owner, end in endings.items():
        metrics |= end.metrics
        sent |= flat(owner, end.sent)
        kept |= flat(owner, end.kept)
    return metrics, _stored(sent), _stored(kept)


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key: tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        for key, tensor in tensors.items()
    }
