"""Plug-ins of a run: local objectives, local optimisers and update filters."""

from fedlora.plugins.base import (
    Ending,
    LocalHooks,
    LocalRound,
    Plugin,
    PluginDefaults,
    Served,
    Traits,
)
from fedlora.plugins.registry import PLUGINS, create_plugins, known_plugins

__all__ = [
    "PLUGINS",
    "Ending",
    "LocalHooks",
    "LocalRound",
    "Plugin",
    "PluginDefaults",
    "Served",
    "Traits",
    "create_plugins",
    "known_plugins",
]
