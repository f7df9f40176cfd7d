"""All plug-ins, in one table, and how a run's configuration becomes some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import Plugin
from fedlora.plugins.clip import Clip
from fedlora.plugins.ditto import Ditto
from fedlora.plugins.fednova import FedNova
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.scaffold import Scaffold
from fedlora.runs.installed import PLUGINS_GROUP, installed
from fedlora.runs.method import RuleSpec
from fedlora.runs.options import suggest, with_options

__all__ = ["PLUGINS", "create_plugins", "known_plugins"]

PLUGINS: Mapping[str, Plugin] = {
    plugin.name: plugin for plugin in (FedProx(), Ditto(), FedNova(), Scaffold(), Clip())
}
"""Those that come with fedlora, by name, each with its options' defaults."""


def known_plugins() -> Mapping[str, Plugin]:
    """Those, and the ones of other packages that are installed here; a name of ours is ours."""
    others = cast("Mapping[str, Plugin]", installed(PLUGINS_GROUP).rows)
    return {**others, **PLUGINS}


def create_plugins(specs: Iterable[RuleSpec]) -> tuple[Plugin, ...]:
    """The plug-ins of a run, in the order of their names.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that nobody has, INVALID_CONFIG for a package
            that cannot be loaded, INVALID_ARGUMENT for an option or a value.
    """
    return tuple(_created(spec) for spec in specs)


def _created(spec: RuleSpec) -> Plugin:
    # Other packages are asked only for what is not ours.
    plugin = PLUGINS.get(spec.name) or _others(spec.name)
    return with_options(plugin, f"the plug-in {spec.name}", spec.options)


def _others(name: str) -> Plugin:
    if (broken := installed(PLUGINS_GROUP).broken.get(name)) is not None:
        raise broken
    known = known_plugins()
    if name not in known:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"there is no plug-in {name!r}",
            hint=suggest(name, known),
        )
    return known[name]
