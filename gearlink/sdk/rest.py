"""The calls over HTTP: signing in, people, conversations, history; and the tokens, renewed before they run out.

Promises: a refresh token is presented once and its successor is saved before anybody uses it, whatever is cancelled
meanwhile; a call that is answered 401 is tried once more with a new token; every wait has a deadline and every answer a
size limit. Problems become `Refused`, trouble on the way `Unreachable`. It knows nothing of sockets or events.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import msgspec
import trio

from config.limits import HASHES_PER_CALL_MAX, PAGE_DEFAULT
from gearlink import calls
from gearlink.protocol import (
    ConversationType,
    ConversationView,
    DeliveryView,
    Device,
    DeviceType,
    Encryption,
    MemberView,
    MessageView,
    Page,
    Role,
    User,
)
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.options import Options
from gearlink.sdk.state import State, StateStore
from gearlink.sdk.translate import checked_address, encoded, phone_hash, reason, refusal

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")
API = "/api/v1"


class Rest:
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
            headers={"user-agent": "gearlink-sdk", "accept": "application/json"},
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            with trio.move_on_after(self._options.close_seconds_max, shield=True):
                await self._http.aclose()

    # --- signing in ---------------------------------------------------------------------------------------------------

    @property
    def signed_in(self) -> bool:
        return self.state.refresh_token is not None

    async def request_code(self, phone_number: str) -> calls.VerifyRequested:
        """Asks the server to send a code to `phone_number` (E.164)."""
        body = calls.VerifyRequest(phone_number=phone_number)
        return await self._open("POST", "/auth/verify/request", calls.VerifyRequested, body)

    async def confirm(
        self,
        verification_id: str,
        code: str,
        device_name: str,
        device_type: DeviceType,
        device_id: str | None = None,
        invite_code: str | None = None,
    ) -> calls.SignedIn:
        """Signs this device in; the tokens are kept in the state, and saved. `device_id` names a device of this user
        that signs in again. Raises Refused: `wrong-code`, `invite-required`, `registration-closed`, `too-many-devices`."""
        device = calls.DeviceForm(name=device_name, type=device_type, device_id=device_id)
        body = calls.VerifyConfirm(verification_id=verification_id, code=code, device=device, invite_code=invite_code)
        signed = await self._open("POST", "/auth/verify/confirm", calls.SignedIn, body)
        state = self.state
        if (state.user_id, state.device_id) != (signed.user.id, signed.device.id):
            state.epoch, state.cursors = None, {}
        state.user_id, state.device_id = signed.user.id, signed.device.id
        await self._keep_tokens(signed)
        return signed

    async def logout(self) -> None:
        """Ends this device's session on the server and forgets the tokens, also if the session had ended before."""
        try:
            await self.call("POST", "/auth/logout", None)
        except Refused as refused:
            if refused.status != 401:
                raise
        self.state.access_token = self.state.refresh_token = None
        self.state.generation += 1
        await self._store.save(self.state)

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

    # --- people and devices -------------------------------------------------------------------------------------------

    async def devices(self) -> list[Device]:
        return [device async for device in self._items("/devices", Device)]

    async def remove_device(self, device_id: str) -> None:
        await self.call("DELETE", f"/devices/{device_id}", None)

    async def me(self) -> User:
        return await self.call("GET", "/users/me", User)

    async def change_profile(self, form: calls.ProfileForm) -> User:
        """Changes the fields of `form` that are set. Raises Refused: `username-taken`, `invalid-request`."""
        return await self.call("PATCH", "/users/me", User, form)

    async def user(self, user_id: str) -> User:
        return await self.call("GET", f"/users/{user_id}", User)

    async def user_named(self, username: str) -> User | None:
        page = await self.call("GET", "/users", Page[User], params={"username": username})
        return page.items[0] if page.items else None

    async def discover(self, phone_numbers: Iterable[str]) -> dict[str, User]:
        """Which of these numbers (E.164) have an account here. The server is told hashes only."""
        by_hash = {phone_hash(number): number for number in phone_numbers}
        hashes, found = list(by_hash), dict[str, User]()
        for start in range(0, len(hashes), HASHES_PER_CALL_MAX):
            form = calls.DiscoverForm(hashes=hashes[start : start + HASHES_PER_CALL_MAX])
            page = await self.call("POST", "/contacts/discover", Page[calls.Discovery], form)
            found.update({by_hash[hit.hash]: hit.user for hit in page.items if hit.hash in by_hash})
        return found

    # --- conversations ------------------------------------------------------------------------------------------------

    async def create_conversation(
        self,
        kind: ConversationType,
        member_ids: Sequence[str] = (),
        *,
        name: str | None = None,
        description: str | None = None,
        encryption: Encryption | None = None,
    ) -> ConversationView:
        """A new conversation; a second `direct` with the same person answers the first one."""
        form = calls.ConversationForm(
            type=kind, member_ids=list(member_ids), name=name, description=description, encryption=encryption
        )
        return await self.call("POST", "/conversations", ConversationView, form)

    def conversations(self) -> AsyncIterator[ConversationView]:
        """All of the caller's, newest activity first."""
        return self._items("/conversations", ConversationView)

    async def conversation(self, conversation_id: str) -> ConversationView:
        return await self.call("GET", f"/conversations/{conversation_id}", ConversationView)

    async def change_conversation(self, conversation_id: str, form: calls.ConversationChange) -> ConversationView:
        return await self.call("PATCH", f"/conversations/{conversation_id}", ConversationView, form)

    async def delete_conversation(self, conversation_id: str) -> None:
        await self.call("DELETE", f"/conversations/{conversation_id}", None)

    def members(self, conversation_id: str) -> AsyncIterator[MemberView]:
        return self._items(f"/conversations/{conversation_id}/members", MemberView)

    async def add_members(self, conversation_id: str, user_ids: Sequence[str], role: Role = "member") -> None:
        form = calls.MembersForm(user_ids=list(user_ids), role=role)
        await self.call("POST", f"/conversations/{conversation_id}/members", Page[MemberView], form)

    async def change_member(self, conversation_id: str, user_id: str, role: Role) -> MemberView:
        path = f"/conversations/{conversation_id}/members/{user_id}"
        return await self.call("PATCH", path, MemberView, calls.MemberChange(role=role))

    async def remove_member(self, conversation_id: str, user_id: str) -> None:
        """Takes a member out; oneself to leave."""
        await self.call("DELETE", f"/conversations/{conversation_id}/members/{user_id}", None)

    def history(
        self, conversation_id: str, *, before: int | None = None, after: int | None = None, limit: int = PAGE_DEFAULT
    ) -> "History":
        """Pages of messages: newest first, below `before`; or, with `after`, oldest first, above it."""
        if before is not None and after is not None:
            raise ValueError("give before or after, not both")
        path = f"/conversations/{conversation_id}/messages"
        return History(partial(self.call, "GET", path, Page[MessageView]), before, after, limit)

    async def message(self, message_id: str) -> MessageView:
        return await self.call("GET", f"/messages/{message_id}", MessageView)

    def deliveries(self, message_id: str) -> AsyncIterator[DeliveryView]:
        """How far a message has come, for each member."""
        return self._items(f"/messages/{message_id}/deliveries", DeliveryView)

    # --- one exchange -------------------------------------------------------------------------------------------------

    def _items(self, path: str, form: type[T]) -> "Items[T]":
        return Items(partial(self.call, "GET", path, Page[form]))  # type: ignore[valid-type]

    async def call(
        self,
        method: str,
        path: str,
        form: type[T] | None,
        body: msgspec.Struct | None = None,
        *,
        params: dict[str, Any] | None = None,
    ) -> T:
        """One call with the access token, e.g. for a route that has no method here. `form` is what it answers (None:
        nothing). Raises Refused or Unreachable."""
        token = await self.access_token()
        try:
            return await self._exchange(method, path, form, body, params, token)
        except Refused as refused:
            if refused.status != 401:
                raise
        token = await self.access_token(rejected=token)
        return await self._exchange(method, path, form, body, params, token)

    async def _open(self, method: str, path: str, form: type[T], body: msgspec.Struct) -> T:
        return await self._exchange(method, path, form, body, None, None)

    async def _exchange(
        self,
        method: str,
        path: str,
        form: type[T] | None,
        body: msgspec.Struct | None,
        params: dict[str, Any] | None,
        token: str | None,
    ) -> T:
        import httpx

        if self._http is None:
            raise RuntimeError("use `async with` on the client first")
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        if body is not None:
            headers["content-type"] = "application/json"
        content = None if body is None else encoded(body)
        request = self._http.build_request(method, API + path, params=params, content=content, headers=headers)
        try:
            with trio.fail_after(self._options.request_seconds_max):
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
        if form is None:
            return None  # type: ignore[return-value]
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


class Items(Generic[T]):
    """The items of a list, fetched page by page as they are asked for. Not a generator: it may be left at any point."""

    __slots__ = ("_fetch", "_items", "_next")

    def __init__(self, fetch: Callable[..., Awaitable[Page[T]]]) -> None:
        self._fetch = fetch
        self._items: deque[T] = deque()
        self._next: dict[str, Any] | None = {}

    def __aiter__(self) -> "Items[T]":
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._next is None:
                raise StopAsyncIteration
            page = await self._fetch(params=self._next)
            self._items.extend(page.items)
            self._next = None if page.next is None else {"cursor": page.next}
        return self._items.popleft()


class History:
    """The pages of a conversation's past, in one direction. Like `Items`, it may be left at any point."""

    __slots__ = ("_fetch", "_limit", "_more", "_name", "_position")

    def __init__(
        self, fetch: Callable[..., Awaitable[Page[MessageView]]], before: int | None, after: int | None, limit: int
    ) -> None:
        self._fetch = fetch
        self._name, self._position = ("before", before) if after is None else ("after", after)
        self._limit = limit
        self._more = True

    def __aiter__(self) -> "History":
        return self

    async def __anext__(self) -> list[MessageView]:
        if not self._more:
            raise StopAsyncIteration
        params = {"limit": self._limit}
        if self._position is not None:
            params[self._name] = self._position
        page = await self._fetch(params=params)
        if not page.items:
            self._more = False
            raise StopAsyncIteration
        items = sorted(page.items, key=lambda message: message.sequence_number, reverse=self._name == "before")
        self._more, self._position = page.next is not None, items[-1].sequence_number
        return items
