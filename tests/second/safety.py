"""What people compare: safety numbers, their QR code, and the code that a new device shows to be linked."""

import hashlib
import hmac
from collections.abc import Iterable

from tests.second.primitives import b64, crockford, ident, unb64, uncrockford

ITERATIONS = 5_200
QR_PREFIX = "GEARLINK:1:"


def hash_of_user(user_id: str, account_key: bytes) -> bytes:
    """h after all iterations."""
    h = hashlib.sha512(b"GearLink safety number v1" + ident(user_id) + account_key + account_key).digest()
    for _ in range(ITERATIONS - 1):
        h = hashlib.sha512(h + account_key).digest()
    return h


def key_of_devices(identity_keys: Iterable[bytes]) -> bytes:
    """What stands for the account key of a user who has none."""
    return hashlib.sha256(b"".join(sorted(identity_keys))).digest()


def digits(h: bytes) -> str:
    """The 30 digits of one user."""
    return "".join(f"{int.from_bytes(h[at : at + 5], 'big') % 100_000:05}" for at in range(0, 30, 5))


def safety_number(one: bytes, other: bytes) -> str:
    """The 60 digits of two users, of `hash_of_user` of each, in twelve groups."""
    both = "".join(sorted((digits(one), digits(other))))
    return " ".join(both[at : at + 5] for at in range(0, 60, 5))


def qr_text(own_id: str, own: bytes, other_id: str, other: bytes) -> str:
    return QR_PREFIX + b64(ident(own_id) + own[:32] + ident(other_id) + other[:32])


def is_turned_around(scanned: str, own_id: str, own: bytes, other_id: str, other: bytes) -> bool:
    """Whether the other's screen, scanned by us, says what we know."""
    try:
        raw = unb64(scanned.removeprefix(QR_PREFIX))
    except ValueError:
        return False
    return scanned.startswith(QR_PREFIX) and raw == ident(other_id) + other[:32] + ident(own_id) + own[:32]


def linking_code(user_id: str, device_id: str, identity_key: bytes, chosen: bytes) -> str:
    """The secret (5 bytes) that the new device chose and 40 bits that belong to it, which the person types into an old one."""
    data = b"GearLink link v2" + ident(user_id) + ident(device_id) + identity_key + chosen
    return crockford(chosen + hashlib.sha256(data).digest()[:5])


def is_code_of(typed: str, user_id: str, device_id: str, identity_key: bytes) -> bool:
    """Whether what was typed is the code of this device."""
    raw = uncrockford(typed)
    return len(raw) == 10 and uncrockford(linking_code(user_id, device_id, identity_key, raw[:5])) == raw


def link_proof(chosen: bytes, user_id: str, device_id: str, account_key: bytes) -> bytes:
    """What the old device says of the account key in its letter; the new one knows the secret itself."""
    data = b"GearLink link proof v1" + ident(user_id) + ident(device_id) + account_key
    return hmac.new(chosen, data, "sha256").digest()
