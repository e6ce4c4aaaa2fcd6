"""What is not REST: health, metrics, public keys, documentation, the explanations of refusals, and the front page.

All of it is for GET, none of it needs an account, and none of it tells anything about a person. Metrics are told to
whoever has the operator's token or, where there is none, to this machine; to anybody else they do not exist.
"""

import hmac
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from config.settings import Settings
from gearlink import errors
from gearlink.calls import Jwks
from gearlink.http_api import asyncapi, docs_page, openapi
from gearlink.http_api.answers import JSON, NO_STORE, PAGE_FIELDS, Answer, data
from gearlink.http_api.pipeline import Call, Endpoint
from gearlink.http_api.table import Route
from gearlink.journal import Metrics
from gearlink.protocol import encode
from gearlink.ws_frames import FRAMES

_HTML: Final = (b"content-type", b"text/html; charset=utf-8")
_CSS: Final = (b"content-type", b"text/css; charset=utf-8")
_TEXT: Final = (b"content-type", b"text/plain; charset=utf-8")
_METRICS: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())
# A new release may change these pages; until then a browser need not ask again for some minutes.
_KEPT: Final = (b"cache-control", b"public, max-age=300")


class System:
    """`ready` says whether guests can be served, and is false before the drain begins. `jwks` gives today's keys."""

    def __init__(
        self,
        routes: Iterable[Route],
        settings: Settings,
        metrics: Metrics,
        *,
        version: str,
        ready: Callable[[], bool],
        jwks: Callable[[], Jwks],
    ) -> None:
        self._metrics, self._ready, self._jwks = metrics, ready, jwks
        calls, frames = openapi.document(routes, version), asyncapi.document(FRAMES, version)
        self._openapi = Answer(200, msgspec.json.encode(calls), (JSON, _KEPT))
        self._asyncapi = Answer(200, msgspec.json.encode(frames), (JSON, _KEPT))
        self._docs = _html(docs_page.docs(calls, frames))
        catalogue = errors.CATALOGUE.values()
        self._problems = {f"/problems/{entry.code}": _html(docs_page.problem(entry)) for entry in catalogue}
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over the metrics token."""
        self._metrics_token = settings.metrics.token.encode()

    def pages(self) -> list[tuple[str, str, Endpoint]]:
        """(path, label for the metrics, endpoint) of everything here."""
        style = Answer(200, docs_page.STYLE.encode(), (_CSS, _KEPT), PAGE_FIELDS)
        return [
            ("/", "/", _fixed(_html(docs_page.front()))),
            ("/healthz", "/healthz", _fixed(data(200, b'{"status":"ok"}'))),
            ("/readyz", "/readyz", self.readiness),
            ("/metrics", "/metrics", self.metrics),
            ("/.well-known/jwks.json", "/.well-known/jwks.json", self.jwks),
            ("/api/openapi.json", "/api/openapi.json", _fixed(self._openapi)),
            ("/api/asyncapi.json", "/api/asyncapi.json", _fixed(self._asyncapi)),
            ("/api/docs", "/api/docs", _fixed(self._docs)),
            ("/api/docs.css", "/api/docs.css", _fixed(style)),
            ("/robots.txt", "/robots.txt", _fixed(Answer(200, b"User-agent: *\nDisallow: /\n", (_TEXT, _KEPT)))),
            ("/ws", "/ws", websocket_only),
            *((path, "/problems/{code}", self.problem) for path in self._problems),
        ]

    async def readiness(self, _call: Call) -> Answer:
        return data(200, b'{"status":"ready"}') if self._ready() else data(503, b'{"status":"not ready"}')

    async def problem(self, call: Call) -> Answer:
        return self._problems[call.path]

    async def jwks(self, _call: Call) -> Answer:
        return Answer(200, encode(self._jwks()), (JSON, _KEPT))

    async def metrics(self, call: Call) -> Answer:
        """Raises Refusal `not-found` for anybody whom the figures are not for."""
        # A proxy on this machine may not say for whom it asks: so a token, once there is one, is asked of everybody.
        if not (self._has_token(call) if self._metrics_token else self._is_on_this_machine(call)):
            raise errors.Refusal(errors.NOT_FOUND)
        return Answer(200, generate_latest(self._metrics.registry), (_METRICS, NO_STORE))

    @staticmethod
    def _is_on_this_machine(call: Call) -> bool:
        return call.peer.direct and (call.peer.address == "::1" or call.peer.address.startswith("127."))

    def _has_token(self, call: Call) -> bool:
        given = call.headers.get(b"authorization", b"")
        return hmac.compare_digest(given, b"Bearer " + self._metrics_token)


async def websocket_only(_call: Call) -> Answer:
    """RFC 9110 §15.5.22: a 426 says to what to upgrade."""
    raise errors.Refusal(errors.UPGRADE_REQUIRED, headers={"Upgrade": "websocket", "Connection": "Upgrade"})


def _html(text: str) -> Answer:
    return Answer(200, text.encode(), (_HTML, _KEPT), PAGE_FIELDS)


def _fixed(answer: Answer) -> Endpoint:
    async def endpoint(_call: Call) -> Answer:
        return answer

    return endpoint
