"""A check that never fires is none: each is shown a manifest with the mistake it is for."""

from __future__ import annotations

import pytest
from support.deploy_tools import missing_tools
from support.manifest_checks import CHECKS, Check
from support.manifest_mistakes import MISTAKES, Mistake
from support.manifests import overlay, title

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())


@pytest.mark.parametrize(
    ("check", "name", "place", "mistake"),
    MISTAKES,
    ids=[f"{check.__name__}-{number}" for number, (check, *_) in enumerate(MISTAKES)],
)
def test_a_mistake_is_found(check: Check, name: str, place: str, mistake: Mistake) -> None:
    objects = overlay(name)
    mistake(next(each for each in objects if place in (each["kind"], title(each))))
    assert check([each for each in objects if each]) != []


def test_every_check_is_shown_a_mistake() -> None:
    shown = {check for check, *_ in MISTAKES}
    assert shown == set(CHECKS)
