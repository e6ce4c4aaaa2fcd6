"""A listener on in-memory links with a small Quart app behind it, and clients to be good or bad with."""

import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
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
from quart import Response, request
from quart_trio import QuartTrio
from trio_websocket import WebSocketConnection, wrap_client_stream

from gearlink import errors
from gearlink.listen import (
    PEER_EXTENSION,
    GuestStream,
    ListenConfig,
    Listener,
    Peer,
    Refused,
)
from gearlink.protocol import text_frame
from tests.streams import Link, MemoryListener

KEY = b64encode(bytes(16)).decode()
UPGRADE = {
    "Host": "chat.example",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
UPLOAD_BYTES_MAX = 100_000
LARGE = 3_000_000


def make_app(house: "House") -> QuartTrio:
    app = QuartTrio(__name__)
    app.config["MAX_CONTENT_LENGTH"] = None

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
    async def upload() -> tuple[str, int]:
        size = 0
        async for chunk in request.body:
            size += len(chunk)
            if size > UPLOAD_BYTES_MAX:  # counted here: how Quart itself minds its limit differs between its releases
                return "too large", 413
        return str(size), 200

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

    @app.get("/ws")
    async def plain() -> tuple[str, int, dict[str, str]]:
        return "the app says no", 426, {"Upgrade": "websocket", "Connection": "Upgrade"}

    @app.get("/drip")
    async def drip() -> AsyncIterator[bytes]:
        async def parts() -> AsyncIterator[bytes]:
            yield b"first "
            await house.go_on.wait()
            yield b"second"

        return parts()

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


def assert_problem(fields: dict[str, str], body: bytes, code: str, identifier: str | None = None) -> None:
    """A problem document of the catalogue, under the correlation id that was sent, or some other if none was."""
    problem = json.loads(body)
    entry = errors.CATALOGUE[code]
    assert fields["content-type"] == "application/problem+json" and fields["x-content-type-options"] == "nosniff"
    assert (problem["type"], problem["code"]) == (f"/problems/{code}", code)
    assert (problem["title"], problem["status"]) == (entry.title, entry.status)
    assert problem["correlationId"] == fields["x-correlation-id"]
    assert fields["x-correlation-id"] == identifier if identifier else len(fields["x-correlation-id"]) == 36


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


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    """What comes until the server has closed."""
    found = b""
    while data := await stream.receive_some(65536):
        found += data
    return found


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


async def send_quietly(link: Link, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await link.send_all(data)


async def wait_for(true: Callable[[], bool]) -> None:
    """Under the virtual clock: looks every half second."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.5)
