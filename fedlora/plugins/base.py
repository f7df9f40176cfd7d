"""What a plug-in is: options, what it asks of a run, and what it does in local training.

A plug-in goes beside the aggregation method of a run, as `[plugins.<name>]` in its configuration.
It is one frozen dataclass in one file that both services read, so that formulas which must agree
stand beside each other: the server refuses what cannot work from its `Traits`, the worker trains
with the `LocalHooks` that it makes for a round. A hook that is left out costs nothing: a run
without plug-ins does exactly what it would do without this page.

Everything in training that has a name has the one under which PEFT saves it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from fedlora.runs.training import TrainingSpec

if TYPE_CHECKING:
    # A configuration is read without torch.
    from torch import Tensor

__all__ = [
    "Ending",
    "LocalHooks",
    "LocalRound",
    "Plugin",
    "PluginDefaults",
    "Served",
    "Traits",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What a plug-in asks of a run; checked when the run is created."""

    whole_factors: bool = False
    """it is about A and B trained, sent and published together, in every round"""
    sync_only: bool = False
    """it counts on updates that begin from the version of their round"""
    factor_state: bool = False
    """it remembers vectors of A and B, which mean something only while the components stay"""
    assumes_sgd: bool = False
    """its formulas are those of SGD without momentum"""
    uniform_weights: bool = False
    """it counts on every update weighing the same"""
    edits_updates: bool = False
    """it changes what was trained before it is sent; what is private must stay as it is"""
    personal: bool = False
    """each worker trains an adapter of its own with its hooks, after the round's update is made"""
    replaces_criterion: bool = False
    """its hooks have the loss of a step's targets; a run has one such plug-in at most"""
    owns_step: bool = False
    """its hooks decide where a step's gradients are taken; a run has one such plug-in at most"""
    needs_labels: bool = False
    """it is about classes, which a causal language model has none of"""
    pull: float = 0.0
    """mu, where it adds (mu/2) (theta - theta_g)^2 of every number to the loss"""
    scales_updates: bool = False
    """its `shares` may say that more or less of an update counts"""
    needs_norms: bool = False
    """its `shares` go by how far each update moved, which the server measures"""
    required_metrics: tuple[str, ...] = ()
    """numbers that come with every update; its hooks measure them"""
    kept: tuple[str, ...] = ()
    """what a worker keeps from round to round: under each name a copy of all that is trained"""
    sent: tuple[str, ...] = ()
    """extra tensors that come with every update, likewise; the server sees sums over the cohort"""
    given: tuple[str, ...] = ()
    """extra tensors that go out with every version but the first, likewise"""

    @property
    def has_extras(self) -> bool:
        """Whether tensors of its own cross the wire."""
        return bool(self.sent or self.given)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LocalRound:
    """One round of local training as a plug-in sees it."""

    trained: Mapping[str, Tensor]
    """what is trained: changes from step to step, gradients in `.grad`"""
    given: Mapping[str, Tensor]
    """theta_g: what the worker was given of the same names"""
    factors: tuple[tuple[str, str], ...]
    """names of A (rank x in_features) and B (out_features x rank) of each module that is trained"""
    scaling: float
    """s of the product s B A"""
    rates: Mapping[str, float]
    """the highest learning rate of the run, by name"""
    training: TrainingSpec
    plugins: tuple[Plugin, ...]
    """all of the run"""
    class_counts: tuple[int, ...] = ()
    """n_j: how many of the examples that are trained on have each label, in the order of the
    logits; empty for a causal language model"""
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """what the plug-in has kept, by `Traits.kept`; zeros in a worker's first round"""
    extras: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """what the server gives, by `Traits.given`; zeros beside the first version"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ending:
    """What a plug-in has to say at the end of a round of training."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """sent with the update"""
    kept: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """by `Traits.kept`"""
    sent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """by `Traits.sent`; they travel in float32"""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Served:
    """What the server makes of one tensor's extras, by their names."""

    state: Mapping[str, Tensor]
    """stored with the version, and handed back in the next round bit for bit"""
    given: Mapping[str, Tensor]
    """by `Traits.given`"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalHooks:
    """What a plug-in does in one round of training. What is None is not done.

    In a step: the loss and the penalty are differentiated, and again wherever `step` asks for it,
    the gradients edited, then clipped as `training.max_gradient_norm` says, then the optimiser
    makes its step. All but the criterion and the penalty run without autograd.

    A penalty sees what is trained and nothing of a forward pass: neither batch nor hidden states,
    nor the logits of another adapter (MOON and FedASD need them and cannot be written as hooks).
    """

    criterion: Callable[[Tensor, Tensor], Tensor] | None = None
    """in place of cross-entropy, in training alone: of logits N x V in float32 and their N targets,
    the sum of the targets' losses. It is called for each forward pass, and the sums are divided by
    the number of targets of the whole step, so that a target's loss must not depend on which others
    are in the pass. V is classes or vocabulary; the local objective"""
    penalty: Callable[[], Tensor] | None = None
    """what is added to the mean loss of a step; the local objective"""
    step: Callable[[Callable[[], None]], None] | None = None
    """called once gradients are there, with a closure that puts those of the same examples at what
    is trained by then in their place; what it leaves in `.grad` is followed from the values that it
    leaves. Gradients carry float16's loss scale, and are not finite where that overflowed: leave
    them and the values then, the step will be skipped. The optimiser stays the run's; the local
    optimiser"""
    edit_gradients: Callable[[], None] | None = None
    """changes `.grad` of what is trained, where there is one; the local optimiser"""
    after_step: Callable[[float], None] | None = None
    """told the share of the highest rate at which a step was made, and nothing where float16's
    gradients overflowed and it was skipped; the local optimiser"""
    end: Callable[[], Ending] | None = None
    """asked once, after the last step"""
    edit_update: Callable[[], None] | None = None
    """changes what was trained before it is scored and sent; the update filter, on the worker
    alone: on the server `Plugin.shares` scales an update's change, and nothing else touches it"""


class Plugin(Protocol):
    """A frozen dataclass of options. `PluginDefaults` has the usual answers."""

    name: ClassVar[str]
    """as in the configuration"""

    @property
    def traits(self) -> Traits:
        """What it asks of a run, with its options."""
        ...

    def local(self, round: LocalRound) -> LocalHooks:
        """What it does in a round of local training."""
        ...

    def personal(self, round: LocalRound) -> LocalHooks:
        """What it does while a worker trains its own adapter; asked of `Traits.personal` alone."""
        ...

    def shares(
        self,
        metrics: Sequence[Mapping[str, float]],
        weights: Sequence[float],
        norms: Sequence[float],
    ) -> tuple[float, ...] | None:
        """How much of each update's change counts, on the server; None for all of every one.

        Args:
            metrics: of each update, in the order of the workers' names, as the workers tell them.
            weights: of each, summing to 1.
            norms: |theta_u - theta_g| of each, over all that it sends, as the server finds it and
                as far as plug-ins before let it count; empty unless `Traits.needs_norms`.

        Raises:
            FedLoraError: INVALID_ARGUMENT for metrics that cannot be.
        """
        ...

    def serve(
        self, sums: Mapping[str, Tensor], state: Mapping[str, Tensor], *, num_workers: int
    ) -> Served:
        """What the server does with the extras of one tensor of the adapter, after a round.

        Args:
            sums: over the cohort, in float64, by `Traits.sent`.
            state: what it returned in the round before; empty at first.
            num_workers: parties that the run has ever known, in the cohort or not.
        """
        ...


class PluginDefaults:
    """Asks for nothing and does nothing."""

    __slots__ = ()

    @property
    def traits(self) -> Traits:
        """None."""
        return Traits()

    def local(self, round: LocalRound) -> LocalHooks:  # noqa: ARG002
        """Nothing."""
        return LocalHooks()

    def personal(self, round: LocalRound) -> LocalHooks:  # noqa: ARG002
        """Nothing."""
        return LocalHooks()

    def shares(
        self,
        metrics: Sequence[Mapping[str, float]],  # noqa: ARG002
        weights: Sequence[float],  # noqa: ARG002
        norms: Sequence[float],  # noqa: ARG002
    ) -> tuple[float, ...] | None:
        """All of every one."""
        return None

    def serve(
        self,
        sums: Mapping[str, Tensor],  # noqa: ARG002
        state: Mapping[str, Tensor],  # noqa: ARG002
        *,
        num_workers: int,  # noqa: ARG002
    ) -> Served:
        """Nothing is kept, nothing given."""
        return Served(state={}, given={})
