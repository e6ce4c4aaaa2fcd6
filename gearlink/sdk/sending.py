"""Sending over the socket: messages of every kind, each until it is answered, and always under one tempId.

It adds to an outbox and waits; the client's socket carries what is in there. Whoever waits may go at any time. The calls
over HTTP are below it, the socket is above.
"""

import json
from collections.abc import Sequence
from typing import Any, Final, get_args

import trio

from gearlink.calls import MessageForm, SentMessage
from gearlink.protocol import PollForm, Send
from gearlink.sdk.failures import Refused
from gearlink.sdk.inbox import Inbox
from gearlink.sdk.options import Options
from gearlink.sdk.outbox import Marks, Outbox, Sent, checked_send
from gearlink.sdk.rest import Rest
from gearlink.sdk.state import State, StateStore
from gearlink.views import MessageView, SendKind

_FORWARDED: Final = frozenset(get_args(SendKind)) - {"poll"}


class Sending(Rest):
    """A client as far as it sends."""

    def __init__(self, server: str, store: StateStore, state: State, options: Options) -> None:
        super().__init__(server, store, state, options)
        self._outbox = Outbox(options)
        self._marks = Marks(options)
        self._unsaved = trio.Event()
        self._inbox = Inbox(state, options, self._outbox, self._marks, self._note_change)
        self._slots = trio.Semaphore(options.sends_in_flight_max)

    async def send(
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
    ) -> Sent:
        """Sends `content`, over as many sockets as it takes, and returns once it is on the server's disk. At most
        `sends_in_flight_max` are on their way; further callers wait. Raises Refused if the server says a final no. If it
        is cancelled, nobody knows whether the message was sent; sending again with the same `temp_id` is safe. What the
        content is for each `kind`, and what may be among `mentions`, is in docs/protocol.md."""
        self._require_connect()
        frame = Send(
            temp_id=temp_id or self._options.new_temp_id(),
            conversation_id=conversation_id,
            content=content,
            kind=kind,
            reply_to_id=reply_to_id,
            mentions=list(mentions) or None,
            poll=poll,
            forwarded_from_id=forwarded_from_id,
            expires_in_seconds=expires_in_seconds,
        )
        return await self.submit(frame)

    async def submit(self, frame: Send) -> Sent:
        """`send` of a frame that the caller has filled in, e.g. with `encrypted` in place of a content: Refused
        `stale-devices` says which devices of the members it does not fit."""
        self._require_connect()
        frame = checked_send(frame)
        async with self._slots:
            if self._inbox.failure is not None:
                raise self._inbox.failure
            entry = self._outbox.add(frame)
            self._inbox.notify()
            try:
                return await entry.outcome()
            finally:
                self._outbox.remove(entry)

    async def send_poll(
        self,
        conversation_id: str,
        question: str,
        options: Sequence[str],
        *,
        multiple: bool = False,
        anonymous: bool = False,
        closes_in_seconds: int | None = None,
    ) -> Sent:
        """`send` of a question with answers to choose from: one, or with `multiple` some."""
        poll = PollForm(
            options=list(options), multiple=multiple, anonymous=anonymous, closes_in_seconds=closes_in_seconds
        )
        return await self.send(conversation_id, question, kind="poll", poll=poll)

    async def forward(self, conversation_id: str, message: MessageView) -> Sent:
        """`send` of a message from another conversation, marked as handed on. Raises Refused `invalid-request` for one
        whose kind cannot be: a poll, what the server said, or what was deleted."""
        if message.kind not in _FORWARDED or message.content is None:
            raise Refused("invalid-request", 422, "A message of this kind cannot be forwarded")
        kind: SendKind = message.kind  # type: ignore[assignment]
        return await self.send(conversation_id, message.content, kind=kind, forwarded_from_id=message.id)

    async def send_location(self, conversation_id: str, latitude: float, longitude: float, name: str = "") -> Sent:
        """`send` of a place, in degrees."""
        place: dict[str, Any] = {"latitude": latitude, "longitude": longitude}
        return await self.send(conversation_id, json.dumps(place | ({"name": name} if name else {})), kind="location")

    async def send_contact(self, conversation_id: str, display_name: str, **more: Any) -> Sent:
        """`send` of a contact card; `more` are further keys of it, such as `phoneNumber` and `userId`."""
        return await self.send(conversation_id, json.dumps({"displayName": display_name, **more}), kind="contact")

    async def post_form(self, conversation_id: str, form: MessageForm) -> SentMessage:
        """As in `Messages`; its number is no hole in the events of this client."""
        sent = await super().post_form(conversation_id, form)
        if self._inbox.open:
            self._inbox.own(conversation_id, sent.sequence_number)
        return sent

    def _note_change(self) -> None:
        self._unsaved.set()

    def _require_connect(self) -> None:
        if not self._inbox.open:
            raise RuntimeError("this works inside of `async with client.connect()`")
