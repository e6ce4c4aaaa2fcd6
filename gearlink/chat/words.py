"""What is told, in words: messages, what became of them, and what happened in a conversation; and times and durations.

Everything that others wrote or named themselves passes `harmless`. A line of ours begins with `    ~`, a quote with
`    >`, and the second line of a text with `    |`, so that no text can pass for one of ours. It asks for names, and
remembers them; it prints nothing.
"""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from msgspec import UNSET

from gearlink import protocol
from gearlink.chat.finding import Complaint
from gearlink.chat.notices import TROUBLES
from gearlink.errors import ExitStatus
from gearlink.sdk import Client, Refused, Unreachable
from gearlink.sdk.secure.told import OpenedMessage
from gearlink.terminal import harmless
from gearlink.views import ConversationView, MessageView, PollView, ReactionView, SettingsView, User

NAMES_REMEMBERED_MAX: Final = 1000
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION: Final = re.compile(r"(\d{1,12})([smhdw])")


# --- times -----------------------------------------------------------------------------------------------------------


def local_time(text: str) -> str:
    """A time of the server by the clock on the wall here."""
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return harmless(text[:16].replace("T", " "))


def seconds_of(text: str) -> int:
    """A duration such as 30s, 5m, 2h, 7d, 4w, in seconds; 0 for `off`. Raises Complaint."""
    if text in ("off", "0"):
        return 0
    if not (found := _DURATION.fullmatch(text)):
        raise Complaint("a duration is 30s, 5m, 2h, 7d, 4w or off", ExitStatus.USAGE)
    return int(found[1]) * _UNITS[found[2]]


def duration(seconds: int) -> str:
    """Seconds as a person says them: the largest unit that fits."""
    unit, size = next((each for each in reversed(_UNITS.items()) if seconds % each[1] == 0), ("s", 1))
    return f"{seconds // size}{unit}"


def time_of(text: str, now: float) -> str:
    """RFC 3339 for +2h, 18:30 (the next one) or 2030-01-31T18:30, by the local clock. Raises Complaint."""
    here = datetime.fromtimestamp(now, UTC).astimezone()
    try:
        if text.startswith("+"):
            return (here + timedelta(seconds=seconds_of(text[1:]))).isoformat()
        if re.fullmatch(r"\d{1,2}:\d\d", text):
            hour, minute = map(int, text.split(":"))
            at = here.replace(hour=hour, minute=minute, second=0, microsecond=0)
            return (at if at > here else at + timedelta(days=1)).isoformat()
        return datetime.fromisoformat(text).astimezone().isoformat()
    except (ValueError, OverflowError):
        raise Complaint("TIME is +2h, 18:30 or 2030-01-31T18:30", ExitStatus.USAGE) from None


# --- names -----------------------------------------------------------------------------------------------------------


def name_of(user: User) -> str:
    """What a user is called."""
    name = harmless(user.display_name).strip()
    handle = f"@{harmless(user.username)}" if user.username else ""
    return f"{name} ({handle})" if name and handle else name or handle or user.id[:8]


class Names:
    """What users and conversations are called, asked for once; and the numbers of messages that were seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._known: dict[str, str] = {}
        self._numbers: dict[str, int] = {}

    async def of(self, user_id: str) -> str:
        """What the user is called; `you` for oneself."""
        if user_id == self._client.state.user_id:
            return "you"
        if user_id not in self._known:
            if len(self._known) >= NAMES_REMEMBERED_MAX:
                self._known.clear()
            try:
                self._known[user_id] = name_of(await self._client.user(user_id))
            except (Refused, Unreachable):
                return user_id[:8]
        return self._known[user_id]

    async def title(self, view: ConversationView) -> str:
        """What a conversation is called: by its name, or by who else is in it."""
        if view.name:
            return harmless(view.name)
        members = view.members if isinstance(view.members, list) else []
        others = [member.user_id for member in members if member.user_id != self._client.state.user_id]
        return ", ".join([await self.of(each) for each in others[:5]]) or f"{view.type} of {view.member_count}"

    def note(self, message: MessageView) -> None:
        """Remembers the number of a message that was seen."""
        if len(self._numbers) >= NAMES_REMEMBERED_MAX:
            self._numbers.clear()
        self._numbers[message.id] = message.sequence_number

    async def number(self, message_id: str) -> str:
        """`#12`, by which a command can name the message; in words if it is gone."""
        if message_id not in self._numbers:
            try:
                self.note(await self._client.message(message_id))
            except (Refused, Unreachable):
                return "a message"
        return f"#{self._numbers[message_id]}"

    # --- messages -----------------------------------------------------------------------------------------------------

    async def line(self, message: MessageView) -> str:
        """A message of the history, with all that became of it; several lines where there is much to say."""
        self.note(message)
        head = f"#{message.sequence_number} {local_time(message.created_at)}"
        if message.kind == "system":
            return f"{head} ~ {await self._system(message)}"
        lines = [f"{head} {await self.of(message.sender_id)}: {await self._body(message)}"]
        if isinstance(message.reply_to_id, str):
            lines.append(f"    > {await self._quote(message)}")
        if isinstance(message.poll, msgspec.Struct):
            lines += poll_lines(message.poll)
        if marks := _marks(message, self._client.state.user_id):
            lines.append(f"    ({', '.join(marks)})")
        if message.reactions:
            lines.append(f"    {reactions(message.reactions)}")
        return "\n".join(lines)

    async def _body(self, message: MessageView) -> str:
        if isinstance(message.deleted_at, str):
            by = message.deleted_by if isinstance(message.deleted_by, str) else message.sender_id
            return f"(deleted by {await self.of(by)})"
        if isinstance(message, OpenedMessage):
            return _opened(message)
        if message.encrypted is not UNSET:
            return "(encrypted)"
        text = harmless(message.content, lines=True) if message.content else ""
        return text if message.kind in ("text", "poll") and text else f"({harmless(message.kind)}) {text}".rstrip()

    async def _quote(self, message: MessageView) -> str:
        quote = message.reply_to
        if not isinstance(quote, msgspec.Struct):
            return "(a message that is gone)"
        said = "(deleted)" if isinstance(quote.deleted_at, str) else harmless(quote.content or f"({quote.kind})")
        return f"#{quote.sequence_number} {await self.of(quote.sender_id)}: {said}"

    async def _system(self, message: MessageView) -> str:
        try:
            event = protocol.decode_server(message.content or "")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            event = None
        return (await self.event(event) if event is not None else None) or "(something that this program does not know)"

    # --- events -------------------------------------------------------------------------------------------------------

    async def event(self, event: object) -> str | None:
        """What happened to a message, or in the conversation, in words; None for what is not told here."""
        match event:
            case protocol.MessageEdited():
                self.note(event.message)
                text = harmless(event.content or "", lines=True)
                return f"{await self.of(event.user_id)} edited #{event.message.sequence_number}: {text}"
            case protocol.MessageDeleted():
                number, who = await self.number(event.message_id), await self.of(event.user_id)
                return f"{who} deleted {number}" + ("" if event.for_everyone else " from your own sight")
            case protocol.MessageExpired():
                return f"{', '.join([await self.number(each) for each in event.message_ids])} disappeared"
            case protocol.MessagePinned() | protocol.MessageUnpinned():
                verb = "pinned" if isinstance(event, protocol.MessagePinned) else "unpinned"
                return f"{await self.of(event.user_id)} {verb} {await self.number(event.message_id)}"
            case protocol.ReactionAdded() | protocol.ReactionRemoved():
                number, emoji = await self.number(event.message_id), harmless(event.emoji)
                added = isinstance(event, protocol.ReactionAdded)
                did = f"reacted {emoji} to {number}" if added else f"took {emoji} back from {number}"
                now = f" ({reactions(event.reactions)})" if event.reactions else ""
                return f"{await self.of(event.user_id)} {did}{now}"
            case protocol.PollChanged():
                counts = " · ".join(f"{harmless(each.text)} {each.count}" for each in event.poll.options)
                closed = " (closed)" if event.poll.closed_at else ""
                return f"votes on {await self.number(event.message_id)}: {counts}{closed}"
            case protocol.ConversationUpdated():
                return f"{await self.of(event.actor_id)} changed the conversation: {_state(event)}"
            case protocol.JoinRequested():
                return f"{await self.of(event.request.user_id)} asks to be let in: /requests"
        return await self._membership(event)

    async def _membership(self, event: object) -> str | None:
        match event:
            case protocol.MemberJoined():
                who, actor = await self.of(event.user_id), await self.of(event.actor_id)
                came = {"link": "joined over a link", "request": f"was let in by {actor}"}
                return f"{who} {came.get(event.by, f'was added by {actor}')}"
            case protocol.MemberChanged():
                return f"{await self.of(event.actor_id)} made {await self.of(event.user_id)} {event.role}"
            case protocol.MemberLeft():
                who, actor = await self.of(event.user_id), await self.of(event.actor_id)
                went = {"removed": f"was removed by {actor}", "banned": f"was banned by {actor}", "erased": "is gone"}
                return f"{who} {went.get(event.how, 'left')}"
        return None


def _opened(message: OpenedMessage) -> str:
    """What was in a letter, or why nobody knows."""
    if isinstance(message.trouble, str):
        return f"(cannot be read: {TROUBLES.get(message.trouble, harmless(message.trouble))})"
    text = harmless(message.content, lines=True) if message.content else ""
    files = message.attachments if isinstance(message.attachments, list) else []
    parts = [f"({harmless(each.name or each.mime_type)}, {each.size:,} bytes)" for each in files]
    parts += [] if (message.kind == "text" and text) or files else [f"({harmless(message.kind)})"]
    return " ".join([*parts, text]).strip()


def reactions(found: list[ReactionView]) -> str:
    """`👍 2 · ❤ 1`."""
    return " · ".join(f"{harmless(each.emoji)} {each.count}" for each in found)


def poll_lines(poll: PollView) -> list[str]:
    """The options with their numbers, as /vote takes them."""
    mine = poll.my_options if isinstance(poll.my_options, list) else []
    lines = [
        f"    {number + 1}. {harmless(each.text)}  {each.count}{'  (yours)' if number in mine else ''}"
        for number, each in enumerate(poll.options)
    ]
    if poll.closed_at:
        lines.append("    (closed)")
    elif poll.closes_at:
        lines.append(f"    (until {local_time(poll.closes_at)})")
    return lines


def settings_text(settings: SettingsView) -> str:
    """Who may do what, as /settings takes it."""
    names = ("write", "pin", "invite", "info", "mention_all")
    shown = [f"{name}={getattr(settings, name)}" for name in names]
    shown.append(f"history_visible={'yes' if settings.history_visible else 'no'}")
    shown.append(f"timer={duration(settings.disappearing_seconds) if settings.disappearing_seconds else 'off'}")
    return " ".join(shown)


def _state(event: protocol.ConversationUpdated) -> str:
    parts = [f"name {harmless(event.name)}"] if event.name else []
    parts += [harmless(event.description)] if event.description else []
    parts += [settings_text(event.settings)] if isinstance(event.settings, SettingsView) else []
    return " · ".join(parts) or "it has no name"


def _marks(message: MessageView, me: str | None) -> list[str]:
    mentions = message.mentions if isinstance(message.mentions, list) else []
    marks = ["@ everybody"] if "all" in mentions else ["@ you"] if me in mentions else []
    marks += [f"forwarded {message.forwarded} times"] if isinstance(message.forwarded, int) else []
    marks += ["edited"] if isinstance(message.edited_at, str) and not isinstance(message.deleted_at, str) else []
    marks += ["pinned"] if isinstance(message.pinned_at, str) else []
    marks += [f"until {local_time(message.expires_at)}"] if isinstance(message.expires_at, str) else []
    return marks
