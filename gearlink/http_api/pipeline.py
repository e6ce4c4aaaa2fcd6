"""What every request goes through: identity, limits, decoding, one handler, and an answer that is always well formed.

It is Quart's ASGI handler (`asgi_http_class`) in place of its request context, router, session and signals, which cost
more than a whole call of ours. It promises that each answer carries the correlation id and the security fields, that a
refusal is a problem document, and that a bug is told to the journal and never to the peer. It knows no route by name.
"""

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

import msgspec
import trio

from config import limits
from config.settings import Settings
from gearlink import journal
from gearlink.accounts import Actor
from gearlink.complaints import decode_body, split_validation_error
from gearlink.domain import Domain
from gearlink.errors import (
    FORBIDDEN,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    METHOD_NOT_ALLOWED,
    NOT_AUTHENTICATED,
    NOT_FOUND,
    OVERLOADED,
    REQUEST_TIMEOUT,
    STORAGE_FAILED,
    STORAGE_FULL,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    Refusal,
)
from gearlink.http_api import answers
from gearlink.http_api.answers import Answer
from gearlink.http_api.table import PARAMETER, TEXT_PARAMETERS, Blob, NoQuery, Route
from gearlink.peers import PEER_EXTENSION, Peer, network_of
from gearlink.problems import correlation_id
from gearlink.protocol import encode
from gearlink.throttle import Throttle
from gearlink.views import UUID, Request
from storage.store import StoreBroken, StoreError, StoreFull

UNMATCHED: Final = "unmatched"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_ID: Final = re.compile(rf"/({UUID})(?=/|\Z)")
_JSON: Final = ("application/json",)
_QUERY_FIELDS_MAX: Final = 16
_LENGTH_DIGITS_MAX: Final = 15
_log = journal.logger("http")


@dataclass(slots=True)
class Call:
    """One request on its way. `headers` are lower-case names to the last value given."""

    method: str
    path: str
    scope: dict[str, Any]
    headers: dict[bytes, bytes]
    peer: Peer
    ids: tuple[str, ...] = ()
    body: bytes = b""


Endpoint = Callable[[Call], Awaitable[Answer]]


class _NoBody(Request):
    """The body of a call that takes none: nothing, or an object without keys. A typo never passes silently."""


class Place:
    """One path template, what may be done there, and its metrics.

    `bounds` are those of bodies with one of their own; methods that are `waiting` are given up when the caller goes away.
    """

    def __init__(self, template: str, metrics: journal.Metrics) -> None:
        self.template = template
        self.names: tuple[str, ...] = tuple(PARAMETER.findall(template))
        self.endpoints: dict[str, Endpoint] = {}
        self.bounds: dict[str, int] = {}
        self.waiting: set[str] = set()
        self._metrics = metrics
        self._seen: dict[tuple[str, int], tuple[Callable[[float], None], Callable[[], None]]] = {}

    @property
    def allow(self) -> str:
        methods = set(self.endpoints) | {"OPTIONS"} | ({"HEAD"} if "GET" in self.endpoints else set())
        return ", ".join(sorted(methods))

    def observe(self, method: str, status: int, seconds: float) -> None:
        children = self._seen.get((method, status))
        if children is None:
            duration = self._metrics.http_duration.labels(method, self.template)
            children = duration.observe, self._metrics.http_requests.labels(method, self.template, str(status)).inc
            self._seen[method, status] = children
        children[0](seconds)
        children[1]()


class Pipeline:
    """Serves `routes` and `pages` (exact paths, for GET). `reload` takes the settings that may change while it runs."""

    def __init__(
        self,
        domain: Domain,
        routes: Iterable[Route],
        pages: Iterable[tuple[str, str, Endpoint]],
        settings: Settings,
        metrics: journal.Metrics,
    ) -> None:
        self._domain, self._metrics = domain, metrics
        self._body_bytes_max = settings.limits.body_kib * 1024
        self._throttle = Throttle("requests", 0.0, 1.0)
        self._unmatched = Place(UNMATCHED, metrics)
        self._exact: dict[str, Place] = {}
        self._shapes: dict[str, Place] = {}
        self._texts: dict[re.Pattern[str], Place] = {}
        self._templates: dict[str, Place] = {}
        for route in routes:
            place = self._place(route.template)
            assert route.method not in place.endpoints, f"{route.method} {route.template} is declared twice"
            place.endpoints[route.method] = self._endpoint(route)
            if route.takes:
                place.bounds[route.method] = route.body_bytes_max
            if route.waits:
                place.waiting.add(route.method)
            if TEXT_PARAMETERS.keys() & set(place.names):
                self._texts[_pattern(route.template)] = place
            else:
                where = self._shapes if place.names else self._exact
                where[PARAMETER.sub("{}", route.template)] = place
        for path, template, endpoint in pages:
            place = self._place(template)
            assert place.endpoints.get("GET", endpoint) == endpoint, f"{template} has two endpoints"
            place.endpoints["GET"] = endpoint
            self._exact[path] = place
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over the request limits and the CORS allow-list."""
        per_second, burst = settings.limits.requests_per_second, settings.limits.requests_burst
        self._throttle.rate = per_second if burst else 0.0
        self._throttle.burst = max(float(burst), float(per_second), 1.0)
        self._cors = answers.Cors(settings.server.cors_origins)

    # --- ASGI --------------------------------------------------------------------------------------------------------

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """One HTTP request of the ASGI protocol."""
        started = trio.current_time()
        headers = dict(scope["headers"])
        identifier = correlation_id(headers)
        journal.correlation_id.set(identifier)
        path = _path(scope["path"])
        place, ids = self._find(path, scope)
        call = Call(scope["method"], path, scope, headers, _peer(scope), ids)
        answer: Answer | None = None
        try:
            answer = await self._answer(call, place, receive, identifier)
        except* Exception as trouble:  # noqa: BLE001  # a bug: told to the journal, and this one answer is a 500
            _log.error("http.crash", method=_method(call.method), route=place.template, trouble=trouble)
            answer = answers.problem(Refusal(INTERNAL_ERROR), identifier)
        if answer is None:
            return
        self._note(call, place, answer, trio.current_time() - started)
        fields = self._fields(call, answer, identifier)
        await send({"type": "http.response.start", "status": answer.status, "headers": fields})
        body = b"" if call.method == "HEAD" else answer.body
        await send({"type": "http.response.body", "body": body, "more_body": False})

    def _note(self, call: Call, place: Place, answer: Answer, seconds: float) -> None:
        """Metrics and the access log: templates and our own words only, nothing that the peer wrote."""
        method = _method(call.method)
        place.observe(method, answer.status, seconds)
        # A 503 of the readiness page is no trouble, but the answer to its question. What is shed under pressure is counted
        # and not told one by one: the log would add to the load.
        is_trouble = answer.status >= 500 and answer.refused not in ("", OVERLOADED.code)
        tell = _log.error if is_trouble else _log.debug
        milliseconds = round(seconds * 1000, 3)
        tell(
            "http.request", method=method, route=place.template, status=answer.status, milliseconds=milliseconds,
            refused=answer.refused,
        )  # fmt: skip

    def _fields(self, call: Call, answer: Answer, identifier: str) -> list[tuple[bytes, bytes]]:
        fields = list(answer.fields)
        if answer.status not in (204, 304):  # RFC 9110 §8.6: no length where there can be no content
            fields.append((b"content-length", b"%d" % len(answer.body)))
        fields.append((b"x-correlation-id", identifier.encode()))
        fields += answer.shared
        fields += self._cors.fields(call.headers.get(b"origin"))
        if call.scope["scheme"] == "https":
            fields.append(answers.TRANSPORT_SECURITY)
        return fields if call.scope["http_version"] < "2" else list(answers.without_hop_by_hop(fields))

    # --- the steps ---------------------------------------------------------------------------------------------------

    async def _answer(self, call: Call, place: Place, receive: Any, identifier: str) -> Answer | None:
        """None if the peer has gone away before there was an answer."""
        try:
            body = await self._read_body(call, receive, place.bounds.get(call.method, self._body_bytes_max))
            if body is None:
                return None
            call.body = body
            endpoint = place.endpoints.get("GET" if call.method == "HEAD" else call.method)
            if endpoint is not None:
                return await (_attended(endpoint, call, receive) if call.method in place.waiting else endpoint(call))
            return self._without_endpoint(call, place)
        except Refusal as refusal:
            return answers.problem(refusal, identifier)
        except StoreFull:
            return answers.problem(Refusal(STORAGE_FULL), identifier)
        except StoreBroken as trouble:
            _log.error("http.storage-failed", route=place.template, trouble=trouble)
            return answers.problem(Refusal(STORAGE_FAILED), identifier)

    def _without_endpoint(self, call: Call, place: Place) -> Answer:
        if place is self._unmatched:
            raise Refusal(NOT_FOUND)
        if call.method != "OPTIONS":
            raise Refusal(METHOD_NOT_ALLOWED, headers={"Allow": place.allow})
        allow = place.allow.encode()
        fields = [answers.NO_STORE, (b"allow", allow)]
        if b"access-control-request-method" in call.headers:
            fields += self._cors.preflight(call.headers.get(b"origin"), allow)
        return Answer(204, fields=fields)

    def _find(self, path: str, scope: Any) -> tuple[Place, tuple[str, ...]]:
        place = self._exact.get(path)
        if place is not None:
            return place, ()
        ids = tuple(_ID.findall(path))
        place = self._shapes.get(_ID.sub("/{}", path)) if ids else None
        if place is None or len(place.names) != len(ids):  # `{}` may also stand in the path itself
            return self._find_text(_raw_path(scope)) if self._texts else (self._unmatched, ())
        return place, ids

    def _find_text(self, raw: str) -> tuple[Place, tuple[str, ...]]:
        """By the path as it was sent: in the decoded one a `%2F` of a text would be a border between segments."""
        for pattern, place in self._texts.items():
            if (found := pattern.fullmatch(raw)) is not None:
                try:
                    values = tuple(unquote_to_bytes(each).decode() for each in found.groups())
                except UnicodeDecodeError:
                    break
                if all(map(_fits, place.names, values)):
                    return place, values
        return self._unmatched, ()

    async def _read_body(self, call: Call, receive: Any, bytes_max: int) -> bytes | None:
        """The whole body, also where none is taken: a connection with an unread body cannot be used again.

        None if the peer went away. Raises Refusal `too-large`, `request-timeout`.
        """
        length = call.headers.get(b"content-length")
        if length is not None:
            if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or int(length) > bytes_max:
                raise Refusal(TOO_LARGE, headers={"Connection": "close"})
        elif call.method in ("GET", "HEAD") and call.scope["http_version"] < "2" and _is_bodiless(call.headers):
            return b""
        chunks, size = [], 0
        with trio.move_on_after(limits.BODY_SECONDS_MAX):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > bytes_max:
                    raise Refusal(TOO_LARGE, headers={"Connection": "close"})
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        raise Refusal(REQUEST_TIMEOUT, headers={"Connection": "close"})

    async def _authenticate(self, call: Call) -> Actor:
        """Raises Refusal `not-authenticated`; `rate-limited` for an address that keeps failing."""
        try:
            return await self._domain.accounts.authenticate(_bearer(call.headers), network_of(call.peer.address))
        except Refusal as refusal:
            if refusal.entry is NOT_AUTHENTICATED:
                self._throttle.check(network_of(call.peer.address))
            raise

    def _endpoint(self, route: Route) -> Endpoint:
        """What serves `route`: everything that can be settled beforehand is."""
        handler, domain, needs = route.handler, self._domain, route.needs
        form, query = route.body, None if route.query is NoQuery else route.query
        takes = route.takes
        optional = route.body_may_be_absent

        async def endpoint(call: Call) -> Answer:
            given: list[Any] = [domain]
            if needs == "nobody":
                self._throttle.check(network_of(call.peer.address))
                given.append(call.peer.address)
            else:
                actor = await self._authenticate(call)
                self._throttle.check(actor.user_id)
                if needs == "admin" and not actor.is_admin:
                    raise Refusal(FORBIDDEN)
                given.append(actor)
            given += call.ids
            if query is not None:
                given.append(decode_query(call.scope["query_string"], query))
            elif call.scope["query_string"]:
                decode_query(call.scope["query_string"], NoQuery)
            if takes:
                _require_type(call.headers, takes)
                given.append(call.body)
            elif form is not None or call.body:
                if call.body or not optional:
                    _require_type(call.headers, _JSON)
                decoded = decode_body(call.body if call.body or not optional else b"{}", form or _NoBody)
                if form is not None:
                    given.append(decoded)
            status, result = await handler(*given)
            if isinstance(result, Blob):
                return answers.blob(result, call.headers.get(b"if-none-match", b""))
            return answers.data(status, b"" if result is None else encode(result))

        return endpoint

    def _place(self, template: str) -> Place:
        if template not in self._templates:
            self._templates[template] = Place(template, self._metrics)
        return self._templates[template]


async def _attended(endpoint: Endpoint, call: Call, receive: Any) -> Answer | None:
    """The answer of a call that may wait; None as soon as the peer goes away, for then nobody waits for it."""
    answer: Answer | None = None
    refusal: Refusal | StoreError | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel(reason="the peer went away")

        nursery.start_soon(watch)
        try:
            answer = await endpoint(call)
        except (Refusal, StoreError) as trouble:
            refusal = trouble
        nursery.cancel_scope.cancel(reason="there is an answer")
    if refusal is not None:
        raise refusal
    return answer


def _path(target: str) -> str:
    """The path of a request target, which may be a whole URL (RFC 9112 §3.2.2)."""
    if target.startswith("/"):
        return target
    try:
        return urlsplit(target).path
    except ValueError:
        return ""


def _raw_path(scope: Any) -> str:
    """The path as it was sent, percent-encoded; from a server that does not tell it, which ASGI allows, made again."""
    raw: bytes | None = scope.get("raw_path")
    return _path(quote(scope["path"], errors="replace") if raw is None else raw.decode("latin-1"))


def _pattern(template: str) -> re.Pattern[str]:
    """What a percent-encoded path of `template` looks like, with a group for each parameter."""
    literals, names = re.split(r"\{\w+\}", template), PARAMETER.findall(template)
    groups = []
    for name in names:
        text = TEXT_PARAMETERS.get(name)
        # A character is at most four bytes of UTF-8, each of which may be percent-encoded.
        groups.append(f"({UUID})" if text is None else f"({text.characters}{{{text.chars_min},{4 * text.chars_max}}})")
    pieces = [re.escape(literal) + group for literal, group in zip(literals, [*groups, ""], strict=True)]
    return re.compile("".join(pieces))


def _fits(name: str, value: str) -> bool:
    text = TEXT_PARAMETERS.get(name)
    return text is None or text.chars_min <= len(value) <= text.chars_max


def _method(method: str) -> str:
    return method if method in _METHODS else "other"


def _peer(scope: Any) -> Peer:
    """Who asks, as the listener found out. Without it nobody is taken for a direct caller."""
    peer = (scope.get("extensions") or {}).get(PEER_EXTENSION)
    if isinstance(peer, Peer):
        return peer
    client = scope.get("client")
    return Peer(client[0] if client else "", direct=False)


def _is_bodiless(headers: dict[bytes, bytes]) -> bool:
    return b"transfer-encoding" not in headers  # RFC 9112 §6.3: neither this nor a length means no body


def _bearer(headers: dict[bytes, bytes]) -> str:
    """The token of `Authorization: Bearer` (RFC 6750 §2.1). Raises Refusal `not-authenticated`."""
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise Refusal(NOT_AUTHENTICATED)
    return token.strip().decode("latin-1")


def _require_type(headers: dict[bytes, bytes], takes: tuple[str, ...]) -> None:
    """Raises Refusal `unsupported-media-type` unless the body is one of these types, and not compressed."""
    kind = headers.get(b"content-type", b"").decode("latin-1")
    if kind not in takes and kind.partition(";")[0].strip().lower() not in takes:
        raise Refusal(UNSUPPORTED_MEDIA_TYPE, headers={"Accept": ", ".join(takes)})
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refusal(UNSUPPORTED_MEDIA_TYPE, headers={"Accept-Encoding": "identity"})  # RFC 9110 §15.5.16


def decode_query(text: bytes, form: type[Request]) -> Request:
    """The query parameters as `form`. Raises Refusal `invalid-request`, also for one that is given twice."""
    try:
        pairs = parse_qsl(
            text.decode("ascii"), keep_blank_values=True, max_num_fields=_QUERY_FIELDS_MAX, errors="strict"
        ) if text else []  # fmt: skip
    except ValueError:  # UnicodeError is one
        raise _invalid_query("", "not a query string") from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _invalid_query("", "a parameter is given twice")
    try:
        return msgspec.convert(values, form, strict=False)
    except msgspec.ValidationError as error:
        raise _invalid_query(*split_validation_error(error, form)) from None


def _invalid_query(path: str, message: str) -> Refusal:
    return Refusal(INVALID_REQUEST, "The query parameters are not what this call takes",
                   errors=[{"path": path, "message": message}])  # fmt: skip
