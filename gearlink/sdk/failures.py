"""What can go wrong for a caller of the SDK: the server said no (`Refused`), or it could not be asked (`Unreachable`).

Everything else that the SDK raises is a mistake of its caller (ValueError, RuntimeError) or a bug. Neither text ever holds
a token, a code, a phone number or what somebody wrote. This module knows nothing of HTTP or sockets.
"""

from collections.abc import Sequence

from gearlink.views import DeviceRef


class Refused(Exception):
    """The server's no. `code` is what programs switch on; `status` the HTTP status (0 if it came over the socket);
    `errors` names the fields that were wrong; `correlation_id` finds the request in the server's log; `version` is
    the newest one that it has, where what was sent does not follow it; of `stale-devices`, `missing` are the devices that
    lack an envelope, `extra` those that should have none, `changed` those whose identity key is another one."""

    def __init__(
        self,
        code: str,
        status: int = 0,
        detail: str = "",
        *,
        retryable: bool = False,
        retry_after_seconds: float | None = None,
        correlation_id: str | None = None,
        errors: list[dict[str, str]] | None = None,
        version: int | None = None,
        missing: Sequence[DeviceRef] = (),
        extra: Sequence[DeviceRef] = (),
        changed: Sequence[DeviceRef] = (),
    ) -> None:
        super().__init__(detail or code)
        self.code = code
        self.status = status
        self.detail = detail or code
        self.retryable = retryable
        self.retry_after_seconds = retry_after_seconds
        self.correlation_id = correlation_id
        self.errors = errors or []
        self.version = version
        self.missing, self.extra, self.changed = tuple(missing), tuple(extra), tuple(changed)

    def __repr__(self) -> str:
        return f"Refused({self.code!r}, status={self.status})"


class Unreachable(Exception):
    """The server could not be reached or did not answer in time: whether it did what was asked is not known.
    `retry_after_seconds` is there when something on the way said when to come back."""

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_seconds = retry_after_seconds
