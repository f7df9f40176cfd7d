"""Configuration: one TOML file, FEDLORA_* environment variables over it, flags over those.

`load_config` reads and checks; what comes out are the frozen dataclasses of `fedlora.runs` and of
the services. pydantic does its work inside this package and is not seen outside.
"""

from fedlora.config.describe import run_entries
from fedlora.config.load import CONFIG_VARIABLE, Config, ConfigEntry, load_config
from fedlora.config.local import LocalWorkers
from fedlora.config.reference import reference_markdown
from fedlora.config.sources import Origin, OriginKind
from fedlora.config.toml_text import toml_text, toml_value

__all__ = [
    "CONFIG_VARIABLE",
    "Config",
    "ConfigEntry",
    "LocalWorkers",
    "Origin",
    "OriginKind",
    "load_config",
    "reference_markdown",
    "run_entries",
    "toml_text",
    "toml_value",
]
