"""Messages whose parts cost far more to read than to send."""

from __future__ import annotations

import pytest

from fedlora.adapters.spec import AdapterLayout
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import adapter_pb2
from fedlora.wire.convert import from_message

EMPTY_MODULE = b"\x0a\x00"


def test_a_megabyte_of_empty_parts_is_refused_before_any_is_read():
    message = adapter_pb2.AdapterLayout.FromString(EMPTY_MODULE * 2**19)
    with pytest.raises(FedLoraError) as caught:
        from_message(message, AdapterLayout)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert "expected at most 65536 items, got 524288" in caught.value.message
