"""Which devices an encrypted conversation has: for whom its messages have to be encrypted, and whether one was.

A device counts if it is signed in, has published keys, and has a certificate where its user has an account key. Every send
asks for the list, inside its change, so lists are kept in memory, the least used go first. They are only ever read and
filled by changes, which run one by one, and dropped by the change that makes them wrong: whoever alters devices, keys
or account key of a user does it within `altering`. Who comes or goes rewrites the conversation's record, and a list is
kept for that very record. What a change altered it reads anew and does not keep: it may still fail, and then nothing
has happened. Nothing is known here of messages, nor of who is told.
"""

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from config import limits
from gearlink.prekeys import encoded, id_bytes
from storage.records import AccountKey, Conversation, Device, DeviceKeys, Introduced, Member
from storage.store import Reads, Store, Transaction

_MEMBERS_MAX: Final = 100_000  # of one conversation: all of them

Place = tuple[str, str]
"""The ids of a user and of a device of theirs."""


class Sender(Protocol):
    """The device that sends."""

    @property
    def user_id(self) -> str: ...

    @property
    def device_id(self) -> str: ...


@dataclass(frozen=True, slots=True)
class CountingDevice:
    """A device for which messages are encrypted. `identity_changed`: its identity key was once another one."""

    user_id: str
    device_id: str
    identity_key: bytes
    identity_changed: bool
    certificate: bytes = b""

    @property
    def place(self) -> Place:
        return self.user_id, self.device_id


@dataclass(frozen=True, slots=True)
class UserDevices:
    """What counts of one user. `encoding` is their part of what a digest is over."""

    user_id: str
    account_key: bytes
    devices: tuple[CountingDevice, ...]
    encoding: bytes


@dataclass(frozen=True, slots=True)
class DeviceList:
    """All devices of a conversation that count, in the order of the digest, and the account keys of its members."""

    devices: tuple[CountingDevice, ...]
    digest: str
    account_keys: Mapping[str, bytes]
    by_place: Mapping[Place, CountingDevice]


@dataclass(frozen=True, slots=True)
class Stale:
    """Why what was sent is not for the devices of the conversation: those that it is not for and has to be, those that it
    is for and that do not count, and those that have another identity key than the sender can know."""

    missing: tuple[Place, ...]
    extra: tuple[Place, ...]
    changed: tuple[Place, ...]


@dataclass(slots=True)
class Turn:
    """Which devices of a user count from now on, and which no longer."""

    user_id: str
    began: tuple[str, ...] = ()
    ceased: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.began or self.ceased)


@dataclass(slots=True)
class _Kept:
    """The list of a conversation, as long as its record is this one; None once a user in it has altered something."""

    conversation: Conversation
    user_ids: tuple[str, ...]
    devices: DeviceList | None = None


class DeviceLists:
    """The lists of a server's conversations. Given a transaction, it awaits nothing else."""

    def __init__(self) -> None:
        self._users: OrderedDict[str, UserDevices] = OrderedDict()  # least used first, as in the next one
        self._lists: OrderedDict[str, _Kept] = OrderedDict()
        self._where: dict[str, set[str]] = {}  # user: in which of these lists
        self._places = 0  # members of all of them
        self._altered: Transaction | None = None  # the last change that altered something: what it reads is not kept

    # --- asking ------------------------------------------------------------------------------------------------------

    async def of(self, tx: Transaction, conversation_id: str) -> DeviceList:
        """The devices of a conversation as they are at this point of the change; none if there is no conversation."""
        conversation = await tx.get(Conversation, conversation_id)
        if conversation is None:
            return _NOBODY
        if tx is self._altered:
            return joined([await counting(tx, user_id) for user_id in await _members(tx, conversation_id)])
        kept = self._lists.get(conversation_id)
        if kept is None or kept.conversation is not conversation:
            kept = _Kept(conversation, await _members(tx, conversation_id))
            self._keep(conversation_id, kept)
        self._lists.move_to_end(conversation_id)
        if kept.devices is None:
            kept.devices = joined([await self._of_user(tx, user_id) for user_id in kept.user_ids])
        return kept.devices

    async def check(
        self, tx: Transaction, conversation_id: str, sender: Sender, addressed: Sequence[Place], *, complete: bool
    ) -> Stale | None:
        """What is wrong with a message that has an envelope for each of `addressed`; None if nothing is.

        If it is to be `complete`, every device that counts has to have one, but for the sending device, for which there
        must be none. A device that took another identity key counts as changed until the sending one claimed its keys.
        """
        known = (await self.of(tx, conversation_id)).by_place
        own = sender.user_id, sender.device_id
        extra, changed = [], []
        for place in dict.fromkeys(addressed):
            device = known.get(place)
            if device is None or place == own:
                extra.append(place)
            elif device.identity_changed and not await _is_introduced(tx, device, sender):
                changed.append(place)
        missing: Sequence[Place] = ()
        if complete:
            present = {own, *addressed}
            missing = [place for place in known if place not in present]
        if not (missing or extra or changed):
            return None
        return Stale(tuple(missing), tuple(extra), tuple(changed))

    async def prepare(self, store: Store, conversation_id: str) -> None:
        """Reads what `of` will need, in small steps, outside of any change: a large conversation that nobody has asked
        for lately takes longer than one change may."""
        if conversation_id in self._lists:
            return
        after: str | None = ""
        while after is not None:
            after = await store.write(self._reading(conversation_id, after or None))

    def _reading(self, conversation_id: str, after: str | None) -> "_Step":
        """A change that writes nothing and reads the devices of some members; where to go on, None at the end."""

        async def change(tx: Transaction) -> str | None:
            bound = limits.DEVICE_LIST_USERS_PER_STEP
            members = await tx.scan(Member, conversation_id, after=after, limit=bound)
            for member in members:
                await self._of_user(tx, member.user_id)
            return members[-1].user_id if len(members) == bound else None

        return change

    # --- altering ----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def altering(self, tx: Transaction, user_id: str) -> AsyncIterator[Turn]:
        """Around whatever a change does to sessions, keys, certificates or the account key of a user. After it the `Turn`
        says which devices began or ceased to count by that."""
        self.forget_user(tx, user_id)
        before = {device.device_id for device in (await counting(tx, user_id)).devices}
        turn = Turn(user_id)
        yield turn
        after = {device.device_id for device in (await counting(tx, user_id)).devices}
        turn.began, turn.ceased = tuple(sorted(after - before)), tuple(sorted(before - after))

    def forget_user(self, tx: Transaction, user_id: str) -> None:
        """Within a change that alters what counts of the user, before it does: the next one that asks reads it anew."""
        self._altered = tx
        self._users.pop(user_id, None)
        for conversation_id in self._where.get(user_id, ()):
            self._lists[conversation_id].devices = None

    # --- memory ------------------------------------------------------------------------------------------------------

    async def _of_user(self, tx: Transaction, user_id: str) -> UserDevices:
        found = self._users.get(user_id)
        if found is None:
            found = self._users[user_id] = await counting(tx, user_id)
            if len(self._users) > limits.DEVICE_LIST_USERS_MAX:
                self._users.popitem(last=False)
        else:
            self._users.move_to_end(user_id)
        return found

    def _keep(self, conversation_id: str, kept: _Kept) -> None:
        self._drop(conversation_id)
        self._lists[conversation_id] = kept
        self._places += len(kept.user_ids)
        for user_id in kept.user_ids:
            self._where.setdefault(user_id, set()).add(conversation_id)
        while self._places > limits.DEVICE_LIST_PLACES_MAX and len(self._lists) > 1:
            self._drop(next(iter(self._lists)))

    def _drop(self, conversation_id: str) -> None:
        kept = self._lists.pop(conversation_id, None)
        if kept is None:
            return
        self._places -= len(kept.user_ids)
        for user_id in kept.user_ids:
            where = self._where[user_id]
            where.discard(conversation_id)
            if not where:
                del self._where[user_id]


class _Step(Protocol):
    async def __call__(self, tx: Transaction, /) -> str | None: ...


async def counting(reads: Reads, user_id: str) -> UserDevices:
    """The devices of a user that count, as they are stored."""
    account_key = await reads.get(AccountKey, user_id)
    devices = []
    for device in await reads.scan(Device, user_id, limit=limits.DEVICES_PER_USER_MAX):
        keys = await reads.get(DeviceKeys, user_id, device.device_id) if device.session_id else None
        if keys is not None and (account_key is None or keys.certificate):
            is_changed = bool(keys.identity_changed_at)
            devices.append(CountingDevice(user_id, device.device_id, keys.identity_key, is_changed, keys.certificate))
    encoding = b"".join(id_bytes(user_id) + id_bytes(each.device_id) + each.identity_key for each in devices)
    return UserDevices(user_id, account_key.account_key if account_key else b"", tuple(devices), encoding)


async def _members(tx: Transaction, conversation_id: str) -> tuple[str, ...]:
    members = await tx.scan(Member, conversation_id, limit=_MEMBERS_MAX)
    return tuple(member.user_id for member in members)


async def _is_introduced(tx: Transaction, device: CountingDevice, sender: Sender) -> bool:
    """Whether the sending device knows the identity key as it is: it has claimed it since, or came later than it."""
    introduced = await tx.get(Introduced, device.device_id, sender.device_id)
    if introduced is not None and introduced.identity_key == device.identity_key:
        return True
    keys = await tx.get(DeviceKeys, device.user_id, device.device_id)
    own = await tx.get(Device, sender.user_id, sender.device_id)
    return keys is not None and own is not None and own.created_at > keys.identity_changed_at


def joined(users: Sequence[UserDevices]) -> DeviceList:
    """`users` come in the order of their ids, and so do the devices of each: that is the order of the digest."""
    devices = tuple(device for user in users for device in user.devices)
    return DeviceList(
        devices,
        encoded(hashlib.sha256(b"".join(user.encoding for user in users)).digest()),
        {user.user_id: user.account_key for user in users if user.account_key},
        {device.place: device for device in devices},
    )


_NOBODY: Final = joined(())
