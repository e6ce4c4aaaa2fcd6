"""The client: one device of one user, its calls over HTTP and its socket, kept alive for as long as a block lasts.

    async with open_client("http://127.0.0.1:8080", FileState("ann.json")) as client, client.connect():
        await client.send(conversation_id, "hello")
        async for event in client.events(): ...

Promises: a message is sent until it is answered, always under one tempId; events come once and in order; the socket is
opened again after every loss, politely; every task lives inside of `connect()` or `open_client()` and ends with it. What
is lost with the process is at most what its caller had not taken. The parts: `rest` calls, `connection` one socket,
`outbox` what is to be said, `inbox` what was heard, `state` what is remembered.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import trio

from config.limits import AUTH_SECONDS_MAX, WATCHED_MAX
from gearlink.protocol import (
    Auth,
    AuthOk,
    ClientFrame,
    Error,
    Goodbye,
    SendAck,
    SyncDone,
    TypingStart,
    TypingStop,
    WatchPresence,
)
from gearlink.sdk.connection import NOT_AUTHENTICATED_CODE, TOO_BIG_CODE, Connection, Lost, UnknownEvent, hold
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.inbox import Event, Inbox, reloads
from gearlink.sdk.options import Backoff, Options
from gearlink.sdk.outbox import told_seconds
from gearlink.sdk.polling import Polled
from gearlink.sdk.sending import Sending
from gearlink.sdk.state import MemoryState, State, StateStore

REJECTED_TOKENS_MAX = 2  # sockets in a row that refuse a token fresh from the server: trying on would not help
RETRY_SECONDS = 1.0
POLL_SECONDS = 25.0
WATCH_REF = "watch"  # so that a refusal of it is known from others

OnChange = Callable[[bool, str], None]


class Events:
    """What `Client.events()` gives: an endless async iterator. Leaving it early loses nothing."""

    __slots__ = ("_inbox",)

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> "Events":
        return self

    async def __anext__(self) -> Event:
        return await self._inbox.next()

    def hold(self) -> None:
        """The event that was given last is not dealt with yet: leaving `connect()` does not take it, until `release`."""
        self._inbox.is_held = True

    def release(self) -> None:
        """It is dealt with."""
        self._inbox.is_held = False


class Client(Sending):
    """Made by `open_client`. The calls over HTTP work at once, sending and events inside of `connect()`."""

    def __init__(self, server: str, store: StateStore, state: State, options: Options) -> None:
        super().__init__(server, store, state, options)
        self._typing: dict[str, bool] = {}
        self._watched: list[str] = []
        self._watch_at: float | None = None  # when it is to be said
        self._backoff = Backoff(options)
        self._online: Connection | None = None
        self._goodbye: float | None = None
        self._rejected_tokens = 0
        self._leaving = False
        self._told = (False, "")
        self._on_change: OnChange = lambda online, detail: None

    # --- talking ------------------------------------------------------------------------------------------------------

    @property
    def online(self) -> bool:
        """Whether an authenticated socket is open now."""
        return self._online is not None

    @property
    def connected(self) -> bool:
        """Whether `connect()` is open, with a socket or waiting for one."""
        return self._inbox.open

    @property
    def epoch(self) -> str:
        """The epoch of the server's store, as this client heard it last; empty if it never did."""
        return self._inbox.epoch or self.state.epoch or ""

    @property
    def options(self) -> Options:
        """What this client was opened with."""
        return self._options

    async def wait_online(self) -> None:
        """Waits for an authenticated socket. Raises Refused once this device is signed out."""
        self._require_connect()
        while self._online is None:
            if self._inbox.failure is not None:
                raise self._inbox.failure
            await self._inbox.changed()

    def events(self) -> Events:
        """What happens, in order: `gearlink.protocol` structs. An event counts as taken, and is acknowledged, when the
        next one is asked for or `connect()` is left without an error. Own messages of this device are not among them,
        except those that nobody waits for any more. `SyncDone` says that the past is over and what follows is live; with
        `complete` false the conversations in its `reload` have to be read again with `history`."""
        return Events(self._inbox)

    def mark_read(self, conversation_id: str, sequence_number: int) -> None:
        """The person has read up to here. Told to the server soon, and again after a lost socket."""
        self._require_connect()
        self._marks.read(conversation_id, sequence_number, trio.current_time())
        self._inbox.notify()

    def typing(self, conversation_id: str, active: bool = True) -> None:
        """The person types, or stopped. Forgotten if there is no socket now."""
        self._require_connect()
        if self._online is not None:
            self._typing[conversation_id] = active
            self._inbox.notify()

    def watch(self, user_ids: Sequence[str]) -> None:
        """Whose presence is told from now on, in place of those before: `protocol.Presence` says how it is, then each
        change. Told to the server on every new socket. Raises ValueError for more than `WATCHED_MAX`."""
        self._require_connect()
        if len(user_ids) > WATCHED_MAX:
            raise ValueError(f"at most {WATCHED_MAX} users can be watched")
        self._watched, self._watch_at = list(user_ids), trio.current_time()
        self._inbox.notify()

    def poll(self, wait_seconds: float = POLL_SECONDS) -> Polled:
        """`events()` for programs without a socket: see `Polled`. Not while `connect()` is open."""
        if self._inbox.open:
            raise RuntimeError("this client is connected: its events come from `events()`")
        return Polled(self, self._note_change, wait_seconds)

    @contextlib.asynccontextmanager
    async def connect(self, on_change: OnChange | None = None) -> AsyncIterator["Client"]:
        """Keeps a socket open until the block is left. `on_change(online, reason)` hears of every change."""
        if self._inbox.open:
            raise RuntimeError("this client is connected already")
        self._on_change = on_change or self._on_change
        self._inbox.load()
        self._leaving = False
        self._inbox.open, self._inbox.failure = True, None
        trouble: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_connected)
                try:
                    yield self
                except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
                    trouble = error
                else:
                    await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            self._inbox.open = False
            self._inbox.notify()
        if trouble is not None:
            raise trouble

    # --- keeping the socket -------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        while True:
            while self._stalled():
                await self._inbox.changed()
            self._goodbye = None
            token = None
            try:
                token = await self.access_token()
                lost = await hold(self.server, self._options, partial(self._live, token))
            except Unreachable as unreachable:
                lost = Lost(unreachable.detail, retry_after_seconds=unreachable.retry_after_seconds)
            except Refused as refused:
                if not refused.retryable:
                    self._fail(refused)
                    return
                lost = Lost(refused.detail, retry_after_seconds=refused.retry_after_seconds)
            if self._leaving:
                return
            if self._ended(lost, token):
                return
            if not lost.at_once:
                told = lost.retry_after_seconds if self._goodbye is None else self._goodbye
                await trio.sleep(self._backoff.next(told))

    def _ended(self, lost: Lost, token: str | None) -> bool:
        """Draws the conclusions from a lost socket. True if there will be no other."""
        if not lost.at_once:
            self._tell(False, lost.detail)
        self._inbox.give_up_gaps()
        if lost.code == TOO_BIG_CODE:
            self._outbox.refuse_written("too-large", "The server does not take a frame of this size")
        if lost.code == NOT_AUTHENTICATED_CODE:
            if token is not None and token == self.state.access_token:
                self.state.access_token = None  # the next one comes from the server, or the session is over
            self._rejected_tokens += 1
            if self._rejected_tokens > REJECTED_TOKENS_MAX:
                self._fail(Refused("not-authenticated", 401, "The server does not accept this device any more"))
                return True
        return False

    def _fail(self, refused: Refused) -> None:
        self._inbox.failure = refused
        self._outbox.fail(refused)
        self._tell(False, refused.detail)
        self._inbox.notify()

    def _tell(self, online: bool, detail: str) -> None:
        if (online, detail) != self._told:
            self._told = (online, detail)
            self._on_change(online, detail)

    def _stalled(self) -> bool:
        """A socket now could neither deliver (the caller does not read) nor carry anything."""
        return self._inbox.full and not len(self._outbox)

    async def _live(self, token: str, connection: Connection) -> None:
        """The whole life of one socket; ends by raising Lost."""
        greeting = await self._authenticate(connection, token)
        now = trio.current_time()
        self._inbox.begin(greeting.epoch)
        self._outbox.begin()
        self._marks.begin(now)
        self._typing.clear()
        self._watch_at = now if self._watched else None
        self._online = connection
        self._tell(True, "")
        self._inbox.notify()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._talk, connection)
                nursery.start_soon(connection.pulse, max(greeting.heartbeat_seconds, 1.0))
                nursery.start_soon(self._renew_on_socket, connection, token)
                nursery.start_soon(self._listen, connection)
        finally:
            self._online = None

    async def _authenticate(self, connection: Connection, token: str) -> AuthOk:
        await connection.say(Auth(access_token=token, epoch=self._inbox.epoch or None, cursors=self._inbox.cursors()))
        with trio.move_on_after(AUTH_SECONDS_MAX):
            while True:
                frame = await connection.hear()
                if isinstance(frame, AuthOk):
                    self._rejected_tokens = 0
                    return frame
                if isinstance(frame, Error) and frame.code != "not-authenticated":
                    raise Lost(frame.detail, retry_after_seconds=told_seconds(frame))
                self._notice(frame)
        raise Lost("the server does not answer the sign-in")

    async def _listen(self, connection: Connection) -> None:
        while True:
            connection.reading = False
            while self._stalled():
                await self._inbox.changed()
            connection.reading = True
            connection.heard_at = max(connection.heard_at, trio.current_time())
            frame = None
            with trio.CancelScope() as scope:
                if (deadline := self._inbox.gap_deadline()) is not None:
                    scope.deadline = deadline
                frame = await connection.hear()
            if frame is None:
                raise Lost("an event is missing: resuming", at_once=True)
            if isinstance(frame, SyncDone):
                self._inbox.synced(frame, await self._heads(frame))
                self._backoff.reset()
            elif isinstance(frame, Event | UnknownEvent):
                self._inbox.accept(frame)
            else:
                self._notice(frame)

    def _notice(self, frame: object) -> None:
        """Answers, and what concerns the socket itself."""
        if isinstance(frame, SendAck):
            self._outbox.acked(frame)
            self._inbox.own(frame.conversation_id, frame.sequence_number)
        elif isinstance(frame, Goodbye):
            self._goodbye = frame.retry_after_ms / 1000  # it closes the socket itself, after what it still has to say
        elif isinstance(frame, Error):
            if frame.code == "not-authenticated":
                raise Lost(frame.detail, code=NOT_AUTHENTICATED_CODE)
            now = trio.current_time()
            if isinstance(frame.temp_id, str):
                self._outbox.refuse(frame, now)
            elif frame.ref == WATCH_REF:
                self._watch_at = now + (told_seconds(frame) or RETRY_SECONDS) if frame.retryable else None
            elif frame.retryable:
                self._marks.again(now, told_seconds(frame) or RETRY_SECONDS)
            self._inbox.notify()

    async def _heads(self, frame: SyncDone) -> dict[str, int]:
        """Up to where the caller reloads what could not be replayed. One that is not in the list is not ours any more. Of an
        encrypted one that is as far as the replay went: what devices say to one another meanwhile is in no history."""
        wanted = set(reloads(frame))
        heads: dict[str, int] = {}
        if wanted:
            try:
                async for view in self.conversations():
                    if view.id not in wanted:
                        continue
                    head = view.sequence_number if view.encryption != "e2ee" else self._inbox.received(view.id)
                    if head is not None:
                        heads[view.id] = head
            except (Refused, Unreachable) as error:
                raise Lost(error.detail, retry_after_seconds=error.retry_after_seconds) from None
        return heads

    async def _talk(self, connection: Connection) -> None:
        """Says what there is to say, when it is due."""
        while True:
            if self._inbox.resume_due:
                raise Lost("catching up", at_once=True)
            now = trio.current_time()
            frames = self._due(now)
            for frame in frames:
                await connection.say(frame)
            if not frames:
                with trio.CancelScope(deadline=self._wake_at(now)):
                    await self._inbox.changed()

    def _due(self, now: float) -> list[ClientFrame]:
        frames = self._marks.take(now)
        typing, self._typing = self._typing, {}
        for conversation_id, active in typing.items():
            form = TypingStart if active else TypingStop
            frames.append(form(conversation_id=conversation_id))
        if self._watch_at is not None and self._watch_at <= now:
            self._watch_at = None
            frames.append(WatchPresence(user_ids=self._watched, ref=WATCH_REF))
        if self._goodbye is None and (send := self._outbox.next(now)) is not None:
            frames.append(send)
        return frames

    def _wake_at(self, now: float) -> float:
        times = [
            at for at in (self._marks.wake_at, self._outbox.wake_at, self._watch_at) if at is not None and at > now
        ]
        return min(times, default=float("inf"))

    async def _renew_on_socket(self, connection: Connection, shown: str) -> None:
        """Presents each new token before the old one runs out, so that a socket may live for days."""
        backoff = Backoff(self._options)
        while True:
            await trio.sleep(max(self.token_seconds_left, RETRY_SECONDS))
            try:
                token = await self.access_token()
            except Unreachable as unreachable:
                await trio.sleep(backoff.next(unreachable.retry_after_seconds))
                continue
            except Refused as refused:
                raise Lost(refused.detail, code=NOT_AUTHENTICATED_CODE) from None
            backoff.reset()
            if token != shown:
                await connection.say(Auth(access_token=token))
                shown = token

    async def _leave(self) -> None:
        """The block was left in peace: what the caller had counts as taken, and the marks are told if they can be."""
        self._leaving = True
        if not self._inbox.is_held:
            self._inbox.settle()
        connection = self._online
        if connection is None:
            return
        with trio.move_on_after(self._options.close_seconds_max):
            try:
                for frame in self._marks.take(trio.current_time(), all_now=True):
                    await connection.say(frame)
                await connection.close()
            except Lost:
                pass  # the next process resumes from the saved cursors

    # --- remembering --------------------------------------------------------------------------------------------------

    async def _keep_saved(self) -> None:
        """Saves the state soon after it changed, at most once in `save_every_seconds`."""
        while True:
            await self._unsaved.wait()
            await trio.sleep(self._options.save_every_seconds)
            await self._save()

    async def _save(self) -> None:
        self._unsaved = trio.Event()
        await self._store.save(self.state)

    async def _save_rest(self) -> None:
        if self._unsaved.is_set():
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self._options.save_seconds_max):
                await self._save()


@contextlib.asynccontextmanager
async def open_client(
    server: str | None = None, store: StateStore | None = None, options: Options | None = None
) -> AsyncIterator[Client]:
    """A client of `server` (an address such as `http://127.0.0.1:8080`; None: the one that the state remembers), which
    keeps its state in `store` (None: in memory). Raises ValueError if there is no usable address, or the one of the state
    is another one; OSError if the state cannot be read or saved."""
    store, options = store or MemoryState(), options or Options()
    state = await store.load() or State()
    if server is None and not state.server:
        raise ValueError("which server? Give its address")
    client = Client(server or state.server, store, state, options)
    if state.refresh_token is not None and state.server != client.server:
        raise ValueError(f"this state belongs to {state.server}")
    state.server = client.server
    trouble: Exception | None = None
    async with trio.open_nursery() as nursery, client:
        nursery.start_soon(client._keep_saved)
        try:
            yield client
        except Exception as error:  # noqa: BLE001 - raised below, outside of the nursery's group
            trouble = error
        finally:
            await client._save_rest()
        nursery.cancel_scope.cancel()
    if trouble is not None:
        raise trouble
