"""One conversation at the terminal, as commands see it: who is asked, what is shown, and what `#12` means there.

It neither listens nor reads lines; the talk does, and tells it what it saw.
"""

import re
from typing import TYPE_CHECKING, Final

import trio

from gearlink.chat.finding import Complaint, find_blocked, find_user
from gearlink.chat.pages import Past, message_numbered, opened
from gearlink.chat.words import Names
from gearlink.errors import ExitStatus
from gearlink.sdk import Sent, Unreachable
from gearlink.terminal import Terminal
from gearlink.views import ALL, ConversationView, MessageView

if TYPE_CHECKING:
    from gearlink.sdk.secure.client import SecureClient

_NUMBER: Final = re.compile(r"#?(\d{1,16})")
_RECOVERY_KEY: Final = re.compile(r"\s*(?:[0-9A-Za-z]{4}[\s-]+){7}[0-9A-Za-z]{4}\s*")
_MENTION: Final = re.compile(r"(?<![\w@/.])@([a-z][a-z0-9_.]{2,31})")
ASK_AGAIN_SECONDS: Final = 1.0
OWN_LOOKED_AT: Final = 200  # messages among which one's own last one is looked for


class Desk:
    """`is_quiet` keeps what commands say off the output, which is for JSON then. `presence` is who is known to be here.
    `is_direct`: it is a conversation between two. `is_signed`: who is in it is signed by its owners and admins."""

    def __init__(self, secure: "SecureClient", terminal: Terminal, view: ConversationView, *, is_quiet: bool) -> None:
        self.secure, self.client, self.terminal = secure, secure.client, terminal
        self.view, self.conversation_id = view, view.id
        self.names = Names(secure.client)
        self.presence: dict[str, str] = {}
        self.is_left = False
        self.is_direct = view.type == "direct"
        self.is_encrypted = view.encryption == "e2ee"
        self.is_signed = self.is_encrypted and not self.is_direct
        self.past = Past(secure, view)
        self._is_quiet = is_quiet

    @property
    def me(self) -> str:
        """One's own id."""
        return self.client.state.user_id or ""

    def tell(self, line: str) -> None:
        """A line of ours, about what happened or was asked for."""
        (self.terminal.complain if self._is_quiet else self.terminal.say)(f"    ~ {line}")

    def warn(self, line: str) -> None:
        """A line about trust, which is not to be overlooked, nor to be taken for what somebody wrote."""
        self.terminal.complain(f"!! {line}")

    async def ask(self, question: str) -> str:
        """The next line of the input; a script has to bring it."""
        self.tell(question)
        return (await anext(self.terminal.lines, "")).strip()

    async def show(self, message: MessageView) -> None:
        """A message that was asked for."""
        line = await self.names.line(await opened(self.secure, message) if self.is_encrypted else message)
        (self.terminal.complain if self._is_quiet else self.terminal.say)(line)

    async def message(self, word: str) -> MessageView:
        """The message that `#12` means. Raises Complaint."""
        if not (found := _NUMBER.fullmatch(word)):
            raise Complaint("say which message, such as #12", ExitStatus.USAGE)
        number = int(found[1])
        message = await message_numbered(self.secure, self.view, number)
        if message is None:
            raise Complaint(f"there is no message #{number}")
        self.names.note(message)
        return message

    async def own_last(self) -> MessageView:
        """What one wrote last, if it is not long ago. Raises Complaint."""
        for message in reversed(await Past(self.secure, self.view).older(OWN_LOOKED_AT)):
            if message.sender_id == self.me and message.kind != "system" and not isinstance(message.deleted_at, str):
                return message
        raise Complaint("you wrote nothing here lately: say which message, such as #12")

    async def named_or_last(self, words: str) -> tuple[MessageView, str]:
        """The message that the first word names, or one's own last one; and the words behind."""
        first, _, rest = words.partition(" ")
        if first.startswith("#"):
            return await self.message(first), rest.strip()
        return await self.own_last(), words

    async def send(self, text: str, *, reply_to_id: str | None = None) -> Sent:
        """Says something here. As long as the server cannot be reached it waits. Raises Refused, and Complaint for what
        nobody means to say: a recovery key, typed in the wrong place."""
        if _RECOVERY_KEY.fullmatch(text):
            raise Complaint("this looks like a recovery key, and is not sent: it is for /recover alone")
        temp_id = self.client.options.new_temp_id()
        mentions = await self.mentions(text)
        while True:
            try:
                return await self.secure.send(self.conversation_id, text, temp_id, reply_to_id, mentions)
            except Unreachable:  # before it was sealed, or it was put aside under this name
                await trio.sleep(ASK_AGAIN_SECONDS)

    async def mentions(self, text: str) -> list[str]:
        """Whom `@names` in a text mean: `all`, and members by their usernames. Others are just words. As long as nobody
        can be asked it waits, as sending does."""
        names = list(dict.fromkeys(name.rstrip(".") for name in _MENTION.findall(text.lower())))
        while names:
            try:
                return await self._members_called(names)
            except Unreachable:
                await trio.sleep(ASK_AGAIN_SECONDS)
        return []

    async def _members_called(self, names: list[str]) -> list[str]:
        view = await self.client.conversation(self.conversation_id)
        members = {each.user_id for each in view.members} if isinstance(view.members, list) else None
        found = [ALL] if ALL in names and view.type != "direct" else []
        for name in names:
            user = await self.client.user_named(name) if name != ALL else None
            if user is not None and (members is None or user.id in members):
                found.append(user.id)
        return found

    async def other(self, words: str) -> str:
        """The id of whom a word means; without one the other one of a conversation between two. Raises Complaint."""
        if words:
            return await self.person(words)
        members = self.view.members if isinstance(self.view.members, list) else []
        others = [each.user_id for each in members if each.user_id != self.me]
        if not self.is_direct or not others:
            raise Complaint("say who: +15551230002 or @username", ExitStatus.USAGE)
        return others[0]

    async def person(self, word: str) -> str:
        """The id of whom a word means. Raises Complaint."""
        return (await find_user(self.client, word)).id

    async def blocked(self, words: str) -> list[str]:
        """The ids of those whom one has blocked and the words mean. Raises Complaint."""
        return [(await find_blocked(self.client, word)).id for word in words.split()]

    async def people(self, words: str) -> list[str]:
        """The ids of one or more. Raises Complaint."""
        if not words:
            raise Complaint("say who: +15551230002 or @username", ExitStatus.USAGE)
        return [await self.person(word) for word in words.split()]
