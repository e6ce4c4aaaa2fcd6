"""What a route is: one declaration that the pipeline, the OpenAPI document and the access tests all read.

A handler is called `handler(domain, actor, *ids, form_or_query)` and answers `(status, struct)`, or `(status, Blob)`
for what is no JSON. It is given `actor` only where somebody has to be signed in, else the address that the caller comes
from; `ids` are the parameters in the path, in order; a form, a query or the bytes of a body only where the route
declares them. This module knows no route and nothing of ASGI.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from config import limits
from gearlink import errors
from gearlink.errors import Entry
from gearlink.rights import Right
from gearlink.views import UUID_PATTERN, Request, Sequence

PREFIX: Final = "/api/v1"
Needs = Literal["user", "admin", "nobody"]
ID: Final = re.compile(UUID_PATTERN)
PARAMETER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are shown as they are. `etag` is another one for other bytes, so they may be kept for good; without
    one they may be others tomorrow."""

    data: bytes
    mime_type: str
    etag: str = ""


Reply = tuple[int, msgspec.Struct | Blob | None]


@dataclass(frozen=True, slots=True)
class TextParameter:
    """A parameter of a path that is no id. `characters` are those of the path as it was sent, percent-encoded.

    Decoded it has at most `chars_max` characters; what the text may say is the domain's to judge.
    """

    characters: str
    chars_max: int
    description: str
    chars_min: int = 1


# RFC 3986 §3.3: what a segment of a path may hold.
_SEGMENT: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
TEXT_PARAMETERS: Final[Mapping[str, TextParameter]] = {
    "emoji": TextParameter(_SEGMENT, limits.EMOJI_CHARS_MAX, "an emoji, as percent-encoded UTF-8"),
    "code": TextParameter("[A-Za-z0-9_-]", limits.JOIN_CODE_CHARS_MAX, "the code", limits.JOIN_CODE_CHARS_MIN),
    "number": TextParameter(
        "[0-9]", len(str(limits.ARCHIVE_CHUNKS_MAX)), "a whole number from 0, without zeros in front"
    ),
}
"""Every other parameter of a path is an id."""


Limit = Annotated[int, Meta(ge=1, le=limits.PAGE_MAX, description="at most so many items")]
Cursor = Annotated[str, Meta(min_length=1, max_length=limits.CURSOR_CHARS_MAX, description="`next` of the page before")]


class NoQuery(Request):
    """A call without query parameters."""


class PageQuery(Request):
    limit: Limit = limits.PAGE_DEFAULT
    cursor: Cursor | None = None


class LogQuery(Request):
    """A page of a conversation by sequence number; both bounds are exclusive."""

    limit: Limit = limits.PAGE_DEFAULT
    before: Sequence | None = None
    after: Sequence | None = None


class UsernameQuery(PageQuery, kw_only=True):
    """`username` in any case, with or without an `@` before it; what no username can be is nobody's."""

    username: Annotated[str, Meta(max_length=2 * limits.USERNAME_CHARS_MAX)]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is below `PREFIX`; a `{name}` in it is an id, or one of `TEXT_PARAMETERS`.

    `refusals` are those of the domain call itself. `right` is the right in the conversation that the call needs; the
    access tests read it. `takes` are the media types of a body that is no JSON, of `body_bytes_max` at most; `gives` are
    those of an answer that is a `Blob`. A call that `waits` is given up when the caller goes away.
    """

    method: str
    path: str
    handler: Callable[..., Awaitable[Reply]]
    summary: str
    answers: Mapping[int, Any]
    refusals: tuple[Entry, ...] = ()
    needs: Needs = "user"
    body: type[Request] | None = None
    query: type[Request] = NoQuery
    right: Right | None = None
    takes: tuple[str, ...] = ()
    body_bytes_max: int = 0
    gives: tuple[str, ...] = ()
    waits: bool = False

    def __post_init__(self) -> None:
        assert not (self.body and self.takes), "a body is JSON or it is not"
        assert bool(self.takes) == bool(self.body_bytes_max), "a body has a bound"
        assert bool(self.gives) == (Blob in self.answers.values()), "a blob has a type"

    @property
    def template(self) -> str:
        """The whole path as it is documented and measured; never a path that somebody asked for."""
        return PREFIX + self.path

    @property
    def ids(self) -> tuple[str, ...]:
        """The names of the parameters in the path."""
        return tuple(PARAMETER.findall(self.path))

    @property
    def body_may_be_absent(self) -> bool:
        """True without a body, and with one of which no key is required."""
        return self.body is None or not any(field.required for field in msgspec.structs.fields(self.body))

    @property
    def all_refusals(self) -> tuple[Entry, ...]:
        """Everything that this call can be refused with: `refusals` and what the pipeline says by itself."""
        found = [errors.INVALID_REQUEST, *self.refusals, errors.TOO_LARGE, errors.RATE_LIMITED]
        found += [errors.INTERNAL_ERROR, errors.STORAGE_FAILED, errors.REQUEST_TIMEOUT]
        found.append(errors.UNSUPPORTED_MEDIA_TYPE)  # also of a body where none is taken
        if not self.takes:
            found.append(errors.MALFORMED_JSON)
        if self.needs != "nobody":
            found.append(errors.NOT_AUTHENTICATED)
        if self.needs == "admin":
            found.append(errors.FORBIDDEN)
        if self.method != "GET":
            found.append(errors.STORAGE_FULL)
        return tuple(sorted(set(found), key=lambda entry: (entry.status, entry.code)))
