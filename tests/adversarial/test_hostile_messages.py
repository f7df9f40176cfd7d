"""Messages that cannot be read, or whose parts cost far more to read than to send."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from support.federation import reason_of, serving
from support.runs import run_spec

from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import adapter_pb2
from fedlora.rpc.services import FEDERATION_SERVICE
from fedlora.wire.convert import from_message

EMPTY_MODULE = b"\x0a\x00"


def test_a_megabyte_of_empty_parts_is_refused_before_any_is_read():
    message = adapter_pb2.AdapterLayout.FromString(EMPTY_MODULE * 2**19)
    with pytest.raises(FedLoraError) as caught:
        from_message(message, AdapterLayout)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert "expected at most 65536 items, got 524288" in caught.value.message


async def test_a_stream_of_what_is_no_message_is_its_senders_mistake(tmp_path: Path):
    async with serving(tmp_path, run_spec()) as served:
        for make, method in (
            (served.channel.stream_unary, "PushUpdate"),
            (served.channel.stream_stream, "KeepAlive"),
        ):
            call = make(f"/{FEDERATION_SERVICE}/{method}")(iter([b"\xff\xff"]), timeout=30)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await (call if method == "PushUpdate" else call.read())
            assert reason_of(caught.value) == "INVALID_ARGUMENT"
