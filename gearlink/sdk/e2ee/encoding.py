"""How bytes are written down for machines and for people: ids, base64url, and codes in Crockford's base 32.

What machines wrote has exactly one encoding: nothing else is read. What people type is forgiven where it cannot be mistaken.
Everything here is pure, and raises nothing but ValueError, which never quotes what it was given.
"""

import base64
import re
from typing import Final

from gearlink import views

_UUID: Final = re.compile(views.UUID_PATTERN)

# Crockford's base 32 has the digits and the letters without I, L, O and U; RFC 4648 §6 has others in the same places.
_CROCKFORD: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RFC4648: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SHOWN: Final = str.maketrans(_RFC4648, _CROCKFORD)
_READ: Final = str.maketrans(_CROCKFORD, _RFC4648)
_LOOKALIKES: Final = str.maketrans("OIL", "011")
_BETWEEN: Final = re.compile(r"[\s_\u2010-\u2015\u2212-]+")  # spaces and every dash that an editor may have made of one
_GROUP: Final = 4


def id_bytes(identifier: str) -> bytes:
    """The 16 bytes of a UUID: `id(x)` of docs/encryption.md. Raises ValueError if it is not in its canonical form."""
    if not _UUID.fullmatch(identifier):
        raise ValueError("not a UUID in its canonical form")
    return bytes.fromhex(identifier.replace("-", ""))


def id_text(raw: bytes) -> str:
    """The UUID with these 16 bytes. Raises ValueError if they are none of this version, or not 16."""
    text = raw.hex()
    identifier = "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
    if not _UUID.fullmatch(identifier):
        raise ValueError("not the bytes of a UUID")
    return identifier


def to_base64url(raw: bytes) -> str:
    """Base64url without padding (RFC 4648 §5)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: str, size: int | None = None) -> bytes:
    """The bytes of which `text` is the one encoding, `size` of them. Raises ValueError for anything else."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:  # of too few characters, or not ASCII
        raise ValueError("not base64url") from None
    if to_base64url(raw) != text:
        raise ValueError("not canonical base64url without padding")
    if size is not None and len(raw) != size:
        raise ValueError(f"not {size} bytes")
    return raw


def to_code(raw: bytes) -> str:
    """`raw`, of which the length is a multiple of 5 bytes, in Crockford's base 32: groups of four with dashes between."""
    assert len(raw) % 5 == 0
    symbols = base64.b32encode(raw).decode().translate(_SHOWN)
    return "-".join(symbols[at : at + _GROUP] for at in range(0, len(symbols), _GROUP))


def symbols_of(typed: str) -> str:
    """The symbols that a person meant: in capitals, O read as 0, I and L as 1, spaces and dashes passed over.

    Raises ValueError if there is anything else in it.
    """
    symbols = _BETWEEN.sub("", typed)
    if not symbols.isascii():  # or capitals of foreign letters would pass for others
        raise ValueError("not a symbol of base 32")
    symbols = symbols.upper().translate(_LOOKALIKES)
    if not set(symbols) <= set(_CROCKFORD):
        raise ValueError("not a symbol of base 32")
    return symbols


def from_code(typed: str, size: int) -> bytes:
    """The `size` bytes (a multiple of 5) of a code as a person typed it. Raises ValueError if it is not one of this size."""
    symbols = symbols_of(typed)
    if len(symbols) * 5 != size * 8:
        raise ValueError(f"not a code of {size * 8 // 5} symbols")
    return base64.b32decode(symbols.translate(_READ))
