"""The exchange of keys: what devices publish, and who is given what of it to open an encrypted session (X3DH).

The server keeps public keys only. Each one-time pre-key is handed out once, oldest first: a claim deletes what it hands
out in the same change, and answers when that is durable. Whoever claims has a budget, and a smaller one for each person,
so that nobody uses up the keys of others. After a restore of the store (another epoch) one-time pre-keys are void: they may
have been handed out since. A changed identity key is told to those who share a conversation. Whether a key is sound is
in `prekeys`, whose key it really is only people can tell. Which of their devices are a user's own they say themselves, by
certificates under their account key; the server checks these and can make none. It knows neither HTTP nor sockets.
"""

from collections.abc import Sequence
from typing import Final

import trio
from msgspec import UNSET
from msgspec.structs import replace

from config import limits
from config.settings import Settings
from gearlink.accounts import Actor, require_id
from gearlink.admission import forget_one_time_keys
from gearlink.calls import CertificateForm, ClaimForm, KeysForm
from gearlink.clock import DAY, Clock, Milliseconds, rfc3339
from gearlink.device_lists import DeviceList, DeviceLists, Turn, counting, joined
from gearlink.device_news import tell, told_of
from gearlink.errors import NOT_AUTHENTICATED, NOT_FOUND, TOO_MANY, Refusal, invalid
from gearlink.people import may_talk
from gearlink.prekeys import Upload, checked, checked_certificate, digest, encoded
from gearlink.rights import Right, enter
from gearlink.throttle import Throttle
from gearlink.views import (
    ClaimedKeys,
    ConversationDevice,
    ConversationDevices,
    DeviceBundle,
    DeviceIdentities,
    DeviceIdentity,
    KeyStatus,
    OneTimePreKeyView,
    SignedPreKeyView,
)
from storage.notices import IdentityChanged, KeysLow
from storage.records import (
    Account,
    AccountKey,
    Conversation,
    Device,
    DeviceKeys,
    Introduced,
    Member,
    Membership,
    OneTimePreKey,
    SignedPreKey,
)
from storage.store import Reads, Store, Transaction

_HOUR_SECONDS: Final = 3600
_VIEWS_PER_STEP: Final = 500


class Keyring:
    """The rules of the key exchange over a store."""

    def __init__(self, store: Store, clock: Clock, settings: Settings, lists: DeviceLists) -> None:
        self._store, self._clock, self._lists = store, clock, lists
        uploads, changes = limits.KEY_UPLOADS_PER_HOUR, limits.IDENTITY_CHANGES_PER_DAY
        self._uploads = Throttle("key-uploads", uploads / _HOUR_SECONDS, uploads)
        self._changes = Throttle("identity-changes", changes * 1000 / DAY, changes)
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over what a reload may change; who was over a limit starts anew."""
        per_hour = settings.limits.key_claims_per_hour
        self._claims = Throttle("key-claims", per_hour / _HOUR_SECONDS, per_hour, unit="keys")
        of_one = min(per_hour, max(per_hour / limits.KEY_CLAIM_TARGETS_MIN, limits.KEY_CLAIMS_OF_ONE_MIN))
        self._claims_of_one = Throttle("key-claims-of-one", of_one / _HOUR_SECONDS, of_one, unit="keys")

    # --- one's own ---------------------------------------------------------------------------------------------------

    async def publish(self, actor: Actor, form: KeysForm) -> KeyStatus:
        """Takes the keys of the calling device: one-time pre-keys are added, everything else is replaced. The same again
        changes nothing, and what was handed out never comes back. Under another identity key all begins anew.

        Raises Refusal: `invalid-request` for keys that are not sound, or ids that named other keys; `too-many` one-time
        pre-keys; `rate-limited`, for uploads of a device and changes of identity of a user; `not-authenticated` if the
        session has ended meanwhile.
        """
        self._uploads.check(actor.device_id)
        upload = await checked(form)
        told: tuple[str, ...] | None = None
        while (published := await self._publish(actor, upload, told)) is None:
            told = await told_of(self._store, actor.user_id)
        status, turn = published
        await tell(self._store, turn)
        return status

    async def _publish(
        self, actor: Actor, upload: Upload, told: tuple[str, ...] | None
    ) -> tuple[KeyStatus, Turn] | None:
        """None, and nothing is written, if this changes the identity key and nobody knows yet who is to be told."""
        now, user_id, device_id = self._clock.now(), actor.user_id, actor.device_id

        async def change(tx: Transaction) -> tuple[KeyStatus, Turn] | None:
            await _require_session(tx, actor)
            old = await tx.get(DeviceKeys, user_id, device_id)
            is_changed = old is not None and old.identity_key != upload.identity_key
            if is_changed and old is not None:
                if upload.identity_key in old.former_identity_keys:  # its one-time keys may have been handed out
                    raise invalid("identityKey", "this device had it before, and it does not come back")
                if told is None:
                    return None
                self._changes.check(user_id)
                tx.announce(IdentityChanged(user_id, device_id, told))
            if old is not None and (is_changed or old.epoch != self._store.epoch):
                await forget_one_time_keys(tx, user_id, device_id)
            held = await tx.scan(OneTimePreKey, user_id, device_id, limit=limits.ONE_TIME_KEYS_MAX)
            known = None if is_changed else old
            fresh = _fresh(user_id, device_id, upload, known, held)
            keys = self._published(actor, upload, known, [*held, *fresh], now)
            turn = Turn(user_id)
            if is_changed:
                former = (*old.former_identity_keys, old.identity_key) if old is not None else ()
                keys = replace(keys, identity_changed_at=now, former_identity_keys=former[-limits.FORMER_KEYS_MAX :])
            if old is None or is_changed:
                async with self._lists.altering(tx, user_id) as turn:
                    tx.put(keys)
            elif replace(keys, published_at=old.published_at) != old:
                tx.put(keys)
            for each in fresh:
                tx.put(each)
            return KeyStatus(one_time_remaining=keys.one_time_count, digest=digest(keys, [*held, *fresh])), turn

        return await self._store.write(change)

    def _published(
        self, actor: Actor, upload: Upload, old: DeviceKeys | None, one_time: list[OneTimePreKey], now: Milliseconds
    ) -> DeviceKeys:
        uploaded = one_time[-1].key_id if one_time else 0
        return DeviceKeys(
            actor.user_id,
            actor.device_id,
            upload.identity_key,
            upload.signed,
            upload.last_resort,
            published_at=now,
            epoch=self._store.epoch,
            one_time_count=len(one_time),
            uploaded_key_id=max(uploaded, old.uploaded_key_id if old is not None else 0),
            handed_out_key_id=old.handed_out_key_id if old is not None else 0,
            identity_changed_at=old.identity_changed_at if old is not None else 0,
            certificate=old.certificate if old is not None else b"",
            former_identity_keys=old.former_identity_keys if old is not None else (),
        )

    async def certify(self, actor: Actor, device_id: str, form: CertificateForm) -> None:
        """Takes the certificate of a device of the caller, the calling one or another. The first one brings the user's
        account key; one under another account key makes that the user's, and all other certificates are void.

        Raises Refusal: `not-found` for a device that is not the caller's or has no keys; `invalid-request` for what is
        not a signature by this account key over the device as it is; `rate-limited`, for uploads of a device and changes
        of identity of a user; `not-authenticated` if the session has ended meanwhile.
        """
        require_id(device_id)
        self._uploads.check(actor.device_id)
        turn: Turn | None = None
        while turn is None:
            keys = await self._store.get(DeviceKeys, actor.user_id, device_id)
            if keys is None:
                raise Refusal(NOT_FOUND)
            account_key, certificate = checked_certificate(form, actor.user_id, device_id, keys.identity_key)
            certified = replace(keys, certificate=certificate)
            told = await told_of(self._store, actor.user_id)
            turn = await self._certify(actor, certified, account_key, told)
        await tell(self._store, turn)

    async def _certify(
        self, actor: Actor, certified: DeviceKeys, account_key: bytes, told: tuple[str, ...]
    ) -> Turn | None:
        """None, and nothing is written, if the device has another identity key meanwhile."""
        now, user_id, device_id = self._clock.now(), actor.user_id, certified.device_id

        async def change(tx: Transaction) -> Turn | None:
            await _require_session(tx, actor)
            keys, known = await tx.get(DeviceKeys, user_id, device_id), await tx.get(AccountKey, user_id)
            if keys is None or keys.identity_key != certified.identity_key:
                return None
            if known is not None and known.account_key == account_key and keys.certificate == certified.certificate:
                return Turn(user_id)
            async with self._lists.altering(tx, user_id) as turn:
                if known is None:
                    tx.put(AccountKey(user_id, account_key))
                elif known.account_key != account_key:
                    self._changes.check(user_id)
                    tx.put(AccountKey(user_id, account_key, changed_at=now))
                    tx.announce(IdentityChanged(user_id, actor.device_id, told))
                    for each in await tx.scan(DeviceKeys, user_id, limit=limits.DEVICES_PER_USER_MAX):
                        tx.put(replace(each, certificate=b""))
                tx.put(replace(keys, certificate=certified.certificate))
            return turn

        return await self._store.write(change)

    async def status(self, actor: Actor) -> KeyStatus:
        """How many one-time pre-keys of the calling device are left, and a digest of all that is held of it."""
        while True:
            keys = await self._store.get(DeviceKeys, actor.user_id, actor.device_id)
            if keys is None:
                return KeyStatus(one_time_remaining=0, digest=None)
            held = await self._one_time_keys(self._store, keys, limits.ONE_TIME_KEYS_MAX)
            if keys == await self._store.get(DeviceKeys, actor.user_id, actor.device_id):  # else claimed in between
                return KeyStatus(one_time_remaining=len(held), digest=digest(keys, held))

    async def low(self, actor: Actor) -> int | None:
        """How many one-time pre-keys the calling device has left, if it published keys and these are few."""
        keys = await self._store.get(DeviceKeys, actor.user_id, actor.device_id)
        if keys is None:
            return None
        remaining = keys.one_time_count if keys.epoch == self._store.epoch else 0
        return remaining if remaining < limits.ONE_TIME_KEYS_LOW else None

    # --- others' -----------------------------------------------------------------------------------------------------

    async def claim(self, actor: Actor, form: ClaimForm) -> ClaimedKeys:
        """What it takes to open a session with each device of a user that counts, but not with the calling one. The oldest
        one-time pre-key of each is used up; where there is none the last-resort one is shown.

        Raises Refusal `not-found` for who is not there or not for the caller; `rate-limited`, counting one-time keys.
        """

        async def change(tx: Transaction) -> ClaimedKeys:
            found = []
            account_key = await tx.get(AccountKey, form.user_id)
            for keys in await self._keys_of(tx, actor, form.user_id):
                if keys.device_id != actor.device_id and (account_key is None or keys.certificate):
                    oldest = await self._one_time_keys(tx, keys, 1)
                    found.append((keys, oldest[0] if oldest else None))
            self._charge(actor.user_id, form.user_id, sum(oldest is not None for _keys, oldest in found))
            for keys, oldest_key in found:
                if oldest_key is not None:
                    _hand_out(tx, keys, oldest_key)
                if keys.identity_changed_at:
                    tx.put(Introduced(keys.device_id, actor.device_id, keys.identity_key))
            return ClaimedKeys(
                devices=[_bundle(keys, oldest) for keys, oldest in found],
                account_key=encoded(account_key.account_key) if account_key is not None else UNSET,
            )

        return await self._store.write(change)

    async def devices(self, actor: Actor, user_id: str) -> DeviceIdentities:
        """The identity key of each device of a user that is signed in and has keys, whether or not it counts.

        Raises Refusal `not-found`.
        """
        require_id(user_id)
        account_key = await self._store.get(AccountKey, user_id)
        is_changed = account_key is not None and account_key.changed_at
        return DeviceIdentities(
            account_key=encoded(account_key.account_key) if account_key is not None else UNSET,
            account_key_changed_at=rfc3339(account_key.changed_at) if account_key and is_changed else UNSET,
            devices=[
                DeviceIdentity(
                    device_id=keys.device_id,
                    identity_key=encoded(keys.identity_key),
                    identity_changed_at=rfc3339(keys.identity_changed_at) if keys.identity_changed_at else UNSET,
                    certificate=encoded(keys.certificate) if keys.certificate else UNSET,
                )
                for keys in await self._keys_of(self._store, actor, user_id)
            ],
        )

    async def devices_in(self, actor: Actor, conversation_id: str) -> ConversationDevices:
        """For which devices what is sent in a conversation has to be encrypted, the calling one among them, and the digest
        of that list. None in a conversation that is not encrypted; between two of whom one blocked the other the caller's
        own alone. Raises Refusal `not-found`."""
        await enter(self._store, actor.user_id, conversation_id, Right.READ)
        await self._lists.prepare(self._store, conversation_id)

        async def change(tx: Transaction) -> DeviceList:
            conversation, _member = await enter(tx, actor.user_id, conversation_id, Right.READ)
            if conversation.encryption != "e2ee":
                return joined(())
            if conversation.is_blocked:
                return joined([await counting(tx, actor.user_id)])
            return await self._lists.of(tx, conversation_id)

        found = await self._store.write(change)
        devices = []
        for number, each in enumerate(found.devices, start=1):
            certificate = encoded(each.certificate) if each.certificate else UNSET
            identity_key = encoded(each.identity_key)
            devices.append(ConversationDevice(
                user_id=each.user_id, device_id=each.device_id, identity_key=identity_key, certificate=certificate,
            ))  # fmt: skip
            if number % _VIEWS_PER_STEP == 0:
                await trio.lowlevel.checkpoint()
        account_keys = {user_id: encoded(key) for user_id, key in found.account_keys.items()}
        return ConversationDevices(digest=found.digest, account_keys=account_keys, devices=devices)

    async def _keys_of(self, reads: Reads, actor: Actor, user_id: str) -> list[DeviceKeys]:
        account = await reads.get(Account, user_id)
        if account is None or not account.is_active:
            raise Refusal(NOT_FOUND)
        if not await may_talk(reads, actor.user_id, user_id) and not await _share_group(reads, actor.user_id, user_id):
            raise Refusal(NOT_FOUND)
        devices = await reads.scan(Device, user_id, limit=limits.DEVICES_PER_USER_MAX)
        found = [await reads.get(DeviceKeys, user_id, each.device_id) for each in devices if each.session_id]
        return [keys for keys in found if keys is not None]

    async def _one_time_keys(self, reads: Reads, keys: DeviceKeys, limit: int) -> list[OneTimePreKey]:
        """The oldest of the device that count, behind those that were handed out."""
        if keys.epoch != self._store.epoch:
            return []
        after = keys.handed_out_key_id
        return await reads.scan(OneTimePreKey, keys.user_id, keys.device_id, after=after, limit=limit)

    def _charge(self, caller_id: str, user_id: str, keys: int) -> None:
        """Takes as many keys, and one for a claim that gets none, out of both budgets, or out of neither.

        Raises Refusal `rate-limited`, which tells of the budget that needs longer.
        """
        bills: tuple[tuple[Throttle, str | tuple[str, str]], ...]
        bills = ((self._claims, caller_id), (self._claims_of_one, (caller_id, user_id)))
        wait, slowest, whose = max(
            ((throttle.wait(key, max(keys, 1)), throttle, key) for throttle, key in bills), key=lambda found: found[0]
        )
        if wait:
            raise slowest.refusal(whose, wait)
        for throttle, key in bills:
            throttle.take(key, max(keys, 1))


async def _require_session(tx: Transaction, actor: Actor) -> None:
    """Raises Refusal `not-authenticated` if the session of the caller has ended since the call began."""
    device = await tx.get(Device, actor.user_id, actor.device_id)
    if device is None or device.session_id != actor.session_id:
        raise Refusal(NOT_AUTHENTICATED)


async def _share_group(reads: Reads, user_id: str, other_id: str) -> bool:
    """Whether both are in an encrypted group or channel: there they go on as before, also if one has blocked the other."""
    for each in await reads.scan(Membership, user_id, limit=limits.IDENTITY_TOLD_CONVERSATIONS_MAX, reverse=True):
        conversation = await reads.get(Conversation, each.conversation_id)
        if conversation is None or conversation.type == "direct" or conversation.encryption != "e2ee":
            continue
        if await reads.get(Member, each.conversation_id, other_id) is not None:
            return True
    return False


def _fresh(
    user_id: str, device_id: str, upload: Upload, old: DeviceKeys | None, held: Sequence[OneTimePreKey]
) -> list[OneTimePreKey]:
    """The one-time pre-keys of `upload` that were never here before. Ids only grow: one that is not larger than all
    before it is a repetition, of a key that is still here or of one that was handed out.

    Raises Refusal `invalid-request` for an id that named another key; `too-many`.
    """
    ids, ids_of = {each.key_id: each.public_key for each in held}, {each.public_key: each.key_id for each in held}
    last = old.uploaded_key_id if old is not None else 0
    fresh = []
    for number, (key_id, key) in enumerate(upload.one_time):
        if ids.get(key_id, key) != key:
            raise invalid(f"oneTimePreKeys[{number}].keyId", "this id named another key")
        if ids_of.get(key, key_id) != key_id:
            raise invalid(f"oneTimePreKeys[{number}].publicKey", "the same key stands under another id")
        if key_id > last:
            fresh.append(OneTimePreKey(user_id, device_id, key_id, key))
    if len(held) + len(fresh) > limits.ONE_TIME_KEYS_MAX:
        detail = f"At most {limits.ONE_TIME_KEYS_MAX} one-time pre-keys are kept, and {len(held)} are there"
        raise Refusal(TOO_MANY, detail)
    return fresh


def _hand_out(tx: Transaction, keys: DeviceKeys, oldest: OneTimePreKey) -> None:
    """From now on nobody else gets this key. The owner is told when few are left, and when none is."""
    remaining = keys.one_time_count - 1
    tx.delete(OneTimePreKey, keys.user_id, keys.device_id, oldest.key_id)
    tx.put(replace(keys, one_time_count=remaining, handed_out_key_id=oldest.key_id))
    if remaining in (limits.ONE_TIME_KEYS_LOW - 1, 0):
        tx.announce(KeysLow(keys.user_id, keys.device_id, remaining))


def _bundle(keys: DeviceKeys, one_time: OneTimePreKey | None) -> DeviceBundle:
    bundle = DeviceBundle(
        device_id=keys.device_id,
        identity_key=encoded(keys.identity_key),
        signed_pre_key=_signed_view(keys.signed_pre_key),
        certificate=encoded(keys.certificate) if keys.certificate else UNSET,
    )
    if one_time is None:
        return replace(bundle, last_resort_pre_key=_signed_view(keys.last_resort_pre_key))
    return replace(
        bundle, one_time_pre_key=OneTimePreKeyView(key_id=one_time.key_id, public_key=encoded(one_time.public_key))
    )


def _signed_view(key: SignedPreKey) -> SignedPreKeyView:
    return SignedPreKeyView(key_id=key.key_id, public_key=encoded(key.public_key), signature=encoded(key.signature))
