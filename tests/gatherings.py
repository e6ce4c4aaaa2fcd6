"""Conversations with their rules of membership on fakes, for tests of who gets in, who is put out, and who may do what.

`Town` has the parts of the domain and its people; a conversation in it is made by the rules, as its members would.
"""

from typing import Any

from msgspec import structs

from config.settings import Settings, with_values
from gearlink.accounts import Actor
from gearlink.calls import ConversationForm, MemberChange, MembersForm, MessageForm
from gearlink.clock import new_id
from gearlink.conversations import Conversations
from gearlink.invitations import Invitations
from gearlink.members import Members
from gearlink.preferences import Preferences
from gearlink.throttle import Budget
from storage.events import LogEvent, Message, Plain, Role
from storage.notices import Notice, Personal
from storage.records import Account, Block, Conversation, LogEntry, Member, MessageIndex
from storage.store import Transaction
from tests.changes import putting
from tests.fakes import FakeClock, FakeStore


class Town:
    """The parts of the domain that know of membership, over one store."""

    def __init__(self, *, members_max: int = 1000) -> None:
        self.store, self.clock = FakeStore(), FakeClock()
        settings = with_values(Settings(), {"limits.messages_per_second": 0})
        budget = Budget(settings.limits, now=lambda: 0.0)
        self.conversations = Conversations(self.store, self.clock, budget, members_max=members_max)
        self.members = Members(self.store, self.clock, budget, members_max)
        self.invitations = Invitations(self.store, self.clock, self.members, budget)
        self.preferences = Preferences(self.store, self.clock)

    async def person(self, **account: Any) -> Actor:
        """Somebody with an account, signed in."""
        user_id, now = new_id(), self.clock.now()
        await self.store.write(putting(Account(user_id, f"+1555{user_id[:8]}", now, now, **account)))
        return Actor(user_id, new_id(), new_id(), 1 << 60, False)

    async def people(self, count: int) -> list[Actor]:
        return [await self.person() for _ in range(count)]

    async def open(self, founder: Actor, *others: Actor, kind: str = "group", **form: Any) -> str:
        """A conversation of theirs; returns its id."""
        ids = [other.user_id for other in others]
        asked = ConversationForm(type=kind, member_ids=ids, **{"encryption": "server", **form})  # type: ignore[arg-type]
        view, _is_new = await self.conversations.create(founder, asked)
        return view.id

    async def add(self, actor: Actor, conversation_id: str, *others: Actor, role: Role = "member") -> None:
        form = MembersForm(user_ids=[other.user_id for other in others], role=role)
        await self.members.add(actor, conversation_id, form)

    async def appoint(self, actor: Actor, conversation_id: str, target: Actor, role: Role) -> None:
        await self.members.change(actor, conversation_id, target.user_id, MemberChange(role=role))

    async def say(self, sender: Actor, conversation_id: str, text: str = "hello", **more: Any) -> str:
        """A message in the log, without the rules of sending; returns its id."""
        form = MessageForm(temp_id=new_id(), content=text)
        message = Message(
            new_id(), sender.user_id, self.clock.now(), sender.device_id, form.kind, Plain(text), form.temp_id, **more
        )

        async def change(tx: Transaction) -> None:
            sequence = await tx.append(conversation_id, message)
            tx.put(MessageIndex(message.event_id, conversation_id, sequence))

        await self.store.write(change)
        return message.event_id

    async def block(self, blocker: Actor, blocked: Actor) -> None:
        await self.store.write(putting(Block(blocker.user_id, blocked.user_id, self.clock.now())))

    async def conversation(self, conversation_id: str) -> Conversation:
        found = await self.store.get(Conversation, conversation_id)
        assert found is not None
        return found

    async def member(self, conversation_id: str, person: Actor) -> Member | None:
        return await self.store.get(Member, conversation_id, person.user_id)

    async def change_member(self, conversation_id: str, person: Actor, **fields: Any) -> None:
        member = await self.member(conversation_id, person)
        assert member is not None
        await self.store.write(putting(structs.replace(member, **fields)))

    async def roles(self, conversation_id: str) -> dict[str, Role]:
        """The role of every member, by their id."""
        found = await self.store.scan(Member, conversation_id, limit=10_000)
        return {member.user_id: member.role for member in found}

    def log(self, conversation_id: str) -> list[LogEvent]:
        """What the history holds, in order."""
        return [entry.event for entry in self.store.all(LogEntry) if entry.conversation_id == conversation_id]

    def personal(self, mark: int = 0) -> list[Personal]:
        """What users were told for themselves since `mark`, a length of `store.notices`."""
        notices: list[Notice] = self.store.notices[mark:]
        return [notice for notice in notices if isinstance(notice, Personal)]
