from __future__ import annotations

import asyncio

import pytest

from aggregator_service.transport.open_streams import OpenStreams
from fedlora.errors import FedLoraError, Reason


class Server:
    """Leaves when a test says so."""

    leaving = False

    def check_serving(self) -> None:
        if self.leaving:
            raise FedLoraError(Reason.UNAVAILABLE, "it leaves")


async def served(streams: OpenStreams, opened: asyncio.Event) -> None:
    """A stream on which nothing ever comes."""
    async with streams.place():
        opened.set()
        await asyncio.Event().wait()


async def test_a_silent_stream_ends_and_one_that_is_heard_stays():
    streams = OpenStreams(silence_seconds=0.2, check_serving=lambda: None)
    async with asyncio.timeout(30), streams.place() as heard:
        silent = asyncio.ensure_future(served(streams, asyncio.Event()))
        while not silent.done():
            heard.heard()
            await asyncio.wait([silent], timeout=0.01)
    with pytest.raises(FedLoraError, match=r"within 0.2 s, got none") as caught:
        await silent
    assert caught.value.reason is Reason.DEADLINE_EXCEEDED


async def test_all_end_with_the_server_and_none_begins():
    server = Server()
    streams = OpenStreams(silence_seconds=600, check_serving=server.check_serving)
    opened = [asyncio.Event() for _ in range(3)]
    waiting = [asyncio.ensure_future(served(streams, each)) for each in opened]
    for each in opened:
        await each.wait()
    server.leaving = True
    streams.end()
    streams.end()
    async with asyncio.timeout(30):
        ends = await asyncio.gather(*waiting, return_exceptions=True)
    ends.append((await asyncio.gather(served(streams, opened[0]), return_exceptions=True))[0])
    assert [str(end) for end in ends] == ["it leaves"] * 4


async def test_an_end_that_comes_too_late_disturbs_nobody():
    streams = OpenStreams(silence_seconds=600, check_serving=lambda: None)
    async with streams.place() as stream:
        pass
    streams.end()
    assert not stream.limit.expired()
