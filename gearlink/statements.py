"""The text of a roster's statement: who is in an encrypted group, as one of its admins signed it.

Both sides read it with the same strictness, or a server could keep what clients do not follow, and two clients could
follow different rosters: no key is unknown, and none comes twice. What a statement changes, and whether its signer may, is
not known here.
"""

import json
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from config import limits
from gearlink.calls import KeyText, SignatureText
from gearlink.views import Id, Role

TITLE: Final = b"GearLink roster v1"
"""What stands before the text in the bytes that are signed."""


class _Part(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True, frozen=True):
    """Everything in a statement is known to its readers."""


class Signer(_Part, frozen=True):
    """Whose device signed it, with what proves that."""

    user_id: Id
    device_id: Id
    identity_key: KeyText
    account_key: KeyText
    certificate: SignatureText


class MemberChange(_Part, frozen=True):
    """That a user is in, with this role and account key (none for a user without one), or that they are out: role null."""

    user_id: Id
    role: Role | None
    account_key: KeyText | UnsetType = UNSET


class Statement(_Part, frozen=True):
    """`previous` is the base64url of SHA-256 of the text of the statement before."""

    conversation_id: Id
    version: Annotated[int, Meta(ge=1, le=limits.ROSTER_STATEMENTS_MAX)]
    previous: KeyText | None
    at: Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", max_length=24)]
    signer: Signer
    changes: Annotated[list[MemberChange], Meta(min_length=1, max_length=limits.ROSTER_CHANGES_MAX)]


class Unreadable(ValueError):
    """It is no JSON, or none that every reader reads alike."""


def read(text: str) -> tuple[bytes, Statement]:
    """The bytes of the text, and what they say. Raises msgspec.ValidationError for a form that is none, Unreadable for
    what is no JSON, has a key twice, or is too long."""
    if len(text) > limits.ROSTER_STATEMENT_BYTES_MAX:
        raise Unreadable
    try:
        raw = text.encode()
        if len(raw) > limits.ROSTER_STATEMENT_BYTES_MAX:
            raise Unreadable
        statement = msgspec.json.decode(raw, type=Statement)
        # Of a key that comes twice one reader takes the first and another the last. Nothing is nested deeply any more.
        json.loads(text, object_pairs_hook=_once)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise Unreadable from None
    return raw, statement


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found
