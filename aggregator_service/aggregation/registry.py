"""All aggregation methods, in one table, and how a name with options becomes one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aggregator_service.aggregation.base import CompressionRule, Method, ServerOptimizer
from aggregator_service.aggregation.composition import Recipe, compose
from aggregator_service.aggregation.compression.energy import Energy
from aggregator_service.aggregation.compression.keep import Keep
from aggregator_service.aggregation.compression.merge import Merge
from aggregator_service.aggregation.compression.reset import Reset
from aggregator_service.aggregation.compression.residual import Residual
from aggregator_service.aggregation.compression.truncate import Truncate
from aggregator_service.aggregation.methods.aflora import AFLoRA
from aggregator_service.aggregation.methods.auto import Auto
from aggregator_service.aggregation.methods.bound_weights import BoundWeights
from aggregator_service.aggregation.methods.fed_sb import FedSB
from aggregator_service.aggregation.methods.fed_talora import FedTaLoRA
from aggregator_service.aggregation.methods.fedawa import FedAWA
from aggregator_service.aggregation.methods.fedex_lora import FedExLoRA
from aggregator_service.aggregation.methods.fedhl import FedHL
from aggregator_service.aggregation.methods.fedit import FedIT
from aggregator_service.aggregation.methods.fedlora_optimizer import FedLoRAOptimizer
from aggregator_service.aggregation.methods.fedrot_lora import FedRotLoRA
from aggregator_service.aggregation.methods.fedsa_lora import FedSALoRA
from aggregator_service.aggregation.methods.fedsvd import FedSVD
from aggregator_service.aggregation.methods.ffa_lora import FFALoRA
from aggregator_service.aggregation.methods.flexlora import FlexLoRA
from aggregator_service.aggregation.methods.flora import FLoRA
from aggregator_service.aggregation.methods.flora_na import FLoRANA
from aggregator_service.aggregation.methods.florist import FLoRIST
from aggregator_service.aggregation.methods.frlora import FRLoRA
from aggregator_service.aggregation.methods.hetlora import HetLoRA
from aggregator_service.aggregation.methods.lora_a2 import LoRAA2
from aggregator_service.aggregation.methods.lora_fair import LoRAFAIR
from aggregator_service.aggregation.methods.lorar import Lorar
from aggregator_service.aggregation.methods.optimal import Optimal
from aggregator_service.aggregation.methods.rac_lora import RACLoRA
from aggregator_service.aggregation.methods.replication import Replication
from aggregator_service.aggregation.methods.rolora import RoLoRA
from aggregator_service.aggregation.server_optimizers.adaptive import (
    FedAdagrad,
    FedAdam,
    FedYogi,
)
from aggregator_service.aggregation.server_optimizers.momentum import Momentum
from aggregator_service.aggregation.weighting.base import WeightingRule
from aggregator_service.aggregation.weighting.bound_gap import BoundGap
from aggregator_service.aggregation.weighting.examples import NumExamples, Uniform
from aggregator_service.aggregation.weighting.fedawa import FedAWA as FedAWAWeights
from aggregator_service.aggregation.weighting.loss_reduction import LossReduction
from aggregator_service.aggregation.weighting.rank_aware import RankAware
from aggregator_service.aggregation.weighting.tilted import Tilted
from aggregator_service.aggregation.weighting.update_norm import UpdateNorm
from fedlora.plugins import create_plugins
from fedlora.runs.installed import METHODS_GROUP
from fedlora.runs.method import MethodSpec, OptionValue, RuleSpec
from fedlora.runs.tables import N, Table, by_name

__all__ = [
    "COMPRESSIONS",
    "METHODS",
    "SERVER_OPTIMIZERS",
    "WEIGHTINGS",
    "create",
    "create_recipe",
    "known_methods",
    "known_rules",
]


METHODS: Mapping[str, Method] = by_name(
    (
        FLoRANA(),
        Optimal(),
        Auto(),
        FedHL(),
        FedLoRAOptimizer(),
        FedIT(),
        FFALoRA(),
        FedSALoRA(),
        RoLoRA(),
        HetLoRA(),
        Replication(),
        FedSB(),
        AFLoRA(),
        LoRAA2(),
        FedRotLoRA(),
        FLoRA(),
        FlexLoRA(),
        FLoRIST(),
        FedExLoRA(),
        FedTaLoRA(),
        LoRAFAIR(),
        FedSVD(),
        FRLoRA(),
        RACLoRA(),
        Lorar(),
        BoundWeights(),
        FedAWA(),
    )
)
"""Methods by registry name, each with its options' defaults."""

COMPRESSIONS: Mapping[str, CompressionRule] = by_name(
    (Keep(), Truncate(), Energy(), Residual(), Merge(), Reset())
)
WEIGHTINGS: Mapping[str, WeightingRule] = by_name(
    (
        NumExamples(),
        Uniform(),
        UpdateNorm(),
        LossReduction(),
        Tilted(),
        RankAware(),
        BoundGap(),
        FedAWAWeights(),
    )
)
SERVER_OPTIMIZERS: Mapping[str, ServerOptimizer] = by_name(
    (Momentum(), FedAdam(), FedYogi(), FedAdagrad())
)


_OF_THE_RECIPE = {
    "gauge": "The gauge is a choice of its own for every method: set gauge in [method], or --gauge "
    "of fedlora aggregate"
}
"""what somebody may look for among a method's or rule's options, and where it is"""


def _table(kind: str, rows: Mapping[str, N], does: str) -> Table[N]:
    return Table(kind=kind, group=METHODS_GROUP, rows=rows, does=does, elsewhere=_OF_THE_RECIPE)


_METHODS = _table("aggregation method", METHODS, "combine")
_COMPRESSIONS = _table("compression rule", COMPRESSIONS, "compress")
_WEIGHTINGS = _table("weighting rule", WEIGHTINGS, "weigh")
_SERVER_OPTIMIZERS = _table("server optimiser", SERVER_OPTIMIZERS, "step")


def create(name: str, given: Mapping[str, OptionValue] | None = None) -> Method:
    """Makes a method.

    Args:
        name: its registry name.
        given: values of its options; the others take their defaults.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that nobody has, INVALID_CONFIG for a package
            that cannot be loaded, INVALID_ARGUMENT for an option the method does not have or a
            value it cannot take.
    """
    return _METHODS.create(name, given)


def create_recipe(spec: MethodSpec, plugins: Iterable[RuleSpec] = ()) -> Recipe:
    """Makes the recipe that a run's configuration describes.

    Args:
        spec: of its method and the rules around it.
        plugins: what it names beside them.

    Raises:
        FedLoraError: as `create`, for every part; UNSUPPORTED_METHOD for parts that do not go
            together.
    """
    return compose(
        create(spec.name, spec.options),
        compression=_COMPRESSIONS.optional(spec.compression),
        gauge=spec.gauge,
        weighting=_WEIGHTINGS.optional(spec.weighting),
        server_optimizer=_SERVER_OPTIMIZERS.optional(spec.server_optimizer),
        plugins=create_plugins(plugins),
    )


def known_methods() -> Mapping[str, Method]:
    """The methods, with those of other packages that are installed here."""
    return _METHODS.known()


def known_rules() -> Mapping[str, Mapping[str, CompressionRule | ServerOptimizer | WeightingRule]]:
    """Likewise the rules around a method, by their section of the configuration."""
    return {
        "weighting": _WEIGHTINGS.known(),
        "compression": _COMPRESSIONS.known(),
        "server_optimizer": _SERVER_OPTIMIZERS.known(),
    }
