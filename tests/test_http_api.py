"""The HTTP door in front of a house of stubs: what goes through, what is refused, and what every answer carries."""

import inspect
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_type_hints

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from config import limits
from config.settings import Limits, Metrics, Server, Settings
from gearlink import calls, errors, journal, views
from gearlink.accounts import Actor
from gearlink.domain import Domain
from gearlink.errors import Refusal
from gearlink.http_api import routes
from gearlink.http_api.app import App, build
from gearlink.http_api.table import Blob, Reply, Route
from gearlink.peers import PEER_EXTENSION, Peer
from storage.store import StoreBroken, StoreFull
from tests.http_examples import ACTOR, BODIES, CONVERSATION, ME, OTHER, PLACE, RESULTS, USER, example_of

TOKEN = "a-good-token"
PAGE = f"/api/v1/conversations/{PLACE}/messages"
SECRET = "hunter2-of-a-guest"
READ, SEND = "GET", "POST"
PARAMETERS = {"conversationId": PLACE, "messageId": ME, "emoji": "👍", "code": "a-code-of-a-link_", "number": "0"}


class Stub:
    """Takes the calls of one domain class, with its very signatures, and answers from `results` or raises it."""

    def __init__(self, house: "House", kind: type[Any]) -> None:
        self._house, self._kind = house, kind

    def __getattr__(self, name: str) -> Callable[..., Any]:
        real = getattr(self._kind, name)

        async def method(*arguments: Any, **named: Any) -> Any:
            inspect.signature(real).bind(self, *arguments, **named)
            key = f"{self._kind.__name__}.{name}"
            if name == "authenticate" and arguments[0] != TOKEN:
                raise Refusal(errors.NOT_AUTHENTICATED)
            self._house.calls.append((key, (*arguments, *named.values())))
            result = self._house.results.get(key)
            if isinstance(result, BaseException):
                raise result
            return await result() if callable(result) else result

        return method


@dataclass
class House:
    """A door with stubs behind it. `results` may be changed by a test."""

    settings: Settings = field(default_factory=Settings)
    routes: Sequence[Route] = routes.ROUTES
    results: dict[str, Any] = field(default_factory=lambda: dict(RESULTS))
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)
    is_ready: bool = True
    metrics: journal.Metrics = field(default_factory=journal.Metrics)

    def __post_init__(self) -> None:
        kinds = {name: kind for name, kind in get_type_hints(Domain).items() if isinstance(kind, type)}
        domain = Domain(**{name: cast(Any, Stub(self, kind)) for name, kind in kinds.items()})
        domain.sync = self._sync
        self.app: App = build(
            domain, self.settings, self.metrics, ready=lambda: self.is_ready, jwks=lambda: calls.Jwks(keys=[]),
            routes=self.routes,
        )  # fmt: skip

    async def _sync(self, *arguments: Any) -> Any:
        self.calls.append(("sync", arguments))
        return self.results["sync"]

    async def ask(self, method: str, path: str, **options: Any) -> "Got":
        """One request as ASGI carries it; signed in unless `token` says otherwise."""
        got = await exchange(self.app, method, path, **options)
        assert got is not None
        return got

    def count(self, **labels: str) -> float:
        return self.metrics.registry.get_sample_value("http_requests_total", labels) or 0.0


@dataclass
class Got:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of a problem document, which has to be a whole one."""
        assert self.headers["content-type"] == "application/problem+json"
        document = msgspec.json.decode(self.body, type=views.Problem)
        assert document.status == self.status
        assert document.type == f"/problems/{document.code}"
        assert document.correlation_id == self.headers["x-correlation-id"]
        assert errors.CATALOGUE[document.code].title == document.title
        return document.code


async def exchange(
    app: App,
    method: str,
    path: str,
    *,
    body: Any = None,
    chunks: Iterable[bytes] | None = None,
    token: str | None = TOKEN,
    headers: dict[str, str] | None = None,
    query: bytes = b"",
    scheme: str = "http",
    http_version: str = "1.1",
    peer: Peer | None = None,
    raw_path: bytes | None = None,
) -> Got | None:
    """`body`: bytes as they are, or a value to send as JSON. `chunks`: a body of unknown length; see GONE and NEVER."""
    payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": "test"} | ({"authorization": f"Bearer {token}"} if token else {})
    if body is not None:
        given |= {"content-length": str(len(payload)), "content-type": "application/json"}
    if chunks is not None:
        given |= {"transfer-encoding": "chunked", "content-type": "application/json"}
    given |= headers or {}

    stream = iter([payload] if chunks is None else chunks)
    done = False

    async def receive() -> dict[str, Any]:
        nonlocal done
        chunk = next(stream, None)
        if chunk is NEVER:
            await trio.sleep_forever()
        if chunk is GONE:
            return {"type": "http.disconnect"}
        if done:  # only a call that may wait asks for more: whether the caller is still there
            await trio.sleep_forever()
        done = chunk is None
        return {"type": "http.request", "body": chunk or b"", "more_body": not done}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": http_version,
        "method": method,
        "scheme": scheme,
        "path": path,
        "query_string": query,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        "client": ("192.0.2.1", 5000),
        "extensions": {} if peer is None else {PEER_EXTENSION: peer},
    }
    scope |= {} if raw_path is None else {"raw_path": raw_path}
    await app(cast(Any, scope), cast(Any, receive), cast(Any, send))
    if not sent:
        return None
    start, end = sent
    assert start["type"] == "http.response.start" and end["more_body"] is False
    names = [name for name, _ in start["headers"]]
    assert len(names) == len(set(names)), "a field stands twice"
    fields = {name.decode(): value.decode() for name, value in start["headers"]}
    return Got(start["status"], fields, end["body"])


GONE, NEVER = bytes(bytearray(b"gone")), bytes(bytearray(b"never"))  # told apart by identity


@pytest.fixture
def house() -> House:
    return House()


@contextmanager
def log_lines(level: str = "debug") -> Iterator[list[dict[str, Any]]]:
    """The lines that are written in the block, once it has ended."""
    sink, lines = io.BytesIO(), cast(list[dict[str, Any]], [])
    writer = journal.configure(level, sink)
    try:
        yield lines
    finally:
        writer.close()
        lines += [json.loads(line) for line in sink.getvalue().splitlines()]
        journal.configure("error", io.BytesIO())


def path_of(route: Route) -> str:
    path = route.template
    for name in route.ids:
        path = path.replace(f"{{{name}}}", PARAMETERS.get(name, OTHER))
    return path


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


def body_of(route: Route) -> dict[str, Any]:
    if route.takes:
        return {"body": b"a picture", "headers": {"Content-Type": route.takes[0]}}
    return {"body": example_of(route.body)} if route.body else {}


async def ask_route(house: House, route: Route, **options: Any) -> Got:
    query = b"username=ann" if route.path == "/users" else b""
    return await house.ask(route.method, path_of(route), **body_of(route), query=query, **options)


# --- every route -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", routes.ROUTES, ids=name_of)
async def test_a_route_makes_one_domain_call_and_answers_what_it_declares(house: House, route: Route) -> None:
    got = await ask_route(house, route, token=None if route.needs == "nobody" else TOKEN)
    assert got.status in route.answers, got.body
    kind = route.answers[got.status]
    if kind is Blob:
        assert got.body == b"a picture" and got.headers["content-type"] in route.gives
    elif kind is None:
        assert got.body == b"" and "content-length" not in got.headers and "content-type" not in got.headers
    else:
        msgspec.json.decode(got.body, type=kind)
        assert got.headers["content-type"] == "application/json"
    made = [call for call in house.calls if call[0] != "Accounts.authenticate"]
    assert len(made) == 1
    arguments = made[0][1]
    if route.needs != "nobody":
        assert arguments[0] is ACTOR
        ids = [0 if name == "number" else PARAMETERS.get(name, OTHER) for name in route.ids]
        assert list(arguments[1 : 1 + len(ids)]) == ids


@pytest.mark.parametrize("route", [each for each in routes.ROUTES if each.needs != "nobody"], ids=name_of)
async def test_nobody_gets_past_a_route_that_needs_a_user(house: House, route: Route) -> None:
    for token in (None, "a-bad-token"):
        got = await ask_route(house, route, token=token)
        assert (got.status, got.code) == (401, "not-authenticated")
        assert got.headers["www-authenticate"] == "Bearer"
    assert house.calls == []


@pytest.mark.parametrize("route", [each for each in routes.ROUTES if each.body], ids=name_of)
async def test_an_unknown_key_is_refused_everywhere(house: House, route: Route) -> None:
    got = await house.ask(route.method, path_of(route), body={**example_of(route.body), "tpyo": 1})
    assert (got.status, got.code) == (422, "invalid-request")
    assert got.json["errors"] == [{"path": "tpyo", "message": "unknown field"}]


@pytest.mark.parametrize("route", routes.ROUTES, ids=name_of)
async def test_an_unknown_query_parameter_is_refused_everywhere(house: House, route: Route) -> None:
    got = await house.ask(route.method, path_of(route), **body_of(route), query=b"tpyo=1")
    assert (got.status, got.code) == (422, "invalid-request")
    assert not [call for call in house.calls if call[0] != "Accounts.authenticate"]


async def test_the_second_direct_conversation_answers_200(house: House) -> None:
    house.results["Conversations.create"] = (CONVERSATION, False)
    got = await house.ask(SEND, "/api/v1/conversations", body={"type": "direct", "memberIds": [OTHER]})
    assert got.status == 200


# --- what every answer carries ---------------------------------------------------------------------------------------

EVERY_KIND = [
    (READ, PAGE, 200),
    (READ, "/api/v1/nothing", 404),
    ("DELETE", PAGE, 405),
    ("OPTIONS", PAGE, 204),
    ("HEAD", PAGE, 200),
    (READ, "/api/v1/users/me", 500),
    (READ, "/healthz", 200),
    (READ, "/api/docs", 200),
    (READ, "/api/docs.css", 200),
    (READ, "/api/openapi.json", 200),
    (READ, "/api/asyncapi.json", 200),
    (READ, "/.well-known/jwks.json", 200),
    (READ, "/metrics", 404),
    (READ, "/", 200),
    (READ, "/robots.txt", 200),
    (READ, "/ws", 426),
]


@pytest.mark.parametrize(("method", "path", "status"), EVERY_KIND)
async def test_every_answer_carries_the_correlation_id_and_the_security_fields(
    house: House, method: str, path: str, status: int
) -> None:
    house.results["Profiles.me"] = ValueError(SECRET)
    got = await house.ask(method, path, headers={"X-Correlation-Id": "my.id_-42"})
    assert got.status == status
    assert got.headers["x-correlation-id"] == "my.id_-42"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["x-frame-options"] == "DENY"
    assert got.headers["referrer-policy"] == "no-referrer"
    assert got.headers["cross-origin-opener-policy"] == got.headers["cross-origin-resource-policy"] == "same-origin"
    assert got.headers["content-security-policy"].startswith("default-src 'none'")
    assert "script" not in got.headers["content-security-policy"]
    assert "permissions-policy" in got.headers
    assert "strict-transport-security" not in got.headers
    if path.startswith("/api/v1"):
        assert got.headers["cache-control"] == "no-store"


async def test_strict_transport_security_is_said_over_tls_only(house: House) -> None:
    got = await house.ask(READ, PAGE, scheme="https")
    assert got.headers["strict-transport-security"] == "max-age=31536000"


@pytest.mark.parametrize("sent", ["short", "x" * 65, "with space-12", 'quote"-12345', "ünïcödé-1234", ""])
async def test_a_correlation_id_that_is_not_sane_is_replaced(house: House, sent: str) -> None:
    got = await house.ask(READ, PAGE, headers={"X-Correlation-Id": sent})
    assert got.headers["x-correlation-id"] != sent
    assert len(got.headers["x-correlation-id"]) == 36


async def test_log_lines_of_a_request_carry_its_correlation_id_and_nothing_that_was_sent(house: House) -> None:
    house.results["Messages.send"] = ValueError(SECRET)
    with log_lines() as lines:
        got = await house.ask(
            SEND, PAGE, body={"tempId": "t", "content": SECRET}, headers={"X-Correlation-Id": "find-me-please"}
        )
    assert (got.status, got.code) == (500, "internal-error")
    assert SECRET not in got.body.decode()
    crash, access = lines
    assert crash["event"] == "http.crash" and crash["level"] == "error"
    assert any(line.startswith("ValueError at ") for line in crash["exception"])
    assert access["event"] == "http.request" and access["level"] == "error"
    assert access["status"] == 500 and access["method"] == "POST"
    assert access["route"] == "/api/v1/conversations/{conversationId}/messages"
    assert crash["correlation_id"] == access["correlation_id"] == "find-me-please"
    assert SECRET not in str(lines) and TOKEN not in str(lines) and PLACE not in str(lines)


async def test_an_ordinary_request_is_one_debug_line(house: House) -> None:
    with log_lines() as lines:
        await house.ask(READ, PAGE)
        await house.ask(READ, f"/{SECRET}")
    assert [(line["level"], line["status"], line["route"]) for line in lines] == [
        ("debug", 200, "/api/v1/conversations/{conversationId}/messages"),
        ("debug", 404, "unmatched"),
    ]
    assert SECRET not in str(lines)


# --- bodies ----------------------------------------------------------------------------------------------------------

HOSTILE = {
    "empty": (b"", 400),
    "not-json": (b"{", 400),
    "trailing": (b'{"tempId": "t", "content": "x"} {}', 400),
    "bad-utf-8": (b'{"tempId": "\xff\xfe", "content": "x"}', 400),
    "lone-surrogate": (b'{"tempId": "\\ud800", "content": "x"}', 400),
    "lone-surrogate-key": (b'{"\\ud800": 1, "tempId": "t", "content": "x"}', 400),
    "deep-array": (b"[" * 100_000, 422),
    "deep-object": (b'{"a":' * 40_000, 422),
    "deep-value": (b'{"content": ' + b"[" * 100_000, 422),
    "deep-unknown": (b'{"tempId": "t", "content": "x", "x": ' + b"[" * 50_000 + b"]" * 50_000 + b"}", 422),
    "huge-int": (b'{"tempId": ' + b"9" * 10_000 + b', "content": "x"}', 422),
    "huge-exponent": (b'{"tempId": 1e999999999, "content": "x"}', 422),
    "wrong-type": (b'{"tempId": 1, "content": "x"}', 422),
    "null": (b"null", 422),
    "array": (b"[]", 422),
    "missing": (b'{"content": "hello"}', 422),
    "too-long": (b'{"tempId": "' + b"t" * 129 + b'", "content": "x"}', 422),
    "bad-enum": (b'{"tempId": "t", "content": "x", "kind": "' + SECRET.encode() + b'"}', 422),
    "bad-id": (b'{"tempId": "t", "content": "x", "replyToId": "' + SECRET.encode() + b'"}', 422),
    "utf-16": ('{"tempId": "t", "content": "x"}'.encode("utf-16"), 400),
    "byte-order-mark": (b'\xef\xbb\xbf{"tempId": "t", "content": "x"}', 400),
    "nan": (b'{"tempId": NaN, "content": "x"}', 400),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_body_is_refused_and_reaches_no_domain_call(house: House, name: str) -> None:
    body, status = HOSTILE[name]
    got = await house.ask(SEND, PAGE, body=body)
    assert got.status == status, got.body
    assert got.code == {400: "malformed-json", 422: "invalid-request"}[status]
    assert SECRET not in got.body.decode()
    assert [call[0] for call in house.calls] == ["Accounts.authenticate"]


async def test_a_nul_in_a_text_is_the_domains_to_judge(house: House) -> None:
    got = await house.ask(SEND, PAGE, body=b'{"tempId": "t", "content": "a\\u0000b"}')
    assert got.status == 201
    assert house.calls[-1][1][2].content == "a\0b"


@pytest.mark.parametrize("number", ["-1", str(2**53), "1.5", "9" * 400, '"1"', "true"])
async def test_a_number_out_of_range_is_refused(house: House, number: str) -> None:
    body = b'{"sequenceNumber": %s}' % number.encode()
    got = await house.ask("PUT", f"/api/v1/conversations/{PLACE}/read", body=body)
    assert (got.status, got.code) == (422, "invalid-request")
    assert got.json["errors"][0]["path"] == "sequenceNumber"


async def test_a_body_over_the_limit_is_refused_by_its_announced_length() -> None:
    house = House(Settings(limits=Limits(body_kib=32)))
    for length in (str(32 * 1024 + 1), "9" * 5000, "-1", "x"):
        got = await house.ask(SEND, PAGE, body=b"{}", headers={"Content-Length": length})
        assert (got.status, got.code) == (413, "too-large")
        assert got.headers["connection"] == "close"
    assert house.calls == []


async def test_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit() -> None:
    house, read = House(Settings(limits=Limits(body_kib=32))), 0

    def megabyte() -> Iterator[bytes]:
        nonlocal read
        for _ in range(256):
            read += 4096
            yield b" " * 4096

    got = await house.ask(SEND, PAGE, chunks=megabyte())
    assert (got.status, got.code) == (413, "too-large")
    assert got.headers["connection"] == "close"
    assert read == 36 * 1024


async def test_a_body_of_exactly_the_limit_is_read(house: House) -> None:
    house = House(Settings(limits=Limits(body_kib=32)))
    body = json.dumps(BODIES[calls.MessageForm]).encode().ljust(32 * 1024)
    assert (await house.ask(SEND, PAGE, body=body)).status == 201


async def test_a_chunked_body_is_put_together(house: House) -> None:
    pieces = (b'{"tempId": ', b'"t", "con', b"", b'tent": "hello"}')
    assert (await house.ask(SEND, PAGE, chunks=pieces)).status == 201
    assert house.calls[-1][1][2].content == "hello"


async def test_http_2_answers_have_no_connection_fields(house: House) -> None:
    got = await house.ask(SEND, PAGE, body=b"{}", headers={"Content-Length": "999999999"}, http_version="2")
    assert got.status == 413 and "connection" not in got.headers
    got = await house.ask(READ, "/ws", http_version="2")
    assert got.status == 426 and not {"connection", "upgrade"} & set(got.headers)


async def test_a_body_that_never_ends_is_given_up(autojump_clock: MockClock, house: House) -> None:
    started = trio.current_time()
    got = await house.ask(SEND, PAGE, chunks=[b"{", NEVER])
    assert (got.status, got.code) == (408, "request-timeout")
    assert got.headers["connection"] == "close"
    assert trio.current_time() - started == pytest.approx(limits.BODY_SECONDS_MAX)


async def test_a_peer_that_goes_away_in_its_body_is_not_answered(house: House) -> None:
    assert await exchange(house.app, SEND, PAGE, chunks=[b'{"tempId', GONE]) is None
    assert house.calls == []


@pytest.mark.parametrize(
    "fields",
    [{"Content-Type": ""}, {"Content-Type": "text/plain"}, {"Content-Type": "application/jsonp"},
     {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Encoding": "gzip"}],
)  # fmt: skip
async def test_a_body_that_is_not_plain_json_is_refused(house: House, fields: dict[str, str]) -> None:
    got = await house.ask(SEND, PAGE, body=BODIES[calls.MessageForm], headers=fields)
    assert (got.status, got.code) == (415, "unsupported-media-type")


async def test_json_may_be_said_with_parameters_and_in_any_case(house: House) -> None:
    fields = {"Content-Type": "Application/JSON ; charset=utf-8"}
    assert (await house.ask(SEND, PAGE, body=BODIES[calls.MessageForm], headers=fields)).status == 201


# --- paths, methods, query parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/api/v1", "/api/v1/", "/api/v1/conversations/", f"/api/v1/conversations/{PLACE.upper()}",
     "/api/v1/conversations/1", "/api/v1/conversations/{}/messages", f"/api/v1/conversations/{{}}/members/{PLACE}",
     f"/api/v1/conversations/{PLACE}/messages/", f"/api/v1/conversations/{PLACE}{PLACE}", f"/api/v1/users/me/{PLACE}",
     f"/api/v1/conversations/{PLACE}\n", "//api/v1/users/me", "/api/v2/users/me", "", "*", "/api/v1/users/%6de"],
)  # fmt: skip
async def test_a_path_that_is_not_exactly_a_route_is_not_found(house: House, path: str) -> None:
    got = await house.ask(READ, path)
    assert (got.status, got.code) == (404, "not-found")
    assert house.calls == []


async def test_a_target_may_be_a_whole_url(house: House) -> None:
    for origin in ("http://chat.example.org", "https://[::1]:8080"):
        assert (await house.ask(READ, origin + PAGE)).status == 200
        assert (await house.ask(READ, f"{origin}/problems/forbidden")).status == 200
    assert (await house.ask(READ, "http://[" + PAGE)).status == 404


async def test_a_wrong_method_names_the_right_ones(house: House) -> None:
    for method in ("PUT", "PATCH", "BREW", "TRACE", "get"):
        got = await house.ask(method, PAGE)
        assert (got.status, got.code) == (405, "method-not-allowed")
        assert got.headers["allow"] == "GET, HEAD, OPTIONS, POST"
    assert (await house.ask("POST", "/healthz")).headers["allow"] == "GET, HEAD, OPTIONS"


async def test_head_answers_like_get_without_the_content(house: House) -> None:
    head, full = await house.ask("HEAD", PAGE), await house.ask(READ, PAGE)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.body))


async def test_options_names_the_methods(house: House) -> None:
    got = await house.ask("OPTIONS", PAGE, token=None)
    assert (got.status, got.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")


BAD_QUERIES = [
    b"limit=0", b"limit=201", b"limit=-1", b"limit=abc", b"limit=", b"limit", b"limit=1.5", b"limit=1&limit=2",
    b"before=x", b"before=-1", b"after=9007199254740992", b"cursor=x", b"Limit=1", b"limit=%ff", b"limit=\xff",
    b"limit=" + b"9" * 5000, b"&".join(b"x%d=1" % number for number in range(40)), b"limit=%00", b"=",
]  # fmt: skip


@pytest.mark.parametrize("query", BAD_QUERIES)
async def test_a_bad_query_parameter_is_refused(house: House, query: bytes) -> None:
    got = await house.ask(READ, PAGE, query=query)
    assert (got.status, got.code) == (422, "invalid-request")
    assert got.json["errors"]


async def test_query_parameters_reach_the_domain_with_their_types(house: House) -> None:
    await house.ask(READ, PAGE)
    await house.ask(READ, PAGE, query=b"before=8&limit=200")
    await house.ask(READ, PAGE, query=b"after=0&limit=1")
    pages = [arguments[1:] for name, arguments in house.calls if name == "Messages.page"]
    assert pages == [(PLACE, None, None, 50), (PLACE, 8, None, 200), (PLACE, None, 0, 1)]


# --- who asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer{TOKEN}", f"Bearer x {TOKEN}", "Bearer \xff\xfe"],
)
async def test_only_a_bearer_token_signs_in(house: House, value: str) -> None:
    got = await house.ask(READ, PAGE, headers={"Authorization": value})
    assert (got.status, got.code) == (401, "not-authenticated")


async def test_the_schemes_name_is_taken_in_any_case(house: House) -> None:
    assert (await house.ask(READ, PAGE, headers={"Authorization": f"bearer {TOKEN}"})).status == 200


async def test_an_admin_route_is_for_admins_only() -> None:
    async def handler(_domain: Domain, actor: Actor) -> Reply:
        return 200, USER

    route = Route("GET", "/admin/thing", handler, "A thing", answers={200: views.User}, needs="admin")
    house = House(routes=[route])
    house.results["Accounts.authenticate"] = replace(ACTOR, is_admin=False)
    got = await house.ask(READ, "/api/v1/admin/thing")
    assert (got.status, got.code) == (403, "forbidden")
    house.results["Accounts.authenticate"] = ACTOR
    assert (await house.ask(READ, "/api/v1/admin/thing")).status == 200


def limited(per_second: float, burst: int) -> House:
    return House(Settings(limits=Limits(requests_per_second=per_second, requests_burst=burst)))


async def test_a_user_over_the_request_limit_is_told_when_to_come_back(autojump_clock: MockClock) -> None:
    house = limited(0.1, 2)
    assert [(await house.ask(READ, PAGE)).status for _ in range(3)] == [200, 200, 429]
    got = await house.ask(READ, PAGE)
    assert got.code == "rate-limited"
    assert got.headers["retry-after"] == "10"
    assert got.headers["ratelimit-policy"] == '"requests";q=2;w=20'
    assert got.headers["ratelimit"].startswith('"requests";r=0;t=')
    await trio.sleep(10)
    assert (await house.ask(READ, PAGE)).status == 200


async def test_callers_who_are_not_signed_in_are_counted_by_address(autojump_clock: MockClock) -> None:
    house = limited(0.1, 1)
    body = BODIES[calls.RefreshForm]

    async def refresh(address: str) -> int:
        got = await house.ask(SEND, "/api/v1/auth/refresh", body=body, token=None, peer=Peer(address, True))
        return got.status

    assert [await refresh(each) for each in ("192.0.2.7", "192.0.2.7", "192.0.2.8")] == [200, 429, 200]
    assert [await refresh(each) for each in ("2001:db8::1", "2001:db8::2:2", "2001:db8:0:1::")] == [200, 429, 200]


async def test_an_address_that_tries_tokens_is_slowed_down(autojump_clock: MockClock) -> None:
    house = limited(0.1, 2)
    got = [await house.ask(READ, PAGE, token=f"guess-{number}") for number in range(4)]
    assert [each.status for each in got] == [401, 401, 429, 429]
    assert (await house.ask(READ, PAGE)).status == 200, "the user behind the same address goes on"


async def test_zero_means_no_request_limit() -> None:
    for house in (limited(0, 10), limited(10, 0)):
        assert {(await house.ask(READ, PAGE)).status for _ in range(50)} == {200}


async def test_the_address_of_a_caller_reaches_verification(house: House) -> None:
    body = BODIES[calls.VerifyRequest]
    await house.ask(SEND, "/api/v1/auth/verify/request", body=body, token=None, peer=Peer("2001:db8::5", True))
    assert house.calls == [("Verification.request", ("+15551230001", "2001:db8::5"))]


# --- trouble ---------------------------------------------------------------------------------------------------------


async def test_a_refusal_of_the_domain_is_a_problem_document(house: House) -> None:
    house.results["Messages.page"] = Refusal(
        errors.RATE_LIMITED, "Slowly", retry_after_seconds=1.2, headers={"RateLimit": "x"}
    )
    got = await house.ask(READ, PAGE)
    assert (got.status, got.code, got.json["detail"]) == (429, "rate-limited", "Slowly")
    assert (got.headers["retry-after"], got.headers["ratelimit"]) == ("2", "x")
    assert "errors" not in got.json


async def test_a_401_of_the_domain_names_the_scheme(house: House) -> None:
    house.results["Accounts.refresh"] = Refusal(errors.INVALID_REFRESH_TOKEN)
    got = await house.ask(SEND, "/api/v1/auth/refresh", body=BODIES[calls.RefreshForm])
    assert (got.status, got.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (StoreFull("disk"), 507, "storage-full"),
        (StoreBroken("disk"), 503, "storage-failed"),
        (KeyError(SECRET), 500, "internal-error"),
        (ExceptionGroup(SECRET, [ValueError(SECRET), OSError(SECRET)]), 500, "internal-error"),
        (RecursionError(SECRET), 500, "internal-error"),
    ],
)
async def test_trouble_in_the_house_is_one_answer(house: House, trouble: Exception, status: int, code: str) -> None:
    house.results["Messages.send"] = trouble
    with log_lines() as lines:
        got = await house.ask(SEND, PAGE, body=BODIES[calls.MessageForm])
        after = await house.ask(READ, PAGE)
    assert (got.status, got.code) == (status, code)
    assert SECRET not in got.body.decode() + str(lines)
    assert after.status == 200


async def test_a_cancelled_request_is_cancelled_and_not_answered(house: House) -> None:
    house.results["Messages.page"] = trio.sleep_forever
    answered: list[Got | None] = []

    async def request() -> None:
        answered.append(await exchange(house.app, READ, PAGE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert answered == []


# --- other sites -----------------------------------------------------------------------------------------------------

FRIEND = "https://app.example.org"


def with_friend() -> House:
    return House(Settings(server=Server(cors_origins=(FRIEND,))))


async def test_a_listed_origin_may_read_answers_and_refusals() -> None:
    house = with_friend()
    for path, status in ((PAGE, 200), ("/api/v1/nothing", 404)):
        got = await house.ask(READ, path, headers={"Origin": FRIEND})
        assert got.status == status
        assert got.headers["access-control-allow-origin"] == FRIEND
        exposed = got.headers["access-control-expose-headers"]
        assert exposed == "X-Correlation-Id, Retry-After, RateLimit, RateLimit-Policy"
        assert got.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in got.headers


@pytest.mark.parametrize("origin", [f"{FRIEND}.evil.test", "http://app.example.org", "null", f"{FRIEND}/"])
async def test_another_origin_learns_nothing(origin: str) -> None:
    house = with_friend()
    wants = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    for method in (READ, "OPTIONS"):
        got = await house.ask(method, PAGE, headers=wants)
        assert not [name for name in got.headers if name.startswith("access-control-")]
        assert got.headers["vary"] == "Origin", "no cache may give it to the listed one"


async def test_a_preflight_of_a_listed_origin_is_answered_without_a_token() -> None:
    wants = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
    got = await with_friend().ask("OPTIONS", PAGE, headers=wants, token=None)
    assert got.status == 204
    assert got.headers["access-control-allow-origin"] == FRIEND
    assert got.headers["access-control-allow-methods"] == "GET, HEAD, OPTIONS, POST"
    assert got.headers["access-control-allow-headers"] == "Authorization, Content-Type, X-Correlation-Id"


async def test_without_a_list_nothing_is_said_about_origins(house: House) -> None:
    got = await house.ask(READ, PAGE, headers={"Origin": FRIEND})
    assert "vary" not in got.headers and "access-control-allow-origin" not in got.headers


# --- metrics and system pages ----------------------------------------------------------------------------------------


async def test_metrics_are_labelled_by_template_and_never_by_path(house: House) -> None:
    await house.ask(READ, PAGE)
    await house.ask(READ, f"/{SECRET}")
    await house.ask(SECRET.upper(), PAGE)
    template = "/api/v1/conversations/{conversationId}/messages"
    assert house.count(method="GET", route=template, status="200") == 1
    assert house.count(method="GET", route="unmatched", status="404") == 1
    assert house.count(method="other", route=template, status="405") == 1
    seconds = house.metrics.registry.get_sample_value(
        "http_request_duration_seconds_count", {"method": "GET", "route": template}
    )
    assert seconds == 1
    got = await house.ask(READ, "/metrics", peer=Peer("127.0.0.1", True))
    assert b"http_requests_total{" in got.body
    assert SECRET.upper().encode() not in got.body.upper() and PLACE.encode() not in got.body


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        (Peer("127.0.0.1", True), 200),
        (Peer("127.8.8.8", True), 200),
        (Peer("::1", True), 200),
        (Peer("127.0.0.1", False), 404),
        (Peer("192.0.2.1", True), 404),
        (None, 404),
    ],
)
async def test_metrics_are_for_direct_callers_of_this_machine(house: House, peer: Peer | None, status: int) -> None:
    got = await house.ask(READ, "/metrics", peer=peer, token=None)
    assert got.status == status
    if status == 200:
        assert got.headers["content-type"].startswith("text/plain; version=")


async def test_a_metrics_token_opens_them_to_anybody_who_has_it() -> None:
    house = House(Settings(metrics=Metrics(token="scrape-me-0123456789")))
    assert (await house.ask(READ, "/metrics", token="scrape-me-0123456789")).status == 200
    for token in (None, "scrape-me-012345678", "scrape-me-0123456789x", TOKEN):
        for peer in (None, Peer("127.0.0.1", True)):  # a proxy on this machine that says nothing of its client
            assert (await house.ask(READ, "/metrics", token=token, peer=peer)).status == 404
    no_token = House()
    assert (await no_token.ask(READ, "/metrics", headers={"Authorization": "Bearer "})).status == 404


async def test_readiness_is_false_when_the_house_says_so_and_health_is_not(house: House) -> None:
    assert (await house.ask(READ, "/readyz")).status == 200
    house.is_ready = False
    with log_lines("info") as lines:
        assert (await house.ask(READ, "/readyz")).status == 503
    assert lines == [], "every poll of a drain would be an alarm"
    health = await house.ask(READ, "/healthz", token=None)
    assert (health.status, health.json) == (200, {"status": "ok"})


@pytest.mark.parametrize("code", errors.CATALOGUE)
async def test_the_type_of_every_problem_is_a_page_that_explains_it(house: House, code: str) -> None:
    got = await house.ask(READ, f"/problems/{code}", token=None)
    assert got.status == 200 and got.headers["content-type"] == "text/html; charset=utf-8"
    assert code in got.body.decode()


async def test_problem_pages_share_one_label(house: House) -> None:
    await house.ask(READ, "/problems/forbidden")
    await house.ask(READ, "/problems/not-found")
    assert house.count(method="GET", route="/problems/{code}", status="200") == 2


async def test_pages_have_no_script_and_nothing_from_elsewhere(house: House) -> None:
    for path in ("/", "/api/docs", "/problems/not-found"):
        page = (await house.ask(READ, path, token=None)).body.decode()
        assert "<script" not in page and "://" not in page and "style=" not in page and " on" + "click" not in page
        assert page.startswith("<!doctype html>")
    assert 'href="/api/docs"' in (await house.ask(READ, "/", token=None)).body.decode()


async def test_robots_and_keys_and_the_websocket_address(house: House) -> None:
    assert (await house.ask(READ, "/robots.txt")).body == b"User-agent: *\nDisallow: /\n"
    assert (await house.ask(READ, "/.well-known/jwks.json")).json == {"keys": []}
    got = await house.ask(READ, "/ws")
    assert (got.status, got.code, got.headers["upgrade"]) == (426, "upgrade-required", "websocket")


async def test_a_reload_takes_over_limits_origins_and_the_metrics_token(house: House) -> None:
    house.app.reload(
        Settings(
            server=Server(cors_origins=(FRIEND,)),
            limits=Limits(requests_per_second=0.001, requests_burst=1),
            metrics=Metrics(token="scrape-me-0123456789"),
        )
    )
    got = await house.ask(READ, PAGE, headers={"Origin": FRIEND})
    assert got.headers["access-control-allow-origin"] == FRIEND
    assert (await house.ask(READ, PAGE)).status == 429
    assert (await house.ask(READ, "/metrics", token="scrape-me-0123456789")).status == 200


# --- Quart -----------------------------------------------------------------------------------------------------------


async def test_quarts_lifespan_and_test_client_work_on_the_app(house: House) -> None:
    async with house.app.test_app() as running:
        client = running.test_client()
        got = await client.post(PAGE, json=BODIES[calls.MessageForm], headers={"Authorization": f"Bearer {TOKEN}"})
        assert got.status_code == 201
        assert (await got.get_json())["messageId"] == ME
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.delete(f"/api/v1/devices/{OTHER}")).status_code == 401


async def test_a_websocket_over_asgi_is_turned_away(house: House) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await house.app(cast(Any, {"type": "websocket", "path": "/ws", "headers": []}), cast(Any, receive), cast(Any, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
