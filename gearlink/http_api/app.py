"""The ASGI app: Quart on trio for the life of the server, our pipeline for its requests.

Quart owns the ASGI lifespan and the test client. Its HTTP handler is replaced through `asgi_http_class`, the attribute
that Quart has for it; a WebSocket over ASGI (HTTP/2 extended CONNECT, RFC 8441) is turned away, because live sockets
come in by a door of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

from quart_trio import QuartTrio

from config.settings import Settings
from gearlink import __version__
from gearlink.calls import Jwks
from gearlink.domain import Domain
from gearlink.http_api.pipeline import Pipeline
from gearlink.http_api.routes import ROUTES
from gearlink.http_api.system import System
from gearlink.http_api.table import Route
from gearlink.journal import Metrics


class _HttpRequest:
    def __init__(self, app: "App", scope: Any) -> None:
        self._app, self._scope = app, scope

    async def __call__(self, receive: Any, send: Any) -> None:
        await self._app.pipeline.serve(self._scope, receive, send)


class _NoWebSocket:
    def __init__(self, _app: "App", _scope: Any) -> None:
        pass

    async def __call__(self, _receive: Any, send: Any) -> None:
        await send({"type": "websocket.close", "code": 1000})


class App(QuartTrio):
    """Made by `build`."""

    asgi_http_class = _HttpRequest  # type: ignore[assignment]
    asgi_websocket_class = _NoWebSocket  # type: ignore[assignment]

    def __init__(self, pipeline: Pipeline, system: System) -> None:
        super().__init__("gearlink", static_folder=None, template_folder=None)
        self.pipeline, self.system = pipeline, system

    def reload(self, settings: Settings) -> None:
        """Takes over what may change while the server runs: request limits, CORS allow-list, metrics token."""
        self.pipeline.reload(settings)
        self.system.reload(settings)


def build(
    domain: Domain,
    settings: Settings,
    metrics: Metrics,
    *,
    ready: Callable[[], bool],
    jwks: Callable[[], Jwks],
    routes: Sequence[Route] = ROUTES,
) -> App:
    """The app. `ready` answers /readyz, and is false from before the drain begins; `jwks` gives the public keys."""
    system = System(routes, settings, metrics, version=__version__, ready=ready, jwks=jwks)
    return App(Pipeline(domain, routes, system.pages(), settings, metrics), system)
