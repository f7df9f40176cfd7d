"""Which devices `fedlora workers` takes."""

from __future__ import annotations

import pytest

from fedlora.errors import FedLoraError, Reason
from fedlora_cli.device_workers import select_devices


@pytest.mark.parametrize(
    ("wanted", "devices"),
    [
        ("0", ("cuda:0",)),
        ("0, 3", ("cuda:0", "cuda:3")),
        ("cuda:1", ("cuda:1",)),
        ("GPU-12ab", ("cuda:GPU-12ab",)),
        ("cpu,cpu", ("cpu", "cpu")),
        ("0,cpu", ("cuda:0", "cpu")),
    ],
)
def test_lists_are_read_as_nvidia_smi_writes_them(wanted, devices):
    assert select_devices(wanted) == devices


@pytest.mark.parametrize("wanted", ["", ",", "gpu", "-1", "0,0", "1,cuda:1"])
def test_what_names_no_device_or_one_twice_is_refused(wanted):
    with pytest.raises(FedLoraError) as caught:
        select_devices(wanted)
    assert caught.value.reason is Reason.INVALID_CONFIG
