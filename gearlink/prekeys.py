"""The public keys of a device, as X3DH wants them: decoded, proven sound, and boiled down to a digest.

Nothing is believed: texts are canonical base64url, the identity key is a point of Ed25519's prime-order group, each
pre-key a point of X25519 with which a shared secret is not zero, and what has to be signed is signed by the identity key
over the encoding of X3DH. A key that passes can still be anybody's: who it belongs to is for people to compare. The
arithmetic is libsodium's. It is pure: no store, no time, nothing of who may publish what.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import nacl.bindings
import nacl.exceptions
import trio
from nacl.signing import VerifyKey

from gearlink.calls import CertificateForm, KeysForm, OneTimePreKeyForm, SignedPreKeyForm
from gearlink.errors import invalid
from storage.records import DeviceKeys, OneTimePreKey, SignedPreKey

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
X25519: Final = b"\x05"
"""What stands before the u-coordinate in what is signed: X3DH §2.1 asks for one byte that says the curve; it is Signal's."""

_DIGEST_TITLE: Final = b"GearLink keys v1"
_CERTIFICATE_TITLE: Final = b"GearLink device certificate v1"
_FIELD: Final = 2**255 - 19  # RFC 7748 §4.1
_PROBE: Final = bytes(range(1, 33))  # any scalar: X25519 clamps it to a multiple of 8 (RFC 7748 §5)
_KEYS_PER_STEP: Final = 50  # 2 ms or so


@dataclass(frozen=True, slots=True)
class Upload:
    """What a device publishes, sound in itself. `one_time` are ids and keys, the ids growing."""

    identity_key: bytes
    signed: SignedPreKey
    last_resort: SignedPreKey
    one_time: tuple[tuple[int, bytes], ...]


async def checked(form: KeysForm) -> Upload:
    """The keys of `form`, every one of them looked at. Raises Refusal `invalid-request` for the first that is wrong."""
    identity_key = checked_identity(form.identity_key, "identityKey")
    signed = _signed(form.signed_pre_key, identity_key, "signedPreKey")
    last_resort = _signed(form.last_resort_pre_key, identity_key, "lastResortPreKey")
    one_time = []
    for number, each in enumerate(form.one_time_pre_keys):
        one_time.append((each.key_id, _pre_key(each, f"oneTimePreKeys[{number}]")))
        if number % _KEYS_PER_STEP == _KEYS_PER_STEP - 1:
            await trio.lowlevel.checkpoint()
    _require_order(one_time)
    _require_different(signed, last_resort, one_time)
    return Upload(identity_key, signed, last_resort, tuple(one_time))


def checked_certificate(
    form: CertificateForm, user_id: str, device_id: str, identity_key: bytes
) -> tuple[bytes, bytes]:
    """The account key and the certificate of `form`, by which a user says that this device with this identity key is
    theirs. Raises Refusal `invalid-request` for a key that is none, and for a signature over anything else."""
    account_key = checked_identity(form.account_key, "accountKey")
    signed = _CERTIFICATE_TITLE + id_bytes(user_id) + id_bytes(device_id) + identity_key
    return account_key, checked_signature(form.account_key, signed, form.signature, "signature")


def digest(keys: DeviceKeys, one_time: Iterable[OneTimePreKey]) -> str:
    """SHA-256 over `keys` with these one-time pre-keys, in base64url. Every part has a fixed width, so nothing else has
    the same encoding: title, identity key, id and key and signature of both signed ones, id and key of each other."""
    parts = [_DIGEST_TITLE, keys.identity_key]
    for signed in (keys.signed_pre_key, keys.last_resort_pre_key):
        parts += [signed.key_id.to_bytes(8, "big"), signed.public_key, signed.signature]
    for each in one_time:
        parts += [each.key_id.to_bytes(8, "big"), each.public_key]
    return encoded(hashlib.sha256(b"".join(parts)).digest())


def checked_identity(text: str, path: str) -> bytes:
    """A public key of Ed25519, of the prime-order group. Raises Refusal `invalid-request` for anything else."""
    key = _decoded(text, KEY_BYTES, path)
    if not nacl.bindings.crypto_core_ed25519_is_valid_point(key):
        raise invalid(path, "not a public key of Ed25519")
    return key


def checked_signature(identity_key: str, signed: bytes, signature: str, path: str) -> bytes:
    """The bytes of `signature`, which is by this identity key. Raises Refusal `invalid-request` for anything else."""
    key = _decoded(identity_key, KEY_BYTES, "identityKey")
    raw = _decoded(signature, SIGNATURE_BYTES, path)
    try:
        VerifyKey(key).verify(signed, raw)
    except nacl.exceptions.BadSignatureError:
        raise invalid(path, "not a signature by this key over what it has to be over") from None
    return raw


def id_bytes(text: str) -> bytes:
    """The 16 bytes of a UUID."""
    return bytes.fromhex(text.replace("-", ""))


def encoded(raw: bytes) -> str:
    """base64url without padding (RFC 4648 §5)."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str, size: int, path: str) -> bytes:
    """The `size` bytes of which `text` is the one encoding: other bits, padding or characters are refused."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:  # of too few characters, or not ASCII
        raw = b""
    if len(raw) != size or encoded(raw) != text:
        raise invalid(path, f"not {size} bytes in canonical base64url without padding")
    return raw


def _pre_key(form: SignedPreKeyForm | OneTimePreKeyForm, path: str) -> bytes:
    path += ".publicKey"
    key = _decoded(form.public_key, KEY_BYTES, path)
    if int.from_bytes(key, "little") >= _FIELD:
        raise invalid(path, "not a public key of X25519 in its one encoding")
    try:
        nacl.bindings.crypto_scalarmult(_PROBE, key)
    except nacl.exceptions.RuntimeError:  # a point of small order (RFC 7748 §6.1): the secret would be zero
        raise invalid(path, "not a public key of X25519: a point of small order") from None
    return key


def _signed(form: SignedPreKeyForm, identity_key: bytes, path: str) -> SignedPreKey:
    key = _pre_key(form, path)
    signature = _decoded(form.signature, SIGNATURE_BYTES, path + ".signature")
    try:
        VerifyKey(identity_key).verify(X25519 + key, signature)
    except nacl.exceptions.BadSignatureError:
        raise invalid(path + ".signature", "not a signature by identityKey over 0x05 and this publicKey") from None
    return SignedPreKey(form.key_id, key, signature)


def _require_order(one_time: Sequence[tuple[int, bytes]]) -> None:
    for number in range(1, len(one_time)):
        if one_time[number][0] <= one_time[number - 1][0]:
            raise invalid(f"oneTimePreKeys[{number}].keyId", "has to be larger than the one before")


def _require_different(signed: SignedPreKey, last_resort: SignedPreKey, one_time: Sequence[tuple[int, bytes]]) -> None:
    """A key stands for one thing. Ids are of their kind: the same number may name a signed and a one-time pre-key."""
    keys = {signed.public_key}
    others = [("lastResortPreKey", last_resort.public_key)]
    others += [(f"oneTimePreKeys[{number}]", key) for number, (_key_id, key) in enumerate(one_time)]
    for path, key in others:
        if key in keys:
            raise invalid(f"{path}.publicKey", "the same key stands under another id")
        keys.add(key)
