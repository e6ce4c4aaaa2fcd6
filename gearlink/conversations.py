"""Conversations: opening them, finding them, what they are called, what holds there, and their end.

Whether a part of a conversation may be changed is asked for each part by its own right. What is changed is an event in
the log with a sequence number of its own; the creation is not. Two people have one direct conversation, whoever opens it
and however often. Who is in a conversation is in `gearlink.members`. Nothing here knows sockets.
"""

from collections.abc import Sequence

import trio
from msgspec import UNSET, structs

from config import limits
from gearlink.accounts import Actor
from gearlink.avatars import updated_event
from gearlink.calls import ConversationChange, ConversationForm, SettingsForm
from gearlink.clock import Clock, new_id
from gearlink.cursors import decode_cursor, encode_cursor, foreign_cursor
from gearlink.errors import GROUP_FULL, REFUSED_BY_PRIVACY, TOO_MANY, Refusal, invalid
from gearlink.members import TOO_MANY_ENCRYPTED, admit, dissolve, list_of, require_accounts
from gearlink.overview import overview
from gearlink.people import may_add, may_talk
from gearlink.rights import DEFAULT_SETTINGS, Right, enter, has_roster, settings_of
from gearlink.throttle import Budget
from gearlink.views import ConversationView, Page
from storage.events import ConversationSettings, Encryption, Role
from storage.notices import Admitted
from storage.records import Conversation, DirectPair, Head, Member, Membership
from storage.store import Store, Transaction

_MEMBERSHIPS_MAX = 100_000  # of one user, read to sort the list by activity
_HEADS_PER_STEP = 200  # between two checkpoints
_STAFF_INVITES = "in an end-to-end encrypted group whoever lets somebody in signs for them: owners or admins"
_TIMER_ALONE = "a direct conversation has no settings but disappearingSeconds"


class Conversations:
    """The rules of conversations over a store."""

    def __init__(self, store: Store, clock: Clock, budget: Budget, *, members_max: int) -> None:
        self._store, self._clock, self._budget, self.members_max = store, clock, budget, members_max

    # --- reading -----------------------------------------------------------------------------------------------------

    async def view(self, actor: Actor, conversation_id: str) -> ConversationView:
        """Raises Refusal `not-found`."""
        conversation, member = await enter(self._store, actor.user_id, conversation_id, Right.READ)
        return await self.seen_by(conversation, member, actor.device_id, with_members=True)

    async def list(
        self, actor: Actor, limit: int, cursor: str | None, *, archived: bool | None = None
    ) -> Page[ConversationView]:
        """Newest activity first; only the archived ones, or only the others, if `archived` says so.

        Raises Refusal `invalid-request` for a foreign cursor.
        """
        places = [(head.active_at, head.conversation_id) for head in await self.heads(actor.user_id)]
        places.sort(reverse=True)
        if cursor:
            active_before, last_id = decode_cursor(cursor, 2)
            if not active_before.isdecimal():
                raise foreign_cursor()
            places = [place for place in places if place < (int(active_before), last_id)]
        items: Sequence[ConversationView] = ()
        last, is_more = ("", ""), False
        for active_at, conversation_id in places:
            await trio.lowlevel.checkpoint()
            member = await self._store.get(Member, conversation_id, actor.user_id)
            if member is None or archived not in (None, member.archived):
                continue
            conversation = await self._store.get(Conversation, conversation_id)
            if conversation is None:
                continue
            if len(items) == limit:
                is_more = True
                break
            with_members = conversation.type == "direct"
            view = await self.seen_by(conversation, member, actor.device_id, with_members=with_members)
            items, last = (*items, view), (str(active_at), conversation_id)
        return Page(items=[*items], next=encode_cursor(*last) if is_more else None)

    async def heads(self, user_id: str) -> Sequence[Head]:
        """How far each of the user's conversations goes."""
        memberships = await self._store.scan(Membership, user_id, limit=_MEMBERSHIPS_MAX)
        heads = []
        for position, each in enumerate(memberships, start=1):
            if (head := await self._store.get(Head, each.conversation_id)) is not None:
                heads.append(head)
            if position % _HEADS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
        return heads

    async def seen_by(
        self, conversation: Conversation, member: Member, device_id: str, *, with_members: bool
    ) -> ConversationView:
        """The conversation as this member sees it now, on this device."""
        now = self._clock.now()
        return await overview(self._store, conversation, member, now, with_members=with_members, device_id=device_id)

    # --- changing ----------------------------------------------------------------------------------------------------

    async def create(self, actor: Actor, form: ConversationForm) -> tuple[ConversationView, bool]:
        """The conversation, and whether it is new: a second direct one with the same person is the first one.

        Raises Refusal `invalid-request` (a person who does not exist, a direct one without exactly one other),
        `refused-by-privacy`, `group-full`, `too-many` for an encrypted one, `rate-limited`.
        """
        others = [user_id for user_id in list_of(form.member_ids) if user_id != actor.user_id]
        settings = _first_settings(form)
        if form.type == "direct" and (len(others) != 1 or form.name or form.description):
            raise invalid("memberIds", "a direct conversation is with exactly one other person and has no name")
        if len(others) + 1 > self.members_max:
            raise Refusal(GROUP_FULL)
        encryption = encryption_of(form)
        if encryption == "e2ee" and len(others) + 1 > limits.E2EE_MEMBERS_MAX:
            raise Refusal(TOO_MANY, TOO_MANY_ENCRYPTED)
        self._budget.check_change(actor, people=len(others))
        conversation_id, now = new_id(), self._clock.now()

        async def change(tx: Transaction) -> tuple[str, bool]:
            if form.type == "direct":
                low_id, high_id = sorted((actor.user_id, others[0]))
                if pair := await tx.get(DirectPair, low_id, high_id):
                    return pair.conversation_id, False
            await require_accounts(tx, others, "memberIds")
            is_welcome = may_talk if form.type == "direct" else may_add
            for user_id in others:
                if not await is_welcome(tx, actor.user_id, user_id):
                    raise Refusal(REFUSED_BY_PRIVACY)
            if form.type == "direct":
                tx.put(DirectPair(low_id, high_id, conversation_id))
            founder: Role = "member" if form.type == "direct" else "owner"
            members = [Member(conversation_id, actor.user_id, founder, now, 0)]
            members += [Member(conversation_id, user_id, "member", now, 0) for user_id in others]
            conversation = Conversation(
                conversation_id=conversation_id,
                type=form.type,
                encryption=encryption,
                name=form.name or "",
                description=form.description or "",
                created_by=actor.user_id,
                created_at=now,
                updated_at=now,
                member_count=len(members),
                owner_count=int(founder == "owner"),
                settings=settings,
            )
            tx.put(conversation)
            tx.put(Head(conversation_id, 0, 0, now))
            for member in members:
                await admit(tx, member)
            shown = tuple(members) if len(members) <= limits.MEMBERS_SHOWN_MAX else ()
            tx.announce(Admitted(conversation, tuple(members), shown, 0))
            return conversation_id, True

        found_id, created = await self._store.write(change)
        return await self.view(actor, found_id), created

    async def change(self, actor: Actor, conversation_id: str, form: ConversationChange) -> ConversationView:
        """Changes the parts that are present, all or none: name and description, the timer, the other settings.

        Raises Refusal `not-found`, `forbidden`, `refused-by-privacy`, `invalid-request` (settings that a direct one does
        not have), `rate-limited`.
        """
        self._budget.check_change(actor)
        now = self._clock.now()
        rights = _rights_for(form)

        async def change(tx: Transaction) -> None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.READ)
            if conversation.type == "direct" and Right.SETTLE in rights:
                raise invalid("settings", _TIMER_ALONE)
            for right in rights:
                await enter(tx, actor.user_id, conversation_id, right)
            changed = structs.replace(
                conversation,
                name=conversation.name if form.name is UNSET else form.name,
                description=conversation.description if form.description is UNSET else form.description or "",
            )
            if form.settings is not UNSET:
                if has_roster(conversation) and form.settings.invite == "everyone":
                    raise invalid("settings.invite", _STAFF_INVITES)
                settings = _with(settings_of(conversation), form.settings)
                if settings != settings_of(conversation):
                    changed = structs.replace(changed, settings=settings)
            if changed == conversation:
                return
            changed = structs.replace(changed, updated_at=now)
            tx.put(changed)
            await tx.append(conversation_id, updated_event(changed, actor.user_id))

        await self._store.write(change)
        return await self.view(actor, conversation_id)

    async def delete(self, actor: Actor, conversation_id: str) -> None:
        """Ends the conversation for everybody; its content is erased. Raises Refusal `not-found`, `forbidden`."""

        async def change(tx: Transaction) -> None:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.DELETE)
            await dissolve(tx, conversation)

        await self._store.write(change)


def _with(settings: ConversationSettings, form: SettingsForm) -> ConversationSettings:
    """`settings` with the fields that are present in the form."""
    return structs.replace(settings, **_present(form))


def _present(form: SettingsForm) -> dict[str, object]:
    return {name: value for name, value in structs.asdict(form).items() if value is not UNSET}


def encryption_of(form: ConversationForm) -> Encryption:
    """What was asked for. Between people nothing is readable for the server unless they say so; a channel is for many, who
    want to search it."""
    return form.encryption or ("server" if form.type == "channel" else "e2ee")


def _first_settings(form: ConversationForm) -> ConversationSettings | None:
    """What was chosen at the beginning; None for what its type has anyway.

    Raises Refusal `invalid-request` for what a direct conversation does not have.
    """
    if form.settings is None:
        return None
    if form.type == "direct" and _present(form.settings).keys() - {"disappearing_seconds"}:
        raise invalid("settings", _TIMER_ALONE)
    if encryption_of(form) == "e2ee" and form.settings.invite == "everyone":
        raise invalid("settings.invite", _STAFF_INVITES)
    return _with(DEFAULT_SETTINGS[form.type], form.settings)


def _rights_for(form: ConversationChange) -> list[Right]:
    """What somebody needs who changes these parts."""
    rights = []
    if form.name is not UNSET or form.description is not UNSET:
        rights.append(Right.CHANGE)
    if form.settings is not UNSET:
        names = _present(form.settings).keys()
        if "disappearing_seconds" in names:
            rights.append(Right.SET_TIMER)
        if names - {"disappearing_seconds"}:
            rights.append(Right.SETTLE)
    return rights
