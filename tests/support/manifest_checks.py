"""All that is asked of a set of manifests."""

from __future__ import annotations

from collections.abc import Callable

from support import manifest_hardening, manifest_placement, manifest_settings, manifest_wiring
from support.deploy_tools import Object

__all__ = ["CHECKS", "Check"]

Check = Callable[[list[Object]], list[str]]
"""what is wrong, in sentences"""

CHECKS: list[Check] = [
    *manifest_hardening.CHECKS,
    *manifest_wiring.CHECKS,
    *manifest_settings.CHECKS,
    *manifest_placement.CHECKS,
]
