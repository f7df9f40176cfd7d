"""SCAFFOLD: control variates take out of every step in what way a worker's data differ.

Paper   Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging
        for Federated Learning", ICML 2020, arXiv:1910.06378, algorithm 1 with option II.
Rule    exact       every step of SGD goes along g + c - c_u
        decoupled   theta -= rate (c - c_u) after every step of whatever optimiser
        at the end  c_u+ = c_u - c + (theta_g - theta_u) / sum of the rates,  dc = c_u+ - c_u
        server      theta_g = the uniform mean of theta_u,  c += (1 / N) sum over the cohort of dc
        with N the parties that the run has ever known: never the size of the cohort.
Neutral identical workers: FedAvg, but for rounding. The first round is FedAvg: c and c_u are 0.
State   c_u, kept by the worker over restarts (`worker.cache_dir`) and never sent; the sum of all
        c_u on the server, in float64, with the version it belongs to.
Cost    as many numbers again as are trained, in float32, each way.
Needs   uniform weights; workers that come back.

Readings. The rates are those of the steps made, so that K rate becomes their sum under a schedule
or warm-up, of each tensor its own; a worker that made none (no examples of what is trained, or
float16 overflowed throughout) leaves c_u as it is. exact is the paper's, for SGD without momentum
alone: then c_u is a mean gradient. decoupled is for AdamW, as OpenFedLLM applies it: c_u is then a
mean direction of Adam. Gradients are clipped after the correction, if at all. The server keeps the
sum of c_u and divides by N when it publishes c, so that c is their mean also when workers join
later. An update that comes too late is taken back on both sides. test_scaffold.py,
test_skipped_steps.py, test_step_order.py, test_plugin_memory.py and test_scaffold_over_grpc.py hold
each of these; federations have been tried in both modes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedlora.plugins.base import Ending, LocalHooks, LocalRound, PluginDefaults, Served, Traits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Mode", "Scaffold"]

_OWN, _GLOBAL, _CHANGE = "c_u", "c", "dc"


class Mode(enum.StrEnum):
    """Where the correction goes."""

    EXACT = "exact"
    DECOUPLED = "decoupled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaffold(PluginDefaults):
    """Control variates take out of every step in what way a worker's data differ."""

    mode: Mode = Mode.DECOUPLED
    """exact: into the gradient, for sgd; decoupled: after the step, for any optimiser"""

    name: ClassVar[str] = "scaffold"

    @property
    def traits(self) -> Traits:
        """Its c and c_u are vectors of A and B."""
        return Traits(
            whole_factors=True,
            factor_state=True,
            sync_only=True,
            uniform_weights=True,
            assumes_sgd=self.mode is Mode.EXACT,
            kept=(_OWN,),
            sent=(_CHANGE,),
            given=(_GLOBAL,),
        )

    def local(self, round: LocalRound) -> LocalHooks:
        """See `base.Plugin`."""
        drift = _Drift(round)
        exact = self.mode is Mode.EXACT
        return LocalHooks(
            edit_gradients=drift.correct_gradients if exact else None,
            after_step=drift.count if exact else drift.correct_and_count,
            end=drift.end,
        )

    def serve(
        self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor], *, num_workers: int
    ) -> Served:
        """See `base.Plugin`."""
        total = sums[_CHANGE]
        if _OWN in state:
            total = total + state[_OWN]
        return Served(state={_OWN: total}, given={_GLOBAL: total / num_workers})


class _Drift:
    """c - c_u of one round, and the way that was gone with it."""

    def __init__(self, round: LocalRound) -> None:
        self._round = round
        self._own = round.kept[_OWN]
        self._correction = {n: c - self._own[n] for n, c in round.extras[_GLOBAL].items()}
        self._shares = 0.0

    def correct_gradients(self) -> None:
        """G + c - c_u."""
        for name, tensor in self._round.trained.items():
            if tensor.grad is not None:
                tensor.grad += self._correction[name]

    def count(self, share: float) -> None:
        """A step at a share of the highest rate."""
        self._shares += share

    def correct_and_count(self, share: float) -> None:
        """The same, and theta -= rate (c - c_u)."""
        for name, tensor in self._round.trained.items():
            tensor.sub_(self._correction[name], alpha=share * self._round.rates[name])
        self.count(share)

    def end(self) -> Ending:
        """What c_u becomes, and dc; nothing changes where no step was made."""
        if not self._shares:
            still = {name: own.new_zeros(own.shape) for name, own in self._own.items()}
            return Ending(kept={_OWN: self._own}, sent={_CHANGE: still})
        gone = {
            name: (self._round.given[name] - tensor) / (self._shares * self._round.rates[name])
            for name, tensor in self._round.trained.items()
        }
        change = {name: way - self._round.extras[_GLOBAL][name] for name, way in gone.items()}
        return Ending(
            kept={_OWN: {name: self._own[name] + dc for name, dc in change.items()}},
            sent={_CHANGE: change},
        )
