"""Between HTTP and the SDK's own words: addresses, bodies, hashes, and what an answer that is no success means.

It is pure: bytes and headers in, values or the SDK's two failures out. It knows nothing of tokens or connections.
"""

import base64
import hashlib
from typing import TYPE_CHECKING

import msgspec

from gearlink.sdk.failures import Refused, Unreachable
from gearlink.views import Problem

if TYPE_CHECKING:
    import httpx


def checked_address(server: str) -> str:
    """`server` without the slash at its end. Raises ValueError unless it is `http://host[:port]` or https."""
    scheme, separator, rest = server.rstrip("/").partition("://")
    if scheme not in ("http", "https") or not separator or not rest or "/" in rest or "@" in rest or "?" in rest:
        raise ValueError("the server's address has the form http://host:port or https://host")
    return f"{scheme}://{rest}"


def phone_hash(phone_number: str) -> str:
    """What stands for a number in a discovery: base64url without padding of its SHA-256."""
    digest = hashlib.sha256(phone_number.encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def encoded(body: msgspec.Struct) -> bytes:
    """The JSON of a request; keys that are None because nobody set them are left out. Where the default is another one,
    None was meant: it gives a value up."""
    unset = {field.encode_name for field in msgspec.structs.fields(body) if field.default is None}
    fields = msgspec.to_builtins(body)
    fields = {key: value for key, value in fields.items() if value is not None or key not in unset}
    try:
        return msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise Refused("invalid-request", 422, "The text is not valid Unicode") from None


def refusal(status: int, data: bytes, headers: "httpx.Headers") -> Refused | Unreachable:
    """What an answer outside 2xx means. One that is no problem of ours (a proxy's page) with 5xx is `Unreachable`."""
    retry_after = seconds(headers.get("retry-after"))
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except (msgspec.DecodeError, UnicodeError):
        if status >= 500:
            return Unreachable(f"the server answered {status}", retry_after_seconds=retry_after)
        return Refused("unknown", status, f"The server answered {status}", retry_after_seconds=retry_after)
    return Refused(
        problem.code,
        status,
        problem.detail,
        retryable=status == 429 or status >= 500,
        retry_after_seconds=retry_after,
        correlation_id=problem.correlation_id,
        errors=problem.errors if problem.errors is not msgspec.UNSET else None,
        version=problem.version if problem.version is not msgspec.UNSET else None,
        missing=problem.missing or (),
        extra=problem.extra or (),
        changed=problem.changed or (),
    )


def seconds(text: str | None) -> float | None:
    """Retry-After as seconds (RFC 9110 §10.2.3); its date form, which our server never sends, counts as absent."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 10 else None


def reason(error: BaseException) -> str:
    """A short reason for a person: the operating system's text if it is behind it, else the kind of trouble."""
    causes: list[BaseException] = [error]
    for cause in causes:  # grows as it is walked; exceptions form no rings
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.rpartition(": ")[2]  # some put the address in front, which the line has already
        if isinstance(cause, BaseExceptionGroup):
            causes += cause.exceptions
        if (earlier := cause.__cause__ or cause.__context__) is not None:
            causes.append(earlier)
    return type(error).__name__
