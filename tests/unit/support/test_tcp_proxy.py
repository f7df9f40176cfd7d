"""The proxy between plain sockets: a server that echoes, and clients of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import pytest
from support.link import Conditions, Way
from support.proxied_connection import Cut
from support.tcp_proxy import FaultProxy


class Echo:
    """Sends back what it gets and remembers it."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.ends: list[str] = []
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1024):
                self.received += data
                writer.write(data)
            self.ends.append("FIN")
        except ConnectionError:
            self.ends.append("RST")
        self.ended.set()
        writer.close()


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[Echo, FaultProxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with FaultProxy(f"127.0.0.1:{port}") as proxy:
        yield echo, proxy
    server.close()


@asynccontextmanager
async def client(
    proxy: FaultProxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = proxy.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


async def echo_seconds(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    loop = asyncio.get_running_loop()
    began = loop.time()
    writer.write(b"a")
    assert await reader.readexactly(1) == b"a"
    return loop.time() - began


async def is_silent(reader: asyncio.StreamReader) -> bool:
    """Nothing comes for a moment."""
    try:
        async with asyncio.timeout(0.05):
            await reader.read(1)
    except TimeoutError:
        return True
    return False


async def test_bytes_cross_unchanged_both_ways_and_are_counted():
    data = bytes(range(256)) * 4096
    async with echoing() as (echo, proxy), client(proxy) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        await proxy.wait_until(lambda: not proxy.connections[0].is_open)
        assert (proxy.forwarded(Way.UP), proxy.forwarded(Way.DOWN)) == (len(data), len(data))
    assert echo.received == data
    assert echo.ends == ["FIN"]


async def test_each_direction_has_its_own_delay_and_it_may_change():
    async with echoing() as (_, proxy), client(proxy) as (reader, writer):
        proxy.link.set(Conditions(delay_seconds=0.05), Way.UP)
        proxy.link.set(Conditions(delay_seconds=0.1), Way.DOWN)
        slow = await echo_seconds(reader, writer)
        proxy.link.set(Conditions())
        assert slow >= 0.15 > await echo_seconds(reader, writer)


async def test_a_rate_holds_the_sender_back():
    num_bytes = 16 * 1024 * 1024
    async with echoing() as (echo, proxy), client(proxy) as (_, writer):
        proxy.link.set(Conditions(bytes_per_second=200_000.0), Way.UP)
        writer.write(bytes(num_bytes))
        await proxy.wait_until(lambda: proxy.forwarded(Way.UP) > 50_000)
        assert len(echo.received) < num_bytes // 2
        # Neither the kernel nor the proxy has taken it all.
        assert writer.transport.get_write_buffer_size() > 0


@pytest.mark.parametrize("limit", [1, 100, 16 * 1024, 70_001])
@pytest.mark.parametrize("how", [Cut.RESET, Cut.CLEAN])
async def test_a_connection_is_cut_at_the_byte_and_the_next_one_is_not(limit: int, how: Cut):
    async with echoing() as (echo, proxy):
        proxy.cut_after(limit, how=how)
        async with client(proxy) as (reader, writer):
            writer.write(bytes(100_000))
            with pytest.raises(ConnectionError) if how is Cut.RESET else nullcontext():
                await reader.read(-1)
            await echo.ended.wait()
        assert proxy.connections[0].bytes[Way.UP] == limit == len(echo.received)
        assert echo.ends == [how.value]
        async with client(proxy) as (reader, writer):
            writer.write(b"whole")
            assert await reader.readexactly(5) == b"whole"


async def test_all_open_connections_can_be_cut_at_once():
    async with echoing() as (_, proxy), client(proxy) as one, client(proxy) as other:
        for reader, writer in (one, other):
            await echo_seconds(reader, writer)
        proxy.cut()
        for reader, _ in (one, other):
            with pytest.raises(ConnectionError):
                await reader.read(1)


async def test_after_a_silent_cut_the_target_hears_nothing_but_the_clients_end():
    async with echoing() as (echo, proxy):
        proxy.cut_after(10, how=Cut.SILENT)
        async with client(proxy) as (reader, writer):
            writer.write(bytes(100))
            await proxy.wait_until(lambda: proxy.num_cut == 1)
            assert await reader.readexactly(10) == bytes(10)
            assert await is_silent(reader)
            assert echo.ends == []
        await proxy.wait_until(lambda: not proxy.connections[0].is_open)
        assert len(echo.received) == 10
        assert len(echo.ends) == 1


async def test_held_bytes_come_out_after_healing():
    async with echoing() as (echo, proxy), client(proxy) as (reader, writer):
        proxy.link.hold(Way.DOWN)
        writer.write(b"a")
        assert await is_silent(reader)
        assert echo.received == b"a"
        proxy.link.hold()
        writer.write(b"b")
        assert await is_silent(reader)
        assert echo.received == b"a"
        proxy.heal()
        assert await reader.readexactly(2) == b"ab"


async def test_the_end_of_a_client_does_not_cross_a_partition():
    async with echoing() as (echo, proxy):
        async with client(proxy) as (reader, writer):
            await echo_seconds(reader, writer)
            proxy.partition()
        assert echo.ends == []
        proxy.heal()
        await proxy.wait_until(lambda: not proxy.connections[0].is_open)
        assert len(echo.ends) == 1


async def test_a_partition_turns_new_connections_away_until_it_is_healed():
    async with echoing() as (_, proxy), client(proxy) as (reader, writer):
        await echo_seconds(reader, writer)
        proxy.partition()
        writer.write(b"b")
        assert await is_silent(reader)
        async with client(proxy) as (late, _):
            assert await late.read(-1) == b""
        assert proxy.num_refused == 1
        proxy.heal()
        assert await reader.readexactly(1) == b"b"
        async with client(proxy) as (reader, writer):
            await echo_seconds(reader, writer)


async def test_where_the_target_is_away_the_client_is_turned_away():
    async with echoing() as (_, proxy):
        proxy.target = "127.0.0.1:1"
        async with client(proxy) as (reader, _):
            assert await reader.read(-1) == b""
        assert proxy.num_refused == 1
