"""All aggregation methods, in one table, and how a name with options becomes one."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import typing
from collections.abc import Mapping
from dataclasses import dataclass

from aggregator_service.aggregation.base import Aggregator
from aggregator_service.aggregation.fedit import FedIT
from aggregator_service.aggregation.flora_na import FLoRANA
from aggregator_service.aggregation.optimal import Optimal
from fedlora.errors import FedLoraError, Reason

__all__ = ["METHODS", "Method", "Option", "create", "options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of the table: what somebody choosing a method has to know."""

    name: str
    cls: type[Aggregator]
    title: str
    paper: str
    exactness: str
    """how far the published product is from the mean of products"""
    up: str
    """numbers per client, round and layer, d x k with rank r"""
    down: str
    cost: str
    """server work per layer, R = sum of the cohort's ranks, U clients"""
    needs: str
    choose: str
    """when to take it"""

    @property
    def mixed_ranks(self) -> bool:
        """Whether workers of one round may differ in rank."""
        return self.cls.mixed_ranks


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


METHODS: Mapping[str, Method] = {
    row.name: row
    for row in (
        Method(
            name="fedit",
            cls=FedIT,
            title="FedIT",
            paper="Zhang et al. 2023, arXiv:2305.05644",
            exactness="wrong by the covariance of the factors",
            up="r(d+k)",
            down="r(d+k)",
            cost="2R(d+k)",
            needs="one rank for the cohort",
            choose="the baseline of most of the literature",
        ),
        Method(
            name="flora_na",
            cls=FLoRANA,
            title="FLoRA-NA",
            paper="Nguyen et al. 2025, arXiv:2509.26399",
            exactness="never worse than fedit, never better than optimal",
            up="r(d+k)",
            down="r(d+k)",
            cost="R^2(d+k) + O(R^2 + U^3) per half-step",
            needs="nothing",
            choose="clients differ in scale, and their basis should last",
        ),
        Method(
            name="optimal",
            cls=Optimal,
            title="Truncated SVD of the mean product",
            paper="Eckart and Young 1936; FlexLoRA, Bai et al. 2024, arXiv:2402.11505",
            exactness="the least error of any adapter of its rank",
            up="r(d+k)",
            down="q(d+k), any q",
            cost="4R^2(d+k) + 20R^3",
            needs="nothing",
            choose="least loss, mixed ranks, or another rank than was sent",
        ),
    )
}
"""Rows by registry name."""


def options(name: str) -> tuple[Option, ...]:
    """The options of a method, in the order of its declaration."""
    cls = _method(name).cls
    hints = typing.get_type_hints(cls)
    return tuple(
        Option(name=f.name, type=hints[f.name], default=typing.cast("str", f.default))
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
    )


def create(name: str, given: Mapping[str, float | int | bool | str] | None = None) -> Aggregator:
    """Makes a method.

    Args:
        name: its registry name.
        given: values of its options; the others take their defaults.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that is not in the table, INVALID_ARGUMENT
            for an option the method does not have or a value it cannot take.
    """
    method = _method(name)
    known = {option.name: option for option in options(name)}
    values: dict[str, object] = {}
    for key, value in (given or {}).items():
        if key not in known:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"{name} has no option {key!r}",
                hint=_suggest(key, known) if known else f"{name} has no options",
            )
        values[key] = _coerced(name, known[key], value)
    return method.cls(**values)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"there is no aggregation method {name!r}",
            hint=_suggest(name, METHODS),
        )
    return METHODS[name]


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
