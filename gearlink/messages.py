"""Messages: sending one, and reading them back.

A send is one change in the store's writer: the idempotency key is looked up first, so a repeated `tempId` answers what it
answered before, whatever has happened since; then the caller's right; then the message gets its sequence number, and the
message, its index and its key are written together, and with them what hangs on it: whom it mentions, the thread that it
is a reply in, when it is to disappear. Nobody is told before that is on the disk. The hub hears of it from the store, not
from here. Nothing here knows sockets or HTTP.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from msgspec import structs

from config import limits
from gearlink import contents
from gearlink.accounts import Actor
from gearlink.calls import MessageForm, SentMessage
from gearlink.clock import DAY, Clock, Milliseconds, new_id, rfc3339
from gearlink.device_lists import DeviceLists, Place, Stale
from gearlink.errors import FORBIDDEN, MUST_BE_ENCRYPTED, STALE_DEVICES, Refusal, invalid
from gearlink.journal import Metrics
from gearlink.pressure import Load, Pressure
from gearlink.protocol import Send, SendAck
from gearlink.reading import is_expired, message_entry, shown
from gearlink.rights import Right, enter, holders, settings_of
from gearlink.sealing import SILENT, Sealing, sealed
from gearlink.threads import note_reply
from gearlink.throttle import Budget
from gearlink.views import ALL, DeviceRef, DoubleRatchetView, MessageView, Page, SenderKeyView
from gearlink.visibility import is_visible, visible_message
from storage.events import Letter, Message, Plain, Poll, Sealed, SilentMessage
from storage.records import (
    Amendment,
    Conversation,
    Due,
    Hidden,
    LogEntry,
    Member,
    Mention,
    MessageIndex,
    Sent,
    Undropped,
)
from storage.store import Outcome, Reads, Store, Transaction

Form = Send | MessageForm
EXPIRE, CLOSE_POLL = "expire", "close-poll"  # of `Due.what`


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the sender is told. `repeated` if this `tempId` had been accepted before."""

    sent: Sent
    repeated: bool

    def ack(self) -> SendAck:
        sent = self.sent
        return SendAck(
            temp_id=sent.temp_id,
            message_id=sent.message_id,
            conversation_id=sent.conversation_id,
            sequence_number=sent.sequence,
            created_at=rfc3339(sent.created_at),
        )


class _Place(NamedTuple):
    """Where a message comes to stand: its sender there, what it replies to, and how often it has been handed on."""

    conversation: Conversation
    member: Member
    quoted: LogEntry | None
    forwarded: int


class _From(NamedTuple):
    """The device that sends."""

    user_id: str
    device_id: str


class Messages:
    """The rules of messages over a store. One `budget` for all doors: a user has one."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        budget: Budget,
        pressure: Pressure,
        metrics: Metrics,
        device_lists: DeviceLists,
    ) -> None:
        self._store, self._clock, self._budget, self._pressure = store, clock, budget, pressure
        self._device_lists = device_lists
        self._accepted, self._repeated, self._refused = (
            metrics.message_send.labels(status).inc for status in ("accepted", "repeated", "refused")
        )
        self._observe_latency = metrics.message_send_latency.observe

    # --- sending -----------------------------------------------------------------------------------------------------

    async def submit(
        self, actor: Actor, conversation_id: str, form: Form, done: Callable[[Accepted | Exception], None]
    ) -> None:
        """Queues the message; `done` hears the outcome once it is durable. Waits only while the writer's queue is full, and
        for an encrypted one until it is known which devices the conversation has.

        Raises Refusal `overloaded`, `rate-limited` and `invalid-request` at once; the outcome may hold those of `send`.
        """
        started = perf_counter()
        change = self._admitted(actor, conversation_id, form)
        if form.encrypted is not None:
            await self._prepare(actor, conversation_id)

        def ended(outcome: Outcome[Accepted]) -> None:
            try:
                accepted = outcome.unwrap()
            except Exception as trouble:  # noqa: BLE001 - `done` is told
                self._refused()
                done(trouble)
            else:
                self._count(accepted, perf_counter() - started)
                done(accepted)

        await self._store.submit(change, ended)

    async def send(self, actor: Actor, conversation_id: str, form: MessageForm) -> SentMessage:
        """Returns once the message is durable; the same answer again for a `tempId` that was accepted before.

        Raises Refusal `overloaded`, `rate-limited`, `invalid-request`, `not-found`, `forbidden`, `refused-by-privacy`,
        `must-be-encrypted`, `stale-devices`; StoreFull.
        """
        started = perf_counter()
        change = self._admitted(actor, conversation_id, form)
        try:
            if form.encrypted is not None:
                await self._prepare(actor, conversation_id)
            accepted = await self._store.write(change)
        except Exception:
            self._refused()
            raise
        self._count(accepted, perf_counter() - started)
        return await self._answer(actor, form, accepted)

    def admit(self, actor: Actor, form: Form) -> None:
        """What comes before every send: the house's load, the caller's budget, and that the content fits its kind.

        Raises Refusal `overloaded`, `rate-limited`, `invalid-request`.
        """
        size = contents.size_bytes(form)
        self._pressure.check(Load.MESSAGES)
        self._budget.check(actor, size)
        contents.check(form, size)

    async def check(self, reads: Reads, user_id: str, conversation_id: str, form: Form) -> None:
        """Whether this user may send this there now. Raises what `send` raises once the message was admitted."""
        await _permit(reads, user_id, conversation_id, form, self._clock.now())

    async def compose(
        self,
        tx: Transaction,
        user_id: str,
        device_id: str,
        conversation_id: str,
        form: Form,
        message_id: str,
        now: Milliseconds,
        *,
        by_server: bool = False,
        sealing: Sealing | None = None,
    ) -> Accepted:
        """Sends within a change of the caller's: by all the rules of `send` but those of `admit`, which come before.

        With `by_server` the message names no device as its sender, so all of the sender's devices are told; its
        `tempId` still belongs to `device_id`. `sealing` is what is in an encrypted form. Raises Refusal as `send`.
        """
        if earlier := await tx.get(Sent, device_id, conversation_id, form.temp_id):
            return Accepted(earlier, True)
        place = await _permit(tx, user_id, conversation_id, form, now)
        content: Plain | Sealed
        letters: tuple[Letter, ...] = ()
        if sealing is None:
            content = Plain(form.content or "")
        else:
            await self._require_devices(tx, _From(user_id, device_id), conversation_id, form, sealing)
            content, letters = sealing.content, sealing.letters
        if form.kind in SILENT and isinstance(content, Sealed):
            silent = SilentMessage(message_id, user_id, now, device_id, form.kind, content, form.temp_id)
            sequence = await tx.append(conversation_id, silent, None, letters)
        else:
            message = _message(place, user_id, "" if by_server else device_id, form, content, message_id, now)
            sequence = await tx.append(conversation_id, message, place.quoted, letters)
            tx.put(MessageIndex(message_id, conversation_id, sequence))
            await _hang(tx, place, sequence, message)
        if sealing is not None and await tx.get(Undropped, conversation_id) is None:
            tx.put(Undropped(conversation_id, sequence))
        sent = Sent(
            device_id, conversation_id, form.temp_id, message_id, sequence, now, now + limits.IDEMPOTENCY_DAYS * DAY
        )
        tx.put(sent)
        return Accepted(sent, False)

    async def _prepare(self, actor: Actor, conversation_id: str) -> None:
        if (
            await self._store.get(Member, conversation_id, actor.user_id) is not None
        ):  # else they are refused in a moment
            await self._device_lists.prepare(self._store, conversation_id)

    async def _require_devices(
        self, tx: Transaction, sender: "_From", conversation_id: str, form: Form, sealing: Sealing
    ) -> None:
        """Raises Refusal `stale-devices` unless it is for the devices of the members: for all of them, unless it is
        silent."""
        stale: Stale | None = None
        if sealing.letters:
            addressed = [(letter.user_id, letter.device_id) for letter in sealing.letters]
            is_complete = form.kind not in SILENT
            stale = await self._device_lists.check(tx, conversation_id, sender, addressed, complete=is_complete)
        elif sealing.devices_digest not in ("", (await self._device_lists.of(tx, conversation_id)).digest):
            stale = Stale((), (), ())
        if stale is not None:
            raise Refusal(
                STALE_DEVICES,
                devices={"missing": _refs(stale.missing), "extra": _refs(stale.extra), "changed": _refs(stale.changed)},
            )

    def _admitted(self, actor: Actor, conversation_id: str, form: Form) -> Callable[[Transaction], Awaitable[Accepted]]:
        try:
            self.admit(actor, form)
            sealing = None if form.encrypted is None else sealed(form)
        except Refusal:
            self._refused()
            raise
        now, message_id = self._clock.now(), new_id()

        async def change(tx: Transaction) -> Accepted:
            return await self.compose(
                tx, actor.user_id, actor.device_id, conversation_id, form, message_id, now, sealing=sealing
            )

        return change

    def _count(self, accepted: Accepted, seconds: float) -> None:
        (self._repeated if accepted.repeated else self._accepted)()
        self._observe_latency(seconds)

    async def _answer(self, actor: Actor, form: MessageForm, accepted: Accepted) -> SentMessage:
        sent, now = accepted.sent, self._clock.now()
        entry: LogEntry | None = await self._store.get(LogEntry, sent.conversation_id, sent.sequence)
        if entry is None and form.kind in SILENT:
            entry = await self._store.get(Amendment, sent.conversation_id, sent.sequence)
        member = await self._store.get(Member, sent.conversation_id, actor.user_id)
        is_seen = entry is not None and member is not None and entry.sequence > member.horizon  # they may be back since
        if entry is not None and member is not None and is_seen and not is_expired(entry, now):
            view = await shown(self._store, entry, member, now, device_id=actor.device_id)
            return SentMessage(message_id=sent.message_id, **structs.asdict(view))
        return SentMessage(  # what is left of it is that it was accepted
            message_id=sent.message_id,
            id=sent.message_id,
            conversation_id=sent.conversation_id,
            sender_id=actor.user_id,
            sender_device_id=sent.device_id,
            kind=form.kind,
            content=None,
            sequence_number=sent.sequence,
            created_at=rfc3339(sent.created_at),
            temp_id=sent.temp_id,
        )

    # --- reading -----------------------------------------------------------------------------------------------------

    async def page(
        self, actor: Actor, conversation_id: str, before: int | None, after: int | None, limit: int
    ) -> Page[MessageView]:
        """The history: newest first, or with `after` oldest first from there; `before` and `after` are exclusive.

        `next` is the sequence number to go on with, as text: the next `before`, or the next `after`. A page may be short
        where much was hidden or has disappeared, or where ciphertext is large; only without `next` is it the last one.
        Raises Refusal `not-found`.
        """
        _conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        now, forward = self._clock.now(), after is not None
        found: list[LogEntry] = []
        low, high, more = max(after or 0, member.horizon), before, True
        for _step in range(limits.HISTORY_STEPS_MAX):
            looked_at = await self._store.scan(
                LogEntry, conversation_id, after=low, before=high, limit=limit + 1, reverse=not forward
            )
            found += await still_visible(self._store, member, looked_at, now)
            more = len(looked_at) > limit
            if len(found) > limit or not more:
                break
            low, high = (looked_at[-1].sequence, high) if forward else (low, looked_at[-1].sequence)
        items: list[MessageView] = []
        room = limits.SYNC_ANSWER_BYTES_MAX
        for entry in found[:limit]:
            items.append(await shown(self._store, entry, member, now, device_id=actor.device_id))
            room -= _ciphertext_chars(items[-1])
            if room <= 0:
                break
        if len(found) > len(items):
            return Page(items=items, next=str(items[-1].sequence_number))
        return Page(items=items, next=str(low if forward else high) if more else None)

    async def view(self, actor: Actor, message_id: str) -> MessageView:
        """Raises Refusal `not-found`."""
        now = self._clock.now()
        sight = await visible_message(self._store, actor.user_id, message_id, Right.READ, now)
        return await shown(self._store, sight.entry, sight.member, now, device_id=actor.device_id)

    async def entry(self, actor: Actor, message_id: str) -> LogEntry:
        """The log entry of a message that the caller may see. Raises Refusal `not-found`."""
        return (await visible_message(self._store, actor.user_id, message_id, Right.READ, self._clock.now())).entry


# --- looking at the log -----------------------------------------------------------------------------------------------


async def still_visible(reads: Reads, member: Member, entries: Sequence[LogEntry], now: Milliseconds) -> list[LogEntry]:
    """Those of `entries`, neighbours in one log, that have not disappeared and that the member has not hidden."""
    alive = [entry for entry in entries if not is_expired(entry, now)]
    if not member.hidden_at or not alive:
        return alive
    first, last = sorted((alive[0].sequence, alive[-1].sequence))
    hidden = await reads.scan(
        Hidden, member.conversation_id, member.user_id, after=first - 1, before=last + 1, limit=last - first + 1
    )
    gone = {each.sequence for each in hidden}
    return [entry for entry in alive if entry.sequence not in gone]


# --- what a message needs, and what hangs on it ----------------------------------------------------------------------


async def _permit(reads: Reads, user_id: str, conversation_id: str, form: Form, now: Milliseconds) -> _Place:
    # What is silent is not said to people: who may react may, and may ask for what their program could not read.
    right = Right.REACT if form.kind in SILENT else Right.SEND
    conversation, member = await enter(reads, user_id, conversation_id, right)
    if conversation.encryption == "e2ee":
        if form.encrypted is None:
            raise Refusal(MUST_BE_ENCRYPTED)
    elif form.encrypted is not None:
        raise invalid("encrypted", "this conversation is not end-to-end encrypted")
    quoted = None if form.reply_to_id is None else await _quoted(reads, member, form.reply_to_id, now)
    if form.mentions:
        await check_mentions(reads, conversation, member, form.mentions)
    forwarded = 0 if form.forwarded_from_id is None else await _forwarded(reads, user_id, form.forwarded_from_id, now)
    return _Place(conversation, member, quoted, forwarded)


async def _quoted(reads: Reads, member: Member, message_id: str, now: Milliseconds) -> LogEntry:
    entry = await message_entry(reads, message_id)
    is_there = entry is not None and entry.conversation_id == member.conversation_id
    if entry is None or not is_there or not await is_visible(reads, entry, member, now):
        raise invalid("replyToId", "there is no such message in this conversation")
    return entry


async def _forwarded(reads: Reads, user_id: str, message_id: str, now: Milliseconds) -> int:
    """How often a message has been handed on, once it is handed on again."""
    try:
        message = (await visible_message(reads, user_id, message_id, Right.READ, now)).message
    except Refusal:
        message = None
    if message is None or message.deleted_at:
        raise invalid("forwardedFromId", "there is no such message that you can read")
    return message.forwarded + 1


async def check_mentions(
    reads: Reads, conversation: Conversation, member: Member, mentions: Sequence[str], *, known: Sequence[str] = ()
) -> None:
    """Those that are not `known` already have to be members, and everybody may not be mentioned by just anybody.

    Raises Refusal `invalid-request`, `forbidden`.
    """
    for position, mentioned in enumerate(mentions):
        if mentioned in known:
            continue
        if mentioned == ALL:
            if member.role not in holders(conversation, Right.MENTION_ALL):
                raise Refusal(FORBIDDEN, "Your role does not allow to mention everybody here")
        elif await reads.get(Member, conversation.conversation_id, mentioned) is None:
            raise invalid(f"mentions[{position}]", "not a member of this conversation")


def _refs(places: Sequence[Place]) -> list[DeviceRef]:
    return [DeviceRef(user_id=user_id, device_id=device_id) for user_id, device_id in places]


def _ciphertext_chars(view: MessageView) -> int:
    """How long what is encrypted in it is."""
    match view.encrypted:
        case SenderKeyView(body=str() as body):
            return len(body)
        case DoubleRatchetView(envelopes=[envelope]):
            return len(envelope.body)
    return 0


def _thread_of(quoted: LogEntry | None) -> str:
    if quoted is None or not isinstance(message := quoted.event, Message):
        return ""
    return message.thread_id or message.event_id


def _poll(form: Form, now: Milliseconds) -> Poll | None:
    asked = form.poll
    if asked is None:
        return None
    closes_at = now + asked.closes_in_seconds * 1000 if asked.closes_in_seconds else 0
    return Poll(tuple(asked.options), asked.multiple, asked.anonymous, closes_at, (0,) * len(asked.options))


def _message(
    place: _Place,
    user_id: str,
    device_id: str,
    form: Form,
    content: Plain | Sealed,
    message_id: str,
    now: Milliseconds,
) -> Message:
    """What the form says, as it stands in the log."""
    seconds = form.expires_in_seconds or settings_of(place.conversation).disappearing_seconds
    return Message(
        message_id,
        user_id,
        now,
        device_id,
        form.kind,
        content,
        form.temp_id,
        form.reply_to_id or "",
        tuple(dict.fromkeys(form.mentions)) if form.mentions else (),
        (),
        _thread_of(place.quoted),
        place.forwarded,
        now + seconds * 1000 if seconds else 0,
        poll=_poll(form, now),
    )


async def _hang(tx: Transaction, place: _Place, sequence: int, message: Message) -> None:
    """What a message has besides its text: most have nothing, and cost nothing here."""
    conversation_id = place.conversation.conversation_id
    if place.conversation.type == "direct" and not place.member.has_written:
        tx.put(structs.replace(place.member, has_written=True))  # who answers somebody is no stranger to them
    if message.mentions:
        put_mentions(tx, conversation_id, sequence, message)
    if message.thread_id:
        await note_reply(tx, conversation_id, message.thread_id, sequence, message.actor_id)
    if message.expires_at:
        tx.put(Due(message.expires_at, EXPIRE, conversation_id, sequence))
    if message.poll is not None and message.poll.closes_at:
        tx.put(Due(message.poll.closes_at, CLOSE_POLL, message.event_id, 0))


def put_mentions(tx: Transaction, conversation_id: str, sequence: int, message: Message) -> None:
    """The rows by which those whom `message` mentions find it."""
    for user_id in _rows_of(conversation_id, message.mentions):
        tx.put(Mention(conversation_id, user_id, sequence, message.actor_id, message.expires_at))


def drop_mentions(tx: Transaction, conversation_id: str, sequence: int, mentions: Iterable[str]) -> None:
    """Takes the rows of these mentions away."""
    for user_id in _rows_of(conversation_id, mentions):
        tx.delete(Mention, conversation_id, user_id, sequence)


def _rows_of(conversation_id: str, mentions: Iterable[str]) -> list[str]:
    return [conversation_id if mentioned == ALL else mentioned for mentioned in mentions]
