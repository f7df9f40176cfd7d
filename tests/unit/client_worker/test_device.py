from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch
from support.nvml import Gpu, StandInNvml

from client_worker.device import (
    capabilities,
    pinned_uuid,
    resolve_device,
    torch_device,
    verify_device,
)
from fedlora.devices import NvmlDevices
from fedlora.errors import FedLoraError, Reason

ONE, TWO = "GPU-11111111-aaaa", "GPU-22222222-bbbb"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """`resolve_device` writes to the environment; what it wrote goes with the test."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")


@pytest.fixture
def nvml(monkeypatch):
    """NVIDIA's management library as it answers on a machine with two devices."""
    library = StandInNvml([Gpu(uuid=ONE), Gpu(uuid=TWO)])
    monkeypatch.setitem(sys.modules, "pynvml", library)
    return library


def visible() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def refused(wanted: str) -> FedLoraError:
    with pytest.raises(FedLoraError) as caught:
        resolve_device(wanted)
    return caught.value


def test_the_cpu_hides_every_device():
    assert resolve_device("cpu") == "cpu"
    assert visible() == ""
    verify_device()


@pytest.mark.usefixtures("nvml")
def test_a_number_becomes_the_uuid_of_that_device():
    assert resolve_device("cuda:1") == "cuda:1"
    assert visible() == TWO


@pytest.mark.usefixtures("nvml")
def test_auto_takes_the_first_device():
    assert resolve_device("auto") == "cuda:0"
    assert visible() == ONE


def test_auto_takes_the_cpu_where_there_is_no_driver(nvml):
    nvml.init_error = nvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert resolve_device("auto") == "cpu"
    assert refused("cuda:0").reason is Reason.DEVICE_UNAVAILABLE


@pytest.mark.usefixtures("nvml")
def test_a_uuid_is_taken_as_it_is():
    assert resolve_device(f"cuda:{TWO}") == f"cuda:{TWO}"
    assert visible() == pinned_uuid() == TWO


@pytest.mark.usefixtures("nvml")
def test_the_beginning_of_a_uuid_pins_the_whole_one():
    resolve_device("cuda:GPU-2")
    assert visible() == TWO


def test_a_device_is_chosen_among_those_that_the_caller_knows():
    machine = NvmlDevices(StandInNvml([Gpu(uuid="GPU-a", instances=("MIG-1", "MIG-2"))]))
    resolve_device("cuda:MIG-2", machine)
    assert visible() == "MIG-2"


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("inherited", "wanted", "chosen"),
    [
        ("1,0", "cuda:1", ONE),
        (TWO, "cuda:0", TWO),
        ("1", "auto", TWO),
        ("1,-1,0", "cuda:0", TWO),
        (f"{TWO},{ONE}", f"cuda:{ONE}", ONE),
    ],
)
def test_numbers_count_what_the_surroundings_leave(monkeypatch, inherited, wanted, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    resolve_device(wanted)
    assert visible() == chosen


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize("wanted", [f"cuda:{TWO}", "cuda:1"])
def test_a_device_that_the_surroundings_withhold_is_refused(monkeypatch, wanted):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ONE)
    error = refused(wanted)
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert f"this process may use 1: {ONE}" in str(error)


@pytest.mark.usefixtures("nvml")
def test_surroundings_that_leave_no_device_leave_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert refused("cuda:0").reason is Reason.DEVICE_UNAVAILABLE
    assert resolve_device("auto") == "cpu"


@pytest.mark.usefixtures("nvml")
def test_a_device_that_is_not_there_is_refused_with_how_many_there_are():
    error = refused("cuda:2")
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert f"may use 2: {ONE}, {TWO}" in str(error)
    assert visible() is None


@pytest.mark.parametrize("wanted", ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:GPU-", "", "cpu:0"])
def test_other_words_are_refused(wanted):
    assert refused(wanted).reason is Reason.INVALID_CONFIG


def fake_cuda(monkeypatch, *, count: int, uuid: str) -> None:
    properties = types.SimpleNamespace(uuid=uuid, name="H", total_memory=5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.usefixtures("nvml")
def test_the_one_device_that_was_chosen_passes(monkeypatch):
    resolve_device("cuda:1")
    fake_cuda(monkeypatch, count=1, uuid=TWO.removeprefix("GPU-"))
    verify_device()
    found = capabilities()
    assert (found.device_type, found.device_uuid, found.device_memory_bytes) == ("cuda", TWO, 5)


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("count", "uuid", "complaint"),
    [
        (0, "", "got 0"),
        (2, TWO, "got 2"),
        (1, "33333333-cccc", "got GPU-33333333-cccc"),
        (1, f"{TWO}0".removeprefix("GPU-"), f"got {TWO}0"),
    ],
)
def test_no_device_two_devices_or_another_are_refused(monkeypatch, count, uuid, complaint):
    resolve_device("cuda:1")
    fake_cuda(monkeypatch, count=count, uuid=uuid)
    with pytest.raises(FedLoraError, match=complaint) as caught:
        verify_device()
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


@pytest.mark.usefixtures("nvml")
def test_a_choice_after_cuda_has_started_would_be_none_and_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert "CUDA has started" in str(refused("cuda:0"))


def test_torch_knows_the_only_device_as_number_0():
    assert torch_device("cpu") == torch.device("cpu")
    assert torch_device("cuda:3") == torch_device("cuda:GPU-x") == torch.device("cuda", 0)


def test_the_cpu_has_a_name_memory_and_versions():
    resolve_device("cpu")
    found = capabilities()
    assert found.device_type == "cpu"
    assert found.device_name
    assert found.device_memory_bytes > 2**28
    assert {"python", "torch", "transformers", "peft", "fedlora"} <= set(found.versions)


def test_choosing_and_checking_a_device_loads_neither_transformers_nor_peft():
    code = (
        "import sys; from client_worker.device import *; resolve_device('cpu'); verify_device(); "
        "capabilities(); print(sorted({'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
