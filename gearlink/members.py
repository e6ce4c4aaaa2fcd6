"""Who is in a conversation, and who may not be: joining, roles, leaving, removal, bans, and the end of it all.

Every change runs in the store's writer, so two people cannot both be the last owner who leaves, and a group is never
larger than it may be. What happens to members is an event in the log. Letting somebody in costs the same however many
are there. How people come in by themselves is in `gearlink.invitations`. Nothing here knows sockets.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Literal

import trio
from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.avatars import drop
from gearlink.calls import MemberChange, MembersForm
from gearlink.ciphertexts import forget_member
from gearlink.clock import DAY, Clock, Milliseconds, new_id, rfc3339
from gearlink.cursors import page_of
from gearlink.errors import (
    ALREADY_MEMBER,
    BANNED,
    FORBIDDEN,
    GROUP_FULL,
    LAST_OWNER,
    NOT_FOUND,
    REFUSED_BY_PRIVACY,
    TOO_MANY,
    Refusal,
    invalid,
)
from gearlink.overview import member_view
from gearlink.people import may_add
from gearlink.rights import Right, enter, has_roster, settings_of
from gearlink.throttle import Budget
from gearlink.views import BanView, MemberView, Page
from storage.events import MemberChanged, MemberJoined, MemberLeft, Role
from storage.notices import Admitted, ConversationDeleted, Personal
from storage.records import (
    Account,
    Ban,
    Conversation,
    Delivery,
    Departure,
    DirectPair,
    Draft,
    Head,
    Hidden,
    JoinRequest,
    Member,
    Membership,
    Purge,
    Record,
    Scheduled,
    Thread,
    ThreadRead,
)
from storage.store import KeyPart, Reads, Store, Transaction

_MEMBERS_MAX = 100_000  # of one conversation, told that it has ended
_PAGE = 500  # members or memberships that are read at once, between two checkpoints
TOO_MANY_ENCRYPTED = f"An end-to-end encrypted conversation has at most {limits.E2EE_MEMBERS_MAX} members"
_BANNED_THERE = "this user was banned from the conversation: lift the ban first"
Way = Literal["added", "link", "request"]
End = Literal["left", "removed", "banned", "erased"]


class Members:
    """The rules of membership over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget, members_max: int) -> None:
        self._store, self._clock, self._budget, self.members_max = store, clock, budget, members_max

    async def list(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[MemberView]:
        """In the order of their ids. Raises Refusal `not-found`, `invalid-request`."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        found, more = await page_of(
            self._store, Member, conversation_id, cursor=cursor, limit=limit, key=lambda member: member.user_id
        )
        return Page(items=[member_view(member) for member in found], next=more)

    async def add(self, actor: Actor, conversation_id: str, form: MembersForm) -> Page[MemberView]:
        """Lets all of these in, or none; answers those who came in.

        Raises Refusal `not-found`, `forbidden`, `invalid-request`, `already-member`, `banned`, `refused-by-privacy`,
        `group-full`, `too-many`, `rate-limited`.
        """
        user_ids, now = list_of(form.user_ids), self._clock.now()
        self._budget.check_change(actor, people=len(user_ids))

        async def change(tx: Transaction) -> Sequence[Member]:
            right = Right.ADD if form.role == "member" else Right.APPOINT
            conversation, _member = await enter(tx, actor.user_id, conversation_id, right)
            await require_accounts(tx, user_ids, "userIds")
            for user_id in user_ids:
                if await tx.get(Member, conversation_id, user_id):
                    raise Refusal(ALREADY_MEMBER)
                if await tx.get(Ban, conversation_id, user_id):
                    raise Refusal(BANNED, _BANNED_THERE)
                if not await may_add(tx, actor.user_id, user_id):
                    raise Refusal(REFUSED_BY_PRIVACY)
            return await let_in(
                tx, conversation, user_ids, form.role, "added", actor.user_id, now, members_max=self.members_max
            )

        return Page(items=[member_view(member) for member in await self._store.write(change)])

    async def change(self, actor: Actor, conversation_id: str, user_id: str, form: MemberChange) -> MemberView:
        """Gives `user_id` another role. An owner hands over by making an heir and then stepping down.

        Raises Refusal `not-found`, `forbidden`, `last-owner`, `invalid-request` for an owner who is suspended or deleted,
        `rate-limited`.
        """
        self._budget.check_change(actor)
        now = self._clock.now()

        async def change(tx: Transaction) -> Member:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.APPOINT)
            target = await _require_member(tx, conversation_id, user_id)
            if target.role == form.role:
                return target
            if form.role == "owner" and not await _is_active(tx, user_id):
                raise invalid("role", "nobody can use this user's account, so they cannot be an owner")
            owners = conversation.owner_count + (form.role == "owner") - (target.role == "owner")
            if owners < 1:
                raise Refusal(LAST_OWNER)
            changed = structs.replace(target, role=form.role)
            tx.put(changed)
            tx.put(structs.replace(conversation, owner_count=owners, updated_at=now))
            await tx.append(conversation_id, MemberChanged(new_id(), actor.user_id, now, user_id, form.role))
            return changed

        return member_view(await self._store.write(change))

    async def remove(self, actor: Actor, conversation_id: str, user_id: str) -> None:
        """Leaves, if `user_id` is the caller, or removes somebody. The last one to leave ends the conversation.

        Raises Refusal `not-found`, `forbidden` (an admin removes members only), `last-owner`, `rate-limited`.
        """
        self._budget.check_change(actor)
        now, leaving = self._clock.now(), user_id == actor.user_id

        async def change(tx: Transaction) -> None:
            right = Right.LEAVE if leaving else Right.REMOVE
            conversation, member = await enter(tx, actor.user_id, conversation_id, right)
            target = member if leaving else await _require_member(tx, conversation_id, user_id)
            if not leaving:
                _require_power_over(member, target)
            await take_out(tx, conversation, target, "left" if leaving else "removed", actor.user_id, now)

        await self._store.write(change)

    # --- bans --------------------------------------------------------------------------------------------------------

    async def ban(self, actor: Actor, conversation_id: str, user_id: str) -> None:
        """Takes the user out, if they are in, and keeps them out whichever way they try. Again changes nothing.

        Raises Refusal `not-found` (also for a user who does not exist), `forbidden` (an admin bans members and people
        outside, and nobody bans themselves), `rate-limited`.
        """
        self._budget.check_change(actor)
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            conversation, member = await enter(tx, actor.user_id, conversation_id, Right.REMOVE)
            if user_id == actor.user_id:
                raise Refusal(FORBIDDEN)
            if await tx.get(Account, user_id) is None:
                raise Refusal(NOT_FOUND)
            if await tx.get(Ban, conversation_id, user_id):
                return
            target = await tx.get(Member, conversation_id, user_id)
            if target is not None:
                _require_power_over(member, target)
                await take_out(tx, conversation, target, "banned", actor.user_id, now)
            elif request := await tx.get(JoinRequest, conversation_id, user_id):
                tx.put(await settle(tx, conversation, request))
            tx.put(Ban(conversation_id, user_id, actor.user_id, now))

        await self._store.write(change)

    async def unban(self, actor: Actor, conversation_id: str, user_id: str) -> None:
        """The user may come in again by the ways that everybody has; so may who was not banned.

        Raises Refusal `not-found`, `forbidden`.
        """

        async def change(tx: Transaction) -> None:
            await enter(tx, actor.user_id, conversation_id, Right.REMOVE)
            tx.delete(Ban, conversation_id, user_id)

        await self._store.write(change)

    async def bans(self, actor: Actor, conversation_id: str, limit: int, cursor: str | None) -> Page[BanView]:
        """By the id of the banned. Raises Refusal `not-found`, `forbidden`, `invalid-request`."""
        await enter(self._store, actor.user_id, conversation_id, Right.REMOVE)
        found, more = await page_of(
            self._store, Ban, conversation_id, cursor=cursor, limit=limit, key=lambda ban: ban.user_id
        )
        items = [
            BanView(user_id=each.user_id, banned_by=each.banned_by, banned_at=rfc3339(each.banned_at)) for each in found
        ]
        return Page(items=items, next=more)


# --- parts of changes ------------------------------------------------------------------------------------------------


def list_of(user_ids: Iterable[str]) -> list[str]:
    """Each of them once, in the order in which they came."""
    return list(dict.fromkeys(user_ids))


async def require_accounts(reads: Reads, user_ids: Sequence[str], path: str) -> None:
    """Raises Refusal `invalid-request` for one who does not exist, or whose account is suspended or deleted."""
    for position, user_id in enumerate(user_ids):
        if not await _is_active(reads, user_id):
            raise invalid(f"{path}[{position}]", "there is no such user")


async def _is_active(reads: Reads, user_id: str) -> bool:
    account = await reads.get(Account, user_id)
    return account is not None and account.is_active


async def _require_member(tx: Transaction, conversation_id: str, user_id: str) -> Member:
    member = await tx.get(Member, conversation_id, user_id)
    if member is None:
        raise Refusal(NOT_FOUND)
    return member


def _require_power_over(member: Member, target: Member) -> None:
    if member.role == "admin" and target.role != "member":
        raise Refusal(FORBIDDEN)


async def admit(tx: Transaction, member: Member) -> None:
    """Writes the place of somebody who comes in."""
    tx.put(member)
    tx.put(Membership(member.user_id, member.conversation_id))
    if await tx.get(Departure, member.user_id, member.conversation_id):
        tx.delete(Departure, member.user_id, member.conversation_id)


async def let_in(
    tx: Transaction,
    conversation: Conversation,
    user_ids: Sequence[str],
    role: Role,
    way: Way,
    actor_id: str,
    now: Milliseconds,
    *,
    members_max: int,
) -> Sequence[Member]:
    """Makes members of people who are none and may be. Whether they see what was said before is settled here, for good.

    Raises Refusal `group-full`; `too-many` where messages are encrypted for each.
    """
    conversation_id = conversation.conversation_id
    if conversation.member_count + len(user_ids) > members_max:
        raise Refusal(GROUP_FULL)
    if has_roster(conversation) and conversation.member_count + len(user_ids) > limits.E2EE_MEMBERS_MAX:
        raise Refusal(TOO_MANY, TOO_MANY_ENCRYPTED)
    head = await tx.get(Head, conversation_id)
    assert head is not None
    sees_history = settings_of(conversation).history_visible
    newcomers = [
        Member(
            conversation_id, each, role, now, head.sequence, head.sequence, sees_history=sees_history,
            hidden_at=await _hidden_at(tx, conversation_id, each) if sees_history else 0,
        )
        for each in user_ids
    ]  # fmt: skip
    for member in newcomers:
        await admit(tx, member)
        if conversation.request_count and (request := await tx.get(JoinRequest, conversation_id, member.user_id)):
            conversation = await settle(tx, conversation, request)
    conversation = structs.replace(
        conversation,
        member_count=conversation.member_count + len(newcomers),
        owner_count=conversation.owner_count + len(newcomers) * (role == "owner"),
        updated_at=now,
    )
    tx.put(conversation)
    members: Sequence[Member] = ()
    if conversation.member_count <= limits.MEMBERS_SHOWN_MAX:
        members = await tx.scan(Member, conversation_id, limit=limits.MEMBERS_SHOWN_MAX)
    tx.announce(Admitted(conversation, tuple(newcomers), tuple(members), head.sequence))
    for member in newcomers:
        await tx.append(conversation_id, MemberJoined(new_id(), actor_id, now, member.user_id, role, way))
    return newcomers


async def _hidden_at(reads: Reads, conversation_id: str, user_id: str) -> Milliseconds:
    """When somebody who was there before hid a message; 0 if they have hidden none."""
    hidden = await reads.scan(Hidden, conversation_id, user_id, limit=1)
    return hidden[0].hidden_at if hidden else 0


async def take_out(
    tx: Transaction, conversation: Conversation, target: Member, how: End, actor_id: str, now: Milliseconds
) -> None:
    """Ends a membership, and with the last one the conversation. Raises Refusal `last-owner`."""
    if conversation.member_count == 1:
        await dissolve(tx, conversation)
        return
    owners = conversation.owner_count - (target.role == "owner")
    if owners < 1 and conversation.type != "direct":
        raise Refusal(LAST_OWNER)
    await dismiss(tx, target.conversation_id, target.user_id, now)
    await forget_member(tx, conversation, target.user_id)
    tx.put(
        structs.replace(conversation, member_count=conversation.member_count - 1, owner_count=owners, updated_at=now)
    )
    await tx.append(target.conversation_id, MemberLeft(new_id(), actor_id, now, target.user_id, how))


async def dismiss(tx: Transaction, conversation_id: str, user_id: str, now: Milliseconds) -> None:
    """Removes what makes somebody a member, and what they kept there for themselves."""
    tx.delete(Member, conversation_id, user_id)
    tx.delete(Membership, user_id, conversation_id)
    tx.delete(Draft, user_id, conversation_id)
    tx.put(Departure(user_id, conversation_id, now + limits.DEPARTURE_DAYS * DAY))
    for each in await tx.scan(Delivery, conversation_id, user_id, limit=limits.DEVICES_PER_USER_MAX * 4):
        tx.delete(Delivery, conversation_id, user_id, each.device_id)
    for waiting in await tx.scan(Scheduled, user_id, limit=limits.SCHEDULED_PER_USER_MAX):
        if waiting.conversation_id == conversation_id:  # what was to be sent is for nobody; its `Due` finds nothing
            tx.delete(Scheduled, user_id, waiting.scheduled_id)
            tx.announce(Personal((user_id,), waiting, gone=True))


async def dissolve(tx: Transaction, conversation: Conversation) -> None:
    """Ends the conversation for everybody. What is left of it, members included, is erased by `gearlink.purge`.

    Without its head and its record nobody can read, write or join any more.
    """
    conversation_id = conversation.conversation_id
    members = await tx.scan(Member, conversation_id, limit=_MEMBERS_MAX)
    tx.delete(Conversation, conversation_id)
    tx.delete(Head, conversation_id)
    drop(tx, conversation.avatar_id)
    tx.put(Purge(conversation_id))
    tx.announce(ConversationDeleted(conversation_id, tuple(member.user_id for member in members)))


async def settle(tx: Transaction, conversation: Conversation, request: JoinRequest) -> Conversation:
    """Ends a request to be let in, and tells those who were told of it, and who asked. The caller puts the conversation."""
    tx.delete(JoinRequest, request.conversation_id, request.user_id)
    staff = await staff_of(tx, conversation)
    tx.announce(Personal((*staff, request.user_id), request, gone=True))
    return structs.replace(conversation, request_count=conversation.request_count - 1)


async def staff_of(reads: Reads, conversation: Conversation) -> Sequence[str]:
    """The owners and admins to tell of what is theirs to decide: of a very large conversation not all of them."""
    members = await reads.scan(Member, conversation.conversation_id, limit=limits.STAFF_SCAN_MEMBERS_MAX)
    founder = await reads.get(Member, conversation.conversation_id, conversation.created_by)
    found = [each.user_id for each in (founder, *members) if each is not None and each.role != "member"]
    return list_of(found)[: limits.STAFF_TOLD_MAX]


# --- the end of an account -------------------------------------------------------------------------------------------


async def withdraw(store: Store, clock: Clock, user_id: str) -> None:
    """Takes a user out of every conversation, one change each, so it may be stopped anywhere and begun again.

    Where they were the last owner, the longest-serving admin is the next one, or without admins the member. What only
    they could see goes before: what they hid, how far they read threads, where they asked to be let in.
    """
    await _unask(store, user_id)
    while memberships := await store.scan(Membership, user_id, limit=_PAGE):
        for each in memberships:
            await _forget_traces(store, user_id, each.conversation_id)
            heir_id = ""
            while not await store.write(_withdrawal(user_id, each.conversation_id, heir_id, clock.now())):
                heir_id = await _heir(store, each.conversation_id, user_id)
            await trio.lowlevel.checkpoint()


def _withdrawal(
    user_id: str, conversation_id: str, heir_id: str, now: Milliseconds
) -> Callable[[Transaction], Awaitable[bool]]:
    async def change(tx: Transaction) -> bool:
        """False if there has to be an heir, and `heir_id` cannot be the one."""
        conversation = await tx.get(Conversation, conversation_id)
        member = await tx.get(Member, conversation_id, user_id)
        if conversation is None or member is None:
            await dismiss(tx, conversation_id, user_id, now)
            return True
        if conversation.type == "direct":
            await _forget_pair(tx, conversation)
        elif member.role == "owner" and conversation.owner_count == 1 and conversation.member_count > 1:
            heir = await tx.get(Member, conversation_id, heir_id) if heir_id else None
            if heir is None:
                return False
            tx.put(structs.replace(heir, role="owner"))
            conversation = structs.replace(conversation, owner_count=2)
            await tx.append(conversation_id, MemberChanged(new_id(), user_id, now, heir_id, "owner"))
        await take_out(tx, conversation, member, "erased", user_id, now)
        return True

    return change


async def _unask(store: Store, user_id: str) -> None:
    """Takes back every request of the user to be let in. Requests are found by conversation, and those are few."""
    after: str | None = None
    while found := await store.scan(JoinRequest, after=after, limit=1):
        after = found[0].conversation_id
        if await store.get(JoinRequest, after, user_id) is not None:
            await store.write(_unasking(after, user_id))
        await trio.lowlevel.checkpoint()


def _unasking(conversation_id: str, user_id: str) -> Callable[[Transaction], Awaitable[None]]:
    async def change(tx: Transaction) -> None:
        conversation = await tx.get(Conversation, conversation_id)
        request = await tx.get(JoinRequest, conversation_id, user_id)
        if conversation is not None and request is not None:
            tx.put(await settle(tx, conversation, request))

    return change


async def _forget_traces(store: Store, user_id: str, conversation_id: str) -> None:
    """Deletes what the user hid there, and how far they had read its threads."""
    while hidden := await store.scan(Hidden, conversation_id, user_id, limit=_PAGE):
        await store.write(_deletion(Hidden, [(conversation_id, user_id, each.sequence) for each in hidden]))
    after: int | None = None
    while threads := await store.scan(Thread, conversation_id, after=after, limit=_PAGE):
        await store.write(_deletion(ThreadRead, [(each.thread_id, user_id) for each in threads]))
        after = threads[-1].root_sequence


def _deletion(kind: type[Record], keys: Sequence[tuple[KeyPart, ...]]) -> Callable[[Transaction], Awaitable[None]]:
    async def change(tx: Transaction) -> None:
        for key in keys:
            tx.delete(kind, *key)

    return change


async def _forget_pair(tx: Transaction, conversation: Conversation) -> None:
    """Of two people who have a direct conversation nothing is kept that finds it, once one of them is gone."""
    members = await tx.scan(Member, conversation.conversation_id, limit=2)
    if len(members) == 2:
        low_id, high_id = sorted(member.user_id for member in members)
        tx.delete(DirectPair, low_id, high_id)


async def _heir(store: Store, conversation_id: str, user_id: str) -> str:
    """Who comes after the last owner: admins first, then who has been there longest; "" if nobody else is there."""
    candidates: list[tuple[bool, Milliseconds, str]] = []
    after: str | None = None
    while page := await store.scan(Member, conversation_id, after=after, limit=_PAGE):
        candidates += [(each.role != "admin", each.joined_at, each.user_id) for each in page]
        after = page[-1].user_id
        await trio.lowlevel.checkpoint()
    candidates = sorted(each for each in candidates if each[2] != user_id)
    for _rank, _joined_at, candidate_id in candidates:
        account = await store.get(Account, candidate_id)
        if account is not None and account.is_active:
            return candidate_id
        await trio.lowlevel.checkpoint()
    return candidates[0][2] if candidates else ""
