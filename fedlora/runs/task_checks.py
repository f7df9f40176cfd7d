"""What of a run does not go with its task, said before it begins and not by its workers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fedlora.adapters.peft_files import peft_target_modules
from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.spec import RunSpec

__all__ = ["check_task"]


def check_task(run: RunSpec) -> None:
    """Refuses labels and training that are not those of the run's task, and what names no module.

    Raises:
        FedLoraError: INVALID_CONFIG, naming both.
    """
    _check_targets(run.adapter.target_modules)
    task, labels, training = run.adapter.task_type, run.adapter.labels, run.training
    classifies = task is TaskType.SEQUENCE_CLASSIFICATION
    if classifies and (len(labels) < 2 or len({*labels}) != len(labels)):
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            "sequence_classification needs at least two different labels in model.labels, "
            f"got {list(labels)}",
            hint='List every label of the data, for example labels = ["negative", "positive"]',
        )
    if classifies and training.packing:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            f"training.packing is for causal_lm, and the task is {task.value}",
            hint="Set training.packing = false",
        )
    if training.logit_adjustment and not classifies:
        raise FedLoraError(
            Reason.INVALID_CONFIG,
            "training.logit_adjustment is for sequence_classification, and the task is "
            f"{task.value}",
            hint="Set training.logit_adjustment = 0",
        )


def _check_targets(targets: Sequence[str]) -> None:
    """Refuses an expression that is none, and one beside other entries: a name to peft, of nothing.

    Raises:
        FedLoraError: INVALID_CONFIG.
    """
    whole = peft_target_modules(targets)
    if isinstance(whole, str):
        try:
            re.compile(whole)
        except re.error as error:
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"adapter.target_modules: {whole!r} is no regular expression: {error}",
                hint='Write ".*" for any text, for example ".*attn"',
            ) from error
        return
    for entry in whole:
        if len(whole) > 1 and isinstance(peft_target_modules([entry]), str):
            raise FedLoraError(
                Reason.INVALID_CONFIG,
                f"adapter.target_modules: expected {entry!r} alone or names only, got "
                f"{len(whole)} entries",
                hint='Write one expression for all of them, such as [".*(query|key)"], or names',
            )
