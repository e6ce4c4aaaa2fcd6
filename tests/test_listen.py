"""The one port: what it serves, whom it refuses, and that no guest can end it, hold it or lie to it."""

import errno
import random
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import h2.config
import h2.connection
import h2.events
import h11
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from quart import Response, request
from quart_trio import QuartTrio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from gearlink.errors import ExitStatus, Fatal
from gearlink.listen import (
    PEER_EXTENSION,
    GuestStream,
    ListenConfig,
    Listener,
    Peer,
    Refused,
    open_tcp_listeners,
    tls_context,
)
from gearlink.protocol import text_frame
from gearlink.streams import LINGER_SECONDS
from tests.streams import Link, MemoryListener

KEY = b64encode(bytes(16)).decode()
UPGRADE = {
    "Host": "chat.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
LARGE = 3_000_000


def make_app(house: "House") -> QuartTrio:
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 100_000

    @app.before_serving
    async def start() -> None:
        house.told.append("startup")

    @app.after_serving
    async def stop() -> None:
        house.told.append("shutdown")

    @app.get("/hello")
    async def hello() -> str:
        return "hello"

    @app.post("/deaf")
    async def deaf() -> tuple[str, int]:
        return "not you", 401

    @app.post("/upload")
    async def upload() -> str:
        return str(len(await request.get_data()))

    @app.get("/large")
    async def large() -> Response:
        return Response(bytes(LARGE))

    @app.get("/who")
    async def who() -> dict[str, Any]:
        peer = cast(Peer, request.scope["extensions"][PEER_EXTENSION])
        return {"address": peer.address, "direct": peer.direct, "remote": request.remote_addr}

    @app.get("/slow")
    async def slow() -> str:
        house.told.append("slow")
        await house.go_on.wait()
        return "done"

    @app.websocket("/stray")
    async def stray() -> None:
        house.told.append("hypercorn's WebSocket was reached")

    return app


class House:
    """A listener on in-memory links, with what it told."""

    def __init__(self, config: ListenConfig, tls: Callable[[], ssl.SSLContext | None]) -> None:
        self.told: list[str] = []
        self.go_on = trio.Event()
        self.crashed: list[BaseException] = []
        self.refused: list[Refused] = []
        self.guests: list[tuple[Peer, GuestStream, str | None]] = []
        self.sockets: list[WebSocketConnection] = []
        self.door = MemoryListener()
        self.scope = trio.CancelScope()
        self.listener = Listener(
            make_app(self),
            self.talk,
            config,
            tls=tls,
            on_crash=self.crashed.append,
            on_refused=self.refused.append,
        )

    async def talk(self, ws: WebSocketConnection, stream: GuestStream, peer: Peer, correlation_id: str | None) -> None:
        self.guests.append((peer, stream, correlation_id))
        self.sockets.append(ws)
        while True:
            message = await ws.get_message()
            if message == "settle":
                stream.settled()
            elif message == "crash":
                raise ZeroDivisionError
            elif message == "flood":
                while True:
                    await stream.send_all(text_frame(bytes(1000)))
            await stream.send_all(text_frame(b"echo " + str(message).encode()))

    def connect(self, address: str = "192.0.2.1", window: int = 65536) -> Link:
        return self.door.connect(address, window)

    async def get(self, path: str = "/hello", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """One GET on a connection of its own."""
        async with self.connect() as link:
            return await ask(link, path, **headers)

    async def still_answers(self) -> bool:
        return (await self.get())[2] == b"hello"


@asynccontextmanager
async def open_house(tls: Callable[[], ssl.SSLContext | None] = lambda: None, **config: Any) -> AsyncIterator[House]:
    house = House(ListenConfig(**config), tls)

    async def serve(task_status: trio.TaskStatus[None]) -> None:
        with house.scope:
            await house.listener.serve([house.door], task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(serve)
        yield house
        house.listener.evict("the test is over")


def head(method: str = "GET", path: str = "/hello", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{key.replace('_', '-')}: {value}" for key, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def read_answer(stream: trio.abc.ReceiveStream) -> tuple[int, dict[str, str], bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x"), ("Upgrade", "any")]))
    client.send(h11.EndOfMessage())
    status, headers, body = 0, {}, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(bytes(await stream.receive_some(65536)))
        elif isinstance(event, h11.Response | h11.InformationalResponse):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
            if status == 101:
                return status, headers, body
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return status, headers, body
        else:
            raise AssertionError(event)


async def ask(stream: trio.abc.Stream, path: str = "/hello", **headers: str) -> tuple[int, dict[str, str], bytes]:
    await stream.send_all(head("GET", path, **{"Host": "chat.example"} | headers))
    return await read_answer(stream)


async def shake(house: House, path: str = "/ws", more: bytes = b"", **changes: str | None) -> tuple[int, bytes]:
    """A WebSocket upgrade with `changes` to its headers (None leaves one out)."""
    headers = {key: value for key, value in (UPGRADE | changes).items() if value is not None}
    async with house.connect() as link:
        await link.send_all(head("GET", path, **headers) + more)
        status, _, body = await read_answer(link)
        return status, body


async def read_to_end(stream: trio.abc.ReceiveStream) -> int:
    """Reads until the server has closed; how many bytes came."""
    count = 0
    try:
        while data := await stream.receive_some(65536):
            count += len(data)
    except trio.BrokenResourceError:
        pass
    return count


class Http2Client:
    """Just enough of an HTTP/2 client to misbehave with."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, validate_outbound_headers=False, header_encoding="utf-8")
        )
        self.h2.initiate_connection()

    async def request(self, method: str, path: str, body: bytes = b"", *more: tuple[str, str]) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "https"), (":authority", "chat.example"), *more]
        self.h2.send_headers(stream_id, fields, end_stream=not body and method != "CONNECT")
        for start in range(0, len(body), 16000):
            self.h2.send_data(stream_id, body[start : start + 16000], end_stream=start + 16000 >= len(body))
        await self.stream.send_all(self.h2.data_to_send())
        return stream_id

    async def answer(self, stream_id: int, *, open_window: bool = True) -> tuple[str, bytes]:
        """Status (or what ended the stream) and body."""
        status, body = "", b""
        while data := await self.stream.receive_some(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return "closed", body
                if getattr(event, "stream_id", None) != stream_id:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    status = str(dict(event.headers)[":status"])  # type: ignore[index]  # header_encoding makes text
                elif isinstance(event, h2.events.DataReceived):
                    body += event.data
                    if open_window:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    return f"reset {ErrorCodes(event.error_code).name}", body
                elif isinstance(event, h2.events.StreamEnded):
                    return status, body
            await self.stream.send_all(self.h2.data_to_send())
        return "closed", body


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Paths of a self-signed certificate for chat.example and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chat.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("chat.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder: Path = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


def client_tls(certificate: tuple[str, str], *alpn: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificate[0])
    if alpn:
        context.set_alpn_protocols(alpn)
    return context


async def open_tls(house: House, context: ssl.SSLContext, **link: Any) -> trio.SSLStream[Any]:
    stream = trio.SSLStream(house.connect(**link), context, server_hostname="chat.example", https_compatible=True)
    await stream.do_handshake()
    return stream


@asynccontextmanager
async def open_websocket(stream: trio.abc.Stream, **options: Any) -> AsyncIterator[WebSocketConnection]:
    async with stream, trio.open_nursery() as nursery:
        yield await wrap_client_stream(nursery, stream, "chat.example", "/ws", **options)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()


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
        assert vars(house.sockets[0]._wsproto.handshake) == {} and house.guests[0][1].head == b""


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
async def test_ws_without_an_upgrade_answers_426(changes: dict[str, str], autojump_clock: MockClock) -> None:
    async with open_house() as house, house.connect() as link:
        headers = {key: value for key, value in (UPGRADE | changes | {"Host": "chat.example"}).items() if value}
        await link.send_all(head("GET", "/ws?x=1", **headers))
        status, answer, body = await read_answer(link)
        assert (status, answer["content-type"]) == (426, "application/problem+json")
        assert answer["upgrade"] == "websocket" and b"upgrade-required" in body


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
        assert (await shake(house, **changes))[0] == status  # type: ignore[arg-type]
        assert house.refused == ["upgrade"] and not house.crashed and not house.guests


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


async def send_quietly(link: Link, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await link.send_all(data)


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
        assert (await read_answer(link))[0] == 431
        async with house.connect() as link:  # and on a connection that is kept
            assert (await ask(link))[0] == 200
            assert (await ask(link, path, X="x" * 20_000))[0] == 431
        assert not house.crashed


async def test_noise_is_answered_400(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        for noise in (b"\x16\x03\x01\x02\x00\x01\x00", b"hello\r\n\r\n", b"GET / HTTP/9\r\n\r\n"):
            async with house.connect() as link:
                await link.send_all(noise)
                assert (await read_answer(link))[0] == 400
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


async def wait_for(true: Callable[[], bool]) -> None:
    """Under the virtual clock: looks every half second."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.5)


# --- how many --------------------------------------------------------------------------------------------------------


async def test_connections_over_the_limit_get_503_at_once(autojump_clock: MockClock) -> None:
    async with open_house(connections_max=2) as house:
        first, second = house.connect(), house.connect()
        assert (await ask(first))[0] == (await ask(second))[0] == 200
        before = trio.current_time()
        assert (await house.get())[0] == 503
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


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_shut_doors_let_the_guests_finish(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        idle, busy = house.connect(), house.connect()
        assert (await ask(idle))[0] == 200
        await busy.send_all(head("GET", "/slow", Host="x"))
        async with open_websocket(house.connect()) as ws:
            await wait_all_tasks_blocked()
            house.listener.shut()
            await wait_all_tasks_blocked()
            with pytest.raises(trio.BrokenResourceError):
                house.connect()
            assert await idle.receive_some() == b""
            await ws.send_message("still here")
            assert await ws.get_message() == "echo still here"
            house.go_on.set()
            assert (await read_answer(busy))[2] == b"done"
        await house.listener.drained()
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
