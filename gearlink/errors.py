"""The refusal catalogue and the exit statuses: everything that GearLink says no with.

A `Refusal` is an answer, not an accident: it has a stable code that programs switch on, the HTTP status and WebSocket
close code that carry it, whether trying again can help, and a text for the peer that never holds what somebody wrote, a
number, a code or a token. Text for the operator goes to the journal, apart from it. A bug is any other exception.
An `ExitStatus` ends the process with one clear line. This module knows nothing of HTTP frameworks or sockets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from gearlink.views import DeviceRef


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue. `close` is the WebSocket close code when the refusal also ends the socket."""

    code: str
    status: int
    title: str
    retryable: bool = False
    close: int | None = None


CATALOGUE: Final[dict[str, Entry]] = {}


def _entry(code: str, status: int, title: str, *, retryable: bool = False, close: int | None = None) -> Entry:
    assert code not in CATALOGUE
    CATALOGUE[code] = Entry(code, status, title, retryable, close)
    return CATALOGUE[code]


# Codes are part of the contract: never rename, never reuse.
INVALID_REQUEST = _entry("invalid-request", 422, "The request does not have the form that this call takes")
MALFORMED_JSON = _entry("malformed-json", 400, "The body is not JSON that can be read")
BAD_REQUEST = _entry("bad-request", 400, "This is no HTTP request, or no upgrade, that the server can read")
UNREADABLE_FRAME = _entry("unreadable-frame", 400, "The frame is not one JSON object with a type", close=4400)
UNKNOWN_TYPE = _entry("unknown-type", 400, "This server does not know frames of this type")
NOT_AUTHENTICATED = _entry("not-authenticated", 401, "Sign in first", close=4401)
INVALID_REFRESH_TOKEN = _entry("invalid-refresh-token", 401, "This refresh token is not valid")
WRONG_CODE = _entry("wrong-code", 401, "The code is wrong, used or expired")
FORBIDDEN = _entry("forbidden", 403, "Your role does not allow this")
REFUSED_BY_PRIVACY = _entry("refused-by-privacy", 403, "This person's settings do not allow that")
BANNED = _entry("banned", 403, "You were banned from this conversation")
ACCOUNT_SUSPENDED = _entry("account-suspended", 403, "This account is suspended: ask the server's operator")
ACCOUNT_DELETED = _entry("account-deleted", 403, "This account was deleted; its owner may take that back for a while")
REGISTRATION_CLOSED = _entry("registration-closed", 403, "This server takes no new accounts")
INVITE_REQUIRED = _entry("invite-required", 403, "This server asks newcomers for an invite code")
NOT_FOUND = _entry("not-found", 404, "There is no such thing, or it is not for you")
METHOD_NOT_ALLOWED = _entry("method-not-allowed", 405, "This address does not take that method")
REQUEST_TIMEOUT = _entry("request-timeout", 408, "The body did not arrive in time", retryable=True)
USERNAME_TAKEN = _entry("username-taken", 409, "Somebody else has this username")
LAST_OWNER = _entry("last-owner", 409, "The last owner has to name an heir first")
ALREADY_MEMBER = _entry("already-member", 409, "This user is a member already")
MESSAGE_DELETED = _entry("message-deleted", 409, "This message was deleted")
TOO_LATE = _entry("too-late", 409, "The time in which this was possible has passed")
ALREADY_SENT = _entry("already-sent", 409, "A message of this tempId was sent already")
POLL_CLOSED = _entry("poll-closed", 409, "This poll takes no more votes")
STALE_DEVICES = _entry(
    "stale-devices", 409, "Not the devices of the members as they are now: ask for them, encrypt again"
)
TOO_MANY = _entry("too-many", 409, "There are as many of these as the server allows: remove some first")
TOO_MANY_DEVICES = _entry("too-many-devices", 409, "Remove a device first")
QUOTA_EXCEEDED = _entry("quota-exceeded", 409, "You keep as much here as the server allows: remove something first")
ROSTER_CONFLICT = _entry("roster-conflict", 409, "This statement does not follow the newest one: read that first")
GROUP_FULL = _entry("group-full", 409, "This conversation has as many members as the server allows")
TOO_LARGE = _entry("too-large", 413, "The body is larger than the server takes")
UNSUPPORTED_MEDIA_TYPE = _entry("unsupported-media-type", 415, "The body is not of a type that this call takes")
UPGRADE_REQUIRED = _entry("upgrade-required", 426, "This address speaks WebSocket")
MUST_BE_ENCRYPTED = _entry("must-be-encrypted", 422, "Plain content is refused in an end-to-end encrypted conversation")
HEADER_TOO_LARGE = _entry("header-too-large", 431, "The request head is larger than the server takes")
RATE_LIMITED = _entry("rate-limited", 429, "Too many requests; try again later", retryable=True)
FLOOD = _entry("flood", 429, "Too many frames after the limit", retryable=True, close=4429)
TOO_MANY_CONNECTIONS = _entry("too-many-connections", 429, "Too many open sockets", retryable=True, close=4429)
OVERLOADED = _entry("overloaded", 503, "The server has too much to do; come back in a moment", retryable=True)
SLOW_READER = _entry("slow-reader", 503, "This socket reads too slowly; resume", retryable=True, close=4408)
RESTARTING = _entry("restarting", 503, "The server restarts; come back in a moment", retryable=True, close=1012)
STORAGE_FULL = _entry("storage-full", 507, "The server has no room to store this; reading still works", retryable=True)
STORAGE_FAILED = _entry("storage-failed", 503, "The server could not store this", retryable=True)
UNSUPPORTED_TRANSFER_CODING = _entry("unsupported-transfer-coding", 501, "Of transfer codings only chunked is known")
HTTP_VERSION_NOT_SUPPORTED = _entry("http-version-not-supported", 505, "Speak HTTP/1.1, or HTTP/2 over TLS")
INTERNAL_ERROR = _entry("internal-error", 500, "Something went wrong on the server", retryable=True)


class Refusal(Exception):
    """A user's error, answered with its `entry`. `detail` is for the peer: what was wrong and what would be right.
    `version` is the newest one, where what was sent does not follow it; `devices` are what
    `stale-devices` tells of: those that are `missing`, `extra`, `changed`."""

    def __init__(
        self,
        entry: Entry,
        detail: str = "",
        *,
        retry_after_seconds: float | None = None,
        errors: list[dict[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        version: int | None = None,
        devices: Mapping[str, list[DeviceRef]] | None = None,
    ) -> None:
        super().__init__(entry.code)
        self.entry = entry
        self.detail = detail or entry.title
        self.retry_after_seconds = retry_after_seconds
        self.errors = errors
        self.headers = headers or {}
        self.version = version
        self.devices = devices or {}

    @property
    def code(self) -> str:
        return self.entry.code


def invalid(path: str, message: str) -> Refusal:
    """The refusal of one field: `path` says which, `message` what would be right."""
    return Refusal(INVALID_REQUEST, f"{path}: {message}", errors=[{"path": path, "message": message}])


class ExitStatus(IntEnum):
    """What `gearlink` ends with. Numbers are documented and never reused."""

    OK = 0
    BUG = 1
    USAGE = 2
    SETTINGS = 3
    ADDRESS = 4
    DATA_LOCKED = 5
    DATA_FOREIGN = 6
    NO_RIGHTS = 7
    DISK_FULL = 8
    STORAGE_FAILED = 9
    TLS = 10
    UNREACHABLE = 11


class Fatal(Exception):
    """The environment does not let the process go on: `line` says what and the remedy, `status` is its exit status."""

    def __init__(self, status: ExitStatus, line: str) -> None:
        super().__init__(line)
        self.status = status
        self.line = line
