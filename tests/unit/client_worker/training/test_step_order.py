"""Within a step of real training: gradients edited, then clipped, then followed, then told of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from support.worker_runs import (
    classifier_spec,
    labelled_rows,
    trainer_for,
    worker_run,
    write_jsonl,
)
from torch import Tensor

from client_worker.data.config import DataConfig
from client_worker.training.round_work import RoundWork
from client_worker.training.trainer import LocalTrainer
from fedlora.adapters.names import extra_key
from fedlora.plugins import LocalHooks, LocalRound, PluginDefaults
from fedlora.plugins.scaffold import Mode, Scaffold
from fedlora.runs.training import OptimizerName

RATE, MOST = 0.5, 0.25
PENALTY, EDITED, CORRECTION = 2.0, 300.0, 7.0


@dataclass(frozen=True)
class Recording(PluginDefaults):
    """Has every hook of a step, and notes what each of them finds."""

    found: list[tuple[str, dict[str, Tensor]]] = field(default_factory=list)

    name = "recording"

    def local(self, round: LocalRound) -> LocalHooks:
        def note(hook: str, tensors: Mapping[str, Tensor | None]) -> None:
            held = {n: t.detach().clone() for n, t in tensors.items() if t is not None}
            self.found.append((hook, held))

        def penalty() -> Tensor:
            note("penalty", round.trained)
            return PENALTY * sum(t.sum() for t in round.trained.values())

        def edit() -> None:
            assert not torch.is_grad_enabled()
            note("edit", {n: t.grad for n, t in round.trained.items()})
            for tensor in round.trained.values():
                tensor.grad.fill_(EDITED)

        def after(share: float) -> None:
            assert not torch.is_grad_enabled()
            assert share == 1.0
            note("gradient", {n: t.grad for n, t in round.trained.items()})
            note("after", round.trained)
            for tensor in round.trained.values():
                tensor += CORRECTION

        return LocalHooks(penalty=penalty, edit_gradients=edit, after_step=after)


def one_trainer(bert, tmp_path, *plugins: PluginDefaults, **training) -> LocalTrainer:
    path = write_jsonl(tmp_path / "labelled.jsonl", labelled_rows(22))
    settings = {
        "optimizer": OptimizerName.SGD,
        "learning_rate": RATE,
        "max_gradient_norm": MOST,
        **training,
    }
    run = worker_run(classifier_spec(bert), **settings)
    trainer = trainer_for(run, DataConfig(path=str(path), held_out_fraction=0.0))
    trainer._plugins = plugins
    return trainer


def norm(tensors: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors.values()))


def less(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.double() - other[name] for name, tensor in one.items()}


def test_gradients_are_edited_then_clipped_then_followed_then_told_of(bert, tmp_path):
    plugin = Recording()
    trainer = one_trainer(bert, tmp_path, plugin, local_steps=2)
    begun = trainer.trained_values()
    trainer.train(RoundWork(round=1, seed=3))
    hooks = [hook for hook, _ in plugin.found]
    assert hooks == ["penalty", "edit", "gradient", "after"] * 2
    (_, at_start), _, (_, followed), (_, at_end) = plugin.found[:4]
    assert all(torch.equal(at_start[n], begun[n]) for n in begun)
    # Every number had the gradient that the plug-in wrote: clipped, they are MOST in length.
    count = sum(t.numel() for t in begun.values())
    expected = torch.tensor(MOST / math.sqrt(count))
    for name, start in begun.items():
        assert torch.allclose(followed[name], expected, rtol=1e-5)
        assert torch.equal(at_end[name], start - RATE * followed[name])
    # The next step begins from what the plug-in has made of this one.
    _, second = plugin.found[4]
    assert all(torch.equal(second[n], at_end[n] + CORRECTION) for n in begun)


def test_the_penaltys_gradient_is_there_before_anything_is_edited_or_clipped(bert, tmp_path):
    @dataclass(frozen=True)
    class Unpenalised(Recording):
        def local(self, round: LocalRound) -> LocalHooks:
            return replace(super().local(round), penalty=None)

    seen = []
    for plugin in (Recording(), Unpenalised()):
        one_trainer(bert, tmp_path, plugin, local_steps=1).train(RoundWork(round=1, seed=3))
        seen.append(next(held for hook, held in plugin.found if hook == "edit"))
    # B = 0 keeps the loss's own gradient of A at zero, the head's is not.
    assert norm(seen[1]) > MOST
    for penalised, plain in zip(seen[0].values(), seen[1].values(), strict=True):
        assert torch.allclose(penalised - plain, torch.tensor(PENALTY), rtol=1e-4)


@pytest.mark.parametrize("mode", Mode)
def test_scaffold_corrects_before_the_clipping_exactly_and_after_it_decoupled(
    bert, tmp_path, mode: Mode
):
    free, held = (
        one_trainer(bert, tmp_path, *plugins, local_steps=1)
        for plugins in ((), (Scaffold(mode=mode),))
    )
    begun = free.trained_values()
    c = {extra_key("scaffold/c", n): torch.full_like(t, 40.0) for n, t in begun.items()}
    free.train(RoundWork(round=1, seed=3))
    held.train(RoundWork(round=1, seed=3), c)
    plain, corrected = (less(t.trained_values(), begun) for t in (free, held))
    assert norm(plain) == pytest.approx(RATE * MOST, rel=1e-4)
    if mode is Mode.EXACT:
        assert norm(corrected) == pytest.approx(RATE * MOST, rel=1e-4)
        # The correction is far longer than the gradient: every number goes the same way.
        count = sum(t.numel() for t in begun.values())
        step = torch.tensor(-RATE * MOST / math.sqrt(count), dtype=torch.float64)
        assert all(torch.allclose(t, step, rtol=0.1) for t in corrected.values())
    else:
        for name, tensor in corrected.items():
            assert torch.allclose(tensor, plain[name] - RATE * 40.0, rtol=1e-5)
