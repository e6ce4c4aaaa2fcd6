"""Codes: who gets one, what is stored of it, how often it may be asked for and how often it may be tried."""

import hashlib
import hmac
import re
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink.clock import new_id
from gearlink.errors import Refusal
from gearlink.verification import parse_phone_number, phone_hash
from storage import records
from storage.records import PhoneNumber
from storage.store import StoreFull, Transaction
from tests.people import ADDRESS, ALICE, House

OTHER = "+491701234567"


@pytest.fixture
async def house(nursery: trio.Nursery) -> House:
    house = House()
    await nursery.start(house.verification.run)
    return house


async def wrong_code(house: House) -> str:
    await trio.testing.wait_all_tasks_blocked()
    return f"{(int(house.sms.code_for(ALICE)) + 1) % 1_000_000:06}"


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [ALICE, OTHER, "+390612345678", "+442071838750", "+5511912345678"])
def test_numbers_of_the_world_pass_as_they_are(number: str) -> None:
    assert parse_phone_number(f" {number}\n") == number


@pytest.mark.parametrize(
    "text",
    [
        "", "+", "15551230001", "0015551230001", "+1 555 123 0001", "+1-555-123-0001", "+1(555)1230001", "++15551230001",
        "+1555123", "+999999999", "+1555123000\uff11", "+١٥٥٥١٢٣٠٠٠١", "+4402071838750", "+1234567890123456", "+0123456789",
        "tel:+15551230001", "+15551230001;ext=5", "+15551230001x5", "+1555CALLNOW",
    ],
)  # fmt: skip
def test_anything_else_is_no_number(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_phone_number(text)
    assert refused.value.code == "invalid-request" and refused.value.errors
    assert refused.value.errors[0]["path"] == "phoneNumber"
    assert len(text) < 2 or text not in str(refused.value.errors) + refused.value.detail


@given(text=st.text(max_size=20) | st.from_regex(r"\+[0-9]{0,18}"))
def test_a_number_comes_back_unchanged_or_is_refused(text: str) -> None:
    try:
        assert parse_phone_number(text) == text.strip()
    except Refusal as refusal:
        assert refusal.code == "invalid-request"


# --- asking for a code -----------------------------------------------------------------------------------------------


async def test_a_code_of_six_digits_reaches_the_number(house: House) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    (code,) = house.sms.codes
    assert code.phone_number == ALICE and re.fullmatch("[0-9]{6}", code.code)
    assert answer.expires_in_seconds == code.expires_in_seconds == 600
    assert answer.resend_after_seconds == 30
    assert house.sent("sent") == 1


async def test_codes_are_not_alike(house: House) -> None:
    for _ in range(50):
        await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert len({code.code for code in house.sms.codes}) > 40


async def test_the_stored_record_does_not_hold_the_code(house: House) -> None:
    await house.verification.request(ALICE, ADDRESS)
    await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    first, second = house.store.all(records.Verification)
    assert first.salt != second.salt and len(first.salt) == 16
    for record, code in zip((first, second), house.sms.codes, strict=True):
        assert code.code.encode() not in record.code_hash + record.salt
        assert record.code_hash != hashlib.sha256(code.code.encode()).digest()


@pytest.mark.parametrize("registration", ["open", "invite", "closed"])
async def test_known_and_unknown_numbers_take_the_same_steps(registration: str, nursery: trio.Nursery) -> None:
    """What could differ in the answer or in its time: reads, writes, what is stored, what is answered."""
    house = House(auth__registration=registration)

    async def change(tx: Transaction) -> None:
        tx.put(PhoneNumber(phone_hash(ALICE), new_id()))

    await house.store.write(change)
    traces = []
    for number in (ALICE, OTHER):
        house.store.reads.clear()
        writes = house.store.writes
        answer = await house.verification.request(number, ADDRESS)
        trace = (house.store.reads.copy(), house.store.writes - writes, answer.expires_in_seconds)
        traces.append(trace)
    assert traces[0] == traces[1] == ([], 1, 600)
    assert len(house.store.all(records.Verification)) == 2


async def test_a_closed_server_sends_codes_to_its_own_people_only(nursery: trio.Nursery) -> None:
    house = House(auth__registration="closed")

    async def change(tx: Transaction) -> None:
        tx.put(PhoneNumber(phone_hash(ALICE), new_id()))

    await house.store.write(change)
    await nursery.start(house.verification.run)
    for number in (ALICE, OTHER):
        await house.verification.request(number, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert [code.phone_number for code in house.sms.codes] == [ALICE]
    assert (house.sent("sent"), house.sent("withheld")) == (1, 1)
    house.set(auth__registration="open")
    await house.verification.request(OTHER, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert house.sms.code_for(OTHER)


async def test_a_request_that_cannot_be_stored_sends_nothing(house: House) -> None:
    house.store.fail_next = StoreFull("the disk is full")
    with pytest.raises(StoreFull):
        await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert not house.sms.codes


# --- limits ----------------------------------------------------------------------------------------------------------


async def refusal_of(call: Callable[[], Any]) -> Refusal | None:
    try:
        result = call()
        if result is not None:
            await result
    except Refusal as refusal:
        return refusal
    return None


async def test_one_number_gets_so_many_codes_an_hour_from_wherever(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__verifications_per_hour=3)
    for n in range(3):
        await house.verification.request(ALICE, f"192.0.2.{n}")
    refusal = await refusal_of(lambda: house.verification.request(ALICE, "192.0.2.9"))
    assert refusal is not None and refusal.code == "rate-limited"
    assert refusal.retry_after_seconds == pytest.approx(1200, abs=5)
    await house.verification.request(OTHER, "192.0.2.9")
    await trio.sleep(refusal.retry_after_seconds or 0)
    await house.verification.request(ALICE, "192.0.2.9")


async def test_one_address_asks_for_so_many_codes_an_hour_for_whomever(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__verifications_per_hour=3)
    for n in range(3):
        await house.verification.request(f"+1555123000{n}", ADDRESS)
    refusal = await refusal_of(lambda: house.verification.request(ALICE, ADDRESS))
    assert refusal is not None and refusal.code == "rate-limited" and refusal.retry_after_seconds
    assert ALICE not in f"{refusal.detail}{refusal.headers}{refusal}"
    await house.verification.request(ALICE, "192.0.2.2")


async def test_an_ipv6_network_counts_as_one_address(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__verifications_per_hour=2)
    await house.verification.request("+15551230001", "2001:db8:1:2::1")
    await house.verification.request("+15551230002", "2001:db8:1:2:ffff::9")
    assert await refusal_of(lambda: house.verification.request("+15551230003", "2001:db8:1:2::77"))
    assert not await refusal_of(lambda: house.verification.request("+15551230003", "2001:db8:1:3::1"))


async def test_a_mapped_ipv4_address_is_that_address(autojump_clock: trio.testing.MockClock) -> None:
    house = House(limits__verifications_per_hour=1)
    await house.verification.request("+15551230001", "192.0.2.1")
    assert await refusal_of(lambda: house.verification.request("+15551230002", "::ffff:192.0.2.1"))
    assert not await refusal_of(lambda: house.verification.request("+15551230002", "::ffff:192.0.2.2"))


async def test_zero_means_no_limit(autojump_clock: trio.testing.MockClock) -> None:
    house = House()
    for _ in range(200):
        await house.verification.request(ALICE, ADDRESS)
        house.verification.check_address(ADDRESS)


async def test_confirming_is_limited_by_address_with_room_for_every_code(
    autojump_clock: trio.testing.MockClock,
) -> None:
    house = House(limits__verifications_per_hour=2)
    for _ in range(2 * limits.VERIFICATION_TRIES_MAX):
        house.verification.check_address(ADDRESS)
    refusal = await refusal_of(lambda: house.verification.check_address(ADDRESS))
    assert refusal is not None and refusal.code == "rate-limited" and refusal.retry_after_seconds
    house.verification.check_address("192.0.2.2")


# --- saying the code back --------------------------------------------------------------------------------------------


async def test_the_right_code_proves_the_number_once(house: House) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    code = house.sms.code_for(ALICE)
    assert await house.prove(answer.verification_id, code) == ALICE
    assert await house.prove(answer.verification_id, code) is None
    assert not house.store.all(records.Verification)


async def test_five_wrong_codes_end_the_verification_even_for_the_right_one(house: House) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    wrong = await wrong_code(house)
    for left in (4, 3, 2, 1, 0):
        assert await house.prove(answer.verification_id, wrong) is None
        assert house.store.all(records.Verification)[0].tries_left == left
    assert await house.prove(answer.verification_id, house.sms.code_for(ALICE)) is None


async def test_the_fifth_try_may_be_the_right_one(house: House) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    wrong = await wrong_code(house)
    for _ in range(4):
        await house.prove(answer.verification_id, wrong)
    assert await house.prove(answer.verification_id, house.sms.code_for(ALICE)) == ALICE


async def test_parallel_guesses_get_five_tries_in_all(house: House, nursery: trio.Nursery) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    right = int(house.sms.code_for(ALICE))
    found: list[str | None] = []

    async def guess(code: str) -> None:
        found.append(await house.prove(answer.verification_id, code))

    async with trio.open_nursery() as guesses:
        for n in range(1, 6):
            guesses.start_soon(guess, f"{(right + n) % 1_000_000:06}")
    await guess(f"{right:06}")
    assert found == [None] * 6


async def test_a_code_ends_with_its_minutes(house: House) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    house.clock.advance(minutes=10)
    assert await house.prove(answer.verification_id, house.sms.code_for(ALICE)) is None


async def test_an_older_code_still_works_after_a_newer_one_was_asked_for(house: House) -> None:
    first = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    code = house.sms.code_for(ALICE)
    second = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    assert await house.prove(first.verification_id, code) == ALICE
    assert await house.prove(second.verification_id, house.sms.code_for(ALICE)) == ALICE


async def test_a_code_does_not_work_for_another_verification(house: House) -> None:
    first = await house.verification.request(ALICE, ADDRESS)
    await trio.testing.wait_all_tasks_blocked()
    code = house.sms.code_for(ALICE)
    while True:  # one in a million is the same code
        second = await house.verification.request(OTHER, ADDRESS)
        await trio.testing.wait_all_tasks_blocked()
        if house.sms.code_for(OTHER) != code:
            break
    assert await house.prove(second.verification_id, code) is None
    assert await house.prove(first.verification_id, code) == ALICE


@pytest.mark.parametrize("code", ["", "0", "1234567890123456", "\uff11\uff12\uff13\uff14\uff15\uff16", "12345\n", "😀"])
async def test_odd_codes_are_wrong_codes(house: House, code: str) -> None:
    answer = await house.verification.request(ALICE, ADDRESS)
    assert await house.prove(answer.verification_id, code) is None


async def test_an_unknown_verification_costs_the_same_comparison(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    compare = hmac.compare_digest

    def counting(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return compare(one, other)

    answer = await house.verification.request(ALICE, ADDRESS)
    wrong = await wrong_code(house)
    monkeypatch.setattr(hmac, "compare_digest", counting)
    assert await house.prove(answer.verification_id, wrong) is None
    assert await house.prove(new_id(), wrong) is None
    house.clock.advance(minutes=11)
    assert await house.prove(answer.verification_id, wrong) is None
    assert compared == [32, 32, 32]
