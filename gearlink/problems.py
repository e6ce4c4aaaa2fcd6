"""Refusals as HTTP: the problem document (RFC 9457), and a whole answer for where no app can give one.

Before a request is readable, or where it is none, the port itself says no. It does so in the form that every other
refusal has, with a correlation id: the client's own where that could be read. It knows no route, stream or framework.
"""

import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from msgspec import UNSET

from gearlink.clock import new_id
from gearlink.errors import (
    BAD_REQUEST,
    HEADER_TOO_LARGE,
    HTTP_VERSION_NOT_SUPPORTED,
    UNSUPPORTED_TRANSFER_CODING,
    Entry,
    Refusal,
)
from gearlink.protocol import encode
from gearlink.views import Problem

_CORRELATION_ID: Final = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_BY_STATUS: Final[dict[int, Entry]] = {
    entry.status: entry
    for entry in (BAD_REQUEST, HEADER_TOO_LARGE, UNSUPPORTED_TRANSFER_CODING, HTTP_VERSION_NOT_SUPPORTED)
}


def entry_of(status: int) -> Entry:
    """What a request head is refused with that deserves `status`; `bad-request` for those that have no entry."""
    return _BY_STATUS.get(status, BAD_REQUEST)


def sent_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The correlation id that the client sent, if it is a sane one. The names of `headers` are in lower case."""
    sent = headers.get(b"x-correlation-id")
    return sent.decode() if sent is not None and _CORRELATION_ID.fullmatch(sent) else None


def correlation_id(headers: Mapping[bytes, bytes]) -> str:
    """`sent_id`, or a new one."""
    return sent_id(headers) or new_id()


def document(refusal: Refusal, identifier: str) -> bytes:
    """The body of an answer that refuses."""
    entry, errors = refusal.entry, refusal.errors
    if errors is None and entry.status == 422:  # the contract: never without a place, be it the whole of it
        errors = [{"path": "", "message": refusal.detail}]
    return encode(
        Problem(
            type=f"/problems/{entry.code}",
            title=entry.title,
            status=entry.status,
            detail=refusal.detail,
            code=entry.code,
            correlation_id=identifier,
            errors=UNSET if errors is None else errors,
            version=UNSET if refusal.version is None else refusal.version,
            **refusal.devices,
        )
    )


def retry_after(refusal: Refusal) -> bytes | None:
    """The `Retry-After` field in whole seconds (RFC 9110 §10.2.3)."""
    seconds = refusal.retry_after_seconds
    return None if seconds is None else b"%d" % max(1, math.ceil(seconds))


def last_fields(refusal: Refusal, identifier: str, body: bytes) -> list[tuple[bytes, bytes]]:
    """The header fields of an HTTP/1.1 answer after which the connection closes."""
    fields = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
        (b"x-correlation-id", identifier.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    fields += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in refusal.headers.items()]
    if (seconds := retry_after(refusal)) is not None:
        fields.append((b"retry-after", seconds))
    return fields


def phrase(status: int) -> bytes:
    """The reason phrase of a status line."""
    return HTTPStatus(status).phrase.encode("ascii")


def last_answer(refusal: Refusal, identifier: str) -> bytes:
    """Head and body of an HTTP/1.1 answer after which the connection closes."""
    status, body = refusal.entry.status, document(refusal, identifier)
    lines = [b"HTTP/1.1 %d %s" % (status, phrase(status))]
    lines += [b"%s: %s" % field for field in last_fields(refusal, identifier, body)]
    return b"\r\n".join([*lines, b"", body])
