"""Every overlay is wired, confined and configured as the services are."""

from __future__ import annotations

import pytest
from support.deploy_tools import missing_tools
from support.manifest_checks import CHECKS, Check
from support.manifests import OVERLAYS, overlay

pytestmark = pytest.mark.skipif(bool(missing_tools()), reason=missing_tools())


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_an_overlay_passes(check: Check, name: str) -> None:
    assert check(overlay(name)) == []
