"""What `fedlora aggregate` is told, read from the command line's words and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedlora.errors import FedLoraError, Reason

if TYPE_CHECKING:
    from fedlora.adapters.peft_files import AdapterFolder
    from fedlora.runs.method import MethodSpec, OptionValue
    from fedlora.tensors.manifest import DataType

__all__ = ["check_kin", "check_target", "data_type", "device_of", "method_spec", "weights_of"]


def method_spec(
    name: str,
    given: Sequence[str],
    *,
    weighting: str = "",
    compression: str = "",
    gauge: str = "own",
) -> MethodSpec:
    """The method and its rules; an option with a rule's name before a dot is the rule's.

    Raises:
        FedLoraError: INVALID_ARGUMENT for an option of nothing, or a gauge that is none.
    """
    from fedlora.runs.method import Gauge, MethodSpec, RuleSpec

    if gauge not in {*Gauge}:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"--gauge: expected one of {', '.join(Gauge)}, got {gauge!r}"
        )
    rules = {"weighting": weighting, "compression": compression}
    own: dict[str, OptionValue] = {}
    of_rules: dict[str, dict[str, OptionValue]] = {rule: {} for rule in rules}
    for key, value in _options(given).items():
        rule, dot, rest = key.partition(".")
        if not dot:
            own[key] = value
        elif rules.get(rule):
            of_rules[rule][rest] = value
        else:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"--option {key}: expected a key of the method, or of a rule that is given",
                hint=f"Known rules: {', '.join(f'--{r}' for r in rules)}",
            )
    chosen = {
        rule: RuleSpec(name=value, options=of_rules[rule]) for rule, value in rules.items() if value
    }
    return MethodSpec(name=name, options=own, gauge=Gauge(gauge), **chosen)


def _options(given: Sequence[str]) -> dict[str, OptionValue]:
    """key=value pairs; a value that reads as a JSON number or boolean is one."""
    values: dict[str, OptionValue] = {}
    for pair in given:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT, f"--option: expected key=value, got {pair!r}"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        values[key.strip()] = value if isinstance(value, bool | int | float) else text
    return values


def data_type(name: str) -> DataType:
    """The element type of that name; INVALID_ARGUMENT if there is none."""
    from fedlora.tensors.manifest import FLOATS

    for dtype in FLOATS:
        if dtype == name:
            return dtype
    raise FedLoraError(
        Reason.INVALID_ARGUMENT, f"--dtype: expected one of {', '.join(FLOATS)}, got {name!r}"
    )


def device_of(name: str) -> str:
    """The torch device for `auto`, `cpu` or `cuda:N`; DEVICE_UNAVAILABLE if it is not there."""
    from aggregator_service.engine import resolve_device

    try:
        return str(resolve_device(name))
    except FedLoraError as error:
        text = error.message.replace("server.device", "--device")
        raise FedLoraError(error.reason, text, hint=error.hint) from error


def weights_of(text: str, folders: Sequence[AdapterFolder]) -> list[float]:
    """One weight a folder, from numbers with commas between them; 1 each where there are none."""
    if not text:
        return [1.0] * len(folders)
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"--weights: expected numbers such as 3,1,2, got {text!r}"
        ) from error
    if len(values) != len(folders):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"--weights: expected one for each of {len(folders)} folders, got {len(values)}",
        )
    return values


def check_target(out: Path, inputs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuses a folder to write that is or holds one of those to read, or is there already."""
    for folder in inputs:
        if folder.resolve().is_relative_to(out.resolve()):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"--out {str(out)!r} is or holds {str(folder)!r}, which is to be combined",
                hint="Name another folder",
            )
    if out.exists() and not (out.is_dir() and (overwrite or not any(out.iterdir()))):
        raise FedLoraError(
            Reason.ALREADY_EXISTS,
            f"--out {str(out)!r} is there already",
            hint="Name another folder, or add --overwrite to replace this one",
        )


def check_kin(folders: Sequence[AdapterFolder]) -> None:
    """Refuses folders that are not of one base model, one task and one layout of weights.

    Modules and shapes are compared later.
    """
    paths = [f.folder.resolve() for f in folders]
    if len(set(paths)) != len(paths):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            "an adapter folder is named twice",
            hint="Give it a larger weight with --weights instead",
        )
    first = folders[0]
    for other in folders[1:]:
        for what, mine, theirs in (
            ("kind of adapter", first.kind.value, other.kind.value),
            ("base_model_name_or_path", first.base_model, other.base_model),
            ("revision", first.revision, other.revision),
            ("task_type", first.task_type, other.task_type),
            ("modules_to_save", first.modules_to_save, other.modules_to_save),
            ("fan_in_fan_out", first.fan_in_fan_out, other.fan_in_fan_out),
        ):
            if mine != theirs:
                reason = Reason.LAYOUT_MISMATCH
                if what in ("base_model_name_or_path", "revision"):
                    reason = Reason.BASE_MISMATCH
                raise FedLoraError(
                    reason,
                    f"{what} is {mine!r} in {str(first.folder)!r} and {theirs!r} in "
                    f"{str(other.folder)!r}",
                    hint="Only adapters trained on one base model, in one way, can be combined",
                )
