"""Sender keys: what a device says in a group is encrypted once, for all who were given its chain key.

A chain key gives one message key after the other and cannot be turned back; each message is signed, because everybody who
can read could also write. Pure functions over records: each returns the record as it is from then on, and one that raises
has changed nothing. To whom a key may be given is not known here. The bytes are those of `docs/encryption.md`.
"""

import hmac
import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import UNSET
from msgspec.structs import replace
from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

from gearlink.sdk.e2ee.certificates import KEY_BYTES, SIGNATURE_BYTES, account_public, is_public_key, sign
from gearlink.sdk.e2ee.encoding import from_base64url, id_bytes, to_base64url
from gearlink.sdk.e2ee.letters import Duplicate, RosterMark, SenderKeyGiven, Undecryptable
from gearlink.sdk.e2ee.records import OwnSenderKey, SenderKey

KEY_ID_BYTES: Final = 16
MESSAGES_MAX: Final = 1000  # of one key
AGE_MS_MAX: Final = 7 * 86_400_000
SKIP_MAX: Final = 2000  # iterations at once
KEPT_MAX: Final = 2000  # message keys that were skipped, of one sender key

_VERSION: Final = b"\x01"
_SALT_BYTES: Final = 16
_HEADER_BYTES: Final = 5 + _SALT_BYTES
_TAG_BYTES: Final = 16
_AD: Final = b"GearLink sender key v1"
_INFO: Final = b"GearLink sender key"

assert MESSAGES_MAX < SKIP_MAX, "who was given a key at its beginning can open its last message first"


# --- one's own -------------------------------------------------------------------------------------------------------


def make(conversation_id: str, now: int, epoch: str) -> OwnSenderKey:
    """A new sender key, which nobody has yet."""
    return OwnSenderKey(
        conversation_id=conversation_id,
        key_id=secrets.token_bytes(KEY_ID_BYTES),
        chain_key=secrets.token_bytes(KEY_BYTES),
        iteration=0,
        signing_seed=secrets.token_bytes(KEY_BYTES),
        made_at=now,
        epoch=epoch,
    )


def is_due(record: OwnSenderKey, now: int, epoch: str) -> bool:
    """Whether another key has to take its place: after 1,000 messages or 7 days, at another epoch of the server, and when
    the clock was put back, so that nobody knows how old it is."""
    age = now - record.made_at
    return record.iteration >= MESSAGES_MAX or not 0 <= age < AGE_MS_MAX or record.epoch != epoch


def seal(record: OwnSenderKey, user_id: str, device_id: str, letter: bytes) -> tuple[OwnSenderKey, bytes]:
    """Encrypts a letter of this device. The record that is returned has to be durable before the body is sent: no message
    key may ever be used for two texts. If one is after all, because an old copy of the vault was restored, the salt keeps
    AES-GCM from repeating its key and nonce, which would give both texts away."""
    message_key, chain_key = _step(record.chain_key)
    salt = secrets.token_bytes(_SALT_BYTES)
    header = _VERSION + record.iteration.to_bytes(4, "big") + salt
    ad = _associated(record.key_id, record.conversation_id, user_id, device_id, header)
    key, nonce = _expand(message_key, salt)
    ciphertext = AESGCM(key).encrypt(nonce, letter, ad)
    body = header + ciphertext + sign(record.signing_seed, ad + ciphertext)
    return replace(record, chain_key=chain_key, iteration=record.iteration + 1), body


def distribution(record: OwnSenderKey, roster: RosterMark | None = None) -> SenderKeyGiven:
    """The letter that gives the key away as it is now: what was said before stays closed to who gets it."""
    return SenderKeyGiven(
        conversation_id=record.conversation_id,
        key_id=to_base64url(record.key_id),
        iteration=record.iteration,
        chain_key=to_base64url(record.chain_key),
        signature_key=to_base64url(account_public(record.signing_seed)),
        roster=roster or UNSET,
    )


# --- those of others -------------------------------------------------------------------------------------------------


def from_distribution(
    letter: SenderKeyGiven, conversation_id: str, user_id: str, device_id: str, now: int, known: SenderKey | None
) -> SenderKey:
    """The sender key that this device of somebody gave us. `known` is the one of the same id that we have, if we do: it
    stays as it is, with all that it can still open, unless it lies too far back to reach the one that was given.

    Raises Undecryptable: `misdirected` for another conversation, or if somebody else has the key; `bad-signature` for a
    signature key that is none or is another one; `bad-message` if it is not the chain that we know.
    """
    given = SenderKey(
        conversation_id=conversation_id,
        device_id=device_id,
        key_id=from_base64url(letter.key_id, KEY_ID_BYTES),
        user_id=user_id,
        chain_key=from_base64url(letter.chain_key, KEY_BYTES),
        iteration=letter.iteration,
        signature_key=from_base64url(letter.signature_key, KEY_BYTES),
        made_at=now,
        floor=letter.iteration,
    )
    if letter.conversation_id != conversation_id:
        raise Undecryptable("misdirected")
    if not is_public_key(given.signature_key):
        raise Undecryptable("bad-signature")
    return given if known is None else _reconcile(known, given)


def _reconcile(known: SenderKey, given: SenderKey) -> SenderKey:
    if (known.conversation_id, known.user_id, known.device_id) != (
        given.conversation_id,
        given.user_id,
        given.device_id,
    ):
        raise Undecryptable("misdirected")
    assert known.key_id == given.key_id
    if not hmac.compare_digest(known.signature_key, given.signature_key):
        raise Undecryptable("bad-signature")
    ahead = given.iteration - known.iteration
    if ahead > SKIP_MAX:
        return replace(given, skipped=known.skipped)
    chain_key = known.chain_key
    for _ in range(ahead):
        _message_key, chain_key = _step(chain_key)
    if ahead >= 0 and not hmac.compare_digest(chain_key, given.chain_key):
        raise Undecryptable("bad-message")
    return known


def open_body(record: SenderKey, body: bytes) -> tuple[SenderKey, bytes]:
    """The letter in a body, and the key as it is from then on.

    Raises Undecryptable `bad-signature` or `bad-message`, and Duplicate if its message key was used.
    """
    if len(body) < _HEADER_BYTES + _TAG_BYTES + SIGNATURE_BYTES:
        raise Undecryptable("bad-message")
    header, ciphertext = body[:_HEADER_BYTES], body[_HEADER_BYTES:-SIGNATURE_BYTES]
    ad = _associated(record.key_id, record.conversation_id, record.user_id, record.device_id, header)
    if not _is_signed(record.signature_key, ad + ciphertext, body[-SIGNATURE_BYTES:]):
        raise Undecryptable("bad-signature")
    if not header.startswith(_VERSION):
        raise Undecryptable("bad-message")
    moved, message_key = _reach(record, int.from_bytes(header[1:5], "big"))
    letter = _decrypted(message_key, header[5:], ciphertext, ad)
    if letter is None:
        raise Undecryptable("bad-message")
    return moved, letter


def _reach(record: SenderKey, iteration: int) -> tuple[SenderKey, bytes]:
    """The message key of an iteration, and the record without it."""
    if iteration in record.skipped:
        left = dict(record.skipped)
        message_key = left.pop(iteration)
        return replace(record, skipped=left), message_key
    if iteration < record.floor or iteration - record.iteration > SKIP_MAX:
        raise Undecryptable("bad-message")
    if iteration < record.iteration:
        raise Duplicate
    skipped, floor, chain_key = dict(record.skipped), record.floor, record.chain_key
    for number in range(record.iteration, iteration):
        skipped[number], chain_key = _step(chain_key)
    message_key, chain_key = _step(chain_key)
    for number in sorted(skipped)[: max(0, len(skipped) - KEPT_MAX)]:
        del skipped[number]
        floor = max(floor, number + 1)
    moved = replace(record, chain_key=chain_key, iteration=iteration + 1, skipped=skipped, floor=floor)
    return moved, message_key


# --- primitives ------------------------------------------------------------------------------------------------------


def _step(chain_key: bytes) -> tuple[bytes, bytes]:
    """The message key of a chain key, and the next chain key."""
    return hmac.digest(chain_key, b"\x01", "sha256"), hmac.digest(chain_key, b"\x02", "sha256")


def _expand(message_key: bytes, salt: bytes) -> tuple[bytes, bytes]:
    """The key and the nonce of AES-256-GCM. The nonce may be derived: both are used for one text only."""
    derived = HKDF(algorithm=SHA256(), length=44, salt=salt, info=_INFO).derive(message_key)
    return derived[:32], derived[32:]


def _decrypted(message_key: bytes, salt: bytes, ciphertext: bytes, ad: bytes) -> bytes | None:
    key, nonce = _expand(message_key, salt)
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, ad)
    except InvalidTag:
        return None


def _is_signed(key: bytes, signed: bytes, signature: bytes) -> bool:
    """The key was found sound when it was given (`from_distribution`), so that is not done again for each message."""
    try:
        VerifyKey(key).verify(signed, signature)
    except BadSignatureError:
        return False
    return True


def _associated(key_id: bytes, conversation_id: str, user_id: str, device_id: str, header: bytes) -> bytes:
    return _AD + key_id + id_bytes(conversation_id) + id_bytes(user_id) + id_bytes(device_id) + header
