from dataclasses import replace

import pytest
import torch
from support.tiny_trainer import LAYOUT, adapter

from client_worker.held import HeldAdapter, laid_over
from fedlora.adapters.names import Part, parse_key
from fedlora.adapters.shape import AdapterShape
from fedlora.adapters.spec import AdapterKind
from fedlora.errors import FedLoraError, Reason
from fedlora.runs.tasks import AdapterHeader
from fedlora.tensors.manifest import DataType, TensorManifest

SHAPE = AdapterShape(layout=LAYOUT, kind=AdapterKind.LORA, rank=4, dtype=DataType.F32)
MANIFEST = LAYOUT.manifest(4, DataType.F32)
NOTHING = HeldAdapter(tensors={})
HELD = HeldAdapter(session_token="t", version=3, tensors=adapter(seed=3))


def header(version: int, *, over: int | None = None) -> AdapterHeader:
    return AdapterHeader(
        run_id="run-1",
        adapter_version=version,
        round=version,
        rank=4,
        total_bytes=1,
        digest=b"",
        manifest=MANIFEST,
        held_version=over,
    )


def part(tensors, wanted: Part):
    return {n: t for n, t in tensors.items() if parse_key(n).part is wanted}


def received(held, head, payload, token="t"):
    return laid_over(held, head, payload, session_token=token, shape=SHAPE)


def test_only_an_earlier_version_of_the_same_session_is_named():
    assert HELD.base_for("t", 7) == 3
    assert HELD.base_for("t", 3) is None
    assert HELD.base_for("t", 2) is None
    assert HELD.base_for("another", 7) is None
    assert NOTHING.base_for("t", 0) is None
    assert HELD.is_version("t", 3)
    assert not HELD.is_version("another", 3)


def test_a_changed_part_is_laid_over_and_the_rest_is_what_was_held():
    new = part(adapter(seed=9), Part.B)
    outcome = received(HELD, header(7, over=3), new)
    assert outcome.is_version("t", 7)
    for name, tensor in outcome.tensors.items():
        expected = new if parse_key(name).part is Part.B else HELD.tensors
        assert torch.equal(tensor, expected[name])


def test_a_whole_adapter_replaces_all_that_was_held():
    new = adapter(seed=9)
    assert received(HELD, header(7), new).tensors == new
    assert received(NOTHING, header(0), new, token="u").is_version("u", 0)


def test_a_part_without_what_it_belongs_to_is_not_taken_for_an_adapter():
    with pytest.raises(FedLoraError, match="does not fit the adapter attached here") as caught:
        received(NOTHING, header(7), part(adapter(seed=9), Part.B))
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


@pytest.mark.parametrize("held", [HELD, NOTHING, replace(HELD, session_token="gone")])
def test_a_change_to_another_version_than_the_one_held_is_refused(held):
    with pytest.raises(FedLoraError, match="came as a change to version 2") as caught:
        received(held, header(7, over=2), adapter(seed=9))
    assert caught.value.reason is Reason.MANIFEST_MISMATCH


def test_an_adapter_of_another_rank_is_refused():
    tensors = adapter(seed=9, rank=3)
    with pytest.raises(FedLoraError, match=r"expected f32 \[4, 24\], got f32 \[3, 24\]"):
        received(NOTHING, replace(header(7), manifest=TensorManifest.of(tensors)), tensors)
