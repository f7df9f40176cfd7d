"""A page of sections of which some can be written anew while the others stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["write_page"]


def write_page(
    path: Path, head: Sequence[str], titles: Sequence[str], sections: Mapping[str, Sequence[str]]
) -> None:
    """Writes the head and the sections; one that was not measured now is kept as it stands.

    Args:
        path: of the page.
        head: lines above the first section.
        titles: of all sections, in their order.
        sections: lines of those measured now, by title; each begins with its heading.
    """
    kept = _sections(path.read_text(encoding="utf-8")) if path.exists() else {}
    known = {**kept, **{title: "\n".join(lines) for title, lines in sections.items()}}
    parts = ["\n".join(head), *(known[title].strip() for title in titles if title in known)]
    path.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _sections(text: str) -> dict[str, str]:
    """Sections of a page by title, headings included."""
    _, *parts = ("\n" + text).split("\n## ")
    return {part.partition("\n")[0].strip(): "## " + part for part in parts}
