"""Threads: a message, the chain of replies below it, and how far each member has read it.

Who sends or removes a reply says so here within the same change, so the counts are those of the rows after any crash.
What somebody has read of the conversation they have read of its threads as well; a thread's own mark only adds to that
and never moves backwards. A thread outlives the message that it began with. It knows no socket.
"""

from config import limits
from gearlink.accounts import Actor
from gearlink.clock import Clock, Milliseconds
from gearlink.cursors import decode_sequence, encode_cursor
from gearlink.reading import message_entry, shown
from gearlink.rights import Right, enter
from gearlink.views import MessageView, Page, ThreadPage, ThreadView
from gearlink.visibility import Sight, is_visible, visible_message
from storage.notices import Personal
from storage.records import Hidden, LogEntry, Member, MessageIndex, Thread, ThreadRead, ThreadReply
from storage.store import Store, Transaction


async def note_reply(tx: Transaction, conversation_id: str, thread_id: str, sequence: int, sender_id: str) -> None:
    """The message `sequence` is a reply in the thread that began with the message `thread_id`."""
    tx.put(ThreadReply(thread_id, sequence, sender_id))
    root = await tx.get(MessageIndex, thread_id)
    if root is None:  # it has expired: there is no line for it in the list any more
        return
    thread = await tx.get(Thread, conversation_id, root.sequence)
    count = 1 if thread is None else thread.reply_count + 1
    tx.put(Thread(conversation_id, root.sequence, thread_id, count, sequence))


async def forget_reply(tx: Transaction, conversation_id: str, thread_id: str, sequence: int) -> None:
    """The reply `sequence` was deleted for everyone, or has expired. Does nothing if it was forgotten before."""
    if await tx.get(ThreadReply, thread_id, sequence) is None:
        return
    tx.delete(ThreadReply, thread_id, sequence)
    root = await tx.get(MessageIndex, thread_id)
    thread = None if root is None else await tx.get(Thread, conversation_id, root.sequence)
    if thread is None:
        return
    newest = await tx.scan(ThreadReply, thread_id, limit=1, reverse=True)
    if newest:
        tx.put(Thread(conversation_id, thread.root_sequence, thread_id, thread.reply_count - 1, newest[0].sequence))
    else:
        tx.delete(Thread, conversation_id, thread.root_sequence)


def _thread_id(sight: Sight) -> str:
    return sight.message.thread_id or sight.message.event_id


class Threads:
    """The rules of threads over a store. A thread is named by the message that it began with, or any reply in it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def view(
        self, actor: Actor, message_id: str, before: int | None, after: int | None, limit: int
    ) -> ThreadPage:
        """The replies, newest first, or with `after` oldest first from there; `before` and `after` are exclusive.

        `next` is the sequence number to go on with, as text. Where some replies are not for the caller's eyes a page
        holds fewer than `limit`. Raises Refusal `not-found`.
        """
        now = self._clock.now()
        sight = await visible_message(self._store, actor.user_id, message_id, Right.READ, now)
        member, thread_id = sight.member, _thread_id(sight)
        root = await message_entry(self._store, thread_id)
        root_view = await self._shown(actor, member, root, now)
        replies = await self._store.scan(
            ThreadReply,
            thread_id,
            after=max(after or 0, member.horizon),
            before=before,
            limit=limit + 1,
            reverse=after is None,
        )
        entries = [await self._store.get(LogEntry, member.conversation_id, reply.sequence) for reply in replies[:limit]]
        items = [view for entry in entries if (view := await self._shown(actor, member, entry, now)) is not None]
        return ThreadPage(
            root=root_view,
            reply_count=await self._reply_count(member, thread_id, root if root_view is not None else None),
            unread_count=await self._unread_count(member, thread_id),
            items=items,
            next=str(replies[limit - 1].sequence) if len(replies) > limit else None,
        )

    async def threads(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[ThreadView]:
        """The threads of a conversation, those that began last first, as far as the caller may see where they began.

        A page may hold fewer than `limit` where there is a next one. Raises Refusal `not-found`, `invalid-request`.
        """
        now = self._clock.now()
        _conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        found = await self._store.scan(
            Thread,
            conversation_id,
            after=member.horizon,
            before=decode_sequence(cursor) if cursor else None,
            limit=limit + 1,
            reverse=True,
        )
        items = [view for thread in found[:limit] if (view := await self._line(actor, member, thread, now)) is not None]
        return Page(
            items=items, next=encode_cursor(str(found[limit - 1].root_sequence)) if len(found) > limit else None
        )

    async def mark_read(self, actor: Actor, message_id: str, sequence: int) -> None:
        """The caller has read the thread up to `sequence`; marks never move backwards. Returns once it is stored.

        A mark ahead of the newest reply is taken for that one. Raises Refusal `not-found`.
        """
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            sight = await visible_message(tx, actor.user_id, message_id, Right.READ, now)
            thread_id = _thread_id(sight)
            newest = await tx.scan(ThreadReply, thread_id, limit=1, reverse=True)
            known = await tx.get(ThreadRead, thread_id, actor.user_id)
            reached = min(sequence, newest[0].sequence) if newest else 0
            if reached <= (known.sequence if known is not None else 0):
                return
            mark = ThreadRead(thread_id, actor.user_id, reached)
            tx.put(mark)
            tx.announce(Personal((actor.user_id,), mark, but_device_id=actor.device_id))

        await self._store.write(change)

    async def _line(self, actor: Actor, member: Member, thread: Thread, now: Milliseconds) -> ThreadView | None:
        root = await self._store.get(LogEntry, member.conversation_id, thread.root_sequence)
        root_view = await self._shown(actor, member, root, now)
        if root_view is None:
            return None
        last = await self._store.get(LogEntry, member.conversation_id, thread.last_sequence)
        return ThreadView(
            root=root_view,
            reply_count=thread.reply_count,
            unread_count=await self._unread_count(member, thread.thread_id),
            last_reply=await self._shown(actor, member, last, now),
        )

    async def _shown(
        self, actor: Actor, member: Member, entry: LogEntry | None, now: Milliseconds
    ) -> MessageView | None:
        if entry is None or not await is_visible(self._store, entry, member, now):
            return None
        return await shown(self._store, entry, member, now, device_id=actor.device_id)

    async def _reply_count(self, member: Member, thread_id: str, root: LogEntry | None) -> int:
        """All of them for somebody who sees where it began; else those that they may see, up to a bound."""
        if root is not None:
            thread = await self._store.get(Thread, member.conversation_id, root.sequence)
            return 0 if thread is None else thread.reply_count
        return len(
            await self._store.scan(ThreadReply, thread_id, after=member.horizon, limit=limits.UNREAD_SCAN_EVENTS_MAX)
        )

    async def _unread_count(self, member: Member, thread_id: str) -> int:
        """Replies of others behind what the member has read of the thread and of the conversation."""
        mark = await self._store.get(ThreadRead, thread_id, member.user_id)
        read = max(member.read_sequence, member.joined_sequence, mark.sequence if mark is not None else 0)
        behind = await self._store.scan(ThreadReply, thread_id, after=read, limit=limits.UNREAD_SCAN_EVENTS_MAX)
        others = [reply.sequence for reply in behind if reply.sender_id != member.user_id]
        hidden = await self._hidden_among(member, others)
        return min(len(others) - hidden, limits.UNREAD_COUNT_MAX)

    async def _hidden_among(self, member: Member, sequences: list[int]) -> int:
        if not member.hidden_at or not sequences:
            return 0
        found = await self._store.scan(
            Hidden,
            member.conversation_id,
            member.user_id,
            after=sequences[0] - 1,
            before=sequences[-1] + 1,
            limit=limits.UNREAD_SCAN_EVENTS_MAX,
        )
        return len({each.sequence for each in found}.intersection(sequences))
