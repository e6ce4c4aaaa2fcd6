"""How a verification code reaches a phone: a bounded queue, the tasks that empty it, and the providers behind them.

`post` never waits and never fails, so that nobody can learn from an answer, or from its delay, what became of a code;
the operator learns it from the metric `verification_sent_total` and from log lines without number and code. A code that
the full queue has no room for is dropped: its owner asks for another one. It does not know who may have a code.

The webhook, for any SMS gateway: `POST` to the configured URL, `Content-Type: application/json`, with the body
`{"phoneNumber": "+15551230001", "code": "123456", "expiresInSeconds": 600}`, and two headers:

- `GearLink-Signature: t=1767225600,v1=5257a869…`: `t` is the time of this attempt in seconds since the Unix epoch, `v1`
  is the HMAC-SHA256, in lower case hex, of the digits of `t`, a full stop, and the body as it was sent, keyed with
  `webhook_secret`. The receiver computes the same, compares in constant time, and refuses a `t` that is minutes away.
- `Idempotency-Key`: the same for every attempt to send one code, so that a repeated one need not cost another message.

Any 2xx is success. 429, 5xx and a lost connection are tried again, with growing pauses or as `Retry-After` says.
"""

import hashlib
import hmac
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from config import limits
from config.settings import Verification as VerificationSettings
from gearlink import journal
from gearlink.clock import Clock

if TYPE_CHECKING:
    import httpx  # imported where it is used: a server with the console provider needs neither its memory nor its time

SIGNATURE_HEADER: Final = "GearLink-Signature"
_TWILIO: Final = "https://api.twilio.com/2010-04-01/Accounts/{}/Messages.json"
_SENDERS: Final = 8  # one slow answer does not hold up everybody else's code
_ATTEMPTS_MAX: Final = 4
_ATTEMPT_SECONDS_MAX: Final = 8.0
_FIRST_PAUSE_SECONDS: Final = 0.5
_log = journal.logger("sms")


@dataclass(frozen=True, slots=True)
class Code:
    """A code on its way. `delivery_id` names it to the gateway, so that a second attempt is known as one."""

    phone_number: str
    code: str
    expires_in_seconds: int
    delivery_id: str


class NotSent(Exception):
    """The provider did not take the code. `reason` is for the log: nothing of code or gateway's text is in it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


Send = Callable[[Code], Awaitable[None]]
Provider = Callable[[], AbstractAsyncContextManager[Send]]
"""Opens the way out. What it gives sends one code, or raises NotSent."""


class SmsQueue:
    """Codes that wait for their provider. `wanted` is asked, in the background, whether a number may have one."""

    def __init__(
        self, provider: Provider, metrics: journal.Metrics, wanted: Callable[[str], Awaitable[bool]]
    ) -> None:
        self._provider, self._metrics, self._wanted = provider, metrics, wanted
        self._entry, self._exit = trio.open_memory_channel[Code](limits.SMS_QUEUE_MAX)

    def post(self, code: Code) -> None:
        """Queues `code`, or drops it if `limits.SMS_QUEUE_MAX` wait already."""
        try:
            self._entry.send_nowait(code)
        except trio.WouldBlock:
            self._ended("dropped", "queue full")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sends what is queued until it is cancelled; codes that still wait are then lost."""
        async with self._provider() as send, trio.open_nursery() as nursery:
            for _ in range(_SENDERS):
                nursery.start_soon(self._sender, send)
            task_status.started()

    async def _sender(self, send: Send) -> None:
        async for code in self._exit:
            try:
                await self._deliver(code, send)
            except* Exception as trouble:  # noqa: BLE001 - a bug here costs one code, not the server
                self._ended("failed", "crash", trouble=trouble)

    async def _deliver(self, code: Code, send: Send) -> None:
        try:
            with trio.fail_after(limits.SMS_SECONDS_MAX):
                if not await self._wanted(code.phone_number):
                    self._metrics.verification_sent.labels("withheld").inc()
                    return
                await send(code)
        except NotSent as refused:
            self._ended("failed", refused.reason)
        except trio.TooSlowError:
            self._ended("failed", "too slow")
        else:
            self._metrics.verification_sent.labels("sent").inc()

    def _ended(self, outcome: str, reason: str, **fields: Any) -> None:
        self._metrics.verification_sent.labels(outcome).inc()
        _log.warning("code-not-sent", outcome=outcome, reason=reason, **fields)


def provider_of(
    settings: VerificationSettings, clock: Clock, transport: "httpx.AsyncBaseTransport | None" = None
) -> Provider:
    """The provider that the settings name. `transport` carries its requests, by default the network."""
    match settings.provider:
        case "console":
            return console
        case "webhook":
            return partial(_over_http, partial(_webhook_request, settings, clock), clock, transport)
        case "twilio":
            return partial(_over_http, partial(_twilio_request, settings), clock, transport)


@asynccontextmanager
async def console() -> AsyncIterator[Send]:
    """Prints codes on standard output, from a thread: a pipe that nobody reads must not hold the server."""
    limiter = trio.CapacityLimiter(1)

    async def send(code: Code) -> None:
        line = f"verification code {code.code} for {code.phone_number}\n"
        try:
            await trio.to_thread.run_sync(_print, line, abandon_on_cancel=True, limiter=limiter)
        except (OSError, ValueError):  # ValueError: standard output is closed
            raise NotSent("standard output cannot be written") from None

    yield send


def _print(line: str) -> None:
    sys.stdout.write(line)
    sys.stdout.flush()


# --- providers that are asked over HTTP -------------------------------------------------------------------------------

Request = dict[str, Any]  # the keyword arguments of an httpx request


def _webhook_request(settings: VerificationSettings, clock: Clock, code: Code) -> Request:
    body = msgspec.json.encode(
        {"phoneNumber": code.phone_number, "code": code.code, "expiresInSeconds": code.expires_in_seconds}
    )
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": code.delivery_id,
        SIGNATURE_HEADER: signature(settings.webhook_secret, clock.now() // 1000, body),
    }
    return {"url": settings.webhook_url, "content": body, "headers": headers}


def signature(secret: str, at_seconds: int, body: bytes) -> str:
    """The value of `GearLink-Signature` for `body`, sent `at_seconds` since the Unix epoch."""
    digest = hmac.digest(secret.encode(), b"%d.%b" % (at_seconds, body), hashlib.sha256)
    return f"t={at_seconds},v1={digest.hex()}"


def _twilio_request(settings: VerificationSettings, code: Code) -> Request:
    minutes = max(1, code.expires_in_seconds // 60)
    is_service = settings.twilio_from.startswith("MG")  # a messaging service, which picks the sender itself
    form = {
        "To": code.phone_number,
        "MessagingServiceSid" if is_service else "From": settings.twilio_from,
        "Body": f"{code.code} is your GearLink code. It can be used for {minutes} minutes. Give it to nobody.",
    }
    account = settings.twilio_account_sid
    return {"url": _TWILIO.format(account), "data": form, "auth": (account, settings.twilio_auth_token)}


@asynccontextmanager
async def _over_http(
    request_for: Callable[[Code], Request], clock: Clock, transport: "httpx.AsyncBaseTransport | None"
) -> AsyncIterator[Send]:
    import httpx

    # No redirects: a code goes to the address that the operator chose, and nowhere else.
    async with httpx.AsyncClient(follow_redirects=False, timeout=_ATTEMPT_SECONDS_MAX, transport=transport) as client:

        async def send(code: Code) -> None:
            pause = _FIRST_PAUSE_SECONDS
            for attempt in range(1, _ATTEMPTS_MAX + 1):
                reason, retry_after = await _attempt(client, request_for(code), clock)
                if not reason:
                    return
                if retry_after is None or attempt == _ATTEMPTS_MAX:
                    raise NotSent(reason)
                wait = max(pause, retry_after)
                if wait >= trio.current_effective_deadline() - trio.current_time():
                    raise NotSent(reason)  # it could not be sent in time: make room for the next one
                await trio.sleep(wait)
                pause *= 2

        yield send


async def _attempt(client: "httpx.AsyncClient", request: Request, clock: Clock) -> tuple[str, float | None]:
    """`(reason, seconds)`: an empty reason is success; seconds is when to try again at the earliest, None for never."""
    import httpx

    try:
        with trio.move_on_after(_ATTEMPT_SECONDS_MAX):  # in all: httpx's own times out single reads
            async with client.stream("POST", **request) as answer:  # the body is not read: nothing in it is needed
                status = answer.status_code
                if 200 <= status < 300:
                    return "", None
                may_retry = status == 429 or status >= 500
                return f"status {status}", _retry_after(answer.headers.get("Retry-After"), clock) if may_retry else None
        return "no answer in time", 0.0
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as trouble:
        return type(trouble).__name__, None
    except httpx.HTTPError as trouble:
        return type(trouble).__name__, 0.0


def _retry_after(text: str | None, clock: Clock) -> float:
    """Seconds of a `Retry-After` (RFC 9110 §10.2.3: seconds or a date); 0 if there is none that can be read."""
    if text is None:
        return 0.0
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - clock.now() / 1000)
    except (ValueError, OverflowError):
        return 0.0
