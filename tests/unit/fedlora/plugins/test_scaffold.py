"""SCAFFOLD on quadratics: whole federations in a few lines, both halves of the plug-in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.plugin_rounds import HEAD, descend, random_tensors, seen

from fedlora.plugins import LocalHooks
from fedlora.plugins.scaffold import Mode, Scaffold

MODES = pytest.mark.parametrize("mode", Mode)


class Federation:
    """Workers that each want another adapter, theta_u = target_u at any speed.

    Worker u's quadratic is 1 + u times as steep, or as `steeper` has it.
    """

    def __init__(self, plugin: Scaffold | None, targets: list[int], *, steeper: int = 1) -> None:
        self.plugin = plugin
        self.steeper = steeper
        self.targets = [random_tensors(seed) for seed in targets]
        self.theta = random_tensors(0)
        zero = {n: torch.zeros_like(t) for n, t in self.theta.items()}
        self.c = dict(zero)
        self.own = [dict(zero) for _ in targets]
        self.state = {n: {} for n in zero}

    def train(self, u: int, steps: int):
        trained = {n: t.clone().requires_grad_() for n, t in self.theta.items()}
        round = seen(trained, self.theta, rate=0.05, head_rate=0.2)
        hooks = LocalHooks()
        if self.plugin is not None:
            round = replace(round, kept={"c_u": self.own[u]}, extras={"c": self.c})
            hooks = self.plugin.local(round)

        def loss(tensors) -> torch.Tensor:
            return sum(
                0.5 * (1 + self.steeper * u) * (t - self.targets[u][n]).square().sum()
                for n, t in tensors.items()
            )

        descend(round, hooks, loss, steps=steps, shares=lambda step: min(1.0, (step + 1) / 3))
        with torch.no_grad():
            ending = hooks.end() if hooks.end else None
        return {n: t.detach() for n, t in trained.items()}, ending

    def round(self, cohort: list[int], steps: int = 4) -> None:
        done = {u: self.train(u, steps) for u in cohort}
        before = self.theta
        self.theta = {n: sum(done[u][0][n] for u in cohort) / len(cohort) for n in before}
        if self.plugin is None:
            return
        for u, (_, ending) in done.items():
            self.own[u] = ending.kept["c_u"]
        for n in before:
            sums = {"dc": sum(ending.sent["dc"][n] for _, ending in done.values())}
            served = self.plugin.serve(sums, self.state[n], num_workers=len(self.targets))
            self.state[n], self.c[n] = served.state, served.given["c"]


@MODES
def test_c_is_the_mean_of_every_workers_c_after_every_round_whoever_took_part(mode):
    federation = Federation(Scaffold(mode=mode), [1, 2, 3, 4])
    for cohort in ([0, 1, 2, 3], [1, 3], [2], [0, 1, 2, 3], [0, 3]):
        federation.round(cohort)
        for name, c in federation.c.items():
            mean = sum(own[name] for own in federation.own) / 4
            assert torch.allclose(c, mean, rtol=1e-12, atol=1e-12)


@MODES
def test_the_first_round_is_that_of_the_uniform_mean(mode):
    with_c, without = Federation(Scaffold(mode=mode), [1, 2]), Federation(None, [1, 2])
    with_c.round([0, 1])
    without.round([0, 1])
    assert all(torch.equal(t, without.theta[n]) for n, t in with_c.theta.items())


@MODES
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_that_are_all_alike_never_notice_it(mode, num_workers):
    alike = [1] * num_workers
    with_c = Federation(Scaffold(mode=mode), alike, steeper=0)
    without = Federation(None, alike, steeper=0)
    for _ in range(4):
        with_c.round([*range(num_workers)])
        without.round([*range(num_workers)])
        for name, tensor in with_c.theta.items():
            assert float(with_c.c[name].abs().max()) > 0.1
            assert torch.allclose(tensor, without.theta[name], rtol=1e-12, atol=1e-12)


def test_exactly_c_u_is_the_mean_gradient_of_the_round():
    federation = Federation(Scaffold(mode=Mode.EXACT), [1, 2])
    federation.round([0, 1], steps=1)
    federation.round([0, 1], steps=1)
    begun, target = federation.theta, federation.targets[1]
    _, ending = federation.train(1, steps=1)
    for name, own in ending.kept["c_u"].items():
        gradient = 2 * (begun[name] - target[name])
        assert torch.allclose(own, gradient, rtol=1e-9, atol=1e-9)


def test_it_finds_the_optimum_that_fedavg_misses():
    """(1 + u) weighs each worker's quadratic: FedAvg's fixed point is pulled to the steep one."""
    scaffold, fedavg = Federation(Scaffold(mode=Mode.EXACT), [1, 2]), Federation(None, [1, 2])
    for _ in range(200):
        scaffold.round([0, 1], steps=10)
        fedavg.round([0, 1], steps=10)
    best = {n: (t + 2 * scaffold.targets[1][n]) / 3 for n, t in scaffold.targets[0].items()}
    far = {
        name: max(float((f.theta[n] - best[n]).abs().max()) for n in best)
        for name, f in (("scaffold", scaffold), ("fedavg", fedavg))
    }
    assert far["scaffold"] < 1e-6
    assert far["fedavg"] > 0.05


def test_decoupled_the_correction_is_a_step_of_its_own_at_the_tensors_rate():
    federation = Federation(Scaffold(mode=Mode.DECOUPLED), [1, 2])
    federation.c = random_tensors(7)
    federation.own[0] = random_tensors(8)
    moved, _ = federation.train(0, steps=1)
    plain = Federation(None, [1, 2])
    free, _ = plain.train(0, steps=1)
    for name, tensor in moved.items():
        rate = (0.2 if name == HEAD else 0.05) / 3  # the first of three steps of warm-up
        correction = federation.c[name] - federation.own[0][name]
        assert torch.allclose(tensor, free[name] - rate * correction, rtol=1e-12, atol=1e-12)


def test_a_worker_that_joins_later_counts_in_the_mean():
    plugin, one = Scaffold(), torch.ones(2, dtype=torch.float64)
    first = plugin.serve({"dc": 6 * one}, {}, num_workers=2)
    assert torch.equal(first.given["c"], 3 * one)
    second = plugin.serve({"dc": 0 * one}, first.state, num_workers=3)
    assert torch.equal(second.given["c"], 2 * one)


def test_only_the_exact_mode_needs_sgd():
    assert Scaffold(mode=Mode.EXACT).traits.assumes_sgd
    assert not Scaffold().traits.assumes_sgd
