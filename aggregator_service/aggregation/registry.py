"""All aggregation methods, in one table, and how a name with options becomes one."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

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
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.spec import MethodSpec, RuleSpec

__all__ = [
    "COMPRESSIONS",
    "METHODS",
    "SERVER_OPTIMIZERS",
    "WEIGHTINGS",
    "Option",
    "create",
    "create_recipe",
    "options",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a method, as its dataclass declares it."""

    name: str
    type: type
    default: float | int | bool | str

    @property
    def values(self) -> tuple[str, ...]:
        """The values it may take; empty where its type says it."""
        return tuple(self.type) if issubclass(self.type, enum.StrEnum) else ()


class _Named(Protocol):
    name: ClassVar[str]


N = TypeVar("N", bound=_Named)


def _by_name(rows: Iterable[N]) -> Mapping[str, N]:
    return {row.name: row for row in rows}


METHODS: Mapping[str, Method] = _by_name(
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

COMPRESSIONS: Mapping[str, CompressionRule] = _by_name(
    (Keep(), Truncate(), Energy(), Residual(), Merge(), Reset())
)
WEIGHTINGS: Mapping[str, WeightingRule] = _by_name(
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
SERVER_OPTIMIZERS: Mapping[str, ServerOptimizer] = _by_name(
    (Momentum(), FedAdam(), FedYogi(), FedAdagrad())
)


_OF_THE_RECIPE = {
    "gauge": "The gauge is a choice of its own for every method: set gauge in [method], or --gauge "
    "of fedlora aggregate"
}
"""what somebody may look for among a method's or rule's options, and where it is"""


def options(cls: type[object]) -> tuple[Option, ...]:
    """The options of a method or rule, in the order of its declaration."""
    hints = typing.get_type_hints(cls)
    return tuple(
        Option(name=f.name, type=hints[f.name], default=typing.cast("str", f.default))
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.metadata.get("option", True)
    )


def create(name: str, given: Mapping[str, float | int | bool | str] | None = None) -> Method:
    """Makes a method.

    Args:
        name: its registry name.
        given: values of its options; the others take their defaults.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that is not in the table, INVALID_ARGUMENT
            for an option the method does not have or a value it cannot take.
    """
    return _create("aggregation method", METHODS, name, given)


def create_recipe(spec: MethodSpec) -> Recipe:
    """Makes the recipe that a run's `[method]` describes.

    Raises:
        FedLoraError: as `create`, for every part; UNSUPPORTED_METHOD for parts that do not go
            together.
    """
    compression, weighting, optimizer = spec.compression, spec.weighting, spec.server_optimizer
    return compose(
        create(spec.name, spec.options),
        compression=_optional("compression rule", COMPRESSIONS, compression),
        gauge=spec.gauge,
        weighting=_optional("weighting rule", WEIGHTINGS, weighting),
        server_optimizer=_optional("server optimiser", SERVER_OPTIMIZERS, optimizer),
    )


def _optional(kind: str, table: Mapping[str, N], rule: RuleSpec | None) -> N | None:
    return None if rule is None else _create(kind, table, rule.name, rule.options)


def _create(
    kind: str,
    table: Mapping[str, N],
    name: str,
    given: Mapping[str, float | int | bool | str] | None,
) -> N:
    if name not in table:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"there is no {kind} {name!r}",
            hint=_suggest(name, table),
        )
    default = table[name]
    known = {option.name: option for option in options(type(default))}
    values: dict[str, object] = {}
    for key, value in (given or {}).items():
        if key not in known:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"{name} has no option {key!r}",
                hint=_OF_THE_RECIPE.get(key)
                or (_suggest(key, known) if known else f"{name} has no options"),
            )
        values[key] = _coerced(name, known[key], value)
    return dataclasses.replace(default, **values)  # type: ignore[type-var]


def _suggest(word: str, known: Mapping[str, object]) -> str:
    """The nearest known word, and all of them."""
    squeezed = {k.replace("_", ""): k for k in known}
    wanted = word.lower().replace("_", "").replace("-", "")
    near = difflib.get_close_matches(wanted, squeezed, n=1)
    listed = ", ".join(known)
    return f"Did you mean {squeezed[near[0]]!r}? Known: {listed}" if near else f"Known: {listed}"


def _coerced(method: str, option: Option, value: object) -> object:
    """The value in the option's type. Wire formats without integers send 200.0 for 200."""
    if issubclass(option.type, enum.StrEnum):
        if isinstance(value, str) and value in option.values:
            return option.type(value)
        wanted = f"one of {', '.join(option.values)}"
    elif option.type is bool:
        if isinstance(value, bool):
            return value
        wanted = "true or false"
    elif option.type is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if whole and not isinstance(value, bool):
            return int(typing.cast("float", value))
        wanted = "an integer"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        wanted = "a number"
    raise FedLoraError(
        Reason.INVALID_ARGUMENT,
        f"option {option.name!r} of {method}: expected {wanted}, got {value!r}",
    )
