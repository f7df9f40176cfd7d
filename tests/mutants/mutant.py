"""What a seeded bug is."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One bug: a replacement of text, and the tests that notice it."""

    name: str
    sentence: str
    """what the program then does"""
    file: str
    """path from the root of the tree"""
    old: str
    """text that occurs in the file exactly once"""
    new: str
    """what stands there instead"""
    killers: tuple[str, ...]
    """ids of tests, each of which must fail"""

    def applied_to(self, text: str) -> str:
        """The file's text with the bug in it.

        Raises:
            ValueError: if `old` does not say where.
        """
        if (count := text.count(self.old)) != 1:
            raise ValueError(
                f"{self.name}: expected its text once in {self.file}, found it {count} times"
            )
        return text.replace(self.old, self.new)
