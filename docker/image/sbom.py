"""Writes what an image is made of, as CycloneDX 1.6 in JSON.

Usage: `python sbom.py TITLE VERSION SITE_PACKAGES < FILES > sbom.cdx.json`, in the base image;
FILES are the paths of the system's files that the image carries, one a line. It tells the Python
distributions as they are installed, the Debian packages that own the files, and the interpreter.
Written here and not by a tool: tools for Python see no Debian package, and those for images look
for a package manager, which is not there. It has no time and no random number in it, so that equal
images have equal files.

Format: CycloneDX 1.6 (ECMA-424); names of packages: the package URL specification.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

__all__ = ["debian_components", "python_components", "sbom"]

Component = dict[str, Any]


def sbom(title: str, version: str, components: Iterable[Component]) -> Component:
    """The document, its components in the order of their package URLs."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": title,
                "name": title,
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
            }
        },
        "components": sorted(components, key=lambda component: component["purl"]),
    }


def python_components(site_packages: Path) -> list[Component]:
    """A component for each installed distribution."""
    found = []
    for distribution in importlib.metadata.distributions(path=[str(site_packages)]):
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        component = _component(name, distribution.version, f"pkg:pypi/{name}@")
        licence = _licence(distribution.metadata)
        if licence:
            component["licenses"] = [licence]
        found.append(component)
    return found


def interpreter() -> Component:
    """The Python that the image carries."""
    return _component("python", platform.python_version(), "pkg:generic/python@")


def debian_components(files: Iterable[Path]) -> list[Component]:
    """A component for each Debian package that owns one of the files.

    Raises:
        SystemExit: a file belongs to no package.
    """
    packages = {_owner(file) for file in files}
    shown = _run(
        ["dpkg-query", "--show", "-f", "${Package}\t${Version}\t${Architecture}\n", *packages]
    )
    release = platform.freedesktop_os_release()
    found = []
    for line in shown.splitlines():
        name, version, architecture = line.split("\t")
        component = _component(name, version, f"pkg:deb/{release['ID']}/{name}@")
        distro = f"{release['ID']}-{release['VERSION_ID']}"
        component["purl"] += f"?arch={architecture}&distro={distro}"
        component["bom-ref"] = component["purl"]
        found.append(component)
    return found


def _component(name: str, version: str, prefix: str) -> Component:
    purl = prefix + quote(version, safe="")
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
    }


def _licence(metadata: importlib.metadata.PackageMetadata) -> Component | None:
    """An SPDX expression where the distribution states one, else what it says in one line."""
    if "License-Expression" in metadata:
        return {"expression": metadata["License-Expression"]}
    if "License" in metadata and "\n" not in metadata["License"]:
        return {"license": {"name": metadata["License"]}}
    return None


def _owner(file: Path) -> str:
    if file.name == "ca-certificates.crt":
        return "ca-certificates"  # which makes the file when it is installed
    # dpkg knows a library by the path it was packed with, before /lib became a link to /usr/lib.
    for path in (file, Path("/usr", file.relative_to("/")), Path("/", *file.parts[2:])):
        done = subprocess.run(
            ["dpkg-query", "--search", path], capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return done.stdout.split(": ")[0]
    raise SystemExit(f"{file}: expected a file of a Debian package, got one that none owns")


def _run(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: sbom.py TITLE VERSION SITE_PACKAGES < FILES > sbom.cdx.json")
    carried = [Path(line) for line in sys.stdin.read().splitlines()]
    components = [
        *python_components(Path(sys.argv[3])),
        *debian_components(carried),
        interpreter(),
    ]
    sys.stdout.write(json.dumps(sbom(sys.argv[1], sys.argv[2], components), indent=1) + "\n")
