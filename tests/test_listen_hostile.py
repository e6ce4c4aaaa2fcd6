"""The one port among bad guests: what they do stays with them, and nobody holds a connection for ever."""

import errno
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed

from gearlink.listen import (
    tls_context,
)
from gearlink.streams import LINGER_SECONDS
from tests import listening
from tests.listening import (
    LARGE,
    UPGRADE,
    Http2Client,
    ask,
    assert_problem,
    client_tls,
    head,
    open_house,
    open_tls,
    open_websocket,
    read_all,
    read_answer,
    read_to_end,
    send_quietly,
    wait_for,
)

certificate = listening.certificate  # a fixture


# --- accidents stay with the one who had them ------------------------------------------------------------------------


async def test_a_crash_ends_one_connection_and_is_reported(autojump_clock: MockClock) -> None:
    async with open_house() as house, open_websocket(house.connect()) as other:
        async with open_websocket(house.connect()) as ws:
            await ws.send_message("crash")
            with pytest.raises(ConnectionClosed):
                await ws.get_message()
        assert house.listener.crashes == 1 == len(house.crashed)
        await other.send_message("alive")
        assert await other.get_message() == "echo alive"
        assert await house.still_answers()


async def test_a_guest_who_vanishes_is_no_crash(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        for goodbye in (b"", b"GET /hel", head("GET", "/slow", Host="x"), head("GET", "/ws", **UPGRADE)):
            link = house.connect()
            if goodbye:
                await link.send_all(goodbye)
            await wait_all_tasks_blocked()
            await link.aclose()
        await wait_all_tasks_blocked()
        assert house.listener.open_connections == 0 and not house.crashed


async def test_lack_of_file_descriptors_only_delays(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        house.door.troubles = [OSError(errno.EMFILE, "many"), OSError(errno.ENFILE, "many")]
        assert await house.still_answers()
        assert await house.still_answers()


async def test_an_upload_over_the_limit_is_answered_and_lets_go(autojump_clock: MockClock) -> None:
    async with open_house() as house, house.connect(window=4096) as link, trio.open_nursery() as nursery:

        async def upload() -> None:
            with suppress(trio.BrokenResourceError):
                while True:
                    await link.send_all(b"1000\r\n" + bytes(0x1000) + b"\r\n")
                    await trio.sleep(0.01)

        await link.send_all(head("POST", "/upload", Host="x", Transfer_Encoding="chunked"))
        nursery.start_soon(upload)
        assert (await read_answer(link))[0] == 413
        with trio.fail_after(LINGER_SECONDS + 1):
            await wait_for(lambda: house.listener.open_connections == 0)


async def test_a_body_that_no_app_reads_holds_no_connection(autojump_clock: MockClock) -> None:
    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        await trio.sleep(1)  # the queue between hypercorn and the app fills meanwhile
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async with open_house() as house:
        house.listener._asgi_app = deaf
        async with house.connect() as link:
            await link.send_all(head("POST", "/", Host="x", Content_Length="9000000"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(send_quietly, link, bytes(9_000_000)))
                assert (await read_answer(link))[0] == 403
                with trio.fail_after(LINGER_SECONDS + 1):
                    await wait_for(lambda: house.listener.open_connections == 0)


# --- the slow and the silent -----------------------------------------------------------------------------------------


async def test_a_client_that_says_nothing_is_ended_at_head_seconds(autojump_clock: MockClock) -> None:
    async with open_house(head_seconds=10) as house:
        silent = [house.connect() for _ in range(200)]
        await wait_all_tasks_blocked()
        assert house.listener.pending_connections == 200
        assert await house.still_answers()  # they hold up nobody
        before = trio.current_time()
        assert await read_to_end(silent[0]) == 0
        assert trio.current_time() - before == pytest.approx(10)
        await wait_all_tasks_blocked()
        assert house.listener.open_connections == 0 == house.listener.pending_connections
        assert house.refused == ["head-slow"] * 200


@pytest.mark.parametrize("start", [b"GET /hello HTTP/1.1\r\nX: ", b"POST /upload HTTP/1.1\r\nX: "])
async def test_a_head_that_drips_is_ended_at_head_seconds(start: bytes, autojump_clock: MockClock) -> None:
    async with open_house(head_seconds=10) as house, house.connect() as link:
        before = trio.current_time()
        await link.send_all(start)
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await trio.sleep(1)
                await link.send_all(b"x")
        assert trio.current_time() - before == pytest.approx(11, abs=1)


async def test_a_second_head_that_drips_is_ended_too(autojump_clock: MockClock) -> None:
    async with open_house(keep_alive_seconds=20) as house, house.connect() as link:
        assert (await ask(link))[0] == 200
        before = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await link.send_all(b"G")
                await trio.sleep(1)
        assert trio.current_time() - before == pytest.approx(21, abs=1)


async def test_a_slow_handshake_is_ended_at_head_seconds(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context, head_seconds=10) as house, house.connect() as link:
        await link.send_all(b"\x16\x03\x01")
        before = trio.current_time()
        assert await read_to_end(link) == 0
        assert trio.current_time() - before == pytest.approx(10)
        assert house.refused == ["handshake"]


@pytest.mark.parametrize("path", ["/hello", "/ws"])
async def test_a_head_too_large_answers_431(path: str, autojump_clock: MockClock) -> None:
    async with open_house(head_bytes_max=16384) as house, house.connect() as link:
        await link.send_all(head("GET", path, **UPGRADE | {"X": "x" * 20_000}))
        status, answer, body = await read_answer(link)
        assert status == 431
        assert_problem(answer, body, "header-too-large")
        async with house.connect() as link:  # and on a connection that is kept
            assert (await ask(link))[0] == 200
            status, answer, body = await ask(link, path, X="x" * 20_000)
            assert status == 431
            assert_problem(answer, body, "header-too-large")
        assert not house.crashed


async def test_a_head_that_came_whole_is_refused_with_its_own_correlation_id(autojump_clock: MockClock) -> None:
    async with open_house(head_bytes_max=2000) as house, house.connect() as link:
        assert (await ask(link))[0] == 200
        status, answer, body = await ask(link, X="x" * 2500, X_Correlation_Id="mine-4711")
        assert (status, answer["connection"]) == (431, "close")
        assert_problem(answer, body, "header-too-large", "mine-4711")


async def test_a_head_request_is_refused_without_a_body(autojump_clock: MockClock) -> None:
    async with open_house(head_bytes_max=2000) as house, house.connect() as link:
        assert (await ask(link))[0] == 200
        await link.send_all(head("HEAD", "/hello", Host="x", X="x" * 2500))
        assert (await read_all(link)).partition(b"\r\n\r\n")[2] == b""
        assert not house.crashed


async def test_a_head_request_with_a_broken_body_is_refused_all_the_same(autojump_clock: MockClock) -> None:
    async with open_house() as house, house.connect() as link:
        await link.send_all(head("HEAD", "/upload", Host="x", Transfer_Encoding="chunked") + b"zz\r\n")
        assert (await read_all(link)).startswith(b"HTTP/1.1 4")
        assert not house.crashed


async def test_noise_is_answered_400(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
            async with house.connect() as link:
                await link.send_all(noise)
                answer = await read_all(link)
                assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
                assert b'"code":"bad-request"' in answer and b"x-correlation-id: " in answer
        assert not house.crashed


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http-version-not-supported"),
        (b"POST /hello HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501, "unsupported-transfer-coding"),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400, "bad-request"),
    ],
)
async def test_a_request_that_http_refuses_gets_a_problem(
    data: bytes, status: int, code: str, autojump_clock: MockClock
) -> None:
    async with open_house() as house, house.connect() as link:
        await link.send_all(data)
        got, answer, body = await read_answer(link)
        assert (got, answer["connection"]) == (status, "close")
        assert_problem(answer, body, code)
        assert not house.crashed


# --- a client that stops reading -------------------------------------------------------------------------------------


async def test_a_large_answer_that_nobody_reads_is_cut_after_write_seconds(autojump_clock: MockClock) -> None:
    async with open_house(write_seconds=30) as house, house.connect() as link:
        await link.send_all(head("GET", "/large", Host="x"))
        await wait_all_tasks_blocked()
        before = trio.current_time()
        await wait_for(lambda: house.listener.open_connections == 0)
        assert trio.current_time() - before == pytest.approx(30, abs=1)
        assert await read_to_end(link) < LARGE


async def test_a_slow_reader_of_a_large_answer_gets_all_of_it(autojump_clock: MockClock) -> None:
    async with open_house(write_seconds=30) as house, house.connect() as link:
        await link.send_all(head("GET", "/large", Host="x", Connection="close"))
        count = 0
        while data := await link.receive_some(32768):
            count += len(data)
            await trio.sleep(10)
        assert count > LARGE
        assert trio.current_time() > 300


async def test_an_http2_client_that_opens_no_window_is_cut_after_write_seconds(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context, write_seconds=30) as house:
        client = Http2Client(await open_tls(house, client_tls(certificate, "h2")))
        ended, body = await client.answer(await client.request("GET", "/large"), open_window=False)
        assert ended == "reset CANCEL" and len(body) < LARGE
        assert trio.current_time() == pytest.approx(30, abs=1)
        assert await client.answer(await client.request("GET", "/hello")) == ("reset CANCEL", b"")  # no window either


async def test_a_websocket_that_does_not_read_is_cut_and_others_go_on(autojump_clock: MockClock) -> None:
    async with open_house(write_seconds=30) as house, open_websocket(house.connect()) as other:
        link = house.connect()
        await link.send_all(head("GET", "/ws", **UPGRADE))
        assert (await read_answer(link))[0] == 101
        mask = b"\x81\x85\0\0\0\0flood"
        await link.send_all(mask)
        before = trio.current_time()
        await other.send_message("while it hangs")
        assert await other.get_message() == "echo while it hangs"
        await wait_for(lambda: house.listener.open_connections == 1)
        assert trio.current_time() - before == pytest.approx(30, abs=1)
        assert not house.crashed


# --- how many --------------------------------------------------------------------------------------------------------


async def test_connections_over_the_limit_get_503_at_once(autojump_clock: MockClock) -> None:
    async with open_house(connections_max=2) as house:
        first, second = house.connect(), house.connect()
        assert (await ask(first))[0] == (await ask(second))[0] == 200
        before = trio.current_time()
        status, answer, body = await house.get()
        assert (status, answer["retry-after"]) == (503, "5")
        assert_problem(answer, body, "overloaded")
        assert trio.current_time() == before
        assert house.refused == ["full"]
        await first.aclose()
        await wait_all_tasks_blocked()
        assert await house.still_answers()


async def test_the_refused_cannot_pile_up(autojump_clock: MockClock) -> None:
    async with open_house(connections_max=1) as house, house.connect() as only:
        assert (await ask(only))[0] == 200
        silent = [house.connect() for _ in range(500)]
        await wait_all_tasks_blocked()
        assert sum(link.cut for link in silent) == 500 - 64
        assert (await ask(only))[0] == 200


async def test_pending_connections_of_an_address_are_limited_until_they_settle(autojump_clock: MockClock) -> None:
    async with open_house(pending_connections_per_address=2) as house:
        async with open_websocket(house.connect()) as ws, open_websocket(house.connect()):
            assert house.listener.pending_connections == 2
            assert (await house.get())[0] == 503
            async with house.connect("192.0.2.2") as neighbour:
                assert (await ask(neighbour))[0] == 200
            await ws.send_message("settle")
            assert await ws.get_message() == "echo settle"
            assert house.listener.pending_connections == 1
            assert await house.still_answers()
        await wait_all_tasks_blocked()
        assert house.listener.pending_connections == 0
        assert house.refused == ["address-full"]


async def test_behind_a_trusted_proxy_the_forwarded_address_is_limited(autojump_clock: MockClock) -> None:
    async with open_house(pending_connections_per_address=1, trusted_proxies=["192.0.2.1"]) as house:
        for number, status in ((1, 101), (2, 101), (1, 503)):
            link = house.connect()
            await link.send_all(head("GET", "/ws", **UPGRADE, X_Forwarded_For=f"198.51.100.{number}"))
            assert (await read_answer(link))[0] == status
        assert house.listener.pending_connections == 2
