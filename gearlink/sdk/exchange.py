"""One call over HTTP, signed: the request, its deadline, the size of its answer, and tokens renewed before they run out.

Promises: a refresh token is presented once and its successor is saved before anybody uses it, whatever is cancelled
meanwhile; a call that is answered 401 is tried once more with a new token; every wait has a deadline and every answer a
size limit. Problems become `Refused`, trouble on the way `Unreachable`. It knows no route but the one that renews.
"""

from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import msgspec
import trio

from gearlink import calls
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.options import Options
from gearlink.sdk.paging import Items
from gearlink.sdk.state import State, StateStore
from gearlink.sdk.translate import checked_address, encoded, reason, refusal
from gearlink.views import Page

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
API = "/api/v1"
JSON = "application/json"


class Exchange:
    """`server` is the address without a path, e.g. `http://127.0.0.1:8080`. An async context manager."""

    def __init__(self, server: str, store: StateStore, state: State, options: Options) -> None:
        self.server = checked_address(server)
        self.state = state
        self._store = store
        self._options = options
        self._renewing = trio.Lock()
        self._renew_before_seconds = options.renew_before_seconds
        self._http: httpx.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server!r}, device_id={self.state.device_id!r})"

    async def __aenter__(self) -> Self:
        import httpx  # here, because it takes a tenth of a second that `--help` should not pay

        options = self._options
        self._http = httpx.AsyncClient(
            base_url=self.server,
            transport=options.transport,
            verify=options.ssl_context if options.ssl_context is not None else True,
            timeout=None,  # one deadline over the whole call instead: see `_exchange`
            headers={"user-agent": "gearlink-sdk", "accept": JSON},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            with trio.move_on_after(self._options.close_seconds_max, shield=True):
                await self._http.aclose()

    @property
    def now(self) -> float:
        """The time by this client's clock, in seconds since the epoch."""
        return self._options.wall()

    # --- calls --------------------------------------------------------------------------------------------------------

    async def call(
        self,
        method: str,
        path: str,
        form: type[T] | None,
        body: msgspec.Struct | bytes | None = None,
        *,
        params: dict[str, Any] | None = None,
        media_type: str = JSON,
        patience: float = 0.0,
    ) -> T:
        """One call with the access token, e.g. for a route that has no method here. `form` is what it answers: None for
        nothing, bytes for what is no JSON. A body of bytes is sent as `media_type`. `patience` are seconds that the server
        was asked to wait, on top of `request_seconds_max`. Raises Refused or Unreachable."""
        token = await self.access_token()
        try:
            return await self._exchange(method, path, form, body, params, token, media_type, patience)
        except Refused as refused:
            if refused.status != 401:
                raise
        token = await self.access_token(rejected=token)
        return await self._exchange(method, path, form, body, params, token, media_type, patience)

    def items(self, path: str, form: type[T], *, position: str = "cursor", **params: Any) -> Items[T]:
        """The list at `path`, whose items have this form; parameters that are None are left out. `position` is the
        parameter that takes what a page says comes next."""
        given = {key: value for key, value in params.items() if value is not None}
        return Items(partial(self.call, "GET", path, Page[form]), given, position)  # type: ignore[valid-type]

    async def _open(self, method: str, path: str, form: type[T], body: msgspec.Struct) -> T:
        return await self._exchange(method, path, form, body, None, None)

    async def _exchange(
        self,
        method: str,
        path: str,
        form: type[T] | None,
        body: msgspec.Struct | bytes | None,
        params: dict[str, Any] | None,
        token: str | None,
        media_type: str = JSON,
        patience: float = 0.0,
    ) -> T:
        import httpx

        if self._http is None:
            raise RuntimeError("use `async with` on the client first")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        if body is not None:
            headers["content-type"] = media_type
        if form is bytes:
            headers["accept"] = "*/*"
        content = body if body is None or isinstance(body, bytes) else encoded(body)
        request = self._http.build_request(method, API + path, params=params, content=content, headers=headers)
        try:
            with trio.fail_after(self._options.request_seconds_max + patience):
                response = await self._http.send(request, stream=True)
                try:
                    data = await self._read(response)
                finally:
                    await response.aclose()
        except trio.TooSlowError:
            raise Unreachable(f"{self.server} does not answer") from None
        except (httpx.TransportError, httpx.DecodingError, OSError) as error:
            raise Unreachable(f"cannot reach {self.server}: {reason(error)}") from error
        if not 200 <= response.status_code < 300:
            raise refusal(response.status_code, data, response.headers)
        return self._decoded(data, form)

    def _decoded(self, data: bytes, form: type[T] | None) -> T:
        if form is None:
            return None  # type: ignore[return-value]
        if form is bytes:
            return data  # type: ignore[return-value]
        try:
            return msgspec.json.decode(data, type=form)
        except (msgspec.DecodeError, UnicodeError):
            raise Unreachable(f"{self.server} does not answer like a GearLink server") from None

    async def _read(self, response: "httpx.Response") -> bytes:
        data = bytearray()
        async with aclosing(response.aiter_bytes()) as chunks:  # type: ignore[type-var]  # it is a generator
            async for chunk in chunks:
                data += chunk
                if len(data) > self._options.answer_bytes_max:
                    raise Unreachable(f"the answer of {self.server} is too long")
        return bytes(data)

    # --- tokens -------------------------------------------------------------------------------------------------------

    @property
    def signed_in(self) -> bool:
        return self.state.refresh_token is not None

    async def access_token(self, *, rejected: str | None = None) -> str:
        """An access token that is good for a while yet; a new one if it is `rejected` or runs out soon. Raises Refused
        (`not-authenticated` or `invalid-refresh-token`: sign in again) or Unreachable."""
        if (token := self._good_token(rejected)) is not None:
            return token
        async with self._renewing:
            if (token := self._good_token(rejected)) is not None:
                return token
            # The server ends the whole session if a refresh token comes twice, so its successor must not get lost: no
            # cancellation between presenting it and saving what came back.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * self._options.request_seconds_max):
                return await self._renew(rejected)
        raise Unreachable("the token could not be renewed in time")

    @property
    def token_seconds_left(self) -> float:
        """Until the access token has to be renewed; 0 if now."""
        left = self.state.access_expires_at / 1000 - self._options.wall() - self._renew_before_seconds
        return max(left, 0.0) if self.state.access_token is not None else 0.0

    def _good_token(self, rejected: str | None) -> str | None:
        token = self.state.access_token
        return token if token is not None and token != rejected and self.token_seconds_left > 0 else None

    async def _renew(self, rejected: str | None) -> str:
        async with self._store.exclusive():
            saved = await self._store.load()
            if saved is not None and saved.generation > self.state.generation:
                self.state.adopt_identity(saved)  # another process of this device was quicker
                if (token := self._good_token(rejected)) is not None:
                    return token
            if self.state.refresh_token is None:
                raise Refused("not-authenticated", 401, "Sign in first")
            body = calls.RefreshForm(refresh_token=self.state.refresh_token)
            pair = await self._open("POST", "/auth/refresh", calls.TokenPair, body)
            await self._keep_tokens(pair)
            return pair.access_token

    async def _keep_tokens(self, pair: calls.TokenPair) -> None:
        state = self.state
        state.access_token, state.refresh_token = pair.access_token, pair.refresh_token
        state.access_expires_at = int((self._options.wall() + pair.expires_in_seconds) * 1000)
        # A token whose whole life is shorter than the margin would else be renewed at every call.
        self._renew_before_seconds = min(self._options.renew_before_seconds, pair.expires_in_seconds / 4)
        state.generation += 1
        state.server = self.server
        await self._store.save(state)

    async def _forget_tokens(self) -> None:
        self.state.access_token = self.state.refresh_token = None
        self.state.generation += 1
        await self._store.save(self.state)


def segment(text: str) -> str:
    """`text` as one segment of a path (RFC 3986 §3.3): an id that is none cannot lead to another call."""
    return quote(text, safe="")
