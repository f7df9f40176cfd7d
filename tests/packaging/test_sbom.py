"""The list of an image's parts: complete, in CycloneDX's words, and equal for equal images."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from support.image_scripts import image_script

SBOM = image_script("sbom")
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def write_distribution(folder: Path, name: str, metadata: str) -> None:
    info = folder / f"{name}-1.0+cpu.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0+cpu\n{metadata}"
    )


def test_every_installed_distribution_is_a_component() -> None:
    components = SBOM.python_components(SITE_PACKAGES)
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    assert len(components) >= 50
    assert {c["name"] for c in components} == set(map(canonicalize_name, installed))
    versions = {c["name"]: c["version"] for c in components}
    assert versions["grpcio"] == importlib.metadata.version("grpcio")


def test_a_component_has_a_package_url_whose_characters_are_escaped(tmp_path: Path) -> None:
    write_distribution(tmp_path, "Torch_Like.thing", "License-Expression: BSD-3-Clause\n")
    (component,) = SBOM.python_components(tmp_path)
    assert component == {
        "type": "library",
        "bom-ref": "pkg:pypi/torch-like-thing@1.0%2Bcpu",
        "name": "torch-like-thing",
        "version": "1.0+cpu",
        "purl": "pkg:pypi/torch-like-thing@1.0%2Bcpu",
        "licenses": [{"expression": "BSD-3-Clause"}],
    }


@pytest.mark.parametrize(
    ("metadata", "licences"),
    [
        ("License: MIT\n", [{"license": {"name": "MIT"}}]),
        ("License: The whole\n        text of it\n", None),
        ("", None),
    ],
)
def test_only_a_licence_that_is_named_is_told(metadata, licences, tmp_path: Path) -> None:
    write_distribution(tmp_path, "part", metadata)
    (component,) = SBOM.python_components(tmp_path)
    assert component.get("licenses") == licences


def test_equal_parts_in_any_order_make_equal_documents(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_distribution(tmp_path, name, "")
    parts = SBOM.python_components(tmp_path)
    first, second = (SBOM.sbom("image", "1", order) for order in (parts, parts[::-1]))
    assert json.dumps(first) == json.dumps(second)
    assert [c["name"] for c in first["components"]] == ["a", "b"]
    assert not {"serialNumber", "timestamp"} & (set(first) | set(first["metadata"]))


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this is no Debian")
def test_a_library_is_told_by_the_package_that_owns_it_whichever_path_leads_there() -> None:
    loader = sorted(Path("/usr/lib").glob("*-linux-gnu/libc.so.6"))
    (component,) = SBOM.debian_components([*loader, Path("/", *loader[0].parts[2:])])
    assert component["name"] == "libc6"
    assert component["purl"].startswith("pkg:deb/debian/libc6@")


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this is no Debian")
def test_a_file_of_no_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="none owns"):
        SBOM.debian_components([tmp_path / "libplanted.so"])
