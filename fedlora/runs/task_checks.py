"""What of a run does not go with its task, said before it begins and not by its workers."""

from __future__ import annotations

from fedlora.adapters.spec import TaskType
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.spec import RunSpec

__all__ = ["check_task"]


def check_task(run: RunSpec) -> None:
    """Refuses labels and training that are not those of the run's task.

    Raises:
        FedLoraError: INVALID_CONFIG, naming both.
    """
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
