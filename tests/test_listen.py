"""The one port: what it serves, to whom, by which door, and who it takes them for."""

import errno
import ssl
from typing import Any

import pytest
import trio
from h2.settings import SettingCodes
from trio.testing import MockClock, wait_all_tasks_blocked
from wsproto.connection import Connection

from gearlink.errors import ExitStatus, Fatal
from gearlink.frames import FrameReader
from gearlink.listen import (
    ListenConfig,
    Peer,
    open_tcp_listeners,
    tls_context,
)
from gearlink.streams import GuestStream
from tests import listening
from tests.listening import (
    LARGE,
    UPGRADE,
    House,
    Http2Client,
    ask,
    assert_problem,
    client_tls,
    head,
    open_house,
    open_tls,
    open_websocket,
    read_answer,
    read_to_end,
    shake,
)

certificate = listening.certificate  # a fixture


# --- what it serves --------------------------------------------------------------------------------------------------


async def test_http_and_websocket_share_one_port(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        assert house.told == ["startup"]
        assert await house.still_answers()
        async with open_websocket(house.connect(), subprotocols=["other", "gearlink.v1"]) as ws:
            assert ws.subprotocol == "gearlink.v1"
            await ws.send_message("one")
            assert await ws.get_message() == "echo one"
        async with open_websocket(house.connect()) as ws:  # the subprotocol is the client's choice
            assert ws.subprotocol is None
            await ws.send_message("two")
            assert await ws.get_message() == "echo two"
        assert not house.crashed


async def test_an_open_websocket_keeps_nothing_of_its_handshake(autojump_clock: MockClock) -> None:
    async with open_house() as house, open_websocket(house.connect()):
        await wait_all_tasks_blocked()
        reader: Any = house.sockets[0]._wsproto
        assert isinstance(reader, FrameReader) and isinstance(reader._wsproto, Connection)
        assert house.guests[0][1].head == b""


async def test_a_connection_is_kept_for_the_next_request_until_it_is_idle(autojump_clock: MockClock) -> None:
    async with open_house(keep_alive_seconds=20) as house, house.connect() as link:
        for _ in range(3):
            assert (await ask(link))[0] == 200
            await trio.sleep(15)
        before = trio.current_time()
        assert await read_to_end(link) == 0
        assert trio.current_time() - before == pytest.approx(5)


async def test_tls_serves_http1_http2_and_websocket(certificate: tuple[str, str], autojump_clock: MockClock) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context) as house:
        stream = await open_tls(house, client_tls(certificate, "http/1.1"))
        assert stream.selected_alpn_protocol() == "http/1.1"
        assert (await ask(stream))[2] == b"hello"
        await stream.aclose()
        stream = await open_tls(house, client_tls(certificate, "h2", "http/1.1"))
        assert stream.selected_alpn_protocol() == "h2"
        client = Http2Client(stream)
        assert await client.answer(await client.request("GET", "/hello")) == ("200", b"hello")
        assert await client.answer(await client.request("POST", "/upload", bytes(60_000))) == ("200", b"60000")
        assert await client.answer(await client.request("GET", "/large")) == ("200", bytes(LARGE))
        await stream.aclose()
        async with open_websocket(await open_tls(house, client_tls(certificate))) as ws:
            await ws.send_message("secret")
            assert await ws.get_message() == "echo secret"
        assert not house.crashed


async def test_tls_1_2_is_refused(certificate: tuple[str, str], autojump_clock: MockClock) -> None:
    served = tls_context(*certificate)
    async with open_house(lambda: served) as house:
        context = client_tls(certificate)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(trio.BrokenResourceError):
            await open_tls(house, context)
        assert house.refused == ["handshake"]


async def test_a_reloaded_certificate_serves_the_next_connection(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    contexts: list[ssl.SSLContext | None] = [None]
    async with open_house(lambda: contexts[-1]) as house:
        assert await house.still_answers()
        contexts.append(tls_context(*certificate))
        stream = await open_tls(house, client_tls(certificate))
        assert (await ask(stream))[2] == b"hello"


async def test_an_answer_in_one_piece_is_one_write(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    writes = count_writes(monkeypatch)
    async with open_house() as house, house.connect() as link:
        for _ in range(3):  # kept alive, and nothing is left over from one answer to the next
            writes.clear()
            assert (await ask(link))[2] == b"hello"
            assert len(writes) == 1 and writes[0].endswith(b"\r\n\r\nhello")
        writes.clear()
        await link.send_all(head("HEAD", Host="chat.example"))
        assert (await link.receive_some(65536)).endswith(b"\r\n\r\n") and len(writes) == 1


async def test_a_large_answer_is_not_copied_behind_its_head(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    writes = count_writes(monkeypatch)
    async with open_house() as house:
        assert len((await house.get("/large"))[2]) == LARGE
    assert len(writes[0]) < 1000 and sum(len(write) for write in writes[1:]) == LARGE


async def test_an_answer_in_parts_goes_out_part_by_part(autojump_clock: MockClock) -> None:
    async with open_house() as house, house.connect() as link:
        await link.send_all(head("GET", "/drip", Host="chat.example"))
        await wait_all_tasks_blocked()
        assert b"first " in await link.receive_some(65536)  # while the app still works on the second
        house.go_on.set()
        await wait_all_tasks_blocked()
        assert await link.receive_some(65536) == b"6\r\nsecond\r\n0\r\n\r\n"
        assert (await ask(link))[2] == b"hello"


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    writes: list[bytes] = []
    send_all = GuestStream.send_all

    async def counted(self: GuestStream, data: bytes) -> None:
        writes.append(bytes(data))
        await send_all(self, data)

    monkeypatch.setattr(GuestStream, "send_all", counted)
    return writes


# --- three single requests that end a stock hypercorn ----------------------------------------------------------------


async def test_an_http2_body_that_nobody_reads_ends_nothing(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context) as house:
        client = Http2Client(await open_tls(house, client_tls(certificate, "h2")))
        stream_id = client.h2.get_next_available_stream_id()
        fields = [(":method", "POST"), (":path", "/deaf"), (":scheme", "https"), (":authority", "chat.example")]
        client.h2.send_headers(stream_id, fields)
        await client.stream.send_all(client.h2.data_to_send())
        assert await client.answer(stream_id) == ("401", b"not you")
        client.h2.send_data(stream_id, bytes(10_000), end_stream=True)
        await client.stream.send_all(client.h2.data_to_send())
        assert await client.answer(await client.request("GET", "/hello")) == ("200", b"hello")
        assert not house.crashed


@pytest.mark.parametrize("path", ["/ws", "/hello", "/stray", "/nowhere"])
async def test_a_frame_behind_an_upgrade_ends_nothing(path: str, autojump_clock: MockClock) -> None:
    async with open_house() as house:
        status, _ = await shake(house, path, b"\x81\x80abcd")
        assert status == {"/ws": 400, "/hello": 200, "/stray": 400, "/nowhere": 404}[path]
        assert await house.still_answers()
        assert house.told == ["startup"] and not house.crashed


async def test_cleartext_http2_is_neither_upgraded_to_nor_assumed(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        answer = await house.get(Upgrade="h2c", Connection="Upgrade, HTTP2-Settings", HTTP2_Settings="\xff!!")
        assert answer[0] == 200
        async with house.connect() as link:
            await link.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            assert (await read_answer(link))[0] == 505
        assert await house.still_answers() and not house.crashed


# --- WebSocket only through its own door -----------------------------------------------------------------------------


async def test_http2_offers_no_websocket_and_refuses_one(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context) as house:
        for method, path, more in (("CONNECT", "/ws", [(":protocol", "websocket")]), ("connect", "/stray", [])):
            house.go_on = trio.Event()
            client = Http2Client(await open_tls(house, client_tls(certificate, "h2")))
            busy = await client.request("GET", "/slow")
            stream_id = await client.request(method, path, b"", *more)
            assert await client.answer(stream_id) == ("reset PROTOCOL_ERROR", b"")
            assert client.h2.remote_settings.get(SettingCodes.ENABLE_CONNECT_PROTOCOL, 0) == 0
            house.go_on.set()
            assert await client.answer(busy) == ("200", b"done")
        assert "hypercorn's WebSocket was reached" not in house.told and not house.crashed


@pytest.mark.parametrize(("method", "path"), [("GET", "nowhere"), ("GET", "/\xff"), ("G\xe9T", "/"), ("GET", "")])
async def test_malformed_http2_requests_are_clean_refusals(
    method: str, path: str, certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context) as house:
        client = Http2Client(await open_tls(house, client_tls(certificate, "h2")))
        assert (await client.answer(await client.request(method, path)))[0] in ("reset PROTOCOL_ERROR", "closed")
        assert not house.crashed


async def test_a_refused_stream_does_not_keep_an_http2_connection_open(
    certificate: tuple[str, str], autojump_clock: MockClock
) -> None:
    context = tls_context(*certificate)
    async with open_house(lambda: context) as house:
        client = Http2Client(await open_tls(house, client_tls(certificate, "h2")))
        await client.request("CONNECT", "/ws", b"", (":protocol", "websocket"))
        await read_to_end(client.stream)
        await wait_all_tasks_blocked()
        assert house.listener.open_connections == 0


async def test_upgrades_elsewhere_are_plain_http(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        assert (await shake(house, "/nowhere"))[0] == 404
        assert (await shake(house, "/hello"))[1] == b"hello"
        assert (await shake(house, "/stray"))[0] == 400  # Quart knows this path for WebSockets only
        assert house.told == ["startup"]


@pytest.mark.parametrize("changes", [dict.fromkeys(UPGRADE), {"Upgrade": "h2c"}, {"Connection": "close"}])
async def test_ws_without_an_upgrade_is_the_apps_to_answer(changes: dict[str, str], autojump_clock: MockClock) -> None:
    async with open_house() as house, house.connect() as link:
        headers = {key: value for key, value in (UPGRADE | changes | {"Host": "chat.example"}).items() if value}
        await link.send_all(head("GET", "/ws?x=1", **headers))
        status, answer, body = await read_answer(link)
        assert (status, answer["upgrade"], body) == (426, "websocket", b"the app says no")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"Sec-WebSocket-Key": "short"}, 400),
        ({"Sec-WebSocket-Key": "\xff" * 24}, 400),
        ({"Sec-WebSocket-Key": None}, 400),
        ({"Sec-WebSocket-Version": "8"}, 426),
        ({"Sec-WebSocket-Version": None}, 426),
        ({"Sec-WebSocket-Protocol": "chat, superchat"}, 400),
        ({"Sec-WebSocket-Extensions": "\xe4\xf6"}, 400),
        ({"Connection": "Upgrade, \xe4"}, 400),
        ({"Host": "\xe4\xf6.example"}, 400),
        ({"Host": "xn--0.example"}, 400),
        ({"Content-Length": "5"}, 400),
        ({"Transfer-Encoding": "chunked"}, 400),
    ],
)
async def test_bad_upgrades_are_clean_refusals(
    changes: dict[str, str | None], status: int, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        async with house.connect() as link:
            given = {key: value for key, value in (UPGRADE | changes).items() if value is not None}
            await link.send_all(head("GET", "/ws", **given, X_Correlation_Id="upgrade-17"))
            got, answer, body = await read_answer(link)
        assert got == status
        assert_problem(answer, body, "upgrade-required" if status == 426 else "bad-request", "upgrade-17")
        assert answer.get("sec-websocket-version") == ("13" if status == 426 else None)
        assert house.refused == ["upgrade"] and not house.crashed and not house.guests


# --- who is there ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "address", "direct"),
    [
        ({}, "192.0.2.1", True),
        ({"X_Forwarded_For": "203.0.113.5"}, "203.0.113.5", False),
        ({"X_Forwarded_For": "1.2.3.4, 203.0.113.5, 10.1.2.3"}, "203.0.113.5", False),
        ({"X_Forwarded_For": "10.9.9.9, 10.1.2.3"}, "10.9.9.9", False),
        ({"X_Forwarded_For": "203.0.113.5, nonsense, 10.1.2.3"}, "10.1.2.3", False),
        ({"X_Forwarded_For": "[2001:DB8::1]:443"}, "2001:db8::1", False),
        ({"X_Forwarded_For": "::ffff:203.0.113.5"}, "203.0.113.5", False),
        ({"X_Forwarded_For": "203.0.113.5:8080"}, "203.0.113.5", False),
        ({"X_Forwarded_For": ""}, "192.0.2.1", False),
        ({"Forwarded": "for=203.0.113.5"}, "192.0.2.1", False),
    ],
)
async def test_forwarded_addresses_are_believed_from_trusted_proxies(
    sent: dict[str, str], address: str, direct: bool, autojump_clock: MockClock
) -> None:
    async with open_house(trusted_proxies=["192.0.2.1", "10.0.0.0/8"]) as house:
        _, _, body = await house.get("/who", **sent)
        assert f'"address":"{address}"' in body.decode() and f'"remote":"{address}"' in body.decode()
        assert f'"direct":{str(direct).lower()}' in body.decode()
        async with house.connect() as link:
            await link.send_all(head("GET", "/ws", **UPGRADE, **sent, X_Correlation_Id="abcdefgh-1"))
            assert (await read_answer(link))[0] == 101
            await wait_all_tasks_blocked()
        assert (house.guests[0][0], house.guests[0][2]) == (Peer(address, direct), "abcdefgh-1")


async def test_forwarded_addresses_from_strangers_are_not_believed(autojump_clock: MockClock) -> None:
    async with open_house(trusted_proxies=["192.0.2.7"]) as house:
        _, _, body = await house.get("/who", X_Forwarded_For="203.0.113.5")
        assert b'"address":"192.0.2.1"' in body and b'"direct":false' in body


async def test_each_request_of_a_proxys_connection_has_its_own_peer(autojump_clock: MockClock) -> None:
    async with open_house(trusted_proxies=["192.0.2.1"]) as house, house.connect() as link:
        for number in (1, 2, 3):
            _, _, body = await ask(link, "/who", X_Forwarded_For=f"198.51.100.{number}")
            assert f"198.51.100.{number}" in body.decode()


# --- the port --------------------------------------------------------------------------------------------------------


async def test_a_used_port_is_one_clear_line() -> None:
    (listener,) = await open_tcp_listeners("127.0.0.1:0")
    async with listener:
        port = listener.socket.getsockname()[1]
        with pytest.raises(Fatal) as caught:
            await open_tcp_listeners(f"127.0.0.1:{port}")
    assert caught.value.status is ExitStatus.ADDRESS and "in use" in caught.value.line


@pytest.mark.parametrize(
    "address", ["8080", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:99999", "::1:8080", "192.0.2.1:8080", "a..b:80"]
)
async def test_an_impossible_address_is_one_clear_line(address: str) -> None:
    with pytest.raises(Fatal) as caught:
        await open_tcp_listeners(address)
    assert caught.value.status is ExitStatus.ADDRESS and caught.value.line.startswith(address)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
async def test_a_forbidden_port_is_one_clear_line(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forbidden(*_: Any, **__: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(trio, "open_tcp_listeners", forbidden)
    with pytest.raises(Fatal) as caught:
        await open_tcp_listeners("127.0.0.1:80")
    assert caught.value.status is ExitStatus.NO_RIGHTS


async def test_real_sockets_serve_http_and_websocket() -> None:
    house = House(ListenConfig(), lambda: None)
    listeners = await open_tcp_listeners("127.0.0.1:0")
    async with trio.open_nursery() as nursery:
        await nursery.start(house.listener.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            assert (await ask(stream))[2] == b"hello"
            assert (await ask(stream, "/large"))[2] == bytes(LARGE)
        async with open_websocket(await trio.open_tcp_stream("127.0.0.1", port)) as ws:
            await ws.send_message("over TCP")
            assert await ws.get_message() == "echo over TCP"
        house.listener.shut()
    assert house.told == ["startup", "shutdown"] and not house.crashed
