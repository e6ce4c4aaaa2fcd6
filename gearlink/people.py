"""Contacts, blocks and what people let others see: everything between two users outside of a conversation.

A block holds in both directions: whoever asks with `may_talk` treats blocker and blocked alike, and nobody is told which
of the two they are. Everything here is told to the user's own other devices and to nobody else. How profiles look is in
`profiles`; what a block means for a message is for those who carry messages. It knows neither HTTP nor sockets.
"""

from msgspec import UNSET
from msgspec.structs import asdict, replace

from config import limits
from gearlink.accounts import Actor, clean_text, user_view
from gearlink.calls import ContactForm, PrivacyForm
from gearlink.clock import Clock, rfc3339
from gearlink.cursors import page_of
from gearlink.errors import NOT_AUTHENTICATED, NOT_FOUND, TOO_MANY, Refusal, invalid
from gearlink.personal import privacy_view
from gearlink.views import BlockView, ContactView, Page, PrivacyView, User
from storage.notices import Personal
from storage.records import Account, Block, Contact, Conversation, DirectPair, Privacy
from storage.store import Reads, Store, Transaction

# --- what others may do ----------------------------------------------------------------------------------------------


async def may_talk(reads: Reads, one_id: str, other_id: str) -> bool:
    """Whether neither of the two has blocked the other."""
    return await reads.get(Block, one_id, other_id) is None and await reads.get(Block, other_id, one_id) is None


async def privacy_of(reads: Reads, user_id: str) -> Privacy:
    """What the user lets others see and do; the defaults for who never changed them."""
    return await reads.get(Privacy, user_id) or Privacy(user_id)


async def may_add(reads: Reads, actor_id: str, user_id: str) -> bool:
    """Whether `actor_id` may put the user into a group or channel: no block between them, and the user allows it."""
    if not await may_talk(reads, actor_id, user_id):
        return False
    return await _reaches(reads, (await privacy_of(reads, user_id)).add_to_groups, user_id, actor_id)


async def may_find_by_number(reads: Reads, actor_id: str, user_id: str) -> bool:
    """Whether `actor_id`, who has the user's number, may learn whose it is. One's own number is no secret."""
    if actor_id == user_id:
        return True
    if not await may_talk(reads, actor_id, user_id):
        return False
    return await _reaches(reads, (await privacy_of(reads, user_id)).find_by_number, user_id, actor_id)


async def may_see_presence(reads: Reads, viewer_id: str, user_id: str) -> bool:
    """Whether the viewer may know if the user is here, and since when not: an active user who lets them see that."""
    account = await reads.get(Account, user_id)
    if account is None or not account.is_active:
        return False
    if viewer_id == user_id:
        return True
    if not await may_talk(reads, viewer_id, user_id):
        return False
    return await _reaches(reads, (await privacy_of(reads, user_id)).last_seen, user_id, viewer_id)


async def _reaches(reads: Reads, audience: str, user_id: str, other_id: str) -> bool:
    """Whether `other_id` is among those whom the user means by `audience`."""
    if audience == "contacts":
        return await reads.get(Contact, user_id, other_id) is not None
    return audience == "everyone"


# --- what others see -------------------------------------------------------------------------------------------------


async def seen_by(reads: Reads, viewer_id: str, account: Account) -> User:
    """The profile as the viewer may see it: only the name of who has blocked them or is suspended, nothing of who is
    deleted."""
    if account.deleted_at:
        return vanished(account.user_id)
    if account.suspended_at or await reads.get(Block, account.user_id, viewer_id) is not None:
        return replace(user_view(account), username=None, bio="", avatar_url=None)
    return user_view(account)


def vanished(user_id: str) -> User:
    """What is told of a deleted user: the id, and the time that is written in it (RFC 9562 §5.7)."""
    return User(
        id=user_id,
        username=None,
        display_name="",
        bio="",
        created_at=rfc3339(int(user_id.replace("-", "")[:12], 16)),
        is_deleted=True,
    )


class People:
    """The rules between people over a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock

    # --- contacts ----------------------------------------------------------------------------------------------------

    async def contacts(self, actor: Actor, limit: int, cursor: str | None) -> Page[ContactView]:
        """The caller's contacts in the order of their ids. Raises Refusal `invalid-request` for a foreign cursor."""
        found, more = await page_of(
            self._store, Contact, actor.user_id, cursor=cursor, limit=limit, key=lambda contact: contact.contact_id
        )
        return Page(items=[await self._contact_view(contact) for contact in found], next=more)

    async def put_contact(self, actor: Actor, user_id: str, form: ContactForm) -> ContactView:
        """Takes somebody into the caller's contacts, or gives a contact another nickname. Nobody else is told.

        Raises Refusal: `invalid-request` for oneself, `not-found` for who is not there, `too-many`.
        """
        nickname = clean_text(form.nickname, "nickname", may_be_empty=True)
        _require_other(actor, user_id)
        now = self._clock.now()

        async def change(tx: Transaction) -> Contact:
            known = await tx.get(Contact, actor.user_id, user_id)
            if known is not None and known.nickname == nickname:
                return known
            if known is None:
                account = await tx.get(Account, user_id)
                if account is None or not account.is_active:
                    raise Refusal(NOT_FOUND)
                own = await _own(tx, actor)
                if own.contact_count >= limits.CONTACTS_MAX:
                    raise Refusal(TOO_MANY)
                tx.put(replace(own, contact_count=own.contact_count + 1))
            contact = Contact(actor.user_id, user_id, nickname, known.added_at if known else now, now)
            tx.put(contact)
            tx.announce(Personal((actor.user_id,), contact, but_device_id=actor.device_id))
            return contact

        return await self._contact_view(await self._store.write(change))

    async def remove_contact(self, actor: Actor, user_id: str) -> None:
        """Takes somebody out of the caller's contacts, if they are there."""

        async def change(tx: Transaction) -> None:
            contact = await tx.get(Contact, actor.user_id, user_id)
            if contact is None:
                return
            own = await _own(tx, actor)
            tx.put(replace(own, contact_count=own.contact_count - 1))
            tx.delete(Contact, actor.user_id, user_id)
            tx.announce(Personal((actor.user_id,), contact, gone=True, but_device_id=actor.device_id))

        await self._store.write(change)

    async def _contact_view(self, contact: Contact) -> ContactView:
        user = await self._seen(contact.user_id, contact.contact_id)
        return ContactView(user=user, nickname=contact.nickname or None, added_at=rfc3339(contact.added_at))

    # --- blocks ------------------------------------------------------------------------------------------------------

    async def blocks(self, actor: Actor, limit: int, cursor: str | None) -> Page[BlockView]:
        """Whom the caller has blocked, in the order of their ids. Raises Refusal `invalid-request` for a foreign cursor."""
        found, more = await page_of(
            self._store, Block, actor.user_id, cursor=cursor, limit=limit, key=lambda block: block.blocked_id
        )
        items = [
            BlockView(user=await self._seen(actor.user_id, block.blocked_id), blocked_at=rfc3339(block.blocked_at))
            for block in found
        ]
        return Page(items=items, next=more)

    async def block(self, actor: Actor, user_id: str) -> None:
        """Blocks somebody, who is never told. Contacts and conversations stay; their direct one falls silent.

        Raises Refusal: `invalid-request` for oneself, `not-found` for who was never there, `too-many`.
        """
        _require_other(actor, user_id)
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            if await tx.get(Block, actor.user_id, user_id) is not None:
                return
            if await tx.get(Account, user_id) is None:
                raise Refusal(NOT_FOUND)
            own = await _own(tx, actor)
            if own.block_count >= limits.BLOCKS_MAX:
                raise Refusal(TOO_MANY)
            tx.put(replace(own, block_count=own.block_count + 1))
            block = Block(actor.user_id, user_id, now)
            tx.put(block)
            await _silence(tx, actor.user_id, user_id)
            tx.announce(Personal((actor.user_id,), block, but_device_id=actor.device_id))

        await self._store.write(change)

    async def unblock(self, actor: Actor, user_id: str) -> None:
        """Lifts a block, if there is one. What the other one has blocked stays blocked."""

        async def change(tx: Transaction) -> None:
            block = await tx.get(Block, actor.user_id, user_id)
            if block is None:
                return
            own = await _own(tx, actor)
            tx.put(replace(own, block_count=own.block_count - 1))
            tx.delete(Block, actor.user_id, user_id)
            await _silence(tx, actor.user_id, user_id)
            tx.announce(Personal((actor.user_id,), block, gone=True, but_device_id=actor.device_id))

        await self._store.write(change)

    # --- privacy -----------------------------------------------------------------------------------------------------

    async def privacy(self, actor: Actor) -> PrivacyView:
        """What the caller lets others see and do."""
        return privacy_view(await privacy_of(self._store, actor.user_id))

    async def change_privacy(self, actor: Actor, form: PrivacyForm) -> PrivacyView:
        """Changes what is in `form`, from now on."""
        changes = {name: value for name, value in asdict(form).items() if value is not UNSET}

        async def change(tx: Transaction) -> Privacy:
            old = await privacy_of(tx, actor.user_id)
            privacy = replace(old, **changes)
            if privacy != old:
                tx.put(privacy)
                tx.announce(Personal((actor.user_id,), privacy, but_device_id=actor.device_id))
            return privacy

        return privacy_view(await self._store.write(change))

    async def _seen(self, viewer_id: str, user_id: str) -> User:
        account = await self._store.get(Account, user_id)
        return await seen_by(self._store, viewer_id, account) if account is not None else vanished(user_id)


async def _silence(tx: Transaction, one_id: str, other_id: str) -> None:
    """Brings the direct conversation of the two, if they have one, in line with their blocks."""
    pair = await tx.get(DirectPair, *sorted((one_id, other_id)))
    conversation = await tx.get(Conversation, pair.conversation_id) if pair is not None else None
    if conversation is not None:
        is_blocked = not await may_talk(tx, one_id, other_id)
        if is_blocked != conversation.is_blocked:
            tx.put(replace(conversation, is_blocked=is_blocked))


async def _own(tx: Transaction, actor: Actor) -> Account:
    account = await tx.get(Account, actor.user_id)
    if account is None:
        raise Refusal(NOT_AUTHENTICATED)
    return account


def _require_other(actor: Actor, user_id: str) -> None:
    if user_id == actor.user_id:
        raise invalid("userId", "that is yourself")
