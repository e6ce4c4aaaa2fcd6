"""Calls about messages: reading them, sending without a socket, and everything that becomes of them; and the sync call.

One method is one call; each raises Refused or Unreachable, and says which refusals it has besides `not-found`,
`forbidden` and `refused-by-privacy`. What others do is told by events; what is done here goes over HTTP also while a
socket is open, because an answer and a refusal then belong to the one who asked. All but `post` and `schedule` without a
`temp_id` may be repeated without harm. It knows nothing of sockets.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from config.limits import PAGE_DEFAULT, SYNC_PAGE_EVENTS
from gearlink import calls
from gearlink.protocol import PollForm
from gearlink.sdk.exchange import Exchange, segment
from gearlink.sdk.paging import History, Items
from gearlink.views import (
    DeliveryView,
    MessageView,
    Page,
    PollView,
    ReactorView,
    RevisionView,
    ScheduledView,
    SendKind,
    ThreadPage,
    ThreadView,
    VoteView,
)


class Messages(Exchange):
    """The calls about messages."""

    # --- reading ------------------------------------------------------------------------------------------------------

    def history(
        self, conversation_id: str, *, before: int | None = None, after: int | None = None, limit: int = PAGE_DEFAULT
    ) -> History:
        """Pages of messages: newest first, below `before`; or, with `after`, oldest first, above it."""
        if before is not None and after is not None:
            raise ValueError("give before or after, not both")
        path = f"/conversations/{segment(conversation_id)}/messages"
        return History(partial(self.call, "GET", path, Page[MessageView]), before, after, limit)

    async def message(self, message_id: str) -> MessageView:
        """One message."""
        return await self.call("GET", _path(message_id), MessageView)

    def deliveries(self, message_id: str) -> Items[DeliveryView]:
        """How far a message has come, for each member."""
        return self.items(_path(message_id, "deliveries"), DeliveryView)

    async def set_read(self, conversation_id: str, sequence_number: int) -> None:
        """Everything up to here was read: `mark_read` for programs without a socket, at once."""
        path = f"/conversations/{segment(conversation_id)}/read"
        await self.call("PUT", path, None, calls.ReadForm(sequence_number=sequence_number))

    # --- sending ------------------------------------------------------------------------------------------------------

    async def post(
        self,
        conversation_id: str,
        content: str,
        temp_id: str | None = None,
        reply_to_id: str | None = None,
        mentions: Sequence[str] = (),
        *,
        kind: SendKind = "text",
        poll: PollForm | None = None,
        forwarded_from_id: str | None = None,
        expires_in_seconds: int | None = None,
    ) -> calls.SentMessage:
        """`send` for programs without a socket: one try, and whoever wants another gives the same `temp_id` again.
        Raises Refused `must-be-encrypted`, `overloaded`."""
        form = calls.MessageForm(
            temp_id=temp_id or self._options.new_temp_id(),
            content=content,
            kind=kind,
            reply_to_id=reply_to_id,
            mentions=list(mentions) or None,
            poll=poll,
            forwarded_from_id=forwarded_from_id,
            expires_in_seconds=expires_in_seconds,
        )
        return await self.post_form(conversation_id, form)

    async def post_form(self, conversation_id: str, form: calls.MessageForm) -> calls.SentMessage:
        """`post` of a form that the caller has filled in, e.g. with `encrypted` in place of a content: Refused
        `stale-devices` says which devices of the members it does not fit."""
        path = f"/conversations/{segment(conversation_id)}/messages"
        return await self.call("POST", path, calls.SentMessage, form)

    async def schedule(
        self,
        conversation_id: str,
        content: str,
        send_at: str,
        temp_id: str | None = None,
        reply_to_id: str | None = None,
        mentions: Sequence[str] = (),
        *,
        kind: SendKind = "text",
        poll: PollForm | None = None,
        expires_in_seconds: int | None = None,
    ) -> ScheduledView:
        """A message that goes out at `send_at` (RFC 3339). Raises Refused `must-be-encrypted`, `too-many`."""
        form = calls.ScheduleForm(
            temp_id=temp_id or self._options.new_temp_id(),
            content=content,
            send_at=send_at,
            kind=kind,
            reply_to_id=reply_to_id,
            mentions=list(mentions) or None,
            poll=poll,
            expires_in_seconds=expires_in_seconds,
        )
        return await self.call("POST", f"/conversations/{segment(conversation_id)}/scheduled", ScheduledView, form)

    def scheduled(self, conversation_id: str) -> Items[ScheduledView]:
        """The caller's messages that wait for their time there, or could not go out."""
        return self.items(f"/conversations/{segment(conversation_id)}/scheduled", ScheduledView)

    async def change_scheduled(self, scheduled_id: str, form: calls.ScheduleChange) -> ScheduledView:
        """Another time, another text: the fields of `form` that are set. What could not go out is tried again."""
        return await self.call("PATCH", f"/scheduled/{segment(scheduled_id)}", ScheduledView, form)

    async def cancel_scheduled(self, scheduled_id: str) -> None:
        """It does not go out. Raises Refused `not-found`, also if it has gone out."""
        await self.call("DELETE", f"/scheduled/{segment(scheduled_id)}", None)

    # --- what becomes of a message ------------------------------------------------------------------------------------

    async def edit(self, message_id: str, content: str, mentions: Sequence[str] | None = None) -> MessageView:
        """Another text or caption; without `mentions` those stay as they are. Raises Refused `too-late`,
        `message-deleted`, `must-be-encrypted`, `overloaded`."""
        form = calls.EditForm(content=content, mentions=None if mentions is None else list(mentions))
        return await self.call("PATCH", _path(message_id), MessageView, form)

    def revisions(self, message_id: str) -> Items[RevisionView]:
        """What a message said before each of its edits, oldest first."""
        return self.items(_path(message_id, "revisions"), RevisionView)

    async def delete(self, message_id: str, *, for_everyone: bool = False) -> None:
        """Takes a message away for good, or from one's own sight alone. Raises Refused `too-late`."""
        params = {"forEveryone": str(for_everyone).lower()}
        await self.call("DELETE", _path(message_id), None, params=params)

    async def pin(self, message_id: str) -> None:
        """Puts a message up for all. Raises Refused `message-deleted`, `too-many`."""
        await self.call("PUT", _path(message_id, "pin"), None)

    async def unpin(self, message_id: str) -> None:
        """Takes a pinned message down."""
        await self.call("DELETE", _path(message_id, "pin"), None)

    def pins(self, conversation_id: str) -> Items[MessageView]:
        """The pinned messages of a conversation, the newest message first."""
        return self.items(f"/conversations/{segment(conversation_id)}/pins", MessageView)

    async def react(self, message_id: str, emoji: str) -> None:
        """Reacts with one emoji; a second time changes nothing. Raises Refused `message-deleted`, `too-many`."""
        await self.call("PUT", _path(message_id, "reactions", emoji), None)

    async def unreact(self, message_id: str, emoji: str) -> None:
        """Takes one's own reaction back."""
        await self.call("DELETE", _path(message_id, "reactions", emoji), None)

    def reactions(self, message_id: str, emoji: str | None = None) -> Items[ReactorView]:
        """Who reacted, with every emoji or with one."""
        return self.items(_path(message_id, "reactions"), ReactorView, emoji=emoji)

    async def vote(self, message_id: str, options: Sequence[int]) -> PollView:
        """Votes in a poll for the options of these numbers, from 0, in place of the vote before; for none takes it
        back. Raises Refused `message-deleted`, `poll-closed`."""
        return await self.call("PUT", _path(message_id, "vote"), PollView, calls.VoteForm(options=list(options)))

    def votes(self, message_id: str) -> Items[VoteView]:
        """Who voted for what. Raises Refused `forbidden` for an anonymous poll, `message-deleted`."""
        return self.items(_path(message_id, "votes"), VoteView)

    async def close_poll(self, message_id: str) -> PollView:
        """Takes no more votes. Raises Refused `message-deleted`."""
        return await self.call("POST", _path(message_id, "poll", "close"), PollView)

    # --- threads ------------------------------------------------------------------------------------------------------

    async def thread(
        self, message_id: str, *, before: int | None = None, after: int | None = None, limit: int = PAGE_DEFAULT
    ) -> ThreadPage:
        """The message that a thread began with, and a page of its replies: the newest, or those beside a number."""
        given = {"limit": limit, "before": before, "after": after}
        params = {key: value for key, value in given.items() if value is not None}
        return await self.call("GET", _path(message_id, "thread"), ThreadPage, params=params)

    async def mark_thread_read(self, message_id: str, sequence_number: int) -> None:
        """The thread was read up to here."""
        form = calls.ReadForm(sequence_number=sequence_number)
        await self.call("PUT", _path(message_id, "thread", "read"), None, form)

    def threads(self, conversation_id: str) -> Items[ThreadView]:
        """The threads of a conversation; those that began last come first."""
        return self.items(f"/conversations/{segment(conversation_id)}/threads", ThreadView)

    # --- without a socket ---------------------------------------------------------------------------------------------

    async def sync(
        self,
        epoch: str | None = None,
        cursors: Mapping[str, int] | None = None,
        *,
        limit: int = SYNC_PAGE_EVENTS,
        wait_seconds: float = 0,
    ) -> calls.SyncAnswer:
        """What a socket would have been told since these cursors, and where to go on; with `wait_seconds` it waits for
        something to happen. `poll` does the keeping of cursors. Raises Refused `rate-limited`."""
        form = calls.SyncForm(
            epoch=epoch,
            cursors=None if cursors is None else dict(cursors),
            limit=limit,
            wait_seconds=wait_seconds,
        )
        return await self.call("POST", "/sync", calls.SyncAnswer, form, patience=wait_seconds)


def _path(message_id: str, *parts: str) -> str:
    return "/".join(("/messages", segment(message_id), *map(segment, parts)))
