"""What a caller is told of a limit: how many are left, and when there are more."""

import pytest

from gearlink.errors import Refusal
from gearlink.throttle import Throttle


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
