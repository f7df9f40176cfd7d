from __future__ import annotations

import os
import subprocess
import sys
import types

import pytest
import torch

from client_worker import device
from client_worker.device import capabilities, resolve_device, torch_device, verify_device
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
    module = types.ModuleType("pynvml")
    module.NVMLError = type("NVMLError", (Exception,), {})
    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlDeviceGetCount = lambda: 2
    module.nvmlDeviceGetHandleByIndex = lambda index: index
    module.nvmlDeviceGetUUID = lambda index: (ONE, TWO)[index]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


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
    def no_driver():
        raise nvml.NVMLError

    nvml.nvmlInit = no_driver
    assert resolve_device("auto") == "cpu"
    assert refused("cuda:0").reason is Reason.DEVICE_UNAVAILABLE


@pytest.mark.usefixtures("nvml")
def test_a_uuid_is_taken_as_it_is():
    assert resolve_device(f"cuda:{TWO}") == f"cuda:{TWO}"
    assert visible() == TWO


@pytest.mark.usefixtures("nvml")
@pytest.mark.parametrize(
    ("inherited", "wanted", "chosen"),
    [("5,7", "cuda:1", "7"), (TWO, "cuda:0", TWO), ("3", "auto", "3"), ("4,-1,5", "cuda:0", "4")],
)
def test_numbers_count_what_the_surroundings_leave(monkeypatch, inherited, wanted, chosen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", inherited)
    resolve_device(wanted)
    assert visible() == chosen


@pytest.mark.usefixtures("nvml")
def test_surroundings_that_leave_no_device_leave_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert refused("cuda:0").reason is Reason.DEVICE_UNAVAILABLE
    assert resolve_device("auto") == "cpu"


@pytest.mark.usefixtures("nvml")
def test_a_device_that_is_not_there_is_refused_with_how_many_there_are():
    error = refused("cuda:2")
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert "2 CUDA devices are visible" in str(error)
    assert visible() is None


@pytest.mark.parametrize("wanted", ["gpu", "cuda", "cuda:", "cuda:-1", "cuda:GPU-", "", "cpu:0"])
def test_other_words_are_refused(wanted):
    assert refused(wanted).reason is Reason.INVALID_CONFIG


def test_a_machine_with_a_driver_needs_the_package_that_tells_devices_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(device.Path, "exists", lambda self: str(self) == "/dev/nvidiactl")
    assert refused("auto").reason is Reason.MISSING_EXTRA
    monkeypatch.setattr(device.Path, "exists", lambda self: False)
    assert resolve_device("auto") == "cpu"


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
    [(0, "", "got 0"), (2, TWO, "got 2"), (1, "33333333-cccc", "got GPU-33333333-cccc")],
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
