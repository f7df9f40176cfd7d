"""kubectl, Helm and the API's schemas, from the environment that `make deploy-tools` makes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
KUSTOMIZE = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "fedlora"
VERSIONS = ("1.35", "1.36", "1.37")
"""the three versions of Kubernetes that its project supports"""

_BIN = ROOT / ".venv-deploy" / "bin"
KUBECTL = _BIN / "kubectl"
_RENDER_CHART = """
import json, sys
import helm_python
with helm_python.Chart.load(sys.argv[1]) as chart:
    print(json.dumps(chart.render(json.load(sys.stdin), name="fedlora", namespace="fedlora")))
"""
_LINT_CHART = """
import json, sys
import helm_python
print(json.dumps(helm_python.lint(sys.argv[1])))
"""

_VALIDATE = """
import json, sys
import jsonschema
objects, schemas = json.load(sys.stdin)
for found in objects:
    validator = jsonschema.Draft202012Validator(schemas[found["kind"]])
    for error in validator.iter_errors(found):
        print(f"{found['kind']} {error.json_path}: {error.message}")
"""


def missing_tools() -> str:
    """Why manifests cannot be rendered here; empty if they can."""
    return "" if KUBECTL.exists() else "there is no .venv-deploy: `make deploy-tools`"


def kustomized(folder: Path) -> list[Object]:
    """What `kubectl apply -k` would apply."""
    return _objects(_output([str(KUBECTL), "kustomize", str(folder)]))


def charted(values: Mapping[str, Any]) -> list[Object]:
    """What `helm install fedlora` would install.

    Raises:
        subprocess.CalledProcessError: Helm refuses the values.
    """
    rendered = json.loads(
        _output([str(_BIN / "python"), "-c", _RENDER_CHART, str(CHART)], json.dumps(values))
    )
    return [found for text in rendered.values() for found in _objects(text)]


def lint_findings() -> list[Object]:
    """What `helm lint` says of the chart."""
    report = json.loads(_output([str(_BIN / "python"), "-c", _LINT_CHART, str(CHART)]))
    return [*report["messages"], *report["errors"]]


def schema_findings(objects: list[Object], version: str, folder: Path) -> list[str]:
    """What the API of that version would refuse, unknown fields among it.

    Args:
        objects: of the API's own kinds.
        version: such as "1.37".
        folder: for a file.
    """
    file = folder / "objects.yaml"
    file.write_text(yaml.safe_dump_all(objects))
    done = subprocess.run(
        [str(_BIN / "kubernetes-validate"), "--strict", "-k", version, str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if not line.startswith("INFO ")]


def controller_findings(objects: list[Object]) -> list[str]:
    """What controllers would refuse, as far as the fields that our manifests use go.

    Args:
        objects: of kinds that tests/data/controller_schemas.yaml knows.
    """
    file = ROOT / "tests" / "data" / "controller_schemas.yaml"
    schemas = {
        kind: {
            "required": ["apiVersion", "kind", "metadata", "spec"],
            "properties": {
                "apiVersion": {"const": known["apiVersion"]},
                "kind": {"const": kind},
                "metadata": {"type": "object"},
                "spec": known["spec"],
            },
            "additionalProperties": False,
        }
        for kind, known in yaml.safe_load(file.read_text()).items()
    }
    python = str(_BIN / "python")
    return _output([python, "-c", _VALIDATE], json.dumps([objects, schemas])).splitlines()


def _objects(text: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(text) if found]


def _output(command: list[str], given: str = "") -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise subprocess.CalledProcessError(
            done.returncode, command, done.stdout, done.stderr[-4000:]
        )
    return done.stdout
