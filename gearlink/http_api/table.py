"""What a route is: one declaration that the pipeline, the OpenAPI document and the access tests all read.

A handler is called `handler(domain, actor, *ids, form_or_query)` and answers `(status, struct)`. It is given `actor`
only where somebody has to be signed in, else the address that the caller comes from; `ids` are those in the path, in
order; a form or query only where the route declares one. This module knows no route and nothing of ASGI.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from config import limits
from gearlink import errors
from gearlink.accounts import Accounts
from gearlink.conversations import Conversations
from gearlink.errors import Entry
from gearlink.messages import Messages
from gearlink.protocol import UUID_PATTERN, Request, Sequence
from gearlink.receipts import Receipts
from gearlink.verification import Verification

PREFIX: Final = "/api/v1"
Needs = Literal["user", "admin", "nobody"]
Reply = tuple[int, msgspec.Struct | None]
ID: Final = re.compile(UUID_PATTERN)
_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Domain:
    """The parts of the house that handlers call."""

    accounts: Accounts
    verification: Verification
    conversations: Conversations
    messages: Messages
    receipts: Receipts


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


def foreign_cursor() -> errors.Refusal:
    """For a cursor that the list which is asked for never gave."""
    return errors.Refusal(errors.INVALID_REQUEST, errors=[{"path": "cursor", "message": "not a cursor of this list"}])


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is below `PREFIX`; every `{name}` in it is an id. `refusals` are those of the domain call itself."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Reply]]
    summary: str
    answers: Mapping[int, Any]
    refusals: tuple[Entry, ...] = ()
    needs: Needs = "user"
    body: type[Request] | None = None
    query: type[Request] = NoQuery

    @property
    def template(self) -> str:
        """The whole path as it is documented and measured; never a path that somebody asked for."""
        return PREFIX + self.path

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(_PARAMETER.findall(self.path))

    @property
    def all_refusals(self) -> tuple[Entry, ...]:
        """Everything that this call can be refused with: `refusals` and what the pipeline says by itself."""
        found = [errors.INVALID_REQUEST, *self.refusals, errors.TOO_LARGE, errors.RATE_LIMITED]
        found += [errors.INTERNAL_ERROR, errors.STORAGE_FAILED, errors.REQUEST_TIMEOUT]
        if self.needs != "nobody":
            found.append(errors.NOT_AUTHENTICATED)
        if self.needs == "admin":
            found.append(errors.FORBIDDEN)
        if self.body is not None:
            found += [errors.MALFORMED_JSON, errors.UNSUPPORTED_MEDIA_TYPE]
        if self.method != "GET":
            found.append(errors.STORAGE_FULL)
        return tuple(sorted(set(found), key=lambda entry: (entry.status, entry.code)))
