"""What a client sampler is: what is known of each worker in, names out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

__all__ = ["Candidate", "ClientSampler"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that could be taken, and what the server knows of it."""

    name: str
    num_examples: int
    """of its last update; 0 before the first"""
    loss: float | None
    """the last one known of a model on its data; None before the first"""
    num_tasks: int
    """rounds it was asked to train for"""
    num_updates: int
    """updates it has sent"""


class ClientSampler(Protocol):
    """One way of taking workers; a frozen dataclass of its options."""

    name: ClassVar[str]
    """as in the configuration"""

    def select(
        self, candidates: Sequence[Candidate], count: int, generator: random.Random
    ) -> Sequence[str]:
        """Takes some of the workers, in any order.

        It is a function of its arguments and nothing else, no clock, no file, no generator of its
        own: a server that is restarted calls it again and must be told the same.

        Args:
            candidates: sorted by name.
            count: how many to take, at least 1 and fewer than there are.
            generator: seeded by the run, the round and what the draw is for.

        Returns:
            `count` different names of candidates. Anything else fails the run.
        """
        ...
