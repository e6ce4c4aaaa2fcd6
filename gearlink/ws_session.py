"""One guest's life on a WebSocket: authenticate, catch up, talk, leave.

The first frame has to be `auth`. Then three things go on at once, all inside one nursery: this task reads frames, one task
sends what the outbox holds, and for a while one reads the missed events from the log. A refused frame is answered and never
closes the socket; an unreadable one does when it repeats, and so does a flood. Whatever happens here happens to this guest
alone. The rules are in the domain: a handler decodes, makes one call and answers.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import trio
from msgspec import UNSET, UnsetType
from trio_websocket import ConnectionClosed, WebSocketConnection

from config import limits
from gearlink import protocol
from gearlink.accounts import Actor
from gearlink.broker import Typing
from gearlink.catchup import resume
from gearlink.clock import Milliseconds, rfc3339
from gearlink.domain import Domain
from gearlink.doorway import Doorway
from gearlink.errors import (
    FLOOD,
    INTERNAL_ERROR,
    INVALID_REQUEST,
    NOT_AUTHENTICATED,
    RATE_LIMITED,
    RESTARTING,
    STORAGE_FAILED,
    STORAGE_FULL,
    UNREADABLE_FRAME,
    Refusal,
)
from gearlink.hub import Session
from gearlink.journal import Metrics, logger
from gearlink.messages import Accepted
from gearlink.outbox import Outbox
from gearlink.pressure import Load
from gearlink.rights import Right, enter
from gearlink.streams import GuestStream
from gearlink.throttle import Throttle
from gearlink.ws_frames import FRAMES
from storage.store import StoreBroken, StoreError, StoreFull

_log = logger("websocket")
CLOSE_INTERNAL_ERROR = 1011  # RFC 6455 §7.4.1
CLOSE_UNREADABLE, CLOSE_NOT_AUTHENTICATED = 4400, 4401
_REFUSALS_FORGIVEN_PER_SECOND = 5.0  # of `limits.REFUSED_FLOOD_MAX` rate-limited frames
_FLOOD_MS = 10_000  # in which fifty refusals are forgiven
_FRAMES_PER_SECOND = 2000.0  # of any kind, from one socket; over it the socket is read more slowly, nothing is refused


async def host(websocket: WebSocketConnection, stream: GuestStream, doorway: Doorway, address: str) -> None:
    """Serves one socket until either side ends it; `address` is as in `Actor`. Raises nothing that belongs to the peer."""
    try:
        session, first = await _welcome(websocket, stream, doorway, address)
    except ConnectionClosed:
        return
    except Refusal as refusal:
        await _turn_away(websocket, refusal, doorway)
        return
    except StoreError as trouble:
        _log.error("websocket.storage", trouble=trouble)
        await _turn_away(websocket, Refusal(STORAGE_FAILED, retry_after_seconds=5), doorway)
        return
    stream.settled()
    guest = _Guest(websocket, session, doorway)
    guest.answer_auth(first)  # before anything else can be put into the outbox
    try:
        since = 0
        with suppress(StoreError):  # reading goes on without this, also where there is no room
            since = await doorway.domain.accounts.connected_at(session.actor)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, websocket, session, nursery.cancel_scope, doorway.metrics)
            nursery.start_soon(guest.catch_up, first, since)
            await guest.listen()
            nursery.cancel_scope.cancel(reason="the peer left")
    finally:
        doorway.hub.leave(session)


async def _welcome(
    websocket: WebSocketConnection, stream: GuestStream, doorway: Doorway, address: str
) -> tuple[Session, protocol.Auth]:
    """Reads the `auth` frame. Raises Refusal, with `not-authenticated` if it does not come in time."""
    with trio.move_on_after(doorway.auth_seconds) as waiting:
        with doorway.hub.vestibule(waiting):
            frame = _decode(await websocket.get_message())
        if not isinstance(frame, protocol.Auth):
            raise Refusal(NOT_AUTHENTICATED, "the first frame has to be `auth`")
        actor = await doorway.domain.accounts.authenticate(frame.access_token, address)
        outbox = Outbox(stream, doorway.hub.flusher, doorway.outbox_bytes_max)
        session = Session(actor, outbox, stream)
        doorway.hub.enter(session)
        return session, frame
    if doorway.hub.draining:
        raise Refusal(RESTARTING)
    raise Refusal(NOT_AUTHENTICATED, f"no `auth` frame within {doorway.auth_seconds:g} seconds")


def _decode(data: str | bytes) -> protocol.AnyClientFrame:
    """Raises Refusal `unreadable-frame` for a binary frame (the subprotocol has none) and as `decode_client` does."""
    if isinstance(data, bytes):
        raise Refusal(UNREADABLE_FRAME)
    return protocol.decode_client(data)


async def _turn_away(websocket: WebSocketConnection, refusal: Refusal, doorway: Doorway) -> None:
    doorway.metrics.websocket_errors.labels(refusal.code).inc()
    with trio.move_on_after(limits.CLOSE_SECONDS_MAX):
        try:
            await websocket.send_message(protocol.encode(_error(refusal)).decode())
            await _say_goodbye(websocket, refusal.code, refusal.retry_after_seconds or 0)
            code = CLOSE_UNREADABLE if refusal.entry is INVALID_REQUEST else CLOSE_NOT_AUTHENTICATED
            await websocket.aclose(refusal.entry.close or code, refusal.code)
        except ConnectionClosed:
            pass


async def _pump(websocket: WebSocketConnection, session: Session, guest: trio.CancelScope, metrics: Metrics) -> None:
    """Sends until the outbox is closed, then closes the socket with the code that says why."""
    try:
        await session.outbox.run()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        guest.cancel(reason="the peer is gone")
        return
    farewell = session.farewell
    if farewell is not None:
        metrics.websocket_errors.labels(farewell.code).inc()
        # Shielded: the reader ends as soon as we close, and a socket that is closed while the peer still sends is reset,
        # which may overtake the close code on its way (RFC 6455 §7.1.1).
        with trio.move_on_after(limits.CLOSE_SECONDS_MAX, shield=True):
            if session.outbox.overflowed:  # whose goodbye went with all that it was not sent
                await _say_goodbye(websocket, farewell.code, 0)
            await websocket.aclose(farewell.close or CLOSE_INTERNAL_ERROR, farewell.code)
    guest.cancel(reason="the socket was closed")


async def _say_goodbye(websocket: WebSocketConnection, reason: str, retry_after_seconds: float) -> None:
    goodbye = protocol.Goodbye(reason=reason, retry_after_ms=int(retry_after_seconds * 1000))
    with suppress(ConnectionClosed):
        await websocket.send_message(protocol.encode(goodbye).decode())


def _whole(seconds: float) -> int | float:
    """Strict clients read an integer where there is one."""
    return int(seconds) if seconds == int(seconds) else seconds


def _error(
    refusal: Refusal, ref: str | UnsetType | None = UNSET, temp_id: str | UnsetType | None = UNSET
) -> protocol.Error:
    wait = refusal.retry_after_seconds
    return protocol.Error(
        code=refusal.code,
        detail=refusal.detail,
        retryable=refusal.entry.retryable,
        retry_after_ms=UNSET if wait is None else int(wait * 1000) + 1,
        ref=UNSET if ref is None else ref,
        temp_id=UNSET if temp_id is None else temp_id,
        **refusal.devices,
    )


def as_refusal(trouble: Exception) -> Refusal | None:
    """What the peer is told of a refused or failed operation; None for a bug."""
    match trouble:
        case Refusal():
            return trouble
        case StoreFull():
            return Refusal(STORAGE_FULL, retry_after_seconds=5)
        case StoreBroken():
            return Refusal(STORAGE_FAILED, retry_after_seconds=5)
    return None


class _Guest:
    """The reading side of one session, and the state that only its task touches."""

    def __init__(self, websocket: WebSocketConnection, session: Session, doorway: Doorway) -> None:
        self._websocket, self._session, self._doorway = websocket, session, doorway
        self._outbox = session.outbox
        self._waiting = 0  # sends that are on their way to the disk
        self._window = trio.Event()
        self._unreadable = 0
        self._refusals = Throttle("refusals", _REFUSALS_FORGIVEN_PER_SECOND, limits.REFUSED_FLOOD_MAX, keys_max=1)
        self._frames = Throttle("frames", _FRAMES_PER_SECOND, _FRAMES_PER_SECOND, keys_max=1)
        self._typing = Throttle("typing", 5, 10, keys_max=1000)
        self._received = doorway.metrics.websocket_received
        handlers: dict[type[Any], Callable[[Any], Awaitable[None]]] = {
            protocol.Send: self._send,
            protocol.TypingStart: self._type,
            protocol.TypingStop: self._type,
            protocol.WatchPresence: self._watch,
            protocol.Ping: self._ping,
            protocol.Auth: self._renew,
        }
        for route in FRAMES:
            if route.handler is not None:
                handlers[route.form] = partial(route.handler, self)
        self._handlers = handlers

    @property
    def actor(self) -> Actor:
        """Who it is, as the token last said."""
        return self._session.actor

    @property
    def domain(self) -> Domain:
        """The rules that handlers call."""
        return self._doorway.domain

    async def listen(self) -> None:
        """Reads frames until the peer leaves or the session ends."""
        while True:
            try:
                data = await self._websocket.get_message()
            except ConnectionClosed:
                return
            self._received.inc()
            if wait := self._frames.take(0):
                await trio.sleep(wait)
            if self._session.ending is None:
                await self._handle(data)

    async def _handle(self, data: str | bytes) -> None:
        try:
            frame = _decode(data)
            self._unreadable = 0  # it takes several in a row
            await self._handlers[type(frame)](frame)
        except Refusal as refusal:
            self._refuse(refusal, *protocol.frame_hints(data))
        except Exception as trouble:  # noqa: BLE001 - a bug in one frame's handling ends this session, loudly
            if (known := as_refusal(trouble)) is not None:
                self._refuse(known, *protocol.frame_hints(data))
                return
            _log.error("websocket.bug", trouble=trouble)
            self._refuse(Refusal(INTERNAL_ERROR), *protocol.frame_hints(data))
            self._session.end(INTERNAL_ERROR)

    def _refuse(self, refusal: Refusal, ref: str | UnsetType | None, temp_id: str | UnsetType | None) -> None:
        self._doorway.metrics.websocket_errors.labels(refusal.code).inc()
        self._session.say(_error(refusal, ref, temp_id))
        if refusal.entry is UNREADABLE_FRAME:
            self._unreadable += 1
            if self._unreadable >= limits.MALFORMED_FRAMES_MAX:
                self._session.end(UNREADABLE_FRAME)
        if refusal.entry is RATE_LIMITED and self._refusals.take(0):
            self._session.end(FLOOD, retry_after_ms=_FLOOD_MS)

    # --- authentication and resume -----------------------------------------------------------------------------------

    def answer_auth(self, frame: protocol.Auth) -> None:
        self._session.say(
            protocol.AuthOk(
                user_id=self.actor.user_id,
                device_id=self.actor.device_id,
                epoch=self._doorway.store.epoch,
                heartbeat_seconds=_whole(self._doorway.hub.heartbeat_seconds),
                server_time=rfc3339(self._doorway.clock.now()),
                ref=frame.ref,
            )
        )

    async def catch_up(self, frame: protocol.Auth, since: Milliseconds) -> None:
        """What was missed. Where the store cannot read it, the session ends and says so: the client comes back."""
        try:
            await resume(self._doorway, self._session, since, frame.epoch, frame.cursors)
            with suppress(StoreFull):
                await self.domain.accounts.seen(self.actor)  # not before: what it was not told it is told next time
        except StoreError as trouble:
            _log.error("websocket.storage", trouble=trouble)
            self._session.end(STORAGE_FAILED, retry_after_ms=5000)

    async def _renew(self, frame: protocol.Auth) -> None:
        """A fresh token on the open socket, of the same device."""
        actor = await self._doorway.domain.accounts.authenticate(frame.access_token)
        if (actor.user_id, actor.device_id) != (self.actor.user_id, self.actor.device_id):
            raise Refusal(INVALID_REQUEST, "this token is another device's: open another socket")
        if actor.expires_at > self.actor.expires_at or actor.session_id != self.actor.session_id:
            self._session.actor = replace(self.actor, expires_at=actor.expires_at, session_id=actor.session_id)
        self.answer_auth(frame)

    # --- what clients say --------------------------------------------------------------------------------------------

    async def _send(self, frame: protocol.Send) -> None:
        while self._waiting >= limits.SEND_WINDOW_MAX:
            self._window = trio.Event()
            await self._window.wait()

        def done(ended: Accepted | Exception) -> None:
            self._waiting -= 1
            self._window.set()
            if isinstance(ended, Exception):
                if (refusal := as_refusal(ended)) is None:
                    _log.error("message.bug", trouble=ended)
                    refusal = Refusal(INTERNAL_ERROR)
                self._refuse(refusal, frame.ref, frame.temp_id)
                return
            ack = ended.ack()
            ack.ref = frame.ref
            self._session.say(ack)

        self._waiting += 1
        try:
            await self._doorway.domain.messages.submit(self.actor, frame.conversation_id, frame, done)
        except Refusal:
            self._waiting -= 1
            raise

    async def _type(self, frame: protocol.TypingStart | protocol.TypingStop) -> None:
        self._typing.check(frame.conversation_id)
        if self._doorway.pressure.sheds(Load.TYPING):  # nobody misses it: what was told before ends by itself
            self._doorway.pressure.shed(Load.TYPING)
            self.confirm(frame)
            return
        await enter(self._doorway.store, self.actor.user_id, frame.conversation_id, Right.SEND)
        active = isinstance(frame, protocol.TypingStart)
        self._doorway.broker.publish([Typing(frame.conversation_id, self.actor.user_id, active)])
        self.confirm(frame)

    async def _watch(self, frame: protocol.WatchPresence) -> None:
        await self._doorway.domain.presence.watch(self._session, frame.user_ids)
        self.confirm(frame)

    async def _ping(self, frame: protocol.Ping) -> None:
        self._session.say(protocol.Pong(server_time=rfc3339(self._doorway.clock.now()), ref=frame.ref))

    def done(self, frame: protocol.ClientFrame) -> None:
        """An `ok`: it was done, and is stored."""
        self._session.say(protocol.Ok(ref=frame.ref))

    def confirm(self, frame: protocol.ClientFrame) -> None:
        """An `ok` for frames that are only noted, to those who asked for one with a `ref`."""
        if frame.ref is not UNSET:
            self._session.say(protocol.Ok(ref=frame.ref))
