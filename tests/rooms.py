"""A conversation on fakes, with those who talk in it: for tests of what people do with single messages.

Messages are put into the log without the rules of sending, so a test says what stands there: a poll, a reply, a message
that has expired. `Room.storms` is not run unless the test does.
"""

from typing import Any

import trio
from msgspec import structs

from config.settings import Settings, with_values
from gearlink.accounts import Actor
from gearlink.amendments import Amendments
from gearlink.clock import new_id
from gearlink.device_lists import DeviceLists
from gearlink.journal import Metrics
from gearlink.messages import Messages
from gearlink.polls import Polls
from gearlink.pressure import Pressure
from gearlink.reactions import Reactions
from gearlink.storms import Storms
from gearlink.threads import Threads, note_reply
from gearlink.throttle import Budget
from storage.events import Message, Plain, Poll, PollChanged, ReactionChanged, Role
from storage.notices import Appended
from storage.records import Conversation, LogEntry, Member, MessageIndex
from storage.store import Transaction
from tests.changes import putting
from tests.fakes import FakeClock, FakeStore


def somebody() -> Actor:
    """Somebody who is signed in."""
    return Actor(new_id(), new_id(), new_id(), 1 << 60, False)


class Room:
    """Made by `open_room`. The first of `people` is its owner, the others are members."""

    def __init__(self, people: list[Actor], **limits: Any) -> None:
        self.people = people
        self.store, self.clock = FakeStore(), FakeClock()
        self.id = new_id()
        unbounded = {"limits.messages_per_second": 0}
        self.settings = with_values(Settings(), unbounded | {f"limits.{name}": each for name, each in limits.items()})
        self.restart()

    def restart(self) -> None:
        """What is only in memory is lost, as in a crash."""
        budget = Budget(self.settings.limits, now=lambda: 0.0)
        self.storms = Storms(self.store, self.clock)
        self.reactions = Reactions(self.store, self.clock, budget, self.storms)
        self.polls = Polls(self.store, self.clock, budget, self.storms)
        self.threads = Threads(self.store, self.clock)
        metrics = Metrics()
        pressure = Pressure(metrics, lambda: 0)
        self.messages = Messages(self.store, self.clock, budget, pressure, metrics, DeviceLists())
        self.amendments = Amendments(self.store, self.clock, budget, self.settings, pressure)

    async def admit(self, person: Actor, role: Role = "member", *, joined_sequence: int = 0) -> None:
        member = Member(self.id, person.user_id, role, self.clock.now(), joined_sequence)
        await self.store.write(putting(member))

    async def change(self, **fields: Any) -> None:
        """Other facts of the conversation."""
        conversation = await self.store.get(Conversation, self.id)
        assert conversation is not None
        await self.store.write(putting(structs.replace(conversation, **fields)))

    async def change_member(self, person: Actor, **fields: Any) -> None:
        member = await self.store.get(Member, self.id, person.user_id)
        assert member is not None
        await self.store.write(putting(structs.replace(member, **fields)))

    async def post(self, sender: Actor, text: str = "hello", **more: Any) -> str:
        """A message of theirs; with `thread_id` a reply in a thread. Returns its id."""
        fields = {"kind": "text", "content": Plain(text), "temp_id": new_id(), **more}
        message = Message(new_id(), sender.user_id, self.clock.now(), sender.device_id, **fields)

        async def change(tx: Transaction) -> None:
            sequence = await tx.append(self.id, message)
            tx.put(MessageIndex(message.event_id, self.id, sequence))
            if message.thread_id:
                await note_reply(tx, self.id, message.thread_id, sequence, sender.user_id)

        await self.store.write(change)
        return message.event_id

    async def ask(self, sender: Actor, *options: str, **more: Any) -> str:
        """A poll of theirs."""
        facts = {"multiple": False, "anonymous": False, "closes_at": 0, "counts": (0,) * len(options), **more}
        return await self.post(sender, "which?", kind="poll", poll=Poll(options, **facts))

    async def entry(self, message_id: str) -> LogEntry:
        index = await self.store.get(MessageIndex, message_id)
        assert index is not None
        entry = await self.store.get(LogEntry, self.id, index.sequence)
        assert entry is not None
        return entry

    async def message(self, message_id: str) -> Message:
        """As it stands in the log now."""
        message = (await self.entry(message_id)).event
        assert isinstance(message, Message)
        return message

    async def rewrite(self, message_id: str, **fields: Any) -> None:
        entry = await self.entry(message_id)
        await self.store.write(putting(structs.replace(entry, event=structs.replace(entry.event, **fields))))

    async def bury(self, message_id: str) -> None:
        """Makes a tombstone of it."""
        await self.rewrite(message_id, content=None, deleted_at=self.clock.now(), reactions=(), poll=None)

    @property
    def told(self) -> list[Appended]:
        """Every reaction and vote that the room heard of, in order."""
        heard = [notice for notice in self.store.notices if isinstance(notice, Appended)]
        return [notice for notice in heard if isinstance(notice.entry.event, ReactionChanged | PollChanged)]


async def open_room(count: int = 3, *, type: str = "group", **limits: Any) -> Room:
    """A conversation of so many."""
    room = Room([somebody() for _ in range(count)], **limits)
    owner = room.people[0].user_id
    conversation = Conversation(room.id, type, "server", "", "", owner, room.clock.now(), room.clock.now(), count, 1)  # type: ignore[arg-type]
    await room.store.write(putting(conversation))
    for person in room.people:
        role: Role = "owner" if person is room.people[0] and type != "direct" else "member"
        await room.admit(person, role)
    return room


async def calm() -> None:
    """A second goes by."""
    await trio.sleep(1.0)
