"""How people and CUDA_VISIBLE_DEVICES name devices."""

from __future__ import annotations

import pytest

from fedlora.devices import Device, find, usable

PRESENT = tuple(
    Device(number=number, uuid=uuid, name="H")
    for number, uuid in [
        ("0", "GPU-11aa"),
        ("1:0", "MIG-22bb"),
        ("1:1", "MIG-22cc"),
        ("2", "GPU-3"),
    ]
)


@pytest.mark.parametrize(
    ("word", "uuid"),
    [
        ("0", "GPU-11aa"),
        ("1:1", "MIG-22cc"),
        ("GPU-11aa", "GPU-11aa"),
        ("GPU-1", "GPU-11aa"),
        ("MIG-22b", "MIG-22bb"),
        ("MIG-22", None),
        ("GPU-", None),
        ("GPU-9", None),
        ("1", None),
        ("", None),
        ("11aa", None),
    ],
)
def test_a_device_goes_by_its_number_or_by_what_only_its_uuid_begins_with(word, uuid):
    found = find(PRESENT, word)
    assert (found.uuid if found else None) == uuid


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        (None, ["0", "1:0", "1:1", "2"]),
        ("", []),
        ("-1", []),
        ("2,0", ["2", "0"]),
        ("MIG-22cc, 0", ["1:1", "0"]),
        ("0,-1,2", ["0"]),
        ("0,7,2", ["0"]),
    ],
)
def test_the_surroundings_leave_what_cuda_would_read(value, numbers):
    environ = {} if value is None else {"CUDA_VISIBLE_DEVICES": value}
    assert [d.number for d in usable(PRESENT, environ)] == numbers
