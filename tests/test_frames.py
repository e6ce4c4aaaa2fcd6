"""Frames of a guest: the same events as wsproto's own for any bytes in any pieces, and bounds on what is kept."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, wrap_client_stream
from wsproto.connection import SERVER, Connection, ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Event, Message, Ping, Pong, Request, TextMessage

from gearlink.frames import FrameReader, GuestSocket, accept_websocket

FRAME_BYTES_MAX = 300
KEY = b"\x9a\x3c\xe1\x57"
HELLO = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(first: int, payload: bytes, *, masked: bool = True, width: int | None = None) -> bytes:
    """A frame whose first byte is `first`; `width` forces a length of so many bytes more (0, 2 or 8)."""
    size = len(payload)
    if width is None:
        width = 0 if size < 126 else 2 if size < 65536 else 8
    short = {0: size & 0x7F, 2: 126, 8: 127}[width]
    head = bytes([first, short | (0x80 if masked else 0)]) + (size.to_bytes(width, "big") if width else b"")
    if not masked:
        return head + payload
    return head + KEY + bytes(byte ^ KEY[at % 4] for at, byte in enumerate(payload))


def text(payload: str) -> bytes:
    return frame(0x81, payload.encode())


def opened(frame_bytes_max: int = FRAME_BYTES_MAX) -> FrameReader:
    """A reader that has seen and answered an upgrade."""
    reader = FrameReader(frame_bytes_max)
    reader.receive_data(HELLO)
    assert [type(event) for event in reader.events()] == [Request]
    assert reader.send(AcceptConnection()).startswith(b"HTTP/1.1 101")
    return reader


def joined(events: Iterable[Event]) -> list[Any]:
    """What trio-websocket makes of events: whole messages, pings and pongs, and what ended it.

    A text without its end is kept, but where pieces of it came cut differently they are put together.
    """
    seen: list[Any] = []
    parts: list[Any] = []
    for event in events:
        if isinstance(event, Message):
            parts.append(event.data)
            if event.message_finished:
                seen.append(("".join if isinstance(event, TextMessage) else b"".join)(parts))
                parts = []
        elif isinstance(event, Ping | Pong):
            seen.append((type(event).__name__, bytes(event.payload)))
        else:
            assert isinstance(event, CloseConnection)
            seen.append(("closed", event.code))
            return seen
    return seen


def fed(reader: FrameReader | Connection, pieces: Iterable[bytes]) -> Iterator[Event]:
    """As trio-websocket's reader does it: it stops at the first close."""
    for piece in pieces:
        reader.receive_data(piece)
        for event in reader.events():
            yield event
            if isinstance(event, CloseConnection):
                return


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


payloads = st.one_of(
    st.text(max_size=140).map(str.encode), st.binary(max_size=140), st.binary(min_size=250, max_size=320)
)
good_texts = st.text(max_size=140).map(text)
fragmented = st.tuples(st.binary(max_size=40), good_texts, st.binary(max_size=40)).map(
    lambda parts: frame(0x01, b"a" + parts[0]) + frame(0x89, b"ping") + frame(0x80, parts[2])
)
any_frames = st.builds(
    frame,
    st.sampled_from([0x81] * 6 + [0x00, 0x80, 0x01, 0x02, 0x82, 0x88, 0x89, 0x8A, 0x09, 0x83, 0xC1, 0x8B]),
    payloads,
    masked=st.sampled_from([True] * 12 + [False]),
    width=st.sampled_from([None] * 12 + [2, 8]),
)
closes = st.builds(
    lambda code, reason: frame(0x88, code.to_bytes(2, "big") + reason), st.integers(990, 5010), st.binary(max_size=20)
)
streams = st.lists(
    st.one_of(good_texts, good_texts, good_texts, fragmented, any_frames, closes, st.binary(max_size=30)), max_size=8
).map(b"".join)


@given(streams, st.lists(st.integers(0, 4000), max_size=12))
def test_any_bytes_in_any_pieces_mean_what_they_mean_to_wsproto(data: bytes, places: list[int]) -> None:
    expected = joined(fed(Connection(SERVER), [data] if data else []))
    reader = opened()
    got = joined(fed(reader, cut(data, places)))
    # An error inside a frame is found when the frame is whole; wsproto may find it in the part that came.
    if len(got) == len(expected) - 1 and expected[-1] == ("closed", 1007):
        expected.pop()
    assert got == expected
    assert len(reader._data) <= FRAME_BYTES_MAX + 14


@given(st.lists(good_texts, min_size=1, max_size=20).map(b"".join), st.lists(st.integers(0, 4000), max_size=40))
def test_whole_texts_never_reach_wsproto(data: bytes, places: list[int]) -> None:
    reader = opened(1000)
    before = reader._wsproto
    assert isinstance(before, Connection)
    before.receive_data = None  # type: ignore[method-assign,assignment]  # whoever calls it fails
    assert joined(fed(reader, cut(data, places))) == joined(fed(Connection(SERVER), [data]))


def test_a_frame_over_the_limit_is_handed_out_in_pieces_and_not_kept() -> None:
    reader = opened(1000)
    reader.receive_data(frame(0x81, b"x" * 5000)[:2500])
    assert [(event.data[:1], event.message_finished) for event in reader.events()] == [("x", False)]  # type: ignore[attr-defined]
    assert reader._data == b""
    reader.receive_data(frame(0x81, b"x" * 5000)[2500:] + text("after"))
    assert [event.message_finished for event in reader.events()] == [True, True]  # type: ignore[attr-defined]


def test_a_claimed_length_alone_reserves_and_keeps_nothing() -> None:
    reader = opened()
    reader.receive_data(b"\x81\xff" + (2**62).to_bytes(8, "big") + frame(0x81, b"rest")[2:])
    assert [event.message_finished for event in reader.events()] == [False]  # type: ignore[attr-defined]
    assert reader._data == b""


def test_events_are_parsed_no_further_than_they_are_read() -> None:
    reader = opened()
    reader.receive_data(text("one") + text("two") + frame(0x88, b"\x03\xe8") + text("never"))
    events = reader.events()
    assert next(events) == TextMessage(data="one")
    before = reader.state
    assert [type(event) for event in events] == [TextMessage, CloseConnection]
    assert (before, reader.state) == (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
    reader.receive_data(text("nor this"))
    assert list(reader.events()) == []


def test_our_own_close_still_hears_the_peer_out() -> None:
    reader = opened()
    reader.receive_data(text("said before")[:5])
    assert list(reader.events()) == []
    reader.send(CloseConnection(code=1000))
    reader.receive_data(text("said before")[5:] + frame(0x88, b"\x03\xe8"))
    assert joined(reader.events()) == ["said before", ("closed", 1000)]
    assert reader.state is ConnectionState.CLOSED


def test_bad_utf8_is_told_in_wsprotos_words() -> None:
    ends = []
    for reader in (opened(), Connection(SERVER)):
        reader.receive_data(frame(0x81, b"\xed\xa0\x80"))
        ends.append(list(reader.events()))
    assert ends[0] == ends[1] and ends[0][0].code == 1007  # type: ignore[attr-defined]


# --- the connection ---------------------------------------------------------------------------------------------------


class _Pair:
    """A server's socket and the raw stream of its client."""

    def __init__(self, socket: GuestSocket, peer: Any) -> None:
        self.socket, self.peer = socket, peer


async def open_pair(nursery: trio.Nursery, frame_bytes_max: int = 1000) -> _Pair:
    peer, stream = memory_stream_pair()
    await peer.send_all(HELLO)
    socket = await accept_websocket(nursery, stream, frame_bytes_max, None)
    assert (await peer.receive_some(4096)).startswith(b"HTTP/1.1 101")
    return _Pair(socket, peer)


async def test_messages_keep_their_order_and_no_more_than_a_few_are_read_ahead(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = await open_pair(nursery)
        await pair.peer.send_all(b"".join(text(f"{number}") for number in range(100)))
        await wait_all_tasks_blocked()
        assert pair.socket._recv_channel.statistics().current_buffer_used == 4
        assert [await pair.socket.get_message() for _ in range(100)] == [f"{number}" for number in range(100)]
        with trio.move_on_after(1) as scope:
            await pair.socket.get_message()
        assert scope.cancelled_caught
        nursery.cancel_scope.cancel()


async def test_a_reader_of_endless_messages_lets_others_run(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = await open_pair(nursery)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        await pair.peer.send_all(text("x") * 1000)
        nursery.start_soon(count)
        for _ in range(1000):
            await pair.socket.get_message()
        assert turns >= 100
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("data", [text("x" * 1001), frame(0x01, b"x" * 600) + frame(0x80, b"x" * 600)])
async def test_a_message_over_the_limit_is_closed_with_1009(data: bytes, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = await open_pair(nursery)
        await pair.peer.send_all(data)
        answer = await pair.peer.receive_some(4096)
        assert answer[0] == 0x88 and int.from_bytes(answer[2:4], "big") == 1009
        with pytest.raises(ConnectionClosed):
            await pair.socket.get_message()
        nursery.cancel_scope.cancel()


BROKEN = {
    "bad UTF-8": (frame(0x81, b"canary \xed\xa0\x80"), 1007),
    "bad UTF-8 at the end of a fragmented text": (frame(0x01, b"a") + frame(0x80, b"\xc3"), 1007),
    "not masked": (frame(0x81, b"x", masked=False), 1002),
    "a reserved bit": (frame(0xC1, b"x"), 1002),
    "an unknown opcode": (frame(0x83, b"x"), 1002),
    "a cut control frame": (frame(0x09, b"x"), 1002),
    "a continuation of nothing": (frame(0x80, b"x"), 1002),
    "a length that is not the shortest": (frame(0x81, b"x", width=8), 1002),
    "a close code that nobody may send": (frame(0x88, (1005).to_bytes(2, "big")), 1002),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_who_breaks_the_protocol_is_told_by_a_close_frame(name: str, autojump_clock: MockClock) -> None:
    data, code = BROKEN[name]
    async with trio.open_nursery() as nursery:
        pair = await open_pair(nursery)
        await pair.peer.send_all(text("said before") + data + text("never heard"))
        answer = await pair.peer.receive_some(4096)
        assert answer[0] == 0x88 and len(answer) == 2 + answer[1] and int.from_bytes(answer[2:4], "big") == code
        assert (len(answer) > 4) == (code == 1002) and b"canary" not in answer
        assert await pair.socket.get_message() == "said before"
        with pytest.raises(ConnectionClosed) as caught:
            await pair.socket.get_message()
        assert caught.value.reason is not None and caught.value.reason.code == code
        await pair.socket.aclose(4000)  # says nothing more
        nursery.cancel_scope.cancel()


async def test_what_was_said_before_a_close_can_still_be_read(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        pair = await open_pair(nursery)
        await pair.peer.send_all(text("last words") + frame(0x88, (1001).to_bytes(2, "big")))
        await wait_all_tasks_blocked()
        assert await pair.socket.get_message() == "last words"
        with pytest.raises(ConnectionClosed) as caught:
            await pair.socket.get_message()
        assert caught.value.reason is not None and caught.value.reason.code == 1001


async def test_a_library_client_talks_pings_and_leaves(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        peer, stream = memory_stream_pair()

        async def serve() -> None:
            socket = await accept_websocket(nursery, stream, 100_000, None)
            with pytest.raises(ConnectionClosed):
                while True:
                    await socket.send_message(await socket.get_message())

        nursery.start_soon(serve)
        client = await wrap_client_stream(nursery, peer, "x", "/ws")  # type: ignore[arg-type]
        for message in ("", "a", "ü" * 70_000, b"\x00\xff", "\U0001f600"):
            await client.send_message(message)
            await client.ping()
            assert await client.get_message() == message
        await client.aclose()
