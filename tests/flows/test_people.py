"""People who want to be found, or not: contacts, blocks, deletion and suspension as their clients meet them."""

from base64 import urlsafe_b64encode
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from config import limits
from gearlink import cli
from gearlink.verification import phone_hash
from tests.fakes import FakeClock
from tests.house import House, Person, open_house


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def hash_of(person: Person) -> str:
    return urlsafe_b64encode(phone_hash(person.phone_number)).rstrip(b"=").decode()


async def found(person: Person, other: Person, username: str) -> set[str]:
    """By which ways the person finds the other: their name, their number."""
    by_name = (await person.http.get("/users", params={"username": username})).json()["items"]
    by_number = (await person.http.post("/contacts/discover", json={"hashes": [hash_of(other)]})).json()["items"]
    ways = {"name": [user["id"] for user in by_name], "number": [each["user"]["id"] for each in by_number]}
    return {way for way, ids in ways.items() if other.id in ids}


async def proof(house: House, number: str, **more: Any) -> httpx.Response:
    """An attempt to sign in with the right code."""
    async with house.http() as client:
        asked = (await client.post("/auth/verify/request", json={"phoneNumber": number})).raise_for_status().json()
        form = {
            "verificationId": asked["verificationId"],
            "code": await house.code(asked["verificationId"]),
            "device": {"name": "test", "type": "desktop"},
        }
        return await client.post("/auth/verify/confirm", json=form | more)


# --- blocks ----------------------------------------------------------------------------------------------------------


async def test_two_of_whom_one_has_blocked_the_other_are_strangers_until_the_block_is_lifted(house: House) -> None:
    ann, bob, eve = await house.people(3)
    for person, name in ((ann, "annie"), (bob, "bobby")):
        profile = {"displayName": name.title(), "username": name, "bio": f"about {name}"}
        (await person.http.patch("/users/me", json=profile)).raise_for_status()
    direct = await ann.open("direct", bob)
    group = await eve.open("group", ann, bob)
    assert await found(ann, bob, "bobby") == await found(bob, ann, "annie") == {"name", "number"}

    assert (await ann.http.put(f"/blocks/{bob.id}")).status_code == 204
    assert await found(ann, bob, "bobby") == await found(bob, ann, "annie") == set()
    seen = (await bob.http.get(f"/users/{ann.id}")).json()
    assert (seen["displayName"], seen["username"], seen["bio"], seen["avatarUrl"]) == ("Annie", None, "", None)
    assert (await ann.http.get(f"/users/{bob.id}")).json()["bio"] == "about bobby"
    for one, other in ((ann, bob), (bob, ann)):
        assert refusal(await one.post(direct, "are you there?", f"t-{one.id}")) == (403, "refused-by-privacy")
        form = {"type": "group", "memberIds": [other.id], "name": "come in"}
        assert refusal(await one.http.post("/conversations", json=form)) == (403, "refused-by-privacy")
        assert (await one.post(group, "to everybody here", f"g-{one.id}")).status_code == 201

    assert (await ann.http.delete(f"/blocks/{bob.id}")).status_code == 204
    assert (await bob.post(direct, "back again", "t2")).status_code == 201
    assert await found(bob, ann, "annie") == {"name", "number"}


async def test_who_was_blocked_before_they_ever_talked_cannot_begin(house: House) -> None:
    ann, bob = await house.people(2)
    (await ann.http.put(f"/blocks/{bob.id}")).raise_for_status()
    for one, other in ((ann, bob), (bob, ann)):
        form = {"type": "direct", "memberIds": [other.id]}
        assert refusal(await one.http.post("/conversations", json=form)) == (403, "refused-by-privacy")


async def test_ones_other_devices_hear_of_contacts_blocks_and_privacy_and_nobody_else_does(house: House) -> None:
    ann, bob = await house.people(2)
    laptop = await ann.another_device()
    async with ann.wire() as phone_wire, laptop.wire() as laptop_wire, bob.wire() as bob_wire:
        await phone_wire.fence()
        answers = [
            await ann.http.put(f"/contacts/{bob.id}", json={"nickname": "Bobby"}),
            await ann.http.put(f"/blocks/{bob.id}"),
            await ann.http.patch("/users/me/privacy", json={"lastSeen": "contacts"}),
            await ann.http.delete(f"/contacts/{bob.id}"),
            await ann.http.delete(f"/blocks/{bob.id}"),
        ]
        assert [answer.status_code for answer in answers] == [200, 204, 200, 204, 204]
        told = await laptop_wire.fence()
        assert [frame["type"] for frame in told] == [
            "contact:changed", "block:added", "privacy:changed", "contact:removed", "block:removed"
        ]  # fmt: skip
        assert (told[0]["userId"], told[0]["nickname"]) == (bob.id, "Bobby")
        assert told[2]["privacy"]["lastSeen"] == "contacts"
        assert await phone_wire.fence() == await bob_wire.fence() == []
    assert (await ann.http.get("/users/me/privacy")).json()["lastSeen"] == "contacts"


async def test_contacts_and_blocks_come_in_pages_and_refuse_what_makes_no_sense(house: House) -> None:
    ann, bob, eve = await house.people(3)
    for other in (bob, eve):
        (await ann.http.put(f"/contacts/{other.id}", json={})).raise_for_status()
        (await ann.http.put(f"/blocks/{other.id}")).raise_for_status()
    for path in ("/contacts", "/blocks"):
        first = (await ann.http.get(path, params={"limit": 1})).json()
        second = (await ann.http.get(path, params={"limit": 1, "cursor": first["next"]})).json()
        assert [each["user"]["id"] for each in first["items"] + second["items"]] == sorted([bob.id, eve.id])
        assert second["next"] is None
        assert refusal(await ann.http.get(path, params={"cursor": "nonsense"})) == (422, "invalid-request")
    assert refusal(await ann.http.put(f"/blocks/{ann.id}")) == (422, "invalid-request")
    assert refusal(await ann.http.put(f"/contacts/{ann.id}", json={})) == (422, "invalid-request")
    nobody = "0197" + ann.id[4:]
    assert refusal(await ann.http.put(f"/blocks/{nobody}")) == (404, "not-found")
    assert refusal(await ann.http.put(f"/contacts/{nobody}", json={})) == (404, "not-found")


# --- deletion --------------------------------------------------------------------------------------------------------


async def test_a_deleted_account_is_gone_at_once_and_comes_back_whole_with_a_sign_in(house: House) -> None:
    ann, bob = await house.people(2)
    (await bob.http.patch("/users/me", json={"displayName": "Bob", "username": "bobby"})).raise_for_status()
    direct = await bob.open("direct", ann)
    (await bob.post(direct, "remember me", "t1")).raise_for_status()
    async with bob.wire() as wire:
        assert (await bob.http.delete("/users/me")).status_code == 204
        assert await wire.closed() == 4401
    assert refusal(await bob.http.get("/users/me")) == (401, "not-authenticated")
    gone = (await ann.http.get(f"/users/{bob.id}")).json()
    assert (gone["isDeleted"], gone["displayName"], gone["username"]) == (True, "", None)
    assert await found(ann, bob, "bobby") == set()

    answer = await proof(house, bob.phone_number)
    assert refusal(answer) == (403, "account-deleted") and "until" in answer.json()["detail"]
    back = (await proof(house, bob.phone_number, restoreAccount=True)).raise_for_status().json()
    assert (back["user"]["id"], back["user"]["username"], back["isNewUser"]) == (bob.id, "bobby", False)
    assert await found(ann, bob, "bobby") == {"name", "number"}
    async with house.http() as client:
        client.headers["Authorization"] = f"Bearer {back['accessToken']}"
        history = (await client.get(f"/conversations/{direct}/messages")).json()["items"]
        assert "remember me" in [message["content"] for message in history]


async def test_after_thirty_days_only_what_somebody_wrote_is_left_of_them(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        ann, bob = await house.people(2)
        group = await bob.open("group", ann, name="the two of us")
        (await bob.post(group, "what I leave behind", "t1")).raise_for_status()
        (await bob.http.delete("/users/me")).raise_for_status()
        clock.advance(days=limits.ACCOUNT_ERASURE_DAYS)
        while await house.app.timers.tick():
            pass
        ann = await house.sign_up(ann.phone_number)
        assert refusal(await ann.http.get(f"/users/{bob.id}")) == (404, "not-found")
        view = await ann.view(group)
        assert (view["memberCount"], view["role"]) == (1, "owner"), "who is left inherits"
        (left,) = [each for each in await ann.history(group) if each["kind"] == "text"]
        assert (left["content"], left["senderId"]) == ("what I leave behind", bob.id)
        again = await house.sign_up(bob.phone_number)
        assert again.entered["isNewUser"] and again.id != bob.id


async def test_the_last_admin_stays_while_others_are_there(house: House) -> None:
    ann, _bob = await house.people(2)
    assert refusal(await ann.http.delete("/users/me")) == (409, "last-owner")
    assert (await ann.http.get("/users/me")).status_code == 200


# --- suspension ------------------------------------------------------------------------------------------------------


async def test_a_suspension_closes_the_open_socket_and_lasts_until_it_is_lifted(house: House) -> None:
    ann, bob, eve = await house.people(3)
    path = f"/users/{bob.id}/suspension"
    async with bob.wire() as wire, eve.wire() as bystander:
        assert refusal(await eve.http.put(path)) == (403, "forbidden")
        assert await wire.fence() == []
        assert (await ann.http.put(path)).status_code == 204
        assert await wire.closed() == 4401
        assert await bystander.fence() == []
    assert refusal(await bob.http.get("/users/me")) == (401, "not-authenticated")
    assert refusal(await proof(house, bob.phone_number)) == (403, "account-suspended")
    assert refusal(await ann.http.put(f"/users/{ann.id}/suspension")) == (403, "forbidden")
    for _ in range(2):
        assert (await ann.http.delete(path)).status_code == 204
    assert (await proof(house, bob.phone_number)).status_code == 200


async def test_operators_suspend_restore_and_delete_with_a_server_and_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"

    async def run(*words: str) -> str:
        status = await trio.to_thread.run_sync(partial(cli.main, ["user", *words, "--data", str(data)]))
        printed = capsys.readouterr()
        return f"{printed.out}{printed.err}" if status == 0 else f"refused: {printed.err}"

    async with open_house(data) as house:
        _ann, bob = await house.people(2)
        number = bob.phone_number
        assert "suspended now" in await run("suspend", number)
        assert refusal(await proof(house, number)) == (403, "account-suspended")
        assert "active now" in await run("restore", number)
        assert (await proof(house, number)).status_code == 200
        assert (await run("suspend", "nobody.here")).startswith("refused: gearlink: ")
    assert "deleted now" in await run("delete", bob.id)
    assert "deleted" in next(line for line in (await run("list")).splitlines() if bob.id in line)
    async with open_house(data) as house:
        assert refusal(await proof(house, number)) == (403, "account-deleted")
        assert "active now" in await run("restore", number)
        assert (await proof(house, number)).json()["user"]["id"] == bob.id
