"""All plug-ins, in one table, and how a run's configuration becomes some of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedlora.plugins.base import Plugin
from fedlora.plugins.clip import Clip
from fedlora.plugins.ditto import Ditto
from fedlora.plugins.fedlc import FedLC
from fedlora.plugins.fednova import FedNova
from fedlora.plugins.fedprox import FedProx
from fedlora.plugins.norm_bound import NormBound
from fedlora.plugins.scaffold import Scaffold
from fedlora.runs.installed import PLUGINS_GROUP
from fedlora.runs.method import RuleSpec
from fedlora.runs.tables import Table, by_name

__all__ = ["PLUGINS", "create_plugins", "known_plugins"]

PLUGINS: Mapping[str, Plugin] = by_name(
    (FedProx(), FedLC(), Ditto(), FedNova(), Scaffold(), Clip(), NormBound())
)
"""Those that come with fedlora, by name, each with its options' defaults."""

_TABLE = Table(kind="plug-in", group=PLUGINS_GROUP, rows=PLUGINS, does="local")


def known_plugins() -> Mapping[str, Plugin]:
    """Those, and the ones of other packages that are installed here; a name of ours is ours."""
    return _TABLE.known()


def create_plugins(specs: Iterable[RuleSpec]) -> tuple[Plugin, ...]:
    """The plug-ins of a run, in the order of their names.

    Raises:
        FedLoraError: UNSUPPORTED_METHOD for a name that nobody has, INVALID_CONFIG for a package
            that cannot be loaded, INVALID_ARGUMENT for an option or a value.
    """
    return tuple(_TABLE.create(spec.name, spec.options) for spec in specs)
