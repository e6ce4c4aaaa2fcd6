"""The conventions at the top of docs/encryption.md: how numbers, ids and texts become bytes, and the primitives.

Private keys are bytes: 32 of an X25519 scalar before clamping (RFC 7748 §5), or 32 of an Ed25519 seed (RFC 8032 §5.1.5).
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from nacl.bindings import crypto_sign_ed25519_pk_to_curve25519, crypto_sign_ed25519_sk_to_curve25519

ZEROS = bytes(32)
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class Unreadable(Exception):
    """Bytes that cannot be read; `reason` is a code of "When something cannot be read" where that table has one."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def u32(number: int) -> bytes:
    return number.to_bytes(4, "big")


def u64(number: int) -> bytes:
    return number.to_bytes(8, "big")


def ident(uuid: str) -> bytes:
    """id(x): the 16 bytes of a UUID in its usual text."""
    raw = bytes.fromhex(uuid.replace("-", ""))
    if len(raw) != 16:
        raise ValueError("not a UUID")
    return raw


def b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def unb64(text: str) -> bytes:
    """The bytes of a canonical base64url text without padding. Raises ValueError for any other spelling."""
    try:
        raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        raise ValueError("not base64url") from None
    if b64(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def crockford(raw: bytes) -> str:
    """Crockford's base32 of a multiple of 5 bytes, without check symbol, in groups of four."""
    number, length = int.from_bytes(raw, "big"), len(raw) * 8 // 5
    text = "".join(CROCKFORD[number >> 5 * (length - 1 - place) & 31] for place in range(length))
    return "-".join(text[at : at + 4] for at in range(0, length, 4))


def uncrockford(text: str) -> bytes:
    """What a person typed: any case, hyphens and spaces anywhere, O for 0, I and L for 1. Raises ValueError."""
    plain = text.upper().replace("-", "").replace(" ", "").translate(str.maketrans("OIL", "011"))
    if len(plain) % 8:
        raise ValueError("not a multiple of 40 bits")
    number = 0
    for letter in plain:
        number = number << 5 | CROCKFORD.index(letter)
    return number.to_bytes(len(plain) * 5 // 8, "big")


def kdf(salt: bytes, ikm: bytes, info: str, length: int) -> bytes:
    """HKDF-SHA-256 (RFC 5869), extract and expand."""
    return HKDF(SHA256(), length, salt, info.encode("ascii")).derive(ikm)


def mac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def sign(seed: bytes, data: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).sign(data)


def signing_public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether this is the Ed25519 signature of the key over the data; a key of small order signs nothing."""
    try:
        crypto_sign_ed25519_pk_to_curve25519(public)  # refuses what is no point of the group of prime order
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError, TypeError, RuntimeError):
        return False
    return True


def agreement_public(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def is_canonical(public: bytes) -> bool:
    """Whether an X25519 key is written as a number below 2^255 - 19."""
    return len(public) == 32 and int.from_bytes(public, "little") < 2**255 - 19


def dh(private: bytes, public: bytes) -> bytes:
    """X25519. Raises ValueError where the secret would be zeros: the public key is of small order."""
    mine, theirs = X25519PrivateKey.from_private_bytes(private), X25519PublicKey.from_public_bytes(public)
    return mine.exchange(theirs)


def identity_to_agreement_public(identity_key: bytes) -> bytes:
    """The X25519 key of an Ed25519 key, by the birational map u = (1 + y) / (1 - y) of RFC 7748 §4.1."""
    try:
        return crypto_sign_ed25519_pk_to_curve25519(identity_key)
    except (RuntimeError, ValueError, TypeError):
        raise ValueError("no point of the group of prime order") from None


def identity_to_agreement_private(seed: bytes) -> bytes:
    """The scalar of an Ed25519 seed: the first 32 bytes of its SHA-512, clamped."""
    return crypto_sign_ed25519_sk_to_curve25519(seed + signing_public(seed))
