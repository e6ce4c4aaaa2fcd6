"""Devices that publish keys and claim those of others, over the running server: what is answered, and who hears of what."""

import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from config import limits
from storage.records import DeviceKeys, OneTimePreKey
from tests.bad_keys import BAD
from tests.handsets import Handset, verify
from tests.house import SECONDS_MAX, House, Person, Wire, open_house
from tests.process import ServerProcess, running

LOW = limits.ONE_TIME_KEYS_LOW


async def publish(person: Person, handset: Handset, one_time: int) -> dict[str, Any]:
    answer = await person.http.put("/keys", json=handset.upload(one_time))
    status: dict[str, Any] = answer.raise_for_status().json()
    return status


async def claim(http: httpx.AsyncClient, user_id: str) -> list[dict[str, Any]]:
    """The bundles, each of which is what its device signed."""
    answer = await http.post("/keys/claim", json={"userId": user_id})
    bundles: list[dict[str, Any]] = answer.raise_for_status().json()["devices"]
    for bundle in bundles:
        verify(bundle)
    return bundles


async def devices_of(person: Person, user_id: str) -> list[dict[str, Any]]:
    answer = await person.http.get(f"/users/{user_id}/devices")
    devices: list[dict[str, Any]] = answer.raise_for_status().json()["devices"]
    return devices


async def heard_of_keys(wire: Wire) -> list[dict[str, Any]]:
    return [frame for frame in await wire.fence() if frame["type"] in ("keys:low", "identity:changed")]


# --- what is taken and handed out ------------------------------------------------------------------------------------


async def test_an_unsound_upload_is_refused_by_its_field_and_leaves_the_server_without_keys(house: House) -> None:
    ann, bob = await house.people(2)
    for why, (path, upload) in BAD.items():
        answer = await ann.http.put("/keys", json=upload)
        assert answer.status_code == 422, (why, answer.text)
        problem = answer.json()
        assert (problem["code"], [each["path"] for each in problem["errors"]]) == ("invalid-request", [path]), why
    for body in (
        {**Handset().upload(), "oneTimePreKeys": Handset().upload(limits.ONE_TIME_KEYS_MAX + 1)["oneTimePreKeys"]},
        {**Handset().upload(1), "signedPreKey": {**Handset().signed, "keyId": 0}},
        {**Handset().upload(1), "signedPreKey": {**Handset().signed, "keyId": limits.KEY_ID_MAX + 1}},
        {**Handset().upload(1), "identityKey": None},
        {key: value for key, value in Handset().upload(1).items() if key != "lastResortPreKey"},
    ):
        assert (await ann.http.put("/keys", json=body)).status_code == 422
    assert (await ann.http.get("/keys/status")).json() == {"oneTimeRemaining": 0, "digest": None}
    assert await claim(bob.http, ann.id) == await devices_of(bob, ann.id) == []


async def test_the_server_and_the_device_agree_by_digest_on_what_is_left(house: House) -> None:
    ann, bob = await house.people(2)
    phone = Handset()
    assert await publish(ann, phone, 100) == phone.status(100)
    for left in (99, 98):
        assert await claim(bob.http, ann.id) == [
            {
                "deviceId": ann.device_id,
                "identityKey": phone.identity_key,
                "signedPreKey": phone.signed,
                "oneTimePreKey": phone.uploaded[99 - left],
            }
        ]
        assert (await ann.http.get("/keys/status")).json() == phone.status(left)
    phone.rotate()
    assert await publish(ann, phone, 2) == phone.status(100)
    assert await devices_of(bob, ann.id) == [{"deviceId": ann.device_id, "identityKey": phone.identity_key}]
    full = await ann.http.put("/keys", json=phone.upload(limits.ONE_TIME_KEYS_MAX - 99))
    assert (full.status_code, full.json()["code"]) == (409, "too-many")


async def test_a_hundred_claims_at_once_get_a_hundred_different_keys_and_the_oldest(house: House) -> None:
    ann, *others = await house.people(5)
    phone = Handset()
    await publish(ann, phone, 120)
    got: list[int] = []

    async def one_claim(person: Person) -> None:
        (bundle,) = await claim(person.http, ann.id)
        got.append(bundle["oneTimePreKey"]["keyId"])

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one_claim, others[number % 4])
    assert sorted(got) == [each["keyId"] for each in phone.uploaded[:100]]
    assert (await ann.http.get("/keys/status")).json() == phone.status(20)


async def test_a_caller_who_drains_somebody_is_told_to_wait(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__key_claims_per_hour="60") as house:
        ann, bob, eve = await house.people(3)
        await publish(ann, Handset(), 50)
        for _ in range(40):
            await claim(eve.http, ann.id)
        answer = await eve.http.post("/keys/claim", json={"userId": ann.id})
        assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
        assert int(answer.headers["Retry-After"]) > 60 and '"key-claims-of-one"' in answer.headers["RateLimit-Policy"]
        await claim(bob.http, ann.id)
        assert (await ann.http.get("/keys/status")).json()["oneTimeRemaining"] == 9


@pytest.mark.parametrize("blocker", ["ann", "bob"])
async def test_two_of_whom_one_blocked_the_other_do_not_get_each_others_keys(house: House, blocker: str) -> None:
    ann, bob = await house.people(2)
    for person in (ann, bob):
        await publish(person, Handset(person.id), 3)
    first, second = (ann, bob) if blocker == "ann" else (bob, ann)
    (await first.http.put(f"/blocks/{second.id}")).raise_for_status()
    for one, other in ((ann, bob), (bob, ann)):
        for answer in (
            await one.http.post("/keys/claim", json={"userId": other.id}),
            await one.http.get(f"/users/{other.id}/devices"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert (await ann.http.get("/keys/status")).json()["oneTimeRemaining"] == 3


async def test_a_device_that_goes_takes_its_keys_along(house: House) -> None:
    ann, bob = await house.people(2)
    laptop = await ann.another_device()
    await publish(ann, Handset(), 3)
    await publish(laptop, Handset("laptop"), 3)
    (await laptop.http.post("/auth/logout")).raise_for_status()
    assert [bundle["deviceId"] for bundle in await claim(bob.http, ann.id)] == [ann.device_id]
    (await ann.http.delete(f"/devices/{laptop.device_id}")).raise_for_status()
    store = house.app.store
    assert [each.device_id for each in await store.scan(DeviceKeys, limit=10)] == [ann.device_id]
    assert {each.device_id for each in await store.scan(OneTimePreKey, limit=10)} == {ann.device_id}


# --- who hears of it -------------------------------------------------------------------------------------------------


async def test_only_the_device_whose_keys_run_low_hears_of_it_and_not_of_every_claim(house: House) -> None:
    ann, bob = await house.people(2)
    laptop, phone = await ann.another_device(), Handset()
    await publish(ann, phone, LOW + 1)
    async with ann.wire() as wire, laptop.wire() as other:
        assert "keys:low" not in [frame["type"] for frame in wire.missed]
        await claim(bob.http, ann.id)
        assert await heard_of_keys(wire) == []
        for _ in range(3):
            await claim(bob.http, ann.id)
        assert await heard_of_keys(wire) == [{"type": "keys:low", "oneTimeRemaining": LOW - 1}]
        for _ in range(LOW):
            await claim(bob.http, ann.id)
        assert await heard_of_keys(wire) == [{"type": "keys:low", "oneTimeRemaining": 0}]
        assert await heard_of_keys(other) == []
    async with ann.wire() as wire:
        assert wire.missed[-2] == {"type": "keys:low", "oneTimeRemaining": 0}
    await publish(ann, phone, LOW)
    async with ann.wire() as wire:
        assert "keys:low" not in [frame["type"] for frame in wire.missed]


async def test_another_identity_is_told_once_to_everybody_who_shares_a_conversation(house: House) -> None:
    ann, bob, carol, eve = await house.people(4)
    laptop = await ann.another_device()
    await ann.open("direct", bob)
    await ann.open("group", bob, carol)
    await bob.open("group", eve)
    await publish(ann, Handset("before"), 3)
    news = {"type": "identity:changed", "userId": ann.id, "deviceId": ann.device_id}
    async with AsyncExitStack() as sockets:
        wires = [await sockets.enter_async_context(each.wire()) for each in (bob, carol, laptop, eve, ann)]
        await publish(ann, Handset("after"), 3)
        assert [await heard_of_keys(wire) for wire in wires] == [[news], [news], [news], [], []]
        await publish(ann, Handset("after"), 0)
        assert [await heard_of_keys(wire) for wire in wires] == [[]] * 5
    (shown,) = await devices_of(bob, ann.id)
    assert shown["identityKey"] == Handset("after").identity_key and shown["identityChangedAt"].endswith("Z")


async def test_another_identity_is_told_to_ones_own_devices_also_without_any_conversation(house: House) -> None:
    ann = await house.sign_up()
    laptop = await ann.another_device()
    await publish(ann, Handset("before"), 0)
    async with laptop.wire() as wire:
        await publish(ann, Handset("after"), 0)
        assert [frame["deviceId"] for frame in await heard_of_keys(wire)] == [ann.device_id]


# --- through kill -9 -------------------------------------------------------------------------------------------------


class Claims:
    """Claims of one user's keys, from many callers at once, for as long as servers live. `got` is what callers saw."""

    def __init__(self, user_id: str, token: str) -> None:
        self.user_id, self.token = user_id, token
        self.got: list[int] = []
        self.unanswered = 0
        self._enough = trio.Event()

    async def run(self, server: ServerProcess, answers: int) -> None:
        """Until the server, which is killed amid claims after so many answers, is gone."""
        self._enough, self._goal = trio.Event(), len(self.got) + answers
        async with client_of(server, self.token) as http, trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(self._one_caller, http)
            with trio.fail_after(SECONDS_MAX):
                await self._enough.wait()
            server.strike()
        await trio.to_thread.run_sync(server.kill)
        gc.collect()  # what httpx was sending, while its warnings are ignored

    async def _one_caller(self, http: httpx.AsyncClient) -> None:
        while True:
            try:
                (bundle,) = await claim(http, self.user_id)
            except httpx.TransportError:
                self.unanswered += 1
                return
            self.got.append(bundle["oneTimePreKey"]["keyId"])
            if len(self.got) >= self._goal:
                self._enough.set()


@asynccontextmanager
async def client_of(server: ServerProcess, token: str = "") -> AsyncIterator[httpx.AsyncClient]:
    url = await trio.to_thread.run_sync(server.url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", headers=headers, timeout=SECONDS_MAX, verify=False) as http:
        yield http


async def sign_up(server: ServerProcess, number: str) -> dict[str, Any]:
    async with client_of(server) as http:
        asked = (await http.post("/auth/verify/request", json={"phoneNumber": number})).raise_for_status().json()
        form = {
            "verificationId": asked["verificationId"],
            "code": await trio.to_thread.run_sync(server.code, number),
            "device": {"name": "test", "type": "desktop"},
        }
        entered: dict[str, Any] = (await http.post("/auth/verify/confirm", json=form)).raise_for_status().json()
        return entered


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_no_key_is_seen_twice_by_callers_when_the_server_is_killed_amid_their_claims(tmp_path: Path) -> None:
    start, phone, rounds, answers = partial(ServerProcess, tmp_path / "data", tmp_path / "log"), Handset(), 4, 20
    with running(start()) as server:
        ann, bob = await sign_up(server, "+15551230001"), await sign_up(server, "+15551230002")
        async with client_of(server, ann["accessToken"]) as http:
            (await http.put("/keys", json=phone.upload(limits.ONE_TIME_KEYS_MAX))).raise_for_status()
        claims = Claims(ann["user"]["id"], bob["accessToken"])
        await claims.run(server, answers)
    for _ in range(rounds - 1):
        with running(start()) as server:
            await claims.run(server, answers)
    with running(start()) as server:
        async with client_of(server, ann["accessToken"]) as http:
            status = (await http.get("/keys/status")).raise_for_status().json()
    assert len(claims.got) >= rounds * answers and claims.unanswered == 8 * rounds
    assert len(set(claims.got)) == len(claims.got), "a key was handed out twice"
    used = limits.ONE_TIME_KEYS_MAX - status["oneTimeRemaining"]
    assert status == phone.status(status["oneTimeRemaining"])
    assert set(claims.got) <= {each["keyId"] for each in phone.uploaded[:used]}
    assert used - len(claims.got) <= claims.unanswered, "what nobody was given is at most what was under way"
