"""A stream of experiences: classes or tasks that join while a run goes on.

An experience is a group of examples that becomes available at one moment: in a class-incremental
run those of some labels, else those of some values of a column, such as domains or languages. The
words are those of Lomonaco et al. 2021, "Avalanche: an End-to-End Library for Continual Learning",
arXiv:2104.00405, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from fedlora.errors import invalid_argument

__all__ = ["ContinualSpec"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ContinualSpec:
    """Which examples join when. Experiences and rounds count from 1."""

    order: tuple[str, ...]
    """the labels, or the column's values, in the order in which they join; all there are"""
    sizes: tuple[int, ...]
    """how many of them each experience brings, such as [5, 5, 4]"""
    rounds_per_experience: int
    """rounds from one experience to the next; the last one lasts to the end of the run"""
    column: str = ""
    """column whose values `order` lists; empty: the labels, and a worker then trains the head's
    rows of the labels that it may see, and scores among those that have joined"""
    keep_earlier: bool = False
    """whether workers go on training on what joined earlier; else every experience replaces it"""
    compete_with_earlier: bool = False
    """whether labels that joined earlier compete in the loss though no example of them is there:
    new labels are then told from old ones, which are forgotten the faster"""

    def __post_init__(self) -> None:
        if len({*self.order}) != len(self.order) or "" in self.order:
            raise invalid_argument(
                f"continual.order must list each value once, none of them empty, got "
                f"{list(self.order)!r:.200}"
            )
        if not self.sizes or min(self.sizes) < 1 or sum(self.sizes) != len(self.order):
            raise invalid_argument(
                f"continual.sizes must be numbers from 1 that add up to the {len(self.order)} "
                f"values of continual.order, got {list(self.sizes)!r:.200}"
            )
        if self.rounds_per_experience < 1:
            raise invalid_argument(
                "continual.rounds_per_experience must be at least 1, got "
                f"{self.rounds_per_experience}"
            )

    @property
    def num_experiences(self) -> int:
        """How many there are."""
        return len(self.sizes)

    @property
    def by_label(self) -> bool:
        """Whether it is classes that join."""
        return not self.column

    def joins_in_round(self, experience: int) -> int:
        """The first round of an experience."""
        return 1 + (experience - 1) * self.rounds_per_experience

    def newest(self, round: int) -> int:
        """The experience that joined last, in a round; before the first round the first one."""
        return min(max(0, round - 1) // self.rounds_per_experience + 1, self.num_experiences)

    def trained(self, round: int) -> range:
        """The experiences whose examples are trained on in a round."""
        newest = self.newest(round)
        return range(1 if self.keep_earlier else newest, newest + 1)

    def competing(self, round: int) -> range:
        """The experiences whose labels compete in the loss in a round."""
        return self.joined(round) if self.compete_with_earlier else self.trained(round)

    def joined(self, round: int) -> range:
        """The experiences that have joined by a round: those that are scored."""
        return range(1, self.newest(round) + 1)

    def values(self, experience: int) -> tuple[str, ...]:
        """The values of `order` that are an experience's."""
        ends = (0, *accumulate(self.sizes))
        return self.order[ends[experience - 1] : ends[experience]]

    def experience_of(self) -> dict[str, int]:
        """The experience of each value."""
        return {v: e for e in range(1, self.num_experiences + 1) for v in self.values(e)}
