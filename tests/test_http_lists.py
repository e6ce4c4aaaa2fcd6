"""Lists that the HTTP door cuts into pages itself, and what it makes of a username before it looks for it."""

from typing import cast

import msgspec
import pytest

from gearlink import views
from tests.test_http_api import ACTOR, READ, House


@pytest.fixture
def house() -> House:
    return House()


async def test_devices_come_in_pages_by_their_id(house: House) -> None:
    found = cast(views.Page[views.Device], house.results["Accounts.devices"])
    ids = [f"01a20633-066f-7544-a276-{number:012x}" for number in range(5)]
    devices = [msgspec.structs.replace(found.items[0], id=each) for each in reversed(ids)]
    house.results["Accounts.devices"] = views.Page(items=devices)
    seen, query = [], b"limit=2"
    for size in (2, 2, 1):
        page = (await house.ask(READ, "/api/v1/devices", query=query)).json
        assert len(page["items"]) == size
        seen += [device["id"] for device in page["items"]]
        query = b"limit=2&cursor=" + (page["next"] or "").encode()
    assert (seen, page["next"]) == (ids, None)
    assert len((await house.ask(READ, "/api/v1/devices")).json["items"]) == 5
    for query in (b"limit=0", b"limit=201", b"cursor=x", b"cursor=" + ids[0].upper().encode(), b"page=1"):
        assert (await house.ask(READ, "/api/v1/devices", query=query)).status == 422


@pytest.mark.parametrize("text", ["ann", "Ann", "ANN", "@ann", "%40Ann"])
async def test_a_username_is_found_in_any_case_and_with_an_at_sign(house: House, text: str) -> None:
    got = await house.ask(READ, "/api/v1/users", query=f"username={text}&limit=1".encode())
    assert len(got.json["items"]) == 1
    assert house.calls[-1] == ("Profiles.by_username", (ACTOR, "ann"))


@pytest.mark.parametrize("text", ["", "@", "a", "@@ann", "1ann", "a b", "ann%0A", "%00ann", "x" * 33, "x" * 64, "%E2%84%AAann"])
async def test_what_can_be_no_username_is_nobodys(house: House, text: str) -> None:
    got = await house.ask(READ, "/api/v1/users", query=f"username={text}".encode())
    assert (got.status, got.json) == (200, {"items": [], "next": None})


@pytest.mark.parametrize("query", [b"", b"username=" + b"x" * 65, b"username=ann&limit=201", b"username=ann&cursor=x"])
async def test_a_search_for_users_has_bounds(house: House, query: bytes) -> None:
    assert (await house.ask(READ, "/api/v1/users", query=query)).status == 422
