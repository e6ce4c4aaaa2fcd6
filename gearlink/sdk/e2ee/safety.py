"""Safety numbers: what two people compare to know that nobody stands between them, as digits and as a QR code.

A number is made of both account keys, so it stays the same when devices come and go, and both see the same. A fingerprint
takes some 4 ms of hashing: run these beside an event loop. Not known here: whether anybody is verified.
"""

import hashlib
import hmac
import io
from collections.abc import Iterable
from typing import Final, Literal

import segno

from gearlink.sdk.e2ee.encoding import from_base64url, id_bytes, to_base64url

FINGERPRINT_BYTES: Final = 32
ROUNDS: Final = 5200

_TITLE: Final = b"GearLink safety number v1"
_QR: Final = "GEARLINK:1:"
_ID_BYTES: Final = 16
_SIDE_BYTES: Final = _ID_BYTES + FINGERPRINT_BYTES  # what a QR code says of one user
_NUMBERS: Final = 6  # of five digits each, for one user
_NUMBER_BYTES: Final = 5

Comparison = Literal["match", "mismatch", "other-person", "unreadable"]


def key_for(account_key: bytes, identity_keys: Iterable[bytes]) -> bytes:
    """The key that stands for a user: the account key or, if that is empty, the hash of the identity keys of all devices.

    Raises ValueError for a user without either: there is nothing to compare.
    """
    if account_key:
        return account_key
    keys = sorted(identity_keys)
    if not keys:
        raise ValueError("a user without an account key and without devices")
    return hashlib.sha256(b"".join(keys)).digest()


def fingerprint(user_id: str, key: bytes) -> bytes:
    """The first 32 bytes of the hash of a user and their key (as of `key_for`). Raises ValueError for an id that is none."""
    state = hashlib.sha512(_TITLE + id_bytes(user_id) + key + key).digest()
    for _ in range(ROUNDS - 1):
        state = hashlib.sha512(state + key).digest()
    return state[:FINGERPRINT_BYTES]


def safety_number(own_id: str, own_key: bytes, other_id: str, other_key: bytes) -> str:
    """The 60 digits of two users in twelve groups of five; whose are which does not matter."""
    halves = sorted((_numbers(own_id, own_key), _numbers(other_id, other_key)))
    return " ".join(halves[0] + halves[1])


def _numbers(user_id: str, key: bytes) -> list[str]:
    raw = fingerprint(user_id, key)
    pieces = (raw[number * _NUMBER_BYTES : (number + 1) * _NUMBER_BYTES] for number in range(_NUMBERS))
    return [f"{int.from_bytes(piece, 'big') % 100_000:05}" for piece in pieces]


# --- QR codes ---------------------------------------------------------------------------------------------------------


def qr_text(own_id: str, own_key: bytes, other_id: str, other_key: bytes) -> str:
    """What the QR code holds that this user shows to the other one."""
    return _QR + to_base64url(_side(own_id, own_key) + _side(other_id, other_key))


def check_qr(text: str, own_id: str, own_key: bytes, other_id: str, other_key: bytes) -> Comparison:
    """What the text of a code says that was scanned from the other user's screen. `other-person`: it is not about these two,
    or it is one's own; `mismatch`: it is, and one of the keys is another. Never raises for a text."""
    try:
        if not text.strip().startswith(_QR):
            return "unreadable"
        scanned = from_base64url(text.strip().removeprefix(_QR), 2 * _SIDE_BYTES)
    except ValueError:
        return "unreadable"
    theirs, ours = scanned[:_SIDE_BYTES], scanned[_SIDE_BYTES:]
    if (theirs[:_ID_BYTES], ours[:_ID_BYTES]) != (id_bytes(other_id), id_bytes(own_id)):
        return "other-person"
    expected = _side(other_id, other_key) + _side(own_id, own_key)
    return "match" if hmac.compare_digest(scanned, expected) else "mismatch"


def qr_terminal(text: str) -> str:
    """The QR code in lines of half blocks, for a terminal that writes light on dark: blocks are the light modules, and the
    quiet zone around it is the four of them that ISO/IEC 18004 asks for."""
    drawn = io.StringIO()
    segno.make_qr(text, error="l").terminal(drawn, compact=True)
    return drawn.getvalue()


def _side(user_id: str, key: bytes) -> bytes:
    return id_bytes(user_id) + fingerprint(user_id, key)
