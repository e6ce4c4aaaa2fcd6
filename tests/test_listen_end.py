"""The one port at its end, and under mutated input."""

import random
import ssl

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gearlink.listen import (
    tls_context,
)
from gearlink.streams import LINGER_SECONDS
from tests import listening
from tests.listening import (
    UPGRADE,
    Http2Client,
    ask,
    client_tls,
    head,
    open_house,
    open_tls,
    open_websocket,
    read_answer,
    read_to_end,
    send_quietly,
)

certificate = listening.certificate  # a fixture


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_shut_doors_let_the_guests_finish(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        idle, busy = house.connect(), house.connect()
        assert (await ask(idle))[0] == 200
        await busy.send_all(head("GET", "/slow", Host="x"))
        async with open_websocket(house.connect()) as ws:
            await wait_all_tasks_blocked()
            preconnected = house.connect()
            await wait_all_tasks_blocked()
            house.listener.shut()
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError):
                house.connect()
            assert await idle.receive_some() == b"" == await preconnected.receive_some()
            await ws.send_message("still here")
            assert await ws.get_message() == "echo still here"
            house.go_on.set()
            assert (await read_answer(busy))[2] == b"done"
            assert await busy.receive_some() == b""
        await house.listener.drained()
        assert trio.current_time() < LINGER_SECONDS * 3  # nobody waited for the keep-alive or the head to run out
        await wait_all_tasks_blocked()
        assert house.told == ["startup", "slow", "shutdown"] and not house.crashed


@pytest.mark.parametrize("cancelled", [False, True])
async def test_an_end_does_not_wait_for_who_does_not_read(
    cancelled: bool, certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context: list[ssl.SSLContext | None] = [None]
    async with open_house(lambda: context[-1], write_seconds=30) as house:
        link, other = house.connect(), house.connect()
        await link.send_all(head("GET", "/large", Host="x"))
        await other.send_all(head("GET", "/ws", **UPGRADE))
        assert (await read_answer(other))[0] == 101
        await other.send_all(b"\x81\x85\0\0\0\0flood")
        await wait_all_tasks_blocked()
        context.append(tls_context(*certificate))
        client = Http2Client(await open_tls(house, client_tls(certificate, "h2"), window=4096))
        await client.request("GET", "/large")
        await wait_all_tasks_blocked()
        before = trio.current_time()
        if cancelled:
            house.scope.cancel()
        else:
            house.listener.shut()
            with trio.move_on_after(5):
                await house.listener.drained()
            house.listener.evict("the drain is over")
        await house.listener.drained() if not cancelled else await wait_all_tasks_blocked()
        assert trio.current_time() - before == (0 if cancelled else 5)
        assert house.listener.open_connections == 0 and not house.crashed
        await wait_all_tasks_blocked()
        assert house.told == ["startup"] + ([] if cancelled else ["shutdown"])


# --- mutations -------------------------------------------------------------------------------------------------------


def mutate(dice: random.Random, data: bytes) -> bytes:
    data_ = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(data_) + 1)
        match dice.randrange(5):
            case 0 if at < len(data_):
                data_[at] = dice.randrange(256)
            case 1:
                data_[at:at] = dice.choice([b"\r\n", b"\0", b"\xff\xfe", b":", b" ", b"\r\n\r\n", bytes(200)])
            case 2:
                del data_[at : at + dice.randint(1, 12)]
            case 3:
                data_[at:at] = data_[: dice.randint(1, 60)]
            case _:
                data_ = data_[: max(1, at)]
    return bytes(data_)


async def test_mutated_requests_and_frames_end_nothing(certificate: tuple[str, str], autojump_clock: MockClock) -> None:
    dice = random.Random(20261123)
    frames = b"\x81\x85\0\0\0\0hello\x89\x80abcd\x01\x81\0\0\0\0a\x80\x81\0\0\0\0b\x88\x82\0\0\0\0\x03\xe8"
    http2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    http2.initiate_connection()
    fields = [(":method", "POST"), (":path", "/deaf"), (":scheme", "https"), (":authority", "x")]
    http2.send_headers(1, fields)
    http2.send_data(1, bytes(200), end_stream=True)
    seeds = [
        head("GET", "/hello", Host="x", Accept="*/*"),
        head("POST", "/upload", Host="x", Content_Length="5") + b"hello" + head("GET", "/hello", Host="x"),
        head("POST", "/deaf", Host="x", Transfer_Encoding="chunked") + b"5\r\nhello\r\n0\r\n\r\n",
        head("GET", "/ws", **UPGRADE, Sec_WebSocket_Protocol="gearlink.v1"),
        head("GET", "/stray", **UPGRADE) + frames,
        head("GET", "/hello", Host="x", Upgrade="h2c", Connection="Upgrade", HTTP2_Settings="AAMAAABkAAQAAP__"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    context: list[ssl.SSLContext | None] = [None]
    async with open_house(lambda: context[-1], head_seconds=1, keep_alive_seconds=1) as house:
        for number in range(500):
            async with house.connect() as link:
                if number % 3 == 0:
                    await link.send_all(head("GET", "/ws", **UPGRADE))
                    assert (await read_answer(link))[0] == 101
                    data = frames
                else:
                    data = dice.choice(seeds)
                await send_quietly(link, mutate(dice, data))
                with trio.move_on_after(3):
                    await read_to_end(link)
        assert await house.still_answers()
        context.append(tls_context(*certificate))
        secure = client_tls(certificate, "h2")
        data = http2.data_to_send()
        for _ in range(100):
            async with await open_tls(house, secure) as stream:
                await stream.send_all(data[:24] + mutate(dice, data[24:]))
                with trio.move_on_after(3):
                    await read_to_end(stream)
        client = Http2Client(await open_tls(house, secure))
        assert await client.answer(await client.request("GET", "/hello")) == ("200", b"hello")
        assert house.listener.crashes == len(house.crashed)
        assert "hypercorn's WebSocket was reached" not in house.told
