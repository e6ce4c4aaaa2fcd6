"""Pictures of people and of conversations: put, replaced, taken away, and shown to those who are signed in.

Every picture is cleaned of its metadata before it is stored, and another picture has another id, so whoever has one need
never ask again. An old picture goes in the same change in which it is replaced. It knows nothing of HTTP.
"""

from msgspec import structs

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import AvatarSet
from gearlink.clock import Clock, new_id
from gearlink.errors import NOT_AUTHENTICATED, NOT_FOUND, Refusal
from gearlink.images import clean_image
from gearlink.people import seen_by
from gearlink.rights import Right, enter, settings_of
from gearlink.throttle import Throttle
from gearlink.timeline import avatar_url
from storage.events import ConversationUpdated
from storage.records import Account, Avatar, Conversation
from storage.store import Store, Transaction

Cleaned = tuple[str, bytes]
"""A picture as `images.clean_image` gives it: media type and bytes."""


async def put(tx: Transaction, owner_id: str, cleaned: Cleaned, old_avatar_id: str) -> str:
    """Stores a picture of `owner_id` in place of the old one ("" for none) and returns its id.

    The same picture again stays what it is, with its id.
    """
    if old_avatar_id:
        old = await tx.get(Avatar, old_avatar_id)
        if old is not None and (old.mime_type, old.data) == cleaned:
            return old_avatar_id
        drop(tx, old_avatar_id)
    avatar_id = new_id()
    tx.put(Avatar(avatar_id, owner_id, *cleaned))
    return avatar_id


def drop(tx: Transaction, avatar_id: str) -> None:
    """Deletes the picture; "" is none. Part of every change that ends what it is a picture of."""
    if avatar_id:
        tx.delete(Avatar, avatar_id)


class Avatars:
    """The rules of pictures over a store."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        per_hour = limits.AVATAR_CHANGES_PER_HOUR
        self._changes = Throttle("avatars", per_hour / 3600, per_hour)

    async def read(self, actor: Actor, avatar_id: str) -> Avatar:
        """A picture, for anybody who is signed in and would find it in its owner's profile, or of a conversation.

        Raises Refusal `not-found`.
        """
        avatar = await self._store.get(Avatar, avatar_id)
        if avatar is None:
            raise Refusal(NOT_FOUND)
        owner = await self._store.get(Account, avatar.owner_id) if avatar.owner_id != actor.user_id else None
        if owner is not None and (await seen_by(self._store, actor.user_id, owner)).avatar_url is None:
            raise Refusal(NOT_FOUND)
        return avatar

    async def set_own(self, actor: Actor, data: bytes) -> AvatarSet:
        """Makes `data` the caller's picture. Raises Refusal as `images.clean_image` does, and `rate-limited`."""
        cleaned = self._cleaned(actor, data)
        return _set(await self._change_own(actor, cleaned))

    async def remove_own(self, actor: Actor) -> None:
        """Takes the caller's picture away, if there is one."""
        await self._change_own(actor, None)

    async def set_for_conversation(self, actor: Actor, conversation_id: str, data: bytes) -> AvatarSet:
        """Makes `data` the picture of the conversation, and tells its members.

        Raises Refusal `not-found`, `forbidden`, `rate-limited`, and as `images.clean_image` does.
        """
        await enter(
            self._store, actor.user_id, conversation_id, Right.CHANGE
        )  # a stranger learns nothing of the picture
        cleaned = self._cleaned(actor, data)
        return _set(await self._change_conversation(actor, conversation_id, cleaned))

    async def remove_for_conversation(self, actor: Actor, conversation_id: str) -> None:
        """Takes the conversation's picture away, if there is one. Raises Refusal `not-found`, `forbidden`."""
        await self._change_conversation(actor, conversation_id, None)

    def _cleaned(self, actor: Actor, data: bytes) -> Cleaned:
        self._changes.check(actor.user_id)
        return clean_image(data)

    async def _change_own(self, actor: Actor, cleaned: Cleaned | None) -> str:
        now = self._clock.now()

        async def change(tx: Transaction) -> str:
            account = await tx.get(Account, actor.user_id)
            if account is None:
                raise Refusal(NOT_AUTHENTICATED)
            avatar_id = await _replace(tx, account.user_id, cleaned, account.avatar_id)
            if avatar_id != account.avatar_id:
                tx.put(structs.replace(account, avatar_id=avatar_id, updated_at=now))
            return avatar_id

        return await self._store.write(change)

    async def _change_conversation(self, actor: Actor, conversation_id: str, cleaned: Cleaned | None) -> str:
        now = self._clock.now()

        async def change(tx: Transaction) -> str:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.CHANGE)
            avatar_id = await _replace(tx, conversation_id, cleaned, conversation.avatar_id)
            if avatar_id != conversation.avatar_id:
                changed = structs.replace(conversation, avatar_id=avatar_id, updated_at=now)
                tx.put(changed)
                await tx.append(conversation_id, updated_event(changed, actor.user_id))
            return avatar_id

        return await self._store.write(change)


def _set(avatar_id: str) -> AvatarSet:
    url = avatar_url(avatar_id)
    assert url is not None
    return AvatarSet(avatar_url=url)


async def _replace(tx: Transaction, owner_id: str, cleaned: Cleaned | None, old_avatar_id: str) -> str:
    if cleaned is not None:
        return await put(tx, owner_id, cleaned, old_avatar_id)
    drop(tx, old_avatar_id)
    return ""


def updated_event(conversation: Conversation, actor_id: str) -> ConversationUpdated:
    """The event of a change to `conversation` that was made just now."""
    return ConversationUpdated(
        event_id=new_id(),
        actor_id=actor_id,
        at=conversation.updated_at,
        name=conversation.name,
        description=conversation.description,
        avatar_id=conversation.avatar_id,
        settings=settings_of(conversation),
    )
