"""Messages: sending one, and reading them back.

A send is one change in the store's writer: the idempotency key is looked up first, so a repeated `tempId` answers what it
answered before, whatever has happened since; then the caller's right; then the message gets its sequence number, and the
message, its index and its key are written together. Nobody is told before that is on the disk. The hub hears of it from
the store, not from here. Nothing here knows sockets or HTTP.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import MessageForm, SentMessage
from gearlink.clock import DAY, Clock, new_id, rfc3339
from gearlink.conversations import Right, enter
from gearlink.errors import MUST_BE_ENCRYPTED, NOT_FOUND, Refusal, invalid
from gearlink.journal import Metrics
from gearlink.protocol import MessageView, Page, Send, SendAck
from gearlink.throttle import Throttle
from gearlink.timeline import message_view
from storage.records import LogEntry, Member, Message, MessageIndex, Plain, Sent
from storage.store import Outcome, Reads, Store, Transaction


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


class Messages:
    """The rules of messages over a store. One `throttle` for all doors: a user has one budget."""

    def __init__(self, store: Store, clock: Clock, throttle: Throttle, metrics: Metrics) -> None:
        self._store, self._clock, self._throttle = store, clock, throttle
        self._accepted, self._repeated, self._refused = (
            metrics.message_send.labels(status).inc for status in ("accepted", "repeated", "refused")
        )
        self._observe_latency = metrics.message_send_latency.observe

    # --- sending -----------------------------------------------------------------------------------------------------

    async def submit(
        self, actor: Actor, conversation_id: str, form: Send | MessageForm, done: Callable[[Accepted | Exception], None]
    ) -> None:
        """Queues the message; `done` hears the outcome once it is durable. Waits only while the writer's queue is full.

        Raises Refusal `rate-limited` and `invalid-request` at once; the outcome may hold those of `send`.
        """
        started = perf_counter()
        change = self._allowed_change(actor, conversation_id, form)

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

        Raises Refusal `rate-limited`, `invalid-request`, `not-found`, `forbidden`, `must-be-encrypted`; StoreFull.
        """
        started = perf_counter()
        change = self._allowed_change(actor, conversation_id, form)
        try:
            accepted = await self._store.write(change)
        except Exception:
            self._refused()
            raise
        self._count(accepted, perf_counter() - started)
        entry = await self._store.get(LogEntry, conversation_id, accepted.sent.sequence)
        if entry is None:  # the conversation was deleted since
            raise Refusal(NOT_FOUND)
        return SentMessage(message_id=accepted.sent.message_id, **structs.asdict(message_view(entry, actor.user_id)))

    def _count(self, accepted: Accepted, seconds: float) -> None:
        (self._repeated if accepted.repeated else self._accepted)()
        self._observe_latency(seconds)

    def _allowed_change(
        self, actor: Actor, conversation_id: str, form: Send | MessageForm
    ) -> Callable[[Transaction], Awaitable[Accepted]]:
        try:
            self._throttle.check(actor.user_id)
            return self._change(actor, conversation_id, form)
        except Refusal:
            self._refused()
            raise

    def _change(
        self, actor: Actor, conversation_id: str, form: Send | MessageForm
    ) -> Callable[[Transaction], Awaitable[Accepted]]:
        if len(form.content) * 4 > limits.CONTENT_BYTES_MAX and len(form.content.encode()) > limits.CONTENT_BYTES_MAX:
            raise invalid("content", f"at most {limits.CONTENT_BYTES_MAX} bytes in UTF-8")
        now, message_id = self._clock.now(), new_id()

        async def change(tx: Transaction) -> Accepted:
            if earlier := await tx.get(Sent, actor.device_id, conversation_id, form.temp_id):
                return Accepted(earlier, True)
            conversation, member = await enter(tx, actor.user_id, conversation_id, Right.SEND)
            if conversation.encryption == "e2ee":
                raise Refusal(MUST_BE_ENCRYPTED)
            if form.reply_to_id is not None:
                await _require_message(tx, member, form.reply_to_id)
            if form.mentions:
                await _require_members(tx, conversation_id, form.mentions)
            message = Message(
                message_id,
                actor.user_id,
                now,
                actor.device_id,
                form.kind,
                Plain(form.content),
                form.temp_id,
                form.reply_to_id or "",
                tuple(form.mentions or ()),
            )
            sequence = await tx.append(conversation_id, message)
            tx.put(MessageIndex(message_id, conversation_id, sequence))
            expires_at = now + limits.IDEMPOTENCY_DAYS * DAY
            sent = Sent(actor.device_id, conversation_id, form.temp_id, message_id, sequence, now, expires_at)
            tx.put(sent)
            return Accepted(sent, False)

        return change

    # --- reading -----------------------------------------------------------------------------------------------------

    async def page(
        self, actor: Actor, conversation_id: str, before: int | None, after: int | None, limit: int
    ) -> Page[MessageView]:
        """The history: newest first, or with `after` oldest first from there; `before` and `after` are exclusive.

        `next` is the sequence number to go on with, as text: the next `before`, or the next `after`. Raises Refusal
        `not-found`.
        """
        _conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        forward = after is not None
        entries = await self._store.scan(
            LogEntry,
            conversation_id,
            after=max(after or 0, member.joined_sequence),
            before=before,
            limit=limit + 1,
            reverse=not forward,
        )
        items = [message_view(entry, actor.user_id) for entry in entries[:limit]]
        return Page(items=items, next=str(items[-1].sequence_number) if len(entries) > limit else None)

    async def view(self, actor: Actor, message_id: str) -> MessageView:
        """Raises Refusal `not-found`."""
        return message_view(await self.entry(actor, message_id), actor.user_id)

    async def entry(self, actor: Actor, message_id: str) -> LogEntry:
        """The log entry of a message that the caller may see. Raises Refusal `not-found`."""
        index = await self._store.get(MessageIndex, message_id)
        if index is None:
            raise Refusal(NOT_FOUND)
        _conversation, member = await enter(self._store, actor.user_id, index.conversation_id, Right.READ)
        entry = await self._store.get(LogEntry, index.conversation_id, index.sequence)
        if entry is None or entry.sequence <= member.joined_sequence:
            raise Refusal(NOT_FOUND)
        return entry


async def _require_message(reads: Reads, member: Member, message_id: str) -> None:
    index = await reads.get(MessageIndex, message_id)
    if index is None or index.conversation_id != member.conversation_id or index.sequence <= member.joined_sequence:
        raise invalid("replyToId", "there is no such message in this conversation")


async def _require_members(reads: Reads, conversation_id: str, user_ids: Sequence[str]) -> None:
    for position, user_id in enumerate(user_ids):
        if await reads.get(Member, conversation_id, user_id) is None:
            raise invalid(f"mentions[{position}]", "not a member of this conversation")
