"""What a round of local training looks like to the plug-ins of a run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from client_worker.adaptation.adapted_model import AdaptedModel
from client_worker.training.stages import Stage
from fedlora.adapters.names import Part, part_key
from fedlora.adapters.spec import AdapterKind, AdapterSpec
from fedlora.plugins import LocalRound, Plugin

__all__ = ["local_round", "snapshot"]


def snapshot(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that training leaves alone, on the same device."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def local_round(
    plugins: tuple[Plugin, ...],
    model: AdaptedModel,
    stage: Stage,
    adapter: AdapterSpec,
    given: Mapping[str, Tensor],
) -> LocalRound:
    """A round as plug-ins see it.

    Args:
        plugins: of the run.
        model: holds what is trained.
        stage: what that is, and how it is trained.
        adapter: the run's.
        given: what the worker was given of what is trained (`snapshot`).
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
    )
