"""Rounds of local training without a model: a plug-in's hooks on a few tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fedlora.plugins import LocalHooks, LocalRound, Plugin
from fedlora.runs.training import OptimizerName, TrainingSpec

__all__ = ["HEAD", "A", "B", "descend", "random_tensors", "seen"]

A, B = "base_model.model.query.lora_A.weight", "base_model.model.query.lora_B.weight"
HEAD = "base_model.model.classifier.weight"

_SHAPES = {A: (3, 5), B: (7, 3), HEAD: (2, 7)}


def random_tensors(seed: int) -> dict[str, Tensor]:
    """A module's factors of rank 3 and a head, in float64."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in _SHAPES.items()
    }


def seen(
    trained: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    *,
    plugins: tuple[Plugin, ...] = (),
    class_counts: tuple[int, ...] = (),
    rate: float = 0.1,
    head_rate: float = 0.1,
    **training: object,
) -> LocalRound:
    """A round as a plug-in sees it, s = 2."""
    settings = {"learning_rate": rate, "optimizer": OptimizerName.SGD, **training}
    return LocalRound(
        trained=trained,
        given=given,
        factors=((A, B),) if {A, B} <= trained.keys() else (),
        scaling=2.0,
        rates={name: head_rate if name == HEAD else rate for name in trained},
        training=TrainingSpec(**settings),
        plugins=plugins,
        class_counts=class_counts,
    )


def descend(
    round: LocalRound,
    hooks: LocalHooks,
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    steps: int,
    shares: Callable[[int], float] = lambda _: 1.0,
) -> None:
    """SGD as the worker's loop makes its steps, hooks and all; trains in place."""
    groups = [{"params": [t], "lr": round.rates[n]} for n, t in round.trained.items()]
    optimizer = torch.optim.SGD(groups, momentum=round.training.momentum)
    for step in range(steps):
        for group, name in zip(optimizer.param_groups, round.trained, strict=True):
            group["lr"] = round.rates[name] * shares(step)
        optimizer.zero_grad()
        loss(round.trained).backward()
        if hooks.penalty is not None:
            hooks.penalty().backward()
        with torch.no_grad():
            if hooks.edit_gradients is not None:
                hooks.edit_gradients()
            optimizer.step()
            if hooks.after_step is not None:
                hooks.after_step(shares(step))
