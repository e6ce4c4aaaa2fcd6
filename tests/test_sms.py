"""The ways that a code takes to a phone: the queue that never holds anybody up, and each provider."""

import hashlib
import hmac
import io
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from config import limits
from config.settings import Settings, with_values
from gearlink import journal
from gearlink.sms import Code, NotSent, Provider, SmsQueue, console, provider_of, signature
from tests.fakes import FakeClock
from tests.people import ADDRESS, ALICE, House, LogLines, log_captured, sent

OTHER = "+491701234567"
CODE = Code(ALICE, "123456", 600, "delivery-1")


@pytest.fixture
async def house(nursery: trio.Nursery) -> House:
    house = House()
    await nursery.start(house.verification.run)
    return house


@pytest.fixture
def log() -> Iterator[LogLines]:
    with log_captured() as lines:
        yield lines


# --- the queue -------------------------------------------------------------------------------------------------------


async def always(_number: str) -> bool:
    return True


async def test_a_full_queue_drops_the_code_and_answers_the_same(house: House, log: LogLines) -> None:
    house.sms.hold = trio.Event()
    answers = [await house.verification.request(ALICE, ADDRESS) for _ in range(limits.SMS_QUEUE_MAX + 20)]
    await trio.testing.wait_all_tasks_blocked()
    dropped = house.sent("dropped")
    assert 0 < dropped <= 20
    assert len({answer.expires_in_seconds for answer in answers}) == 1
    house.sms.hold.set()
    await trio.testing.wait_all_tasks_blocked()
    assert len(house.sms.codes) == len(answers) - dropped
    assert log.read().count("queue full") == dropped


async def test_a_slow_provider_does_not_hold_up_the_answer_nor_the_next_code(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    house = House()
    await nursery.start(house.verification.run)
    house.sms.hold = trio.Event()
    await house.verification.request(ALICE, ADDRESS)
    assert trio.current_time() == pytest.approx(0, abs=0.001)
    await trio.testing.wait_all_tasks_blocked()
    house.sms.hold = None
    await house.verification.request(OTHER, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert house.sms.code_for(OTHER)
    await trio.sleep(limits.SMS_SECONDS_MAX + 1)
    assert house.sent("failed") == 1


async def test_a_provider_that_crashes_costs_one_code(house: House, log: LogLines) -> None:
    house.sms.trouble = ZeroDivisionError(f"about {ALICE}")
    await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    await house.verification.request(OTHER, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert house.sms.code_for(OTHER)
    assert (house.sent("failed"), house.sent("sent")) == (1, 1)
    lines = log.read()
    assert "ZeroDivisionError" in lines and ALICE not in lines


async def test_no_log_line_holds_a_number_or_a_code(house: House, log: LogLines) -> None:
    for refuse in (False, True, False):
        if refuse:
            house.sms.refuse_next()
        answer = await house.verification.request(ALICE, ADDRESS)
        await house.prove(answer.verification_id, "wrong")
        await trio.testing.wait_all_tasks_blocked()
    house.sms.hold = trio.Event()
    for _ in range(limits.SMS_QUEUE_MAX + 10):
        await house.verification.request(ALICE, ADDRESS)
    lines = log.read()
    assert "code-not-sent" in lines
    assert "5551230001" not in lines
    for code in house.sms.codes:
        assert not re.search(rf"(?<![0-9]){code.code}(?![0-9])", re.sub(r'"timestamp":"[^"]*"', "", lines))


# --- providers -------------------------------------------------------------------------------------------------------


async def test_the_console_prints_the_line_that_the_contract_shows(capsys: pytest.CaptureFixture[str]) -> None:
    async with console() as send:
        await send(CODE)
    assert capsys.readouterr().out == "verification code 123456 for +15551230001\n"


async def test_a_closed_standard_output_is_a_code_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    async with console() as send:
        with pytest.raises(NotSent):
            await send(CODE)


WEBHOOK = with_values(
    Settings(),
    {
        "verification.provider": "webhook",
        "verification.webhook_url": "https://sms.example.org/send",
        "verification.webhook_secret": "a secret of sixteen letters",
    },
).verification
TWILIO = replace(
    WEBHOOK,
    provider="twilio",
    twilio_account_sid="AC123",
    twilio_auth_token="twilio-secret",
    twilio_from="+15550000000",
)


class Gateway:
    """An SMS gateway: answers with what `answers` says, then 200; an exception among them is raised."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.times: list[float] = []

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        self.times.append(trio.current_time())
        answer = self.answers.pop(0) if self.answers else httpx.Response(200)
        if isinstance(answer, Exception):
            raise answer
        return answer


@asynccontextmanager
async def sending(
    gateway: Callable[[httpx.Request], Any],
    settings: Any = WEBHOOK,
    clock: FakeClock | None = None,
    seconds: float = limits.SMS_SECONDS_MAX + 1,
) -> AsyncIterator[Any]:
    """Sends a code through a queue, as the server does, and tells after `seconds` how many were sent and failed."""
    metrics = journal.Metrics()
    provider: Provider = provider_of(settings, clock or FakeClock(), httpx.MockTransport(gateway))
    sms = SmsQueue(provider, metrics, always)

    async def send() -> tuple[float, float]:
        sms.post(CODE)
        await trio.sleep(seconds)
        return sent(metrics, "sent"), sent(metrics, "failed")

    async with trio.open_nursery() as nursery:
        await nursery.start(sms.run)
        yield send
        nursery.cancel_scope.cancel()


def verify_as_a_gateway_would(request: httpx.Request, secret: str) -> bool:
    """Written from the documentation alone, so that it would notice a change of the format."""
    fields = dict(field.split("=", 1) for field in request.headers["GearLink-Signature"].split(","))
    signed = fields["t"].encode() + b"." + request.content
    return hmac.compare_digest(fields["v1"], hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest())


async def test_the_webhook_is_signed_so_that_any_gateway_can_check_it(autojump_clock: trio.testing.MockClock) -> None:
    gateway, clock = Gateway(), FakeClock()
    async with sending(gateway, clock=clock) as send:
        assert await send() == (1, 0)
    (request,) = gateway.requests
    assert (request.method, str(request.url)) == ("POST", "https://sms.example.org/send")
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == {"phoneNumber": ALICE, "code": "123456", "expiresInSeconds": 600}
    assert request.headers["GearLink-Signature"].startswith(f"t={clock.now() // 1000},v1=")
    assert verify_as_a_gateway_would(request, WEBHOOK.webhook_secret)
    assert not verify_as_a_gateway_would(request, "another secret")


def test_the_signature_covers_time_and_body() -> None:
    kinds = {signature("s", 1, b"2.x"), signature("s", 12, b".x"), signature("s", 1, b"2.y"), signature("t", 1, b"2.x")}
    assert len(kinds) == 4
    assert signature("secret", 1767225600, b"{}") == (
        "t=1767225600,v1=" + hmac.new(b"secret", b"1767225600.{}", "sha256").hexdigest()
    )


@pytest.mark.parametrize(
    "trouble",
    [httpx.Response(503), httpx.Response(500), httpx.Response(429), httpx.ConnectError(""), httpx.ReadTimeout("")],
    ids=repr,
)
async def test_a_passing_trouble_is_tried_again_as_the_same_delivery(
    trouble: httpx.Response | Exception, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = Gateway(trouble, trouble)
    async with sending(gateway) as send:
        assert await send() == (1, 0)
    assert len(gateway.requests) == 3
    assert {request.headers["Idempotency-Key"] for request in gateway.requests} == {"delivery-1"}
    pauses = [gateway.times[1] - gateway.times[0], gateway.times[2] - gateway.times[1]]
    assert pauses == pytest.approx([0.5, 1.0])


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 403, 404, 422])
async def test_a_final_answer_is_not_tried_again_and_no_redirect_is_followed(
    status: int, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = Gateway(httpx.Response(status, headers={"Location": "https://elsewhere.example.org/"}))
    async with sending(gateway) as send:
        assert await send() == (0, 1)
    assert len(gateway.requests) == 1


async def test_a_gateway_that_stays_down_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    gateway = Gateway(*[httpx.Response(503)] * 10)
    async with sending(gateway) as send:
        assert await send() == (0, 1)
    assert len(gateway.requests) == 4


async def test_retry_after_is_honoured_within_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    clock = FakeClock()
    in_five = formatdate(clock.seconds + 5, usegmt=True)
    for value, pause in (("7", 7.0), (in_five, 5.0), ("0", 0.5), ("soon", 0.5), ("-3", 0.5)):
        gateway = Gateway(httpx.Response(429, headers={"Retry-After": value}))
        async with sending(gateway, clock=clock) as send:
            assert await send() == (1, 0)
        assert gateway.times[1] - gateway.times[0] == pytest.approx(pause), value


@pytest.mark.parametrize("value", ["21", "999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"])
async def test_a_retry_after_beyond_the_deadline_gives_up_at_once(
    value: str, autojump_clock: trio.testing.MockClock
) -> None:
    gateway = Gateway(httpx.Response(503, headers={"Retry-After": value}))
    async with sending(gateway, seconds=1) as send:
        assert await send() == (0, 1)
    assert len(gateway.requests) == 1


async def test_a_gateway_that_never_answers_costs_the_deadline_and_no_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def silent(_request: httpx.Request) -> httpx.Response:
        await trio.sleep_forever()
        raise AssertionError

    async with sending(silent) as send:
        assert await send() == (0, 1)


async def test_one_silent_attempt_leaves_time_for_another(autojump_clock: trio.testing.MockClock) -> None:
    times: list[float] = []

    async def silent_once(_request: httpx.Request) -> httpx.Response:
        times.append(trio.current_time())
        if len(times) == 1:
            await trio.sleep_forever()
        return httpx.Response(200)

    async with sending(silent_once) as send:
        assert await send() == (1, 0)
    assert len(times) == 2


async def test_twilio_is_asked_in_its_own_form(autojump_clock: trio.testing.MockClock) -> None:
    gateway = Gateway()
    async with sending(gateway, TWILIO) as send:
        assert await send() == (1, 0)
    (request,) = gateway.requests
    assert str(request.url) == "https://api.twilio.com/2010-04-01/Accounts/AC123/Messages.json"
    assert request.headers["Authorization"] == httpx.BasicAuth("AC123", "twilio-secret")._auth_header
    form = httpx.QueryParams(request.content.decode())
    assert (form["To"], form["From"]) == (ALICE, "+15550000000")
    assert "123456" in form["Body"] and "10 minutes" in form["Body"]


async def test_a_twilio_messaging_service_picks_the_sender(autojump_clock: trio.testing.MockClock) -> None:
    gateway = Gateway()
    async with sending(gateway, replace(TWILIO, twilio_from="MG9")) as send:
        await send()
    form = httpx.QueryParams(gateway.requests[0].content.decode())
    assert form["MessagingServiceSid"] == "MG9" and "From" not in form


async def test_a_failed_request_is_logged_without_number_code_or_secret(
    autojump_clock: trio.testing.MockClock, log: LogLines
) -> None:
    for settings in (WEBHOOK, TWILIO):
        for trouble in (httpx.Response(400, text=f"no {ALICE}"), httpx.UnsupportedProtocol(f"for {ALICE}")):
            async with sending(Gateway(trouble), settings) as send:
                assert await send() == (0, 1)
    lines = log.read()
    assert lines.count("code-not-sent") == 4 and "status 400" in lines
    for secret in ("5551230001", "123456", "sixteen letters", "twilio-secret"):
        assert secret not in re.sub(r'"timestamp":"[^"]*"', "", lines)


def test_the_console_provider_needs_no_http_library() -> None:
    program = "import sys, gearlink.verification; sys.exit('httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
