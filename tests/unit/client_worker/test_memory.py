"""Free memory is the least of what the machine has and what the groups around the process leave."""

from __future__ import annotations

import psutil
import pytest
import torch

from client_worker import memory
from client_worker.memory import free_bytes
from fedlora.process_limits import GroupMemory

MB = 10**6


@pytest.mark.parametrize(
    ("left", "free"), [((), 1000), ((400,), 400), ((5000, 50), 50), ((5000,), 1000), ((0, 70), 0)]
)
def test_the_least_of_all_that_is_left(
    left: tuple[int, ...], free: int, monkeypatch: pytest.MonkeyPatch
):
    class Memory:
        available = 1000 * MB

    groups = [GroupMemory(limit_bytes=9000 * MB, left_bytes=n * MB) for n in left]
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(memory, "group_memory", lambda: groups)
    assert free_bytes("cpu") == free * MB


def test_a_gpu_has_what_its_driver_says_is_free(monkeypatch: pytest.MonkeyPatch):
    # The process sees the one device that it was given, as number 0.
    told = {0: (700 * MB, 1000 * MB)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", told.__getitem__)
    assert free_bytes("cuda:GPU-11111111-aaaa") == 700 * MB


def test_this_machine_has_some():
    assert 0 < free_bytes("cpu") <= psutil.virtual_memory().total
