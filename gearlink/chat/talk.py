"""`gearlink chat to`: one conversation on the screen. Lines go out, and what happens comes in, live and in words.

A person's line that begins with `/` is a command, one that begins with `//` is a text with one `/`; what a pipe says is
text, unless it was said that it holds commands. Everything is shown once, whether it is of the past or live.
"""

import argparse
import json
import signal
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gearlink import protocol
from gearlink.chat.commands import run_command, show_draft
from gearlink.chat.desk import Desk
from gearlink.chat.finding import INTERRUPTED, Complaint, find_conversation
from gearlink.chat.notices import as_json, changed_identity, not_linked, notice
from gearlink.chat.refusals import refusal_line
from gearlink.chat.rooms import COMMANDS
from gearlink.chat.trust import how_safe
from gearlink.chat.vaults import open_safely
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, Refused, Unreachable
from gearlink.sdk.secure.told import NotLinked, Recovered, SecurityEvent
from gearlink.terminal import Terminal, harmless
from gearlink.views import ConversationView, Encryption, MessageView

if TYPE_CHECKING:
    from gearlink.sdk.secure.client import SecureClient

READABLE: Final = "not encrypted: the server can read what is said here"
OWN_REMEMBERED_MAX: Final = 1000
WATCHED_MAX: Final = 50  # of a large group nobody reads who comes and goes
NOT_OF_THE_LOG: Final = (protocol.MessageDelivered, protocol.MessageRead, protocol.ThreadWasRead)  # but with a number


async def talk(options: argparse.Namespace, client: Client, terminal: Terminal) -> int:
    """`to WHO`."""
    async with open_safely(options, client, terminal) as secure:
        encryption: Encryption = "server" if options.plain else "e2ee"
        found = await find_conversation(client, options.target, encryption, private=not options.plain)
        view = await secure.companies.note(found)
        if options.plain and view.encryption == "e2ee":
            raise Complaint("what is said there is encrypted already, and stays so: leave --plain away")
        if view.encryption != "e2ee" and view.type != "channel" and not (options.plain or terminal.interactive):
            terminal.complain(f"-- {READABLE} (--plain: that is meant)")
        return await _talk(options, secure, terminal, view)


async def _talk(options: argparse.Namespace, secure: "SecureClient", terminal: Terminal, view: ConversationView) -> int:
    """Talks until the input ends, and with `--follow` until a signal."""
    table = Talk(options, secure, terminal, view)
    status: int = ExitStatus.OK

    async def watch_signals() -> None:
        nonlocal status
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _number in signals:
                # For a person this is the usual way out; a script must see that lines may be missing.
                status = ExitStatus.OK if terminal.interactive else INTERRUPTED
                nursery.cancel_scope.cancel()

    with terminal.editing(table.note_key):
        async with secure.client.connect(table.tell_connection), trio.open_nursery() as nursery:
            nursery.start_soon(watch_signals)
            await nursery.start(table.show_events, options.last)
            await table.begin()
            await table.send_lines()
            if options.follow and not table.desk.is_left:
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
    return status


class Talk:
    """One conversation on the screen."""

    def __init__(
        self, options: argparse.Namespace, secure: "SecureClient", terminal: Terminal, view: ConversationView
    ) -> None:
        self._json: bool = options.json
        self._takes_commands: bool = terminal.interactive or options.commands
        self._secure, self._client, self._terminal = secure, secure.client, terminal
        self._view, self._conversation_id = view, view.id
        self.desk = Desk(secure, terminal, view, is_quiet=options.json)
        self._names = self.desk.names
        self._was_offline = False
        self._marks_read = terminal.interactive or options.follow  # else nobody is there who reads
        self._shown = 0  # up to this number everything is on the screen
        self._own: dict[int, None] = {}  # numbers of messages from here whose marks are still of interest
        self._marks = {"delivered": 0, "read": 0}
        self._is_catching_up = True
        self._linking_code = ""  # that was told last

    async def _show_past(self, count: int) -> None:
        """The last messages, oldest first. They stand there with all that became of them, so nothing up to here, and up
        to where the log was before they were asked for, is told once more."""
        if self.desk.is_encrypted:
            self.desk.past.head = max(self._shown, self._client.state.cursors.get(self._conversation_id, 0))
        newest = await self.desk.past.older(count)
        for message in newest:
            await self._show(message)
        self._shown = max([self._shown, *(message.sequence_number for message in newest)])

    async def begin(self) -> None:
        """For a person: who can read this, what they had begun to write, and whether the others are here. Nothing that has
        to be known."""
        if not self._terminal.interactive or self._json:
            return
        if not self.desk.is_encrypted:
            self.desk.tell(READABLE)
        with suppress(Refused, Unreachable):
            if self.desk.is_encrypted:
                self.desk.tell(await how_safe(self.desk))
            else:
                await show_draft(self.desk)
        self._watch()

    def _watch(self) -> None:
        members = self._view.members if isinstance(self._view.members, list) else []
        others = [each.user_id for each in members if each.user_id != self.desk.me]
        if 0 < len(others) <= WATCHED_MAX:
            self._client.watch(others)

    # --- what comes in ------------------------------------------------------------------------------------------------

    async def show_events(self, count: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Shows the past, then what happens here until the connection ends. Raises Complaint when the conversation does.

        What was said in an encrypted conversation comes as events and nowhere else, so they are taken before the past is
        shown, which is what was kept of them. Where the server can read, it shows the past itself."""
        if not self.desk.is_encrypted:
            self._shown = self._view.sequence_number
            await self._begin_live(count, task_status)
        is_past_due = self.desk.is_encrypted
        async for event in self._secure.events():
            if isinstance(event, SecurityEvent):
                await self._show_notice(event, is_shown=not is_past_due)
                continue
            if isinstance(event, protocol.SyncDone):
                self._is_catching_up = False
                if is_past_due:
                    is_past_due = False
                    await self._begin_live(count, task_status)
            if is_past_due:
                self._pass_over(event)
                continue
            if self._is_old(event):
                continue
            if isinstance(event, protocol.MessageNew):
                await self._show_new(event.message)
            elif _place(event) in (None, self._conversation_id):
                await self._show_event(event)
            if self._is_end(event) and not self.desk.is_left:
                raise Complaint("you are not in this conversation any more, or it was deleted")

    async def _begin_live(self, count: int, task_status: trio.TaskStatus[None]) -> None:
        await self._show_past(count)
        self._seen(self._shown)
        task_status.started()

    def _pass_over(self, event: msgspec.Struct) -> None:
        """What was missed stands in the past that is shown next."""
        number = event.message.sequence_number if isinstance(event, protocol.MessageNew) else _number(event)
        place = event.message.conversation_id if isinstance(event, protocol.MessageNew) else _place(event)
        if number is not None and place == self._conversation_id:
            self._shown = max(self._shown, number)

    async def _show_notice(self, event: SecurityEvent, *, is_shown: bool) -> None:
        """What the client noticed by itself: about whoever, since keys are the same everywhere."""
        if isinstance(event, Recovered):
            if not is_shown or event.message.conversation_id != self._conversation_id:
                return
        elif isinstance(event, NotLinked):
            if event.code == self._linking_code:
                return
            self._linking_code = event.code
        if self._json:
            self._terminal.say(json.dumps(as_json(event)))
        elif isinstance(event, Recovered):
            self.desk.tell(f"#{event.message.sequence_number} can be read now:")
            await self._show(event.message)
        elif (line := await notice(event, self._names.of)) is not None:
            self.desk.warn(await self._elsewhere(event) + line)

    async def _elsewhere(self, event: SecurityEvent) -> str:
        """Which conversation it is about, if it is not the one on the screen."""
        conversation_id = getattr(event, "conversation_id", "")
        if conversation_id in ("", self._conversation_id):
            return ""
        with suppress(Refused, Unreachable):
            return f"in {await self._names.title(await self._client.conversation(conversation_id))}: "
        return "in another conversation: "

    def _is_old(self, event: msgspec.Struct) -> bool:
        """Whether the screen shows already what this tells. What was deleted for oneself alone has no number, and is told
        again to a device that was away."""
        if isinstance(event, protocol.MessageDeleted) and not event.for_everyone:
            return self._is_catching_up
        number = _number(event)
        return number is not None and _place(event) == self._conversation_id and number <= self._shown

    def _is_end(self, event: object) -> bool:
        if isinstance(event, protocol.ConversationDeleted):
            return event.conversation_id == self._conversation_id
        return (
            isinstance(event, protocol.MemberLeft)
            and (event.conversation_id, event.user_id) == (self._conversation_id, self.desk.me)
        )  # fmt: skip

    async def _show_event(self, event: msgspec.Struct) -> None:
        if isinstance(event, protocol.Presence):
            await self._note_presence(event)
        if self._json:
            self._print_json(event)
            return
        match event:
            case protocol.MessageDelivered():
                await self._mark("delivered", event.user_id, event.sequence_number)
            case protocol.MessageRead():
                await self._mark("read", event.user_id, event.sequence_number)
            case protocol.Typing():
                if event.active and self._terminal.interactive:
                    self.desk.tell(f"{await self._names.of(event.user_id)} is typing…")
            case protocol.SyncDone(complete=False):
                self._terminal.complain("-- older messages are left out here: start again to see them")
            case protocol.DraftChanged(draft=draft) if draft.content is not None:
                self.desk.tell(f"draft from another device: {harmless(draft.content, lines=True)}")
            case _:
                if (words := await self._names.event(event)) is not None:
                    self.desk.tell(words)
        if (number := _number(event)) is not None:
            self._seen(number)

    async def _note_presence(self, event: protocol.Presence) -> None:
        before = self.desk.presence.get(event.user_id)
        self.desk.presence[event.user_id] = event.status
        if self.desk.is_direct and event.status != (before or "offline") and not self._json:
            self.desk.tell(f"{await self._names.of(event.user_id)} is {event.status}")

    async def _show_new(self, message: MessageView) -> None:
        if message.conversation_id == self._conversation_id and message.sequence_number > self._shown:
            await self._show(message)
            self._seen(message.sequence_number)

    async def _show(self, message: MessageView) -> None:
        if self._json:
            self._print_json(protocol.MessageNew(message=message))
            return
        line = await self._names.line(message)
        self._terminal.say(line)

    def _seen(self, sequence: int) -> None:
        self._shown = max(self._shown, sequence)
        if self._marks_read and self._shown:
            self._client.mark_read(self._conversation_id, self._shown)

    async def _mark(self, kind: str, user_id: str, sequence: int) -> None:
        """A watermark of somebody else passed messages that were sent from here."""
        if user_id == self._client.state.user_id:
            return
        passed = [number for number in self._own if self._marks[kind] < number <= sequence]
        self._marks[kind] = max(self._marks[kind], sequence)
        if passed:
            sign = "✓✓ delivered to" if kind == "delivered" else "✓✓ read by"
            self._terminal.say(f"    {sign} {await self._names.of(user_id)} #{max(passed)}")

    # --- what goes out ------------------------------------------------------------------------------------------------

    async def send_lines(self) -> None:
        """Sends each line of the input, one after the other, until it ends."""
        async with aclosing(self._terminal.lines) as lines:
            async for line in lines:
                if line.strip():
                    await self._obey(line)
                if self.desk.is_left:
                    return

    async def _obey(self, line: str) -> None:
        if self._takes_commands and line.startswith("/") and not line.startswith("//"):
            await self._tried("", partial(run_command, self.desk, COMMANDS, line.strip()))
            return
        if self._takes_commands and line.startswith("//"):
            line = line[1:]
        await self._tried("not sent: ", partial(self._send, line))

    async def _tried(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """A person is told what was refused, and goes on; a script ends."""
        try:
            await act()
        except (Refused, Unreachable, Complaint) as trouble:
            why = await self._explained(trouble) if isinstance(trouble, Refused) else None
            if not self._terminal.interactive or (isinstance(trouble, Refused) and trouble.status == 401):
                if why is not None:
                    raise Complaint(why) from None
                raise
            line = why or (refusal_line(trouble) if isinstance(trouble, Refused) else str(trouble))
            self._terminal.complain(f"-- {what}{harmless(line)}")

    async def _explained(self, refused: Refused) -> str | None:
        """What a person has to do before anything can be said here."""
        if refused.code == "not-linked" and self._linking_code:
            return not_linked(self._linking_code)
        if refused.code == "identity-changed" and self.desk.is_encrypted:
            waiting = (await self._secure.companies.of(self._conversation_id)).waiting
            names = [await self._names.of(each) for each in waiting]
            return "; ".join(changed_identity(who) for who in names) or None
        return None

    async def _send(self, line: str) -> None:
        sent = await self.desk.send(line)
        self._own[sent.sequence_number] = None
        if len(self._own) > OWN_REMEMBERED_MAX:
            del self._own[next(iter(self._own))]
        if self._json:
            self._print_json(
                protocol.SendAck(
                    temp_id=sent.temp_id,
                    message_id=sent.message_id,
                    conversation_id=self._conversation_id,
                    sequence_number=sent.sequence_number,
                    created_at=sent.created_at,
                )
            )
        else:
            self._terminal.say(f"    ✓ sent #{sent.sequence_number}")

    def note_key(self) -> None:
        """The person types: the others are told, once in a while."""
        self._client.typing(self._conversation_id)

    def tell_connection(self, online: bool, reason: str) -> None:
        """Says when the connection goes and comes."""
        if not online:
            self._is_catching_up = True
            self._terminal.complain(f"-- offline: {harmless(reason)}; trying again")
        elif self._was_offline:
            self._terminal.complain("-- online again")
        self._was_offline = not online

    def _print_json(self, event: msgspec.Struct) -> None:
        # Through json, because it escapes everything beyond ASCII: some terminals obey characters above it.
        self._terminal.say(json.dumps(msgspec.to_builtins(event)))


def _number(event: object) -> int | None:
    """The number that an event other than a message has in the log of its conversation."""
    number = getattr(event, "sequence_number", None)
    return number if isinstance(number, int) and not isinstance(event, NOT_OF_THE_LOG) else None


def _place(event: object) -> str | None:
    """The conversation that an event is about; None for those about oneself or about people."""
    for part in (event, *(getattr(event, name, None) for name in ("conversation", "draft", "scheduled", "request"))):
        place = getattr(part, "conversation_id", None) or (part.id if isinstance(part, ConversationView) else None)
        if isinstance(place, str):
            return place
    return None
