"""The steps by which somebody gets in and out, inside a change of the store: accounts, invites, devices, sessions.

Every function is given the transaction and the time, and either does its step whole or raises a Refusal, so that
nothing of the change is written. What opens or ends a session, or removes a device, is called within
`DeviceLists.altering`. Who calls `admit` has made sure that the number is theirs. What a token looks like,
who may call, and what is told to the outside is not known here.
"""

import hashlib
import re
import secrets
from typing import Final

from msgspec.structs import replace

from config import limits
from config.settings import Registration
from gearlink import views
from gearlink.calls import DeviceForm
from gearlink.ciphertexts import note_removed
from gearlink.clock import Milliseconds, new_id, rfc3339
from gearlink.errors import (
    ACCOUNT_DELETED,
    ACCOUNT_SUSPENDED,
    INVITE_REQUIRED,
    NOT_FOUND,
    REGISTRATION_CLOSED,
    TOO_MANY_DEVICES,
    Refusal,
)
from gearlink.verification import parse_phone_number, phone_hash
from storage.notices import AccountEnded, DeviceAdded, DeviceRemoved, SessionEnded
from storage.records import (
    Account,
    Delivery,
    Device,
    DeviceKeys,
    DeviceOwner,
    Due,
    Introduced,
    Invite,
    Membership,
    OneTimePreKey,
    PhoneNumber,
    RefreshToken,
    Username,
)
from storage.store import Reads, Transaction

ERASE_ACCOUNT: Final = "erase-account"
"""`Due.what` of an account that is to be erased; the subject is the user."""

_ID: Final = re.compile(views.UUID_PATTERN)
_MEMBERSHIPS_MAX: Final = 10_000  # whose delivered marks go with a device
_INTRODUCED_MAX: Final = 10_000  # devices of others that were given its keys
# Crockford's base 32: no letter looks like another one. 20 of them are 100 bits.
_INVITE_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_INVITE_LOOKALIKES: Final = str.maketrans("OIL", "011", "- ")


# --- accounts and invites --------------------------------------------------------------------------------------------


async def admit(
    tx: Transaction, number: str, registration: Registration, invite_code: str, now: Milliseconds
) -> tuple[Account, bool]:
    """The account of a number that was proven, and whether it is new. The first one of a server is its admin.

    Raises Refusal `registration-closed` or `invite-required` if a newcomer may not have one.
    """
    known = await tx.get(PhoneNumber, phone_hash(number))
    if known is not None:
        account = await tx.get(Account, known.user_id)
        assert account is not None
        return account, False
    user_id = new_id()
    if registration == "closed":
        raise Refusal(REGISTRATION_CLOSED)
    if registration == "invite":
        await _use_invite(tx, invite_code, user_id, now)
    is_first = not await tx.scan(Account, limit=1)
    account = Account(user_id, number, created_at=now, updated_at=now, is_admin=is_first)
    tx.put(account)
    tx.put(PhoneNumber(phone_hash(number), user_id))
    return account, True


def readmit(tx: Transaction, account: Account, restore: bool, now: Milliseconds) -> Account:
    """`account` as somebody may sign in to it who holds its number. With `restore` a deletion is taken back.

    Raises Refusal `account-suspended`; `account-deleted` without `restore`, or when its time to come back is over.
    """
    if account.suspended_at:
        raise Refusal(ACCOUNT_SUSPENDED)
    if not account.deleted_at:
        return account
    if account.erase_at <= now:
        raise Refusal(ACCOUNT_DELETED, "This account was deleted and is being erased; come back later for a new one")
    if not restore:
        detail = f"This account was deleted; until {rfc3339(account.erase_at)} restoreAccount takes that back"
        raise Refusal(ACCOUNT_DELETED, detail)
    return undelete(tx, account, now)


def undelete(tx: Transaction, account: Account, now: Milliseconds) -> Account:
    """Takes a deletion back. Nothing was erased yet, so nothing but the dates has to be put right."""
    tx.delete(Due, account.erase_at, ERASE_ACCOUNT, account.user_id, 0)
    account = replace(account, deleted_at=0, erase_at=0, updated_at=now)
    tx.put(account)
    return account


async def find_account(reads: Reads, who: str) -> Account:
    """The account with this number (`+…`), username (in any case, also as `@name`), or id.

    Raises Refusal `not-found`; `invalid-request` for a number that is none.
    """
    found: PhoneNumber | Username | None
    if is_id(who):
        user_id = who
    else:
        if who.startswith("+"):
            found = await reads.get(PhoneNumber, phone_hash(parse_phone_number(who)))
        else:
            found = await reads.get(Username, who.removeprefix("@").lower())
        user_id = found.user_id if found is not None else ""
    account = await reads.get(Account, user_id) if user_id else None
    if account is None:
        raise Refusal(NOT_FOUND, "There is no account with this number, username or id")
    return account


def is_id(text: str) -> bool:
    """Whether `text` can be the id of anything."""
    return _ID.fullmatch(text) is not None


def fresh_invite_code() -> str:
    """Four groups of five, made to be read out; nobody guesses one."""
    letters = [secrets.choice(_INVITE_ALPHABET) for _ in range(20)]
    return "-".join("".join(letters[at : at + 5]) for at in range(0, 20, 5))


def invite_hash(code: str) -> bytes:
    """The key of the `Invite` record: of the code as it was meant, whatever its case, dashes and lookalike letters."""
    return hashlib.sha256(code.upper().translate(_INVITE_LOOKALIKES).encode()).digest()


async def _use_invite(tx: Transaction, code: str, user_id: str, now: Milliseconds) -> None:
    invite = await tx.get(Invite, invite_hash(code)) if code else None
    if invite is None or invite.used_by or invite.expires_at <= now:
        detail = "This invite code is unknown, used or expired" if code else ""
        raise Refusal(INVITE_REQUIRED, detail)
    tx.put(replace(invite, used_by=user_id))


# --- devices and sessions --------------------------------------------------------------------------------------------


async def open_session(
    tx: Transaction, account: Account, form: DeviceForm, session_id: str, now: Milliseconds, refresh_ttl: Milliseconds
) -> Device:
    """A device of `account` with a session that starts now; if it is known, its older session ends.

    A client may name its device itself, with an id that was never anybody else's: so a device that was removed comes
    back under its own id. Raises Refusal: `not-found` for an id that is somebody else's; `too-many-devices`.
    """
    user_id, device_id = account.user_id, form.device_id or new_id()
    known = await tx.get(Device, user_id, device_id)
    if known is None:
        owner = await tx.get(DeviceOwner, device_id)
        if owner is not None and owner.user_id != user_id:
            raise Refusal(NOT_FOUND, "This device id is not yours; leave deviceId out to get one")
        await _make_room(tx, user_id, now, refresh_ttl)
        tx.put(DeviceOwner(device_id, user_id))
        tx.announce(DeviceAdded(user_id, device_id))
    else:
        tx.announce(SessionEnded(user_id, device_id, live_session_id=session_id))
    created_at = known.created_at if known is not None else now
    connected_at = known.connected_at if known is not None else 0
    device = Device(
        user_id, device_id, form.name, form.type, created_at, now, session_id, account.is_admin, connected_at
    )
    tx.put(device)
    return device


async def _make_room(tx: Transaction, user_id: str, now: Milliseconds, refresh_ttl: Milliseconds) -> None:
    """At the limit, the device that was away longest gives way if it is signed out, or was away for so long that it
    cannot renew its session: else lost phones and forgotten browsers would lock their owner out for good."""
    devices = await tx.scan(Device, user_id, limit=limits.DEVICES_PER_USER_MAX)
    if len(devices) < limits.DEVICES_PER_USER_MAX:
        return
    dead = [device for device in devices if not device.session_id or device.last_seen_at + refresh_ttl <= now]
    if not dead:
        raise Refusal(TOO_MANY_DEVICES)
    await remove_device(tx, min(dead, key=lambda device: device.last_seen_at))


async def remove_device(tx: Transaction, device: Device) -> None:
    """Forgets the device with its keys and delivered marks, what waits for it, and ends its session."""
    for place in await tx.scan(Membership, device.user_id, limit=_MEMBERSHIPS_MAX):
        if await tx.get(Delivery, place.conversation_id, device.user_id, device.device_id):
            tx.delete(Delivery, place.conversation_id, device.user_id, device.device_id)
    await forget_one_time_keys(tx, device.user_id, device.device_id)
    for each in await tx.scan(Introduced, device.device_id, limit=_INTRODUCED_MAX):
        tx.delete(Introduced, device.device_id, each.by_device_id)
    tx.delete(DeviceKeys, device.user_id, device.device_id)
    tx.delete(Device, device.user_id, device.device_id)
    note_removed(tx, device)
    tx.announce(SessionEnded(device.user_id, device.device_id))
    tx.announce(DeviceRemoved(device.user_id, device.device_id))


async def forget_one_time_keys(tx: Transaction, user_id: str, device_id: str) -> None:
    """Nobody is given one of these any more."""
    for key in await tx.scan(OneTimePreKey, user_id, device_id, limit=limits.ONE_TIME_KEYS_MAX):
        tx.delete(OneTimePreKey, user_id, device_id, key.key_id)


def end_session(tx: Transaction, device: Device) -> None:
    """Signs the device out: its tokens are dead, its sockets close."""
    tx.put(replace(device, session_id=""))
    tx.announce(SessionEnded(device.user_id, device.device_id))


async def end_all_sessions(tx: Transaction, user_id: str) -> None:
    """Signs every device of the user out: all tokens are dead, all sockets close. The devices stay."""
    for device in await tx.scan(Device, user_id, limit=limits.DEVICES_PER_USER_MAX):
        if device.session_id:
            tx.put(replace(device, session_id=""))
    tx.announce(AccountEnded(user_id))


def put_refresh_token(
    tx: Transaction, token: str, device: Device, now: Milliseconds, refresh_ttl: Milliseconds
) -> None:
    """Stores a fresh refresh token of the device's session, hashed."""
    tx.put(RefreshToken(_hash(token), device.user_id, device.device_id, device.session_id, now + refresh_ttl))


async def rotate_refresh_token(
    tx: Transaction, old: str, fresh: str, now: Milliseconds, refresh_ttl: Milliseconds
) -> Device | RefreshToken | None:
    """Uses up `old` and puts `fresh` in its place: the device whose session goes on.

    The `RefreshToken` itself if it was used before; its session has to end then (`end_session_of`). None if it is unknown,
    expired, or of a session that ended. Nothing is raised: what happened has to be written.
    """
    shown = await tx.get(RefreshToken, _hash(old))
    if shown is None or shown.expires_at <= now:
        return None
    if shown.used:
        return shown
    device = await _device_of(tx, shown)
    if device is None:
        return None
    device = replace(device, last_seen_at=now)
    tx.put(device)
    tx.put(replace(shown, used=True))
    put_refresh_token(tx, fresh, device, now, refresh_ttl)
    return device


async def end_session_of(tx: Transaction, token: RefreshToken) -> None:
    """Ends the session of a token that was seen again, if it is still the device's."""
    if device := await _device_of(tx, token):
        end_session(tx, device)


async def _device_of(tx: Transaction, token: RefreshToken) -> Device | None:
    """None if it is signed out, or lives in another session, which a token of this one cannot touch."""
    device = await tx.get(Device, token.user_id, token.device_id)
    return device if device is not None and device.session_id == token.session_id else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
