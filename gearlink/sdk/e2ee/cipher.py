"""The cipher: all that an engine needs of the protocols, in a few words over transactions.

It puts together sessions, pre-keys and sender keys of this device. Letters are padded bytes to it, and who may read what
is decided by its caller; it only refuses a device that its user has not shown. It knows no socket and no clock.
"""

from collections.abc import Iterable
from typing import Final

from msgspec.structs import replace

from gearlink.sdk.e2ee import agreement, sender_keys, sessions
from gearlink.sdk.e2ee.agreement import BadBundle
from gearlink.sdk.e2ee.encoding import from_base64url
from gearlink.sdk.e2ee.letters import SenderKeyGiven, Undecryptable
from gearlink.sdk.e2ee.records import Own, OwnSenderKey, PeerDevice, SenderKey
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.sdk.e2ee.store import Tx
from gearlink.views import DeviceBundle

SENDER_KEYS_KEPT: Final = 10  # of one device in one conversation


class Cipher:
    """What this device encrypts and decrypts with. Every method runs inside of a transaction of its caller, and writes
    nothing if it raises."""

    def __init__(self, own: Own) -> None:
        self._own = own

    # --- between two devices -----------------------------------------------------------------------------------------

    def has_session(self, tx: Tx, device_id: str) -> bool:
        """Whether something can be sealed for this device."""
        return bool(sessions.sessions_with(tx, device_id))

    def is_confirmed(self, tx: Tx, device_id: str) -> bool:
        """Whether the device is known to have the session that is sent on; else `seal` makes `prekey` envelopes."""
        found = sessions.sessions_with(tx, device_id)
        return bool(found) and not found[0].opening

    def begin(self, tx: Tx, user_id: str, view: DeviceBundle, account_key: bytes, now: int) -> None:
        """Begins a session with a device from the bundle that was claimed, on which is sent from now on. `account_key` is
        the user's as it was pinned, or empty if they have none.

        Raises BadBundle: it is not sound, has no certificate, or an uncertified device has another identity key than before.
        """
        if view.device_id == self._own.device_id:
            raise BadBundle("malformed")
        bundle = agreement.checked_bundle(user_id, account_key, view)
        known = tx.get(PeerDevice, user_id, bundle.device_id)
        if known is not None and not account_key and known.identity_key != bundle.identity_key:
            raise BadBundle("identity-changed")
        sessions.begin(tx, self._own, bundle, user_id, now)

    def seal(self, tx: Tx, device_id: str, letter: bytes, now: int) -> Envelope:
        """Encrypts for one device. Raises LookupError without a session."""
        return sessions.seal(tx, device_id, letter, now)

    def open(self, tx: Tx, user_id: str, device_id: str, envelope: Envelope, now: int) -> bytes:
        """Decrypts what a device sent to this one. Raises Undecryptable, or Duplicate."""
        device = tx.get(PeerDevice, user_id, device_id)
        if device is None:
            raise Undecryptable("unknown-device")
        return sessions.open_envelope(tx, self._own, user_id, device_id, device.identity_key, envelope, now)

    def identity_in(self, envelope: Envelope) -> bytes:
        """The identity key that a `prekey` envelope claims to be from. Raises Undecryptable."""
        return sessions.identity_in(envelope)

    def forget(self, tx: Tx, device_id: str) -> None:
        """Deletes all sessions with a device."""
        sessions.forget(tx, device_id)

    # --- in groups ---------------------------------------------------------------------------------------------------

    def sender_key_for(self, tx: Tx, conversation_id: str, now: int, epoch: str) -> OwnSenderKey:
        """This device's sender key in a conversation: a fresh one, which nobody holds, if there is none or it is due."""
        key = tx.get(OwnSenderKey, conversation_id)
        if key is None or sender_keys.is_due(key, now, epoch):
            key = sender_keys.make(conversation_id, now, epoch)
            tx.put(key)
        return key

    def give(self, tx: Tx, conversation_id: str, key_id: bytes, devices: Iterable[tuple[str, str]]) -> None:
        """Notes that these devices, as (user, device), hold the sender key with this id, if it is still the one."""
        key = tx.get(OwnSenderKey, conversation_id)
        if key is not None and key.key_id == key_id:
            tx.put(replace(key, holders=tuple(dict.fromkeys((*key.holders, *devices)))))

    def drop_sender_key(self, tx: Tx, conversation_id: str) -> None:
        """The next letter there is sealed with another sender key."""
        tx.delete(OwnSenderKey, conversation_id)

    def seal_group(self, tx: Tx, conversation_id: str, letter: bytes, now: int) -> tuple[bytes, bytes]:
        """Encrypts for all that hold the sender key: its id and the body. Raises LookupError if there is none."""
        key = tx.get(OwnSenderKey, conversation_id)
        if key is None:
            raise LookupError("no sender key in this conversation")
        changed, body = sender_keys.seal(key, self._own.user_id, self._own.device_id, letter)
        tx.put(changed)
        return key.key_id, body

    def take_sender_key(
        self, tx: Tx, conversation_id: str, user_id: str, device_id: str, letter: SenderKeyGiven, now: int
    ) -> None:
        """Keeps the sender key that a device gave this one in a letter. One that is here already is not turned back; of
        too many the oldest goes. Raises Undecryptable if it is not sound."""
        key_id = from_base64url(letter.key_id, sender_keys.KEY_ID_BYTES)
        known = tx.get(SenderKey, conversation_id, device_id, key_id)
        tx.put(sender_keys.from_distribution(letter, conversation_id, user_id, device_id, now, known))
        held = [key for key in tx.scan(SenderKey, conversation_id, device_id) if key.key_id != key_id]
        held.sort(key=lambda key: key.made_at, reverse=True)
        for key in held[SENDER_KEYS_KEPT - 1 :]:
            tx.delete(SenderKey, conversation_id, device_id, key.key_id)

    def open_group(
        self, tx: Tx, conversation_id: str, user_id: str, device_id: str, key_id: bytes, body: bytes, now: int
    ) -> bytes:
        """Decrypts what a device said to a group. Raises Undecryptable, or Duplicate."""
        key = tx.get(SenderKey, conversation_id, device_id, key_id)
        if key is None or key.user_id != user_id:
            raise Undecryptable("no-sender-key")
        changed, letter = sender_keys.open_body(key, body)
        tx.put(changed)
        return letter
