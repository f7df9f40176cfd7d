"""docs/configuration.md, made from the same dataclasses that read a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from fedlora.config.keys import REQUIRED, Key
from fedlora.config.sections import SERVICE_SECTIONS, Section, all_sections, run_sections
from fedlora.config.sources import ENVIRONMENT_PREFIX
from fedlora.config.toml_text import toml_value

__all__ = ["reference_markdown"]

_INTRODUCTION = """\
# Configuration

<!-- Written by `fedlora config reference > docs/configuration.md`; a test holds it current. -->

One TOML file describes a federation; the aggregator, every worker and the command line read the
same file and each takes the sections that are its own. A value comes from, later over earlier:

1. its default, below;
2. the file: `fedlora run FILE`, or the variable `FEDLORA_CONFIG`;
3. the environment: `FEDLORA_<SECTION>__<KEY>`, for example `FEDLORA_ROUNDS__NUM_ROUNDS=4` or
   `FEDLORA_DATA__PARTITION__NUM_SLOTS=2`, with two underscores between section and key;
4. flags: `--set rounds.num_rounds=4`.

Lists are written `a,b` or `["a", "b"]` in variables and flags. Relative paths in the file are
meant from the file's own folder, those in variables and flags from the current one; `model.base` is
one where it begins with `./` or `../`, else a name. A key that
does not exist is an error that names the nearest one. `fedlora config check FILE` shows every value
and where it came from; [examples/quickstart.toml](../examples/quickstart.toml) is a whole file to
start from.
"""

_LOGGING = """\
## Logs

| variable | default | meaning |
|---|---|---|
| `FEDLORA_LOG_LEVEL` | `info` | debug, info, warning or error |
| `FEDLORA_LOG_FORMAT` | `auto` | json, text, or auto: text on a terminal |
"""


def reference_markdown(services: Mapping[str, type]) -> str:
    """The whole page.

    Args:
        services: the dataclass of each service's section, as for `load_config`.
    """
    parts = [_INTRODUCTION, "## The run\n", "Read by the aggregator, which tells its workers.\n"]
    parts += [_section(s) for s in run_sections()]
    parts += ["## The processes\n"]
    parts += [_section(s) for s in all_sections(services) if s.name in SERVICE_SECTIONS]
    parts.append(_LOGGING)
    return "\n".join(parts)


def _section(section: Section) -> str:
    lines = [f"### [{section.name}]", "", section.help, ""]
    lines += ["| key | default | meaning |", "|---|---|---|"]
    lines += [f"| `{key.name}` | {_default(key)} | {_meaning(key)} |" for key in section.keys]
    variable = ENVIRONMENT_PREFIX + "__".join((*section.path, section.keys[0].name)).upper()
    lines += ["", f"In the environment: `{variable}` and so on.", ""]
    return "\n".join(lines)


def _default(key: Key) -> str:
    if key.default is REQUIRED:
        return "**required**"
    return "unset" if key.default is None else f"`{toml_value(key.default)}`"


def _meaning(key: Key) -> str:
    text = key.help.replace("|", "\\|").replace("<", "&lt;")
    if key.choices and not all(choice in text for choice in key.choices):
        text = f"{text}; {key.expected}" if text else key.expected
    return text or key.expected
