"""What workers report of themselves: a few numbers and words that can be stored and shown.

Everything here reaches all who look at the run, and its log.
"""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.score_names import SHARES
from fedlora.runs.spec import RunSpec
from fedlora.runs.tasks import Capabilities, Evaluation

__all__ = ["check_capabilities", "check_metrics", "check_scores", "shown"]

_MOST_SETS = 16
"""of examples that are scored; several times what there is"""

_MOST_WORDS = 256
"""of each kind that a worker says of itself; several times what there is"""

_MOST_CHARACTERS = 256
"""of one of them"""

_MOST_BYTES = 16 * 1024
"""of all of them, in UTF-8; ListRuns tells what every worker of every run has said"""

_LARGEST = 1e280
"""so that sums over examples and workers stay finite"""


def check_capabilities(capabilities: Capabilities) -> None:
    """Refuses capabilities that are too many, too long, or move a terminal's cursor."""
    versions, plugins = capabilities.versions, capabilities.plugins
    device = (capabilities.device_type, capabilities.device_name, capabilities.device_uuid)
    enums = (capabilities.wire_dtypes, capabilities.features, capabilities.codecs)
    if (most := max(map(len, (versions, plugins, *enums)))) > _MOST_WORDS:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"capabilities: expected at most {_MOST_WORDS} of a kind, got {most}",
        )
    words = (*device, *versions, *versions.values(), *plugins)
    if (size := sum(len(word.encode()) for word in words)) > _MOST_BYTES:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"capabilities: expected texts of at most {_MOST_BYTES} bytes together, got {size}",
        )
    for word in words:
        if len(word) > _MOST_CHARACTERS or not word.isprintable():
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"capabilities: expected printable texts of at most {_MOST_CHARACTERS} characters, "
                f"got one of {len(word)}, {word[:40]!a}",
            )


def shown(text: str) -> str:
    """A reason that somebody gives, as it is stored: cut, and harmless to print."""
    return "".join(c if c.isprintable() else " " for c in text[:500])


def check_scores(evaluations: tuple[Evaluation, ...], run: RunSpec) -> None:
    """Refuses scores that are no numbers, too many, no shares, or of what the run does not have.

    Args:
        evaluations: as a worker sent them.
        run: has the labels and experiences that they may be of.
    """
    num_labels = len(run.adapter.labels)
    num_experiences = run.continual.num_experiences if run.continual else 0
    most = _MOST_SETS * max(1, num_experiences)
    if len(evaluations) > most or any(len(e.metrics) > 64 for e in evaluations):
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected at most {most} evaluations of at most 64 metrics"
        )
    for evaluation in evaluations:
        check_metrics(evaluation.metrics)
        _check_experience(evaluation.experience, num_experiences)
        for name in sorted(evaluation.metrics.keys() & set(SHARES)):
            if not 0 <= evaluation.metrics[name] <= 1:
                raise FedLoraError(
                    Reason.INVALID_ARGUMENT,
                    f"metric {name!r}: expected a share, in [0, 1], got {evaluation.metrics[name]}",
                )
        counts = evaluation.label_counts
        if counts is not None and len(counts.present) != num_labels:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"label counts: expected those of {num_labels} labels, got {len(counts.present)}",
            )


def _check_experience(experience: int | None, num_experiences: int) -> None:
    if num_experiences and not 1 <= (experience or 0) <= num_experiences:
        got = "none" if experience is None else experience
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"scores: expected those of one of {num_experiences} experiences, got {got}",
        )
    if not num_experiences and experience is not None:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT,
            f"scores: expected those of all examples, got those of experience {experience}",
        )


def check_metrics(metrics: Mapping[str, float]) -> None:
    """Refuses metrics that no sum could hold or whose names could not be shown."""
    if len(metrics) > 64:
        raise FedLoraError(
            Reason.INVALID_ARGUMENT, f"expected at most 64 metrics, got {len(metrics)}"
        )
    for name, value in metrics.items():
        if not (name.isidentifier() and len(name) <= 64):
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                "a metric's name is an identifier of at most 64 characters, got a text "
                f"of {len(name)}",
            )
        # Neither NaN nor infinity is.
        if not -_LARGEST <= value <= _LARGEST:
            raise FedLoraError(
                Reason.INVALID_ARGUMENT,
                f"metric {name!r} must be finite and at most {_LARGEST:g} in size, got {value}",
            )
