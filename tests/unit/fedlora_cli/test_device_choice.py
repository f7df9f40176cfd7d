"""Which devices `fedlora workers` takes, and what its workers are called."""

from __future__ import annotations

import pytest
from support.nvml import Gpu, StandInNvml

from client_worker.config import WorkerConfig
from client_worker.data.config import DataConfig
from fedlora.devices import NvmlDevices
from fedlora.errors import FedLoraError, Reason
from fedlora_cli.device_choice import select_places, worker_names

ONE, TWO = "GPU-5c1f09ab-1111", "GPU-77aa09ab-2222"
MACHINE = NvmlDevices(
    StandInNvml(
        [
            Gpu(uuid=ONE),
            Gpu(uuid="GPU-9", instances=("MIG-0a0b0c0d-1", "MIG-1a0b0c0d-2")),
            Gpu(uuid=TWO),
        ]
    )
)
NONE = NvmlDevices(StandInNvml([], init_error=StandInNvml.NVML_ERROR_LIBRARY_NOT_FOUND))


def places(wanted, machine=MACHINE, **environ):
    return select_places(wanted, machine, environ)


def refused(wanted, machine=MACHINE) -> FedLoraError:
    with pytest.raises(FedLoraError) as caught:
        places(wanted, machine)
    return caught.value


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        ("all", [ONE, "MIG-0a0b0c0d-1", "MIG-1a0b0c0d-2", TWO]),
        ("0", [ONE]),
        ("0, 2", [ONE, TWO]),
        ("cuda:2", [TWO]),
        ("GPU-77", [TWO]),
        ("1:1", ["MIG-1a0b0c0d-2"]),
        ("MIG-0a0b0c0d-1,0", ["MIG-0a0b0c0d-1", ONE]),
    ],
)
def test_devices_are_named_as_nvidia_smi_names_them_and_pinned_by_their_uuids(wanted, devices):
    chosen = places(wanted)
    assert [p.worker_device for p in chosen] == [f"cuda:{uuid}" for uuid in devices]


def test_the_cpu_may_be_named_more_than_once_and_needs_no_driver():
    assert [p.worker_device for p in places("cpu,cpu", NONE)] == ["cpu", "cpu"]
    assert [p.worker_device for p in places("2,cpu")] == [f"cuda:{TWO}", "cpu"]


def test_all_are_those_that_a_batch_system_leaves():
    chosen = places("all", CUDA_VISIBLE_DEVICES="2")
    assert [(p.worker_device, p.index) for p in chosen] == [(f"cuda:{TWO}", 0)]


def test_a_device_keeps_its_place_among_all_whichever_are_named():
    assert [p.index for p in places("2,cpu,0")] == [3, None, 0]


@pytest.mark.parametrize(
    "wanted", ["", ",", "gpu", "-1", "0,0", f"0,{ONE}", "all,0", "1:0,MIG-0a", "MIG-"]
)
def test_what_names_no_device_or_one_twice_is_refused(wanted):
    assert refused(wanted).reason is Reason.INVALID_CONFIG


@pytest.mark.parametrize("wanted", ["3", "1", "GPU-000", "MIG-a"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(wanted):
    error = refused(wanted)
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert f"2 ({TWO})" in str(error)


def test_all_of_a_machine_without_a_gpu_is_refused_with_the_way_out():
    error = refused("all", NONE)
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert "--devices cpu" in str(error)


def test_a_name_stays_with_its_device_in_whatever_order_devices_are_found():
    swapped = NvmlDevices(StandInNvml([Gpu(uuid=TWO), Gpu(uuid=ONE)]))
    here, there = places("all"), places("all", swapped)
    names = dict(zip((p.worker_device for p in here), worker_names("node7", here), strict=True))
    assert names[f"cuda:{ONE}"] == "node7-GPU-5c1f09ab"
    for place, name in zip(there, worker_names("node7", there), strict=True):
        assert names[place.worker_device] == name


def test_names_are_names_of_workers_and_all_different():
    names = worker_names("_no de/7" + "x" * 200, places("all") + places("cpu,cpu,cpu"))
    assert len(set(names)) == len(names) == 7
    for name in names:
        WorkerConfig(name=name, data=DataConfig(path="d"))
