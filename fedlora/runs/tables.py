"""Tables of rows by name: fedlora's own, and those of other packages that are installed.

A row is a frozen dataclass of options with their defaults, and a run's configuration names it with
the options that it wants otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar, cast

from fedlora.errors import FedLoraError, Reason
from fedlora.runs.installed import installed
from fedlora.runs.method import OptionValue, RuleSpec
from fedlora.runs.options import suggest, with_options

__all__ = ["N", "Table", "by_name"]


class _Named(Protocol):
    name: ClassVar[str]


N = TypeVar("N", bound=_Named)
"""what the rows of a table are"""


def by_name(rows: Iterable[N]) -> Mapping[str, N]:
    """Rows by their names, in the order given."""
    return {row.name: row for row in rows}


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(Generic[N]):
    """Rows of one kind."""

    kind: str
    """what messages call a row"""
    group: str
    """of the entry points by which other packages bring rows"""
    rows: Mapping[str, N]
    """fedlora's own"""
    does: str
    """the method that a row of this kind has, and no row of another kind of the group"""
    elsewhere: Mapping[str, str] = field(default_factory=dict)
    """hints for what somebody may look for among a row's options, and is none"""

    def known(self) -> Mapping[str, N]:
        """All rows; a name of ours is ours."""
        others = installed(self.group).rows.items()
        return {**{n: cast("N", row) for n, row in others if hasattr(row, self.does)}, **self.rows}

    def create(self, name: str, given: Mapping[str, OptionValue] | None = None) -> N:
        """The row of that name with the given options.

        Raises:
            FedLoraError: UNSUPPORTED_METHOD for a name that nobody has, INVALID_CONFIG for a
                package that cannot be loaded, INVALID_ARGUMENT for an option the row does not have
                or a value it cannot take.
        """
        # Other packages are asked only for what is not ours.
        known = self.rows if name in self.rows else self.known()
        if name in known:
            called = f"the {self.kind} {name}"
            return with_options(known[name], called, given, elsewhere=self.elsewhere)
        if (broken := installed(self.group).broken.get(name)) is not None:
            raise broken
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"there is no {self.kind} {name!r}",
            hint=suggest(name, known),
        )

    def optional(self, rule: RuleSpec | None) -> N | None:
        """The same of a rule that a run may leave out."""
        return None if rule is None else self.create(rule.name, rule.options)
