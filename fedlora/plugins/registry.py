"""All plug-ins, in one table, and how a run's configuration becomes some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedlora.errors import FedLoraError, Reason
from fedlora.plugins.base import Plugin
from fedlora.plugins.ditto import Ditto
from fedlora.plugins.fednova import FedNova
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.scaffold import Scaffold
from fedlora.runs.options import suggest, with_options
from fedlora.runs.spec import RuleSpec

__all__ = ["PLUGINS", "create_plugins"]

PLUGINS: Mapping[str, Plugin] = {
    plugin.name: plugin for plugin in (FedProx(), Ditto(), FedNova(), Scaffold())
}
"""Those that come with fedlora, by name, each with its options' defaults."""


def create_plugins(specs: Iterable[RuleSpec]) -> tuple[Plugin, ...]:
    """The plug-ins of a run, in the order of their names.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that is not in the table, INVALID_ARGUMENT for
            an option or a value.
    """
    return tuple(_created(spec) for spec in specs)


def _created(spec: RuleSpec) -> Plugin:
    if spec.name not in PLUGINS:
        raise FedLoraError(
            Reason.UNSUPPORTED_METHOD,
            f"there is no plug-in {spec.name!r}",
            hint=suggest(spec.name, PLUGINS),
        )
    return with_options(PLUGINS[spec.name], f"the plug-in {spec.name}", spec.options)
