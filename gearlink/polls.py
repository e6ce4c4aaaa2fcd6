"""Polls: votes and their result.

A poll is a message, and its question the content. Each vote is a row of its own and the message carries the counts,
rewritten in the same change. Of an anonymous poll nobody learns who voted: its events name its author, the list of votes
is refused to everybody. A poll takes no votes from the moment when it closes, whether or not the timer has come by to
say so. It knows no socket.
"""

from collections.abc import Sequence

from msgspec import structs

from gearlink.accounts import Actor
from gearlink.clock import Clock, Milliseconds, new_id, rfc3339
from gearlink.cursors import page_of
from gearlink.errors import FORBIDDEN, MESSAGE_DELETED, POLL_CLOSED, Refusal, invalid
from gearlink.reading import is_expired, message_entry, own_of
from gearlink.rights import Right, holders
from gearlink.storms import Storms
from gearlink.throttle import Budget
from gearlink.timeline import Own, poll_view
from gearlink.views import Page, PollView, VoteView
from gearlink.visibility import visible_message
from storage.events import Message, Poll, PollChanged
from storage.records import Conversation, LogEntry, Vote
from storage.store import Store, Transaction


def _poll_of(message: Message) -> Poll:
    if message.deleted_at:
        raise Refusal(MESSAGE_DELETED)
    if message.poll is None:
        raise invalid("messageId", "this message is no poll")
    return message.poll


def _require_options(poll: Poll, options: Sequence[int]) -> tuple[int, ...]:
    """The chosen options in order."""
    for position, option in enumerate(options):
        if not 0 <= option < len(poll.options):
            raise invalid(f"options[{position}]", f"this poll has options 0 to {len(poll.options) - 1}")
    if len(set(options)) != len(options):
        raise invalid("options", "each option once")
    if len(options) > 1 and not poll.multiple:
        raise invalid("options", "this poll takes one option")
    return tuple(sorted(options))


def _is_closed(poll: Poll, now: Milliseconds) -> bool:
    return bool(poll.closed_at or 0 < poll.closes_at <= now)


class Polls:
    """The rules of polls over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget, storms: Storms) -> None:
        self._store = store
        self._clock = clock
        self._budget = budget
        self._storms = storms

    async def vote(self, actor: Actor, message_id: str, options: Sequence[int]) -> PollView:
        """The caller's vote is for these options (from 0) in place of those before; none takes it back.

        Raises Refusal `rate-limited`, `not-found`, `forbidden`, `refused-by-privacy`, `message-deleted`, `poll-closed`;
        `invalid-request` for a message that is no poll, or options that it does not have or does not take.
        """
        self._budget.check(actor, len(options))
        now = self._clock.now()

        async def change(tx: Transaction) -> PollView:
            sight = await visible_message(tx, actor.user_id, message_id, Right.REACT, now)
            poll = _poll_of(sight.message)
            if _is_closed(poll, now):
                raise Refusal(POLL_CLOSED)
            chosen = _require_options(poll, options)
            known = await tx.get(Vote, message_id, actor.user_id)
            before = known.options if known is not None else ()
            message = sight.message
            if chosen != before:
                message = _counted(tx, message, poll, Vote(message_id, actor.user_id, chosen, now), before)
                await self._tell(tx, structs.replace(sight.entry, event=message), message, actor.user_id, now)
            return poll_view(message, Own(frozenset(), chosen))

        return await self._store.write(change)

    async def close(self, actor: Actor, message_id: str) -> PollView:
        """The poll takes no more votes; nothing happens if it is closed already. For its author and who may moderate.

        Raises Refusal `not-found`, `forbidden`, `refused-by-privacy`, `message-deleted`, `invalid-request`.
        """
        now = self._clock.now()

        async def change(tx: Transaction) -> PollView:
            sight = await visible_message(tx, actor.user_id, message_id, Right.REACT, now)
            poll = _poll_of(sight.message)
            if sight.message.actor_id != actor.user_id and sight.member.role not in holders(
                sight.conversation, Right.MODERATE
            ):
                raise Refusal(FORBIDDEN)
            message = sight.message
            if not poll.closed_at:
                message = await self._close(tx, sight.entry, message, poll, actor.user_id, now)
            return poll_view(message, await own_of(tx, message, actor.user_id))

        return await self._store.write(change)

    async def close_due(self, message_id: str) -> None:
        """The time of a poll has come: what the timer calls. Does nothing if it is closed, gone, or not yet due."""
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            entry = await message_entry(tx, message_id)
            if entry is None or not isinstance(message := entry.event, Message) or is_expired(entry, now):
                return
            poll = message.poll
            if poll is None or poll.closed_at or not _is_closed(poll, now):
                return
            if await tx.get(Conversation, entry.conversation_id) is not None:
                await self._close(tx, entry, message, poll, message.actor_id, now)

        await self._store.write(change)

    async def votes(self, actor: Actor, message_id: str, limit: int, cursor: str | None) -> Page[VoteView]:
        """Who voted for what, in the order of their ids.

        Raises Refusal `not-found`, `message-deleted`, `invalid-request`; `forbidden` for an anonymous poll.
        """
        sight = await visible_message(self._store, actor.user_id, message_id, Right.READ, self._clock.now())
        if _poll_of(sight.message).anonymous:
            raise Refusal(FORBIDDEN, "This poll is anonymous")
        found, more = await page_of(
            self._store, Vote, message_id, cursor=cursor, limit=limit, key=lambda vote: vote.user_id
        )
        items = [VoteView(user_id=vote.user_id, options=list(vote.options), at=rfc3339(vote.at)) for vote in found]
        return Page(items=items, next=more)

    async def _close(
        self, tx: Transaction, entry: LogEntry, message: Message, poll: Poll, closed_by: str, now: Milliseconds
    ) -> Message:
        """`closed_at` is when it closed, which may be a while before somebody says so."""
        closed_at = min(now, poll.closes_at or now)
        closed = structs.replace(message, poll=structs.replace(poll, closed_at=closed_at))
        await self._tell(tx, structs.replace(entry, event=closed), closed, closed_by, now)
        return closed

    async def _tell(
        self, tx: Transaction, subject: LogEntry, message: Message, user_id: str, now: Milliseconds
    ) -> None:
        assert message.poll is not None
        actor_id = message.actor_id if message.poll.anonymous else user_id
        event = PollChanged(new_id(), actor_id, now, message.event_id, subject.sequence)
        await self._storms.tell(tx, event, subject)


def _counted(tx: Transaction, message: Message, poll: Poll, vote: Vote, before: tuple[int, ...]) -> Message:
    """Puts the vote, or deletes it if it is for nothing; returns the message with the result."""
    if vote.options:
        tx.put(vote)
    else:
        tx.delete(Vote, vote.message_id, vote.user_id)
    counts = list(poll.counts)
    for option in before:
        counts[option] -= 1
    for option in vote.options:
        counts[option] += 1
    voters = poll.voters + bool(vote.options) - bool(before)
    return structs.replace(message, poll=structs.replace(poll, counts=tuple(counts), voters=voters))
