"""Conversations and who is in them. `enter` is the only door to a conversation, for every route and every frame.

To a stranger a conversation does not exist: `enter` answers not-found, never forbidden. Roles decide the rest, by the one
table `RIGHTS`. Every change runs in the store's writer, so two people cannot both be the last owner who leaves. What
happens to the members is an event in the log with a sequence number of its own; the creation is not. Nothing here knows
sockets.
"""

import base64
import binascii
from collections.abc import Sequence
from enum import Enum, auto

from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ConversationChange, ConversationForm, MemberChange, MembersForm
from gearlink.clock import DAY, Clock, new_id, rfc3339
from gearlink.errors import ALREADY_MEMBER, FORBIDDEN, GROUP_FULL, LAST_OWNER, NOT_FOUND, Refusal, invalid
from gearlink.protocol import ConversationView, MemberView, Page
from gearlink.timeline import message_view
from storage.records import (
    Account,
    Admitted,
    Conversation,
    ConversationDeleted,
    ConversationType,
    ConversationUpdated,
    Delivery,
    Departure,
    DirectPair,
    Head,
    LogEntry,
    Member,
    MemberChanged,
    MemberJoined,
    MemberLeft,
    Membership,
    Message,
    Purge,
    Role,
)
from storage.store import Reads, Store, Transaction

_MEMBERSHIPS_MAX = 100_000  # of one user, read to sort the list by activity


class Right(Enum):
    READ = auto()
    SEND = auto()
    CHANGE = auto()
    ADD = auto()
    REMOVE = auto()
    APPOINT = auto()
    LEAVE = auto()
    DELETE = auto()


_EVERYONE: frozenset[Role] = frozenset({"owner", "admin", "member"})
_STAFF: frozenset[Role] = frozenset({"owner", "admin"})
_OWNERS: frozenset[Role] = frozenset({"owner"})
_NOBODY: frozenset[Role] = frozenset()
_GROUP = {
    Right.READ: _EVERYONE,
    Right.SEND: _EVERYONE,
    Right.CHANGE: _STAFF,
    Right.ADD: _STAFF,
    Right.REMOVE: _STAFF,
    Right.APPOINT: _OWNERS,
    Right.LEAVE: _EVERYONE,
    Right.DELETE: _OWNERS,
}
# Who may do what, by the type of conversation. A right that is not in a row is nobody's.
RIGHTS: dict[ConversationType, dict[Right, frozenset[Role]]] = {
    "direct": {Right.READ: _EVERYONE, Right.SEND: _EVERYONE},
    "group": _GROUP,
    "channel": {**_GROUP, Right.SEND: _STAFF},
}


async def enter(reads: Reads, user_id: str, conversation_id: str, right: Right) -> tuple[Conversation, Member]:
    """The conversation and the caller's place in it.

    Raises Refusal `not-found` for a stranger, whether or not the conversation exists, and `forbidden` for a member whose
    role does not have `right`.
    """
    member = await reads.get(Member, conversation_id, user_id)
    conversation = await reads.get(Conversation, conversation_id) if member is not None else None
    if member is None or conversation is None:
        raise Refusal(NOT_FOUND)
    if member.role not in RIGHTS[conversation.type].get(right, _NOBODY):
        raise Refusal(FORBIDDEN)
    return conversation, member


def member_view(member: Member) -> MemberView:
    return MemberView(user_id=member.user_id, role=member.role, joined_at=rfc3339(member.joined_at))


def fresh_view(notice: Admitted, member: Member) -> ConversationView:
    """The conversation as a newcomer sees it before anything else."""
    return _view(notice.conversation, member, notice.sequence, 0, None, notice.members)


def _view(
    conversation: Conversation,
    member: Member,
    sequence: int,
    unread: int,
    last_message: LogEntry | None,
    members: Sequence[Member],
) -> ConversationView:
    return ConversationView(
        id=conversation.conversation_id,
        type=conversation.type,
        encryption=conversation.encryption,
        name=conversation.name or None,
        description=conversation.description or None,
        created_by=conversation.created_by,
        created_at=rfc3339(conversation.created_at),
        updated_at=rfc3339(conversation.updated_at),
        role=member.role,
        member_count=conversation.member_count,
        sequence_number=sequence,
        read_sequence_number=member.read_sequence,
        unread_count=unread,
        last_message=message_view(last_message, "") if last_message else None,
        members=[member_view(each) for each in members] if members else UNSET,
    )


def encode_cursor(*parts: str) -> str:
    return base64.urlsafe_b64encode("\0".join(parts).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, parts: int) -> list[str]:
    """Raises Refusal `invalid-request` for a cursor that we did not make."""
    try:
        if len(cursor) > limits.CURSOR_CHARS_MAX:
            raise ValueError
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().split("\0")
        if len(found) != parts:
            raise ValueError
    except (ValueError, binascii.Error):
        raise invalid("cursor", "not a cursor of this list") from None
    return found


class Conversations:
    """The rules of conversations over a store."""

    def __init__(self, store: Store, clock: Clock, *, members_max: int) -> None:
        self._store, self._clock, self.members_max = store, clock, members_max

    # --- reading -----------------------------------------------------------------------------------------------------

    async def view(self, actor: Actor, conversation_id: str) -> ConversationView:
        """Raises Refusal `not-found`."""
        conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        return await self.seen_by(conversation, member, with_members=True)

    async def list(self, actor: Actor, limit: int, cursor: str | None) -> Page[ConversationView]:
        """Newest activity first. Raises Refusal `invalid-request` for a foreign cursor."""
        active_before, last_id = decode_cursor(cursor, 2) if cursor else ("", "")
        places = [(head.active_at, head.conversation_id) for head in await self.heads(actor.user_id)]
        places.sort(reverse=True)
        if cursor:
            if not active_before.isdecimal():
                raise invalid("cursor", "not a cursor of this list")
            places = [place for place in places if place < (int(active_before), last_id)]
        items = []
        for _active_at, conversation_id in places[:limit]:
            member = await self._store.get(Member, conversation_id, actor.user_id)
            conversation = await self._store.get(Conversation, conversation_id)
            if member is not None and conversation is not None:
                items.append(await self.seen_by(conversation, member, with_members=conversation.type == "direct"))
        more = len(places) > limit
        return Page(items=items, next=encode_cursor(str(places[limit - 1][0]), places[limit - 1][1]) if more else None)

    async def heads(self, user_id: str) -> Sequence[Head]:
        """How far each of the user's conversations goes."""
        memberships = await self._store.scan(Membership, user_id, limit=_MEMBERSHIPS_MAX)
        heads = [await self._store.get(Head, each.conversation_id) for each in memberships]
        return [head for head in heads if head is not None]

    async def members(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[MemberView]:
        """In the order of their ids. Raises Refusal `not-found`, `invalid-request`."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        after = decode_cursor(cursor, 1)[0] if cursor else None
        try:
            found = await self._store.scan(Member, conversation_id, after=after, limit=limit + 1)
        except ValueError:
            raise invalid("cursor", "not a cursor of this list") from None
        page = [member_view(member) for member in found[:limit]]
        return Page(items=page, next=encode_cursor(page[-1].user_id) if len(found) > limit else None)

    async def seen_by(self, conversation: Conversation, member: Member, *, with_members: bool) -> ConversationView:
        """The conversation as this member sees it now."""
        conversation_id = conversation.conversation_id
        head = await self._store.get(Head, conversation_id) or Head(conversation_id, 0, 0, conversation.created_at)
        last = None
        if head.message_sequence > member.joined_sequence:
            last = await self._store.get(LogEntry, conversation_id, head.message_sequence)
        members: Sequence[Member] = ()
        if with_members and conversation.member_count <= limits.MEMBERS_SHOWN_MAX:
            members = await self._store.scan(Member, conversation_id, limit=limits.MEMBERS_SHOWN_MAX)
        unread = await self._unread(member, head)
        return _view(conversation, member, head.sequence, unread, last, members)

    async def _unread(self, member: Member, head: Head) -> int:
        """Messages of others behind the read mark, counted from the log and therefore right after any crash."""
        read = max(member.read_sequence, member.joined_sequence)
        if head.message_sequence <= read:
            return 0
        entries = await self._store.scan(
            LogEntry, member.conversation_id, after=read, limit=limits.UNREAD_SCAN_EVENTS_MAX
        )
        others = sum(isinstance(each.event, Message) and each.event.actor_id != member.user_id for each in entries)
        return min(others, limits.UNREAD_COUNT_MAX)

    # --- changing ----------------------------------------------------------------------------------------------------

    async def create(self, actor: Actor, form: ConversationForm) -> tuple[ConversationView, bool]:
        """The conversation, and whether it is new: a second direct one with the same person is the first one.

        Raises Refusal `invalid-request` (a person who does not exist, a direct one without exactly one other), `group-full`.
        """
        others = [user_id for user_id in dict.fromkeys(form.member_ids) if user_id != actor.user_id]
        if form.type == "direct" and (len(others) != 1 or form.name or form.description):
            raise invalid("memberIds", "a direct conversation is with exactly one other person and has no name")
        if len(others) + 1 > self.members_max:
            raise Refusal(GROUP_FULL)
        conversation_id, now = new_id(), self._clock.now()

        async def change(tx: Transaction) -> tuple[str, bool]:
            if form.type == "direct":
                low_id, high_id = sorted((actor.user_id, others[0]))
                if pair := await tx.get(DirectPair, low_id, high_id):
                    return pair.conversation_id, False
            await _require_accounts(tx, others, "memberIds")
            if form.type == "direct":
                tx.put(DirectPair(low_id, high_id, conversation_id))
            founder: Role = "member" if form.type == "direct" else "owner"
            members = [Member(conversation_id, actor.user_id, founder, now, 0)]
            members += [Member(conversation_id, user_id, "member", now, 0) for user_id in others]
            conversation = Conversation(
                conversation_id=conversation_id,
                type=form.type,
                encryption=form.encryption or "server",
                name=form.name or "",
                description=form.description or "",
                created_by=actor.user_id,
                created_at=now,
                updated_at=now,
                member_count=len(members),
                owner_count=int(founder == "owner"),
            )
            tx.put(conversation)
            tx.put(Head(conversation_id, 0, 0, now))
            for member in members:
                await _admit(tx, member)
            shown = tuple(members) if len(members) <= limits.MEMBERS_SHOWN_MAX else ()
            tx.announce(Admitted(conversation, tuple(members), shown, 0))
            return conversation_id, True

        found_id, created = await self._store.write(change)
        return await self.view(actor, found_id), created

    async def change(self, actor: Actor, conversation_id: str, form: ConversationChange) -> ConversationView:
        """Renames or describes. Raises Refusal `not-found`, `forbidden`."""
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.CHANGE)
            name = conversation.name if form.name is UNSET else form.name
            description = conversation.description if form.description is UNSET else form.description or ""
            if (name, description) == (conversation.name, conversation.description):
                return
            tx.put(structs.replace(conversation, name=name, description=description, updated_at=now))
            await tx.append(conversation_id, ConversationUpdated(new_id(), actor.user_id, now, name, description))

        await self._store.write(change)
        return await self.view(actor, conversation_id)

    async def delete(self, actor: Actor, conversation_id: str) -> None:
        """Ends the conversation for everybody; its content is erased. Raises Refusal `not-found`, `forbidden`."""

        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            await enter(tx, actor.user_id, conversation_id, Right.DELETE)
            await _dissolve(tx, conversation_id, now)

        await self._store.write(change)

    async def add_members(self, actor: Actor, conversation_id: str, form: MembersForm) -> Page[MemberView]:
        """Raises Refusal `not-found`, `forbidden`, `invalid-request`, `already-member`, `group-full`."""
        user_ids, now = list(dict.fromkeys(form.user_ids)), self._clock.now()

        async def change(tx: Transaction) -> list[Member]:
            right = Right.ADD if form.role == "member" else Right.APPOINT
            conversation, _member = await enter(tx, actor.user_id, conversation_id, right)
            await _require_accounts(tx, user_ids, "userIds")
            for user_id in user_ids:
                if await tx.get(Member, conversation_id, user_id):
                    raise Refusal(ALREADY_MEMBER)
            if conversation.member_count + len(user_ids) > self.members_max:
                raise Refusal(GROUP_FULL)
            head = await tx.get(Head, conversation_id)
            assert head is not None
            newcomers = [
                Member(conversation_id, each, form.role, now, head.sequence, head.sequence) for each in user_ids
            ]
            for member in newcomers:
                await _admit(tx, member)
            conversation = structs.replace(
                conversation,
                member_count=conversation.member_count + len(newcomers),
                owner_count=conversation.owner_count + len(newcomers) * (form.role == "owner"),
                updated_at=now,
            )
            tx.put(conversation)
            shown: Sequence[Member] = ()
            if conversation.member_count <= limits.MEMBERS_SHOWN_MAX:
                shown = await tx.scan(Member, conversation_id, limit=limits.MEMBERS_SHOWN_MAX)
            tx.announce(Admitted(conversation, tuple(newcomers), tuple(shown), head.sequence))
            for member in newcomers:
                joined = MemberJoined(new_id(), actor.user_id, now, member.user_id, member.role)
                await tx.append(conversation_id, joined)
            return newcomers

        return Page(items=[member_view(member) for member in await self._store.write(change)])

    async def change_member(self, actor: Actor, conversation_id: str, user_id: str, form: MemberChange) -> MemberView:
        """Gives `user_id` another role. Raises Refusal `not-found`, `forbidden`, `last-owner`."""
        now = self._clock.now()

        async def change(tx: Transaction) -> Member:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.APPOINT)
            target = await _require_member(tx, conversation_id, user_id)
            if target.role == form.role:
                return target
            owners = conversation.owner_count + (form.role == "owner") - (target.role == "owner")
            if owners < 1:
                raise Refusal(LAST_OWNER)
            changed = structs.replace(target, role=form.role)
            tx.put(changed)
            tx.put(structs.replace(conversation, owner_count=owners, updated_at=now))
            await tx.append(conversation_id, MemberChanged(new_id(), actor.user_id, now, user_id, form.role))
            return changed

        return member_view(await self._store.write(change))

    async def remove_member(self, actor: Actor, conversation_id: str, user_id: str) -> None:
        """Leaves, if `user_id` is the caller, or removes somebody. The last one to leave ends the conversation.

        Raises Refusal `not-found`, `forbidden` (an admin removes members only), `last-owner`.
        """
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            leaving = user_id == actor.user_id
            conversation, member = await enter(
                tx, actor.user_id, conversation_id, Right.LEAVE if leaving else Right.REMOVE
            )
            target = member if leaving else await _require_member(tx, conversation_id, user_id)
            if not leaving and member.role == "admin" and target.role != "member":
                raise Refusal(FORBIDDEN)
            if conversation.member_count == 1:
                await _dissolve(tx, conversation_id, now)
                return
            owners = conversation.owner_count - (target.role == "owner")
            if owners < 1:
                raise Refusal(LAST_OWNER)
            await _dismiss(tx, conversation_id, user_id, now)
            tx.put(
                structs.replace(
                    conversation, member_count=conversation.member_count - 1, owner_count=owners, updated_at=now
                )
            )
            await tx.append(conversation_id, MemberLeft(new_id(), actor.user_id, now, user_id))

        await self._store.write(change)


async def _require_accounts(tx: Transaction, user_ids: Sequence[str], path: str) -> None:
    for position, user_id in enumerate(user_ids):
        if await tx.get(Account, user_id) is None:
            raise invalid(f"{path}[{position}]", "there is no such user")


async def _require_member(tx: Transaction, conversation_id: str, user_id: str) -> Member:
    member = await tx.get(Member, conversation_id, user_id)
    if member is None:
        raise Refusal(NOT_FOUND)
    return member


async def _admit(tx: Transaction, member: Member) -> None:
    tx.put(member)
    tx.put(Membership(member.user_id, member.conversation_id))
    if await tx.get(Departure, member.user_id, member.conversation_id):
        tx.delete(Departure, member.user_id, member.conversation_id)


async def _dismiss(tx: Transaction, conversation_id: str, user_id: str, now: int) -> None:
    tx.delete(Member, conversation_id, user_id)
    tx.delete(Membership, user_id, conversation_id)
    tx.put(Departure(user_id, conversation_id, now + limits.DEPARTURE_DAYS * DAY))
    for each in await tx.scan(Delivery, conversation_id, user_id, limit=limits.DEVICES_PER_USER_MAX * 4):
        tx.delete(Delivery, conversation_id, user_id, each.device_id)


async def _dissolve(tx: Transaction, conversation_id: str, now: int) -> None:
    members = await tx.scan(Member, conversation_id, limit=_MEMBERSHIPS_MAX)
    for member in members:
        await _dismiss(tx, conversation_id, member.user_id, now)
    tx.delete(Conversation, conversation_id)
    tx.put(Purge(conversation_id))
    tx.announce(ConversationDeleted(conversation_id, tuple(member.user_id for member in members)))
