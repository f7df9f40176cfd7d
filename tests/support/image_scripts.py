"""The scripts that run while an image is built, as modules."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "docker" / "image"


def image_script(name: str) -> ModuleType:
    """docker/image/NAME.py, which is in no package."""
    spec = importlib.util.spec_from_file_location(f"image_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
