"""Who may send how much, and what a caller is told of a limit: how many are left, and when there are more."""

from typing import Any

import pytest

from config import limits
from config.settings import Limits
from gearlink.accounts import Actor
from gearlink.errors import Refusal
from gearlink.throttle import Budget, Throttle


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_while_some_are_left_the_field_tells_when_all_are_again() -> None:
    throttle = Throttle("messages", 2.0, 10, now=Now())
    assert throttle.standing("ann") == '"messages";r=10;t=0'
    throttle.take("ann", 4)
    assert throttle.standing("ann") == '"messages";r=6;t=2'


@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0, 30.0])
def test_where_none_is_left_the_field_tells_what_retry_after_does(rate: float) -> None:
    now = Now()
    throttle = Throttle("messages", rate, 60, now=now)
    throttle.take("ann", 60)
    with pytest.raises(Refusal) as caught:
        throttle.check("ann")
    wait = caught.value.retry_after_seconds
    assert wait is not None and wait == pytest.approx(1 / rate)
    seconds = int(caught.value.headers["RateLimit"].removeprefix('"messages";r=0;t='))
    assert wait <= seconds < wait + 1
    now.seconds += seconds
    throttle.check("ann")


def test_a_debt_is_told_until_it_is_paid() -> None:
    throttle = Throttle("claims", 1.0, 10, now=Now())
    throttle.take("ann", 25)
    assert throttle.standing("ann") == '"claims";r=0;t=16'


def test_the_policy_names_the_unit_of_what_is_not_counted_in_calls() -> None:
    assert Throttle("message-bytes", 1024, 2048, unit="content-bytes", now=Now()).policy() == (
        '"message-bytes";q=2048;qu="content-bytes";w=2'
    )


def test_asking_how_long_takes_nothing() -> None:
    throttle = Throttle("messages", 2.0, 3, now=Now())
    assert [throttle.wait("ann", 3) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert throttle.take("ann", 3) == 0.0
    assert throttle.wait("ann") == 0.5 == throttle.take("ann")


# --- what may be sent into conversations ------------------------------------------------------------------------------

PHONE, TABLET, ELSEWHERE = (
    Actor("ann", device_id, "session", 2**50, False, address)
    for device_id, address in (("phone", "192.0.2.1"), ("tablet", "192.0.2.1"), ("laptop", "192.0.2.2"))
)
NEIGHBOUR = Actor("bob", "bobs", "session", 2**50, False, "192.0.2.1")
OFF = {
    "message_kib_per_second": 0,
    "device_messages_per_second": 0.0,
    "device_message_kib_per_second": 0,
    "address_messages_per_second": 0.0,
    "address_message_kib_per_second": 0,
}


def budget_of(now: Now | None = None, **chosen: float) -> Budget:
    """A budget of which everything is as good as unlimited that is not chosen."""
    values: dict[str, Any] = {"messages_per_second": 1e6, "messages_burst": 1_000_000, **OFF, **chosen}
    return Budget(Limits(**values), now=now or Now())


def sent(budget: Budget, sender: Actor, size_bytes: int = 1, most: int = 1000) -> int:
    """How many such messages are let through at once."""
    for count in range(most):
        try:
            budget.check(sender, size_bytes)
        except Refusal:
            return count
    return most


def refusal_of(budget: Budget, sender: Actor, size_bytes: int = 1) -> Refusal:
    with pytest.raises(Refusal) as caught:
        budget.check(sender, size_bytes)
    return caught.value


def policy_of(refusal: Refusal) -> str:
    return refusal.headers["RateLimit-Policy"].partition(";")[0].strip('"')


@pytest.mark.parametrize(
    ("chosen", "name", "size_bytes", "allowed", "shared_with"),
    [
        ({"messages_per_second": 5.0, "messages_burst": 10}, "messages", 1, 10, {TABLET, ELSEWHERE}),
        ({"message_kib_per_second": 4}, "message-bytes", 1024, 8, {TABLET, ELSEWHERE}),
        ({"device_messages_per_second": 3.0}, "device-messages", 1, 6, set()),
        ({"device_message_kib_per_second": 2}, "device-message-bytes", 1024, 4, set()),
        ({"address_messages_per_second": 4.0}, "address-messages", 1, 8, {TABLET, NEIGHBOUR}),
        ({"address_message_kib_per_second": 3}, "address-message-bytes", 1024, 6, {TABLET, NEIGHBOUR}),
    ],
)
def test_each_budget_counts_for_whom_it_is_meant_and_for_nobody_else(
    chosen: dict[str, float], name: str, size_bytes: int, allowed: int, shared_with: set[Actor]
) -> None:
    budget = budget_of(**chosen)
    assert sent(budget, PHONE, size_bytes) == allowed
    refusal = refusal_of(budget, PHONE, size_bytes)
    assert (refusal.code, policy_of(refusal)) == ("rate-limited", name)
    assert refusal.retry_after_seconds and refusal.retry_after_seconds > 0
    for other in (TABLET, ELSEWHERE, NEIGHBOUR):
        assert (sent(budget, other, size_bytes, most=1) == 0) == (other in shared_with), other


def test_a_refusal_takes_nothing_from_any_budget() -> None:
    now = Now()
    budget = budget_of(now, messages_per_second=1.0, messages_burst=20, device_messages_per_second=1.0)
    assert sent(budget, PHONE) == 2  # the device has no more
    for _ in range(100):
        refusal_of(budget, PHONE)
    assert sent(budget, TABLET) == 2 and sent(budget, ELSEWHERE) == 2
    now.seconds += 1
    assert sent(budget, PHONE) == 1  # the refused ones did not push its own time back either
    others = [Actor("ann", f"device {number}", "session", 2**50, False) for number in range(100)]
    assert sum(sent(budget, other) for other in others) == 20 - (2 + 2 + 2) + 1 - 1


def test_what_is_too_large_is_refused_by_its_bytes_and_costs_no_message() -> None:
    budget = budget_of(messages_per_second=1.0, messages_burst=3, message_kib_per_second=4)
    budget.check(PHONE, 8 * 1024)
    for _ in range(10):
        assert policy_of(refusal_of(budget, PHONE, 100)) == "message-bytes"
    assert sent(budget, PHONE, 0) == 2


def test_a_refusal_tells_of_the_budget_that_takes_longest() -> None:
    now = Now()
    budget = budget_of(now, messages_per_second=1.0, messages_burst=2, address_messages_per_second=0.125)
    budget.check(PHONE, 1)  # an address has at least one at once
    refusal = refusal_of(budget, PHONE)
    assert policy_of(refusal) == "address-messages" and refusal.retry_after_seconds == 8.0
    now.seconds += 8.0
    budget.check(PHONE, 1)


@pytest.mark.parametrize("off", [{"messages_per_second": 0.0}, {"messages_burst": 0}])
def test_without_a_limit_for_the_messages_of_a_user_there_is_none_at_all(off: dict[str, Any]) -> None:
    tight = dict.fromkeys(OFF, 1)
    assert sent(budget_of(**tight), PHONE, 4096) < 5
    assert sent(budget_of(**{**tight, **off}), PHONE, 4096) == 1000


def test_what_the_server_sends_for_somebody_is_counted_for_no_address() -> None:
    budget = budget_of(messages_per_second=10.0, messages_burst=10, address_messages_per_second=1.0)
    for_ann, for_bob = (Actor(name, f"{name}'s", "session", 2**50, False) for name in ("ann", "bob"))
    assert sent(budget, for_ann) == 10 and sent(budget, for_bob) == 10


def test_new_settings_count_from_now_on_and_forgive_nothing() -> None:
    now = Now()
    budget = budget_of(now, messages_per_second=1.0, messages_burst=10)
    assert sent(budget, PHONE) == 10
    budget.reload(Limits(messages_per_second=5.0, messages_burst=10))
    assert refusal_of(budget, PHONE).retry_after_seconds == pytest.approx(0.2)
    budget.reload(Limits(messages_per_second=0.0))
    assert sent(budget, PHONE) == 1000


def test_the_defaults_let_a_user_send_what_the_contract_promises() -> None:
    budget = Budget(Limits(), now=Now())
    assert sent(budget, PHONE, limits.CONTENT_BYTES_MAX) == 60


def test_changes_and_the_people_that_they_let_in_have_budgets_of_their_own() -> None:
    now, ann = Now(), PHONE
    budget = budget_of(now)
    for _ in range(limits.CHANGES_BURST):
        budget.check_change(ann)
    with pytest.raises(Refusal) as caught:
        budget.check_change(ann)
    assert caught.value.headers["RateLimit-Policy"].startswith('"changes"')
    assert sent(budget, ann) > 0, "messages are another matter"
    now.seconds += 3600
    budget.check_change(ann, people=limits.PEOPLE_ADDED_BURST)
    before = budget._changes.standing(ann.user_id)
    with pytest.raises(Refusal) as caught:
        budget.check_change(ann, people=10)
    assert caught.value.headers["RateLimit-Policy"].startswith('"people-added"')
    assert budget._changes.standing(ann.user_id) == before, "a refusal takes nothing"
    budget.check_change(ann)
    budget_off = budget_of(now, messages_per_second=0)
    for _ in range(limits.CHANGES_BURST + 1):
        budget_off.check_change(ann, people=limits.PEOPLE_ADDED_BURST)
