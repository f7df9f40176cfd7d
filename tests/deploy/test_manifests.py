"""Every overlay is wired, confined and configured as the services are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import manifest_hardening, manifest_settings, manifest_wiring
from support.deploy_tools import Object, missing_tools
from support.manifests import OVERLAYS, overlay

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())

Check = Callable[[list[Object]], list[str]]

CHECKS: list[Check] = [
    *manifest_hardening.CHECKS,
    *manifest_wiring.CHECKS,
    *manifest_settings.CHECKS,
]


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_overlay_passes(check: Check, name: str) -> None:
    assert check(overlay(name)) == []
