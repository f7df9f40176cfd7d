"""docker/compose.gpu.yml: worker k is on device k, alone, with share k of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SERVICES = yaml.safe_load((ROOT / "docker" / "compose.gpu.yml").read_text())["services"]
BASE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
WORKERS = sorted(name for name in SERVICES if name.startswith("worker-gpu-"))


def devices(service: dict[str, Any]) -> list[str]:
    (reserved,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert (reserved["driver"], reserved["capabilities"]) == ("nvidia", ["gpu"])
    return reserved["device_ids"]


@pytest.mark.parametrize("name", WORKERS)
def test_worker_k_is_given_device_k_and_share_k(name):
    index, environment = name.removeprefix("worker-gpu-"), SERVICES[name]["environment"]
    assert devices(SERVICES[name]) == [index]
    assert str(environment["FEDLORA_WORKER__DATA_SLOT"]) == index
    assert environment["FEDLORA_WORKER__DEVICE"] == "cuda:0"
    assert SERVICES[name]["deploy"]["replicas"] == 1


def test_every_worker_has_a_name_of_its_own_and_the_locks_of_all():
    environments = [SERVICES[name]["environment"] for name in WORKERS]
    assert len({e["FEDLORA_WORKER__NAME"] for e in environments}) == len(WORKERS) > 1
    (locks,) = {e["FEDLORA_WORKER__DEVICE_LOCK_DIR"] for e in environments}
    targets = [volume.split(":")[1] for volume in BASE["worker"]["volumes"]]
    assert any(locks.startswith(f"{target}/") for target in targets)
    assert SERVICES["worker"]["deploy"]["replicas"] == 0


def test_the_aggregator_has_a_device_of_its_own_choice():
    assert devices(SERVICES["aggregator"]) == ["${FEDLORA_AGGREGATOR_GPU:-0}"]
    assert SERVICES["aggregator"]["environment"]["FEDLORA_SERVER__DEVICE"] == "cuda:0"
