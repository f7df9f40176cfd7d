"""Files as messages: whole from any offset, read once for many, bounded."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from aggregator_service.transport import encoded_files
from aggregator_service.transport.encoded_files import EncodedFiles
from fedlora.errors import FedLoraError, Reason
from fedlora.proto.v1 import federation_pb2 as pb
from fedlora.wire.payload import reader_of

CHUNK = 100
DATA = secrets.token_bytes(1050)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every range that is read from a disk."""
    done: list[tuple[int, int]] = []
    read = encoded_files._read

    def noted(path: Path, start: int, end: int) -> bytes:
        done.append((start, end))
        return read(path, start, end)

    monkeypatch.setattr(encoded_files, "_read", noted)
    return done


async def download(files: EncodedFiles, path: Path, start: int = 0, *, total: int = len(DATA)):
    read, received = reader_of(pb.PullAdapterResponse), bytearray()
    async for message in files.messages(path, start_offset=start, total_bytes=total):
        chunk = read(message)
        assert chunk.offset == start + len(received)
        assert 0 < len(chunk.data) <= CHUNK
        received += chunk.data
    return bytes(received)


@pytest.mark.parametrize("start", [0, 1, 99, 100, 101, 1000, 1049, 1050])
async def test_a_file_comes_whole_from_any_offset(path: Path, start: int):
    assert await download(EncodedFiles(chunk_bytes=CHUNK), path, start) == DATA[start:]


async def test_a_chunk_is_read_once_for_all_that_fetch_it_together(path: Path, reads):
    files = EncodedFiles(chunk_bytes=CHUNK)
    assert set(await asyncio.gather(*(download(files, path) for _ in range(200)))) == {DATA}
    assert sorted(reads) == [(n, min(n + CHUNK, len(DATA))) for n in range(0, len(DATA), CHUNK)]
    reads.clear()
    assert await download(files, path, 250) == DATA[250:]
    assert reads == [(250, 300)], "from the next whole chunk on it shares theirs"


async def test_what_is_kept_is_bounded_and_the_longest_unused_goes_first(path: Path, reads):
    files = EncodedFiles(chunk_bytes=CHUNK, kept_bytes=3 * CHUNK)
    assert await download(files, path) == DATA
    assert len(files._messages) == 3
    reads.clear()
    await download(files, path, 800)
    assert reads == []
    await download(files, path, 700)
    assert (700, 800) in reads


async def test_a_file_that_has_shrunk_is_refused_and_asked_for_anew(path: Path):
    files = EncodedFiles(chunk_bytes=CHUNK)
    path.write_bytes(DATA[:350])
    for _ in range(2):
        with pytest.raises(FedLoraError, match="ends at byte 350, expected 400") as caught:
            await download(files, path)
        assert caught.value.reason is Reason.STATE_CORRUPT
    path.write_bytes(DATA)
    assert await download(files, path) == DATA


async def test_a_reader_that_goes_away_takes_nothing_from_the_others(path: Path, reads):
    files = EncodedFiles(chunk_bytes=CHUNK)
    first, second = (asyncio.ensure_future(download(files, path)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == DATA
    assert len(reads) == len(set(reads))
