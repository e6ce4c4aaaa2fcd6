"""Writes of a guest's stream: whole, in order, bounded in time, and cheap while the socket takes them at once."""

import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gearlink.streams import WRITE_BYTES_STEP, GuestStream, HeadTooLarge, read_head
from tests.streams import Link, link_pair

FRAME = 100_000


Pair = tuple[Any, GuestStream]
MakePair = Callable[[str], Pair]


@pytest.fixture
def make_pair() -> Iterator[MakePair]:
    """The peer's end and a guest's stream: over real sockets (written directly) or in memory (through `send_all`)."""
    opened: list[socket.socket] = []

    def make(kind: str) -> Pair:
        if kind == "memory":
            peer, link = link_pair()
            return peer, GuestStream(link, link, 30.0)  # type: ignore[arg-type]  # as good as a SocketStream
        ends = socket.socketpair()
        opened.extend(ends)
        left, right = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in ends)
        return left, GuestStream(right, right, 30.0)

    yield make
    for end in opened:
        end.close()


async def read_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(min(65536, count - len(data)))
        assert more, "the stream ended early"
        data += more
    return data


@pytest.mark.parametrize("kind", ["socket", "memory"])
async def test_writes_of_many_tasks_are_whole_and_in_order(
    make_pair: MakePair, kind: str, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair(kind)
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(stream.send_all, bytes([number]) * FRAME)
            await wait_all_tasks_blocked()
        for number in range(40):
            assert set(await read_exactly(peer, FRAME)) == {number}
        await stream.send_all(b"after the crowd")
        assert await read_exactly(peer, 15) == b"after the crowd"


@pytest.mark.parametrize("kind", ["socket", "memory"])
async def test_a_peer_that_does_not_read_is_cut_after_write_seconds(
    make_pair: MakePair, kind: str, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair(kind)
    ended: list[float] = []

    async def write() -> None:
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            while True:
                await stream.send_all(bytes(FRAME))
                await trio.lowlevel.checkpoint()
        ended.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(write)
    assert ended == [pytest.approx(30)] * 3
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await stream.send_all(b"more")
    await peer.aclose()


async def test_a_peer_that_reads_slowly_gets_all_of_a_large_write(
    make_pair: MakePair, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair("memory")
    size = 40 * WRITE_BYTES_STEP
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, bytes(size))
        for _ in range(40):
            await trio.sleep(20)
            await read_exactly(peer, WRITE_BYTES_STEP)


@pytest.mark.parametrize("kind", ["socket", "memory"])
async def test_a_write_cancelled_half_way_cuts_the_stream(
    make_pair: MakePair, kind: str, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair(kind)
    with trio.move_on_after(1) as scope:
        await stream.send_all(bytes(10_000_000))
    assert scope.cancelled_caught
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await stream.send_all(b"half a frame is out")
    received = 0
    while data := await peer.receive_some(65536):
        received += len(data)
    assert 0 < received < 10_000_000


async def test_a_write_cancelled_while_it_waits_its_turn_harms_nobody(
    make_pair: MakePair, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair("socket")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, b"a" * 5_000_000)
        await wait_all_tasks_blocked()
        with trio.move_on_after(1):
            await stream.send_all(b"never sent")
        assert set(await read_exactly(peer, 5_000_000)) == {ord("a")}
    await stream.send_all(b"next")
    assert await read_exactly(peer, 4) == b"next"


async def test_an_uncontended_write_makes_no_line_and_no_pause(make_pair: MakePair, autojump_clock: MockClock) -> None:
    peer, stream = make_pair("socket")
    sending = stream.send_all(b"frame")
    with pytest.raises(StopIteration):  # the coroutine ends without having yielded to trio
        sending.send(None)
    assert await read_exactly(peer, 5) == b"frame"
    assert stream._line is None


async def test_a_vanished_peer_and_a_closed_stream_are_told_apart(
    make_pair: MakePair, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair("socket")
    await peer.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"is anybody there")
    stream.abort()
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"no")


async def test_abort_ends_a_blocked_write_and_a_blocked_read(make_pair: MakePair, autojump_clock: MockClock) -> None:
    _peer, stream = make_pair("socket")

    async def write() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(bytes(10_000_000))

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        stream.abort()


@pytest.mark.parametrize("kind", ["socket", "memory"])
async def test_a_read_can_be_cancelled_and_loses_nothing(
    make_pair: MakePair, kind: str, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair(kind)
    with trio.move_on_after(1) as scope:
        await stream.receive_some(100)
    assert scope.cancelled_caught
    await peer.send_all(b"here after all")
    assert [await stream.receive_some(4), await stream.receive_some()] == [b"here", b" after all"]
    assert stream.received_at == trio.current_time() == pytest.approx(1)
    await peer.aclose()
    assert await stream.receive_some() == b""


async def test_two_readers_are_one_too_many(make_pair: MakePair, autojump_clock: MockClock) -> None:
    peer, stream = make_pair("socket")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.receive_some, 100)
        await wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some(100)
        await peer.send_all(b"for the first")


async def test_a_reset_breaks_a_read(autojump_clock: MockClock) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    accepted = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
    listener.close()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing it resets
    client.close()
    stream = GuestStream(accepted, accepted, 30.0)
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some(100)
    stream.abort()
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some(100)


async def test_a_close_between_wake_and_read_reads_nothing(
    make_pair: MakePair, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair("socket")
    await peer.send_all(b"unread")
    wait_readable = trio.lowlevel.wait_readable

    async def wait_and_close(number: int) -> None:
        await wait_readable(number)
        stream.abort()

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_and_close)
    with pytest.raises(trio.ClosedResourceError):
        await stream.receive_some(100)


async def test_a_reused_descriptor_is_never_written(make_pair: MakePair, autojump_clock: MockClock) -> None:
    _peer, stream = make_pair("socket")
    number = stream.socket.fileno()
    stream.abort()
    reader, writer = os.pipe()
    assert number in (reader, writer)
    with pytest.raises(trio.ClosedResourceError):
        await stream.send_all(b"to a stranger")
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)
    os.close(writer)


async def test_the_head_is_replayed_before_what_follows(make_pair: MakePair, autojump_clock: MockClock) -> None:
    peer, stream = make_pair("memory")
    stream.head = b"GET /"
    await peer.send_all(b" HTTP/1.1")
    assert [await stream.receive_some(2), await stream.receive_some(), await stream.receive_some(100)] == [
        b"GE",
        b"T /",
        b" HTTP/1.1",
    ]
    assert stream.head == b""


async def test_finish_says_the_last_word_to_a_peer_that_still_talks(
    make_pair: MakePair, autojump_clock: MockClock
) -> None:
    peer, stream = make_pair("socket")

    async def talk() -> None:
        try:
            while True:
                await peer.send_all(bytes(1000))
                await trio.sleep(0.1)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await stream.send_all(b"goodbye")
        await stream.finish()
        assert trio.current_time() == pytest.approx(1)
        assert await read_exactly(peer, 7) == b"goodbye"
        assert await peer.receive_some() == b""


async def test_settled_is_told_once(autojump_clock: MockClock) -> None:
    _peer, link = link_pair()
    told: list[bool] = []
    stream = GuestStream(link, link, 30.0, lambda: told.append(True))  # type: ignore[arg-type]
    stream.settled()
    stream.settled()
    assert told == [True]


@pytest.mark.parametrize("ending", [b"\r\n\r\n", b"\n\n", b"\r\n\n"])
async def test_a_head_is_read_in_whatever_pieces_it_comes(ending: bytes, autojump_clock: MockClock) -> None:
    head = b"GET / HTTP/1.1\r\nHost: x" + ending
    peer, link = link_pair()

    async def drip(peer: Link) -> None:
        for byte in head:
            await peer.send_all(bytes([byte]))
            await wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip, peer)
        assert await read_head(link, 16384) == head


async def test_a_head_without_end_is_refused_at_its_limit(autojump_clock: MockClock) -> None:
    for data in (b"x" * 200, b"GET / HTTP/1.1\r\n" + b"x" * 200 + b"\r\n\r\n"):
        peer, link = link_pair()
        await peer.send_all(data)
        with pytest.raises(HeadTooLarge):
            await read_head(link, 200)


async def test_a_peer_that_leaves_within_its_head_gives_none(autojump_clock: MockClock) -> None:
    peer, link = link_pair()
    await peer.send_all(b"GET / HT")
    await peer.send_eof()
    assert await read_head(link, 200) == b""
