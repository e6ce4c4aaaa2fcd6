"""Answers as bytes: status, body and header fields, with the security fields that every one of them carries.

It owns the security and CORS fields and the problem document of a refusal (RFC 9457). An answer to one origin never
reaches another through a cache, and an origin that is not on the list learns nothing. It knows no route and no ASGI.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from gearlink import problems
from gearlink.errors import Refusal
from gearlink.http_api.table import Blob

Fields = Sequence[tuple[bytes, bytes]]

_COMMON: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
)
DATA_FIELDS: Final = (*_COMMON, (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"))
PAGE_FIELDS: Final = (
    *_COMMON,
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
        b"frame-ancestors 'none'",
    ),
)
# What somebody uploaded: should a browser ever take it for a document, it can do nothing.
BLOB_FIELDS: Final = (
    *_COMMON,
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
)
# RFC 6797 §7.2: only ever over TLS. Subdomains are not ours to decide about.
TRANSPORT_SECURITY: Final = (b"strict-transport-security", b"max-age=31536000")
NO_STORE: Final = (b"cache-control", b"no-store")
JSON: Final = (b"content-type", b"application/json")
FOR_GOOD: Final = (b"cache-control", b"private, max-age=31536000, immutable")  # RFC 8246
_PROBLEM_JSON: Final = (b"content-type", b"application/problem+json")
_HOP_BY_HOP: Final = frozenset({b"connection", b"upgrade"})
_JSON_ONLY: Final = (JSON, NO_STORE)
_NO_STORE_ONLY: Final = (NO_STORE,)
_EXTENSIONS: Final = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}


@dataclass(slots=True)
class Answer:
    """`fields` are its own; `shared` are the security fields. `refused` is the refusal's code, for the log."""

    status: int
    body: bytes = b""
    fields: Fields = _NO_STORE_ONLY
    shared: Fields = DATA_FIELDS
    refused: str = ""


def data(status: int, body: bytes) -> Answer:
    return Answer(status, body, _JSON_ONLY if body else _NO_STORE_ONLY)


def blob(found: Blob, if_none_match: bytes) -> Answer:
    """The bytes, or 304 for somebody who has those that never change (RFC 9110 §13.1.2)."""
    if not found.etag:
        named = (b"content-disposition", b'attachment; filename="file"')
        return Answer(200, found.data, [NO_STORE, (b"content-type", found.mime_type.encode()), named], BLOB_FIELDS)
    etag = f'"{found.etag}"'.encode()
    known = {tag.strip().removeprefix(b"W/") for tag in if_none_match.split(b",")}
    fields = [FOR_GOOD, (b"etag", etag)]
    if etag in known or b"*" in known:
        return Answer(304, fields=fields, shared=BLOB_FIELDS)
    name = "file" + _EXTENSIONS.get(found.mime_type, "")
    fields.append((b"content-type", found.mime_type.encode()))
    fields.append((b"content-disposition", f'inline; filename="{name}"'.encode()))
    return Answer(200, found.data, fields, BLOB_FIELDS)


def problem(refusal: Refusal, identifier: str) -> Answer:
    """The refusal as a problem document. A 401 names the scheme to use (RFC 9110 §11.6.1)."""
    entry = refusal.entry
    fields = [_PROBLEM_JSON, NO_STORE]
    fields += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers.items()]
    if entry.status == 401 and not any(name == b"www-authenticate" for name, _ in fields):
        fields.append((b"www-authenticate", b"Bearer"))
    if (seconds := problems.retry_after(refusal)) is not None:
        fields.append((b"retry-after", seconds))
    return Answer(entry.status, problems.document(refusal, identifier), fields, refused=entry.code)


def without_hop_by_hop(fields: Fields) -> Fields:
    """RFC 9113 §8.2.2: HTTP/2 has no connection fields."""
    return [(name, value) for name, value in fields if name not in _HOP_BY_HOP]


class Cors:
    """The allow-list of other sites (the Fetch standard, "CORS protocol"). Without entries no field is ever added."""

    __slots__ = ("_origins",)

    _EXPOSED: Final = b"X-Correlation-Id, Retry-After, RateLimit, RateLimit-Policy"
    _REQUESTABLE: Final = b"Authorization, Content-Type, X-Correlation-Id"

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.encode("latin-1") for origin in origins)

    def fields(self, origin: bytes | None) -> Fields:
        """What to add to an answer for a page of `origin`."""
        if not self._origins:
            return ()
        if origin not in self._origins or origin is None:
            return ((b"vary", b"Origin"),)
        return (
            (b"vary", b"Origin"),
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", self._EXPOSED),
        )

    def preflight(self, origin: bytes | None, methods: bytes) -> Fields:
        """What a preflight adds to `fields`."""
        if origin not in self._origins:
            return ()
        return (
            (b"access-control-allow-methods", methods),
            (b"access-control-allow-headers", self._REQUESTABLE),
            (b"access-control-max-age", b"600"),
        )
