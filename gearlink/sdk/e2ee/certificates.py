"""The account key of a user, the certificates that it signs for their devices, and the code that links a new device.

A certificate says that a device with this identity key belongs to this user; only who has the account key can make one, so
the server cannot. All that comes from others may be anything: it is then no certificate, and nothing is raised. Whose
account key is the right one is not known here. It is pure; `docs/encryption.md` has the bytes.
"""

import hashlib
import hmac
import secrets
from typing import Final

import nacl.bindings
import nacl.exceptions
from nacl.signing import SigningKey, VerifyKey

from gearlink.sdk.e2ee.encoding import from_code, id_bytes, to_code

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
LINK_SECRET_BYTES: Final = 5

_CERTIFICATE: Final = b"GearLink device certificate v1"
_LINK: Final = b"GearLink link v2"
_LINK_PROOF: Final = b"GearLink link proof v1"
_CODE_BYTES: Final = 10


# --- Ed25519 ---------------------------------------------------------------------------------------------------------


def sign(seed: bytes, signed: bytes) -> bytes:
    """The 64 bytes of the Ed25519 signature over `signed` (RFC 8032 §5.1.6) by the key of `seed`, 32 bytes."""
    return SigningKey(seed).sign(signed).signature


def is_public_key(key: bytes) -> bool:
    """Whether `key` is an Ed25519 public key in its one encoding, of the prime-order group: with others, signatures and
    secrets mean less than they say, and two implementations may differ on them."""
    return len(key) == KEY_BYTES and nacl.bindings.crypto_core_ed25519_is_valid_point(key)


def is_signed(key: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether `signature` is one over `signed` by a sound public key (`is_public_key`). Never raises."""
    if len(signature) != SIGNATURE_BYTES or not is_public_key(key):
        return False
    try:
        VerifyKey(key).verify(signed, signature)
    except nacl.exceptions.BadSignatureError:
        return False
    return True


# --- account key and certificates ------------------------------------------------------------------------------------


def new_account_seed() -> bytes:
    """A new account key: the 32 private bytes."""
    return secrets.token_bytes(KEY_BYTES)


def account_public(seed: bytes) -> bytes:
    """The public key of a private one, of an account or of a device (32 bytes each)."""
    return bytes(SigningKey(seed).verify_key)


def certify(account_seed: bytes, user_id: str, device_id: str, identity_key: bytes) -> bytes:
    """The certificate of a device, 64 bytes. Raises ValueError for ids or a key that are none."""
    if not is_public_key(identity_key):
        raise ValueError("not an identity key")
    return sign(account_seed, _CERTIFICATE + _device(user_id, device_id, identity_key))


def verify_certificate(
    account_key: bytes, user_id: str, device_id: str, identity_key: bytes, certificate: bytes
) -> bool:
    """Whether the user with this account key says that the device with this identity key is theirs. Never raises."""
    if not is_public_key(identity_key):
        return False
    try:
        device = _device(user_id, device_id, identity_key)
    except ValueError:
        return False
    return is_signed(account_key, _CERTIFICATE + device, certificate)


# --- linking ---------------------------------------------------------------------------------------------------------


def new_link_secret() -> bytes:
    """What a new device puts into its linking code, and tells nobody else."""
    return secrets.token_bytes(LINK_SECRET_BYTES)


def linking_code(user_id: str, device_id: str, identity_key: bytes, secret: bytes) -> str:
    """What a new device shows, to be typed into an old one: its secret, and 40 bits of a hash that says whose it is. The
    server knows no secret, so it can make no key for which these bits are right.

    Raises ValueError for ids, a key or a secret that are none.
    """
    return to_code(_code(user_id, device_id, identity_key, secret))


def code_secret(code: str) -> bytes:
    """The secret in a linking code as a person typed it. Raises ValueError if it is none."""
    return from_code(code, _CODE_BYTES)[:LINK_SECRET_BYTES]


def matches_code(code: str, user_id: str, device_id: str, identity_key: bytes) -> bool:
    """Whether `code`, as a person typed it, is that of this device. Case, spaces and dashes do not matter, nor O for 0, or
    I and L for 1. Never raises."""
    try:
        typed = from_code(code, _CODE_BYTES)
        return hmac.compare_digest(typed, _code(user_id, device_id, identity_key, typed[:LINK_SECRET_BYTES]))
    except ValueError:
        return False


def link_proof(secret: bytes, user_id: str, device_id: str, account_key: bytes) -> bytes:
    """What shows the new device with this id, which made the secret, that this account key (the public one) comes from
    where its code was typed: 32 bytes. Raises ValueError for a secret, ids or a key that are none."""
    if len(secret) != LINK_SECRET_BYTES:
        raise ValueError("not the secret of a linking code")
    return hmac.digest(secret, _LINK_PROOF + _device(user_id, device_id, account_key), "sha256")


def _code(user_id: str, device_id: str, identity_key: bytes, secret: bytes) -> bytes:
    if len(secret) != LINK_SECRET_BYTES:
        raise ValueError("not the secret of a linking code")
    hashed = hashlib.sha256(_LINK + _device(user_id, device_id, identity_key) + secret).digest()
    return secret + hashed[: _CODE_BYTES - LINK_SECRET_BYTES]


def _device(user_id: str, device_id: str, identity_key: bytes) -> bytes:
    """What names a device and a key beyond doubt; every part has a fixed width, so nothing else has the same bytes."""
    if len(identity_key) != KEY_BYTES:
        raise ValueError("not a public key")
    return id_bytes(user_id) + id_bytes(device_id) + identity_key
