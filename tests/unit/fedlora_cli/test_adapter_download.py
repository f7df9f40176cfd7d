"""An exported adapter arrives whole or not at all."""

from __future__ import annotations

import pytest

from fedlora.digests import new_digest
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import admin_pb2 as pb
from fedlora.wire.stream import Chunk, Commit
from fedlora_cli.adapter_download import download_adapter

DATA = bytes(range(256)) * 40
DIGEST = new_digest(DATA).digest()


def stream(data=DATA, *, chunk=1000, digest=DIGEST, header=True, commit=True):
    if header:
        first = pb.ExportAdapterResponse()
        first.header.adapter_version = 3
        first.header.round = 2
        first.header.total_bytes = len(DATA)
        first.header.digest = digest
        first.header.adapter_config_json = '{"r": 8}'
        yield first
    for offset in range(0, len(data), chunk):
        yield Chunk(offset, memoryview(data[offset : offset + chunk]))
    if commit:
        yield Commit(len(DATA), digest)


def test_a_whole_stream_becomes_a_folder(tmp_path):
    done = download_adapter(stream(), tmp_path / "a" / "adapter")
    assert (done.adapter_version, done.round, done.total_bytes) == (3, 2, len(DATA))
    assert done.digest == DIGEST.hex()
    folder = tmp_path / "a" / "adapter"
    assert (folder / "adapter_model.safetensors").read_bytes() == DATA
    assert (folder / "adapter_config.json").read_text() == '{"r": 8}'
    assert sorted(p.name for p in folder.parent.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (lambda: stream(commit=False), Reason.UPLOAD_INCOMPLETE),
        (lambda: stream(DATA[:-1]), Reason.UPLOAD_INCOMPLETE),
        (lambda: stream(DATA[:-1] + b"x"), Reason.DIGEST_MISMATCH),
        (lambda: stream(DATA + b"x"), Reason.TOO_LARGE),
        (lambda: stream(header=False), Reason.UPLOAD_INCOMPLETE),
        (lambda: iter(()), Reason.UPLOAD_INCOMPLETE),
    ],
    ids=["no commit", "short", "altered", "long", "no header", "nothing"],
)
def test_a_broken_stream_leaves_nothing(tmp_path, messages, reason):
    with pytest.raises(FedLoraError) as caught:
        download_adapter(messages(), tmp_path / "adapter")
    assert caught.value.reason is reason
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    with pytest.raises(FedLoraError) as caught:
        download_adapter(stream(), tmp_path)
    assert caught.value.reason is Reason.ALREADY_EXISTS
