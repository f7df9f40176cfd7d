"""What of a worker's data there is in a round: all of it, or what of a stream has joined.

Classes that join later have their rows in the head from the beginning. A worker trains the rows of
the classes that it may see in the round, and no other: in the loss, logits of the others are put so
low that their gradient is exactly 0. So an experience leaves the rows of earlier classes as they
were, unless these are to compete or a weight decay shrinks them with the rest (Fed-TaLoRA,
arXiv:2505.12318; for one learner: Caccia et al. 2022, "New Insights on Reducing Abrupt
Representation Change in Online Continual Learning", arXiv:2104.05025, section 4). Scores are taken
among the classes that have joined: telling them apart is what is asked at that moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from client_worker.data.encoding import EncodedExample
from client_worker.training.material import EncodedData
from client_worker.training.objective import ABSENT, class_counts, label_offsets
from fedlora.adapters.spec import TaskType
from fedlora.runs.continual import ContinualSpec
from fedlora.runs.spec import RunSpec

__all__ = ["Experiences"]


class Experiences:
    """The data of a worker, round by round.

    Args:
        run: the run; its stream says what joins when.
        data: all that the worker will ever have.
    """

    def __init__(self, run: RunSpec, data: EncodedData) -> None:
        self._stream = run.continual
        self._labels = run.adapter.labels
        self._per_token = run.adapter.task_type is TaskType.CAUSAL_LM
        self._strength = run.training.logit_adjustment
        self._data = data

    def train(self, round: int) -> Sequence[EncodedExample]:
        """What is trained on; nothing if the worker has no example of what joined."""
        if self._stream is None:
            return self._data.train
        trained = self._stream.trained(round)
        return [e for e in self._data.train if e.experience in trained]

    def scored(
        self, examples: Sequence[EncodedExample], round: int
    ) -> list[tuple[int | None, Sequence[EncodedExample]]]:
        """Examples by experience, of those that have joined; None where the run has no stream."""
        if self._stream is None:
            return [(None, examples)]
        return [
            (joined, [e for e in examples if e.experience == joined])
            for joined in self._stream.joined(round)
        ]

    def class_counts(self, round: int) -> tuple[int, ...]:
        """How many examples of each label are trained on; empty for a causal LM."""
        if self._per_token:
            return ()
        targets = [e.targets[0] for e in self.train(round)]
        return class_counts(targets, num_labels=len(self._labels))

    def train_offsets(self, round: int) -> Tensor | None:
        """What is added to a classifier's logits in training, V numbers; None for nothing."""
        if self._per_token:
            return None
        # Counting goes over all examples, in every round.
        counts = self.class_counts(round) if self._strength else ()
        offsets_V = label_offsets(counts, strength=self._strength)
        if self._stream is None or not self._stream.by_label:
            return offsets_V
        others_V = self._only(self._stream, self._stream.competing(round))
        return others_V if offsets_V is None else torch.minimum(offsets_V, others_V)

    def score_offsets(self, round: int) -> Tensor | None:
        """The same in scoring."""
        if self._stream is None or not self._stream.by_label:
            return None
        return self._only(self._stream, self._stream.joined(round))

    def _only(self, stream: ContinualSpec, experiences: Iterable[int]) -> Tensor:
        """0 for the labels of some experiences, and too low to count for all others."""
        known = {label for e in experiences for label in stream.values(e)}
        return torch.tensor([0.0 if label in known else ABSENT for label in self._labels])
