"""Whose devices they are: account keys, certificates, the devices of a conversation, and who hears when these change."""

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import trio

from config import limits
from storage.records import AccountKey, DeviceKeys, Introduced
from tests.envelopes import post, to_all
from tests.fakes import FakeClock
from tests.handsets import Handset, Owner, devices_digest, text, verify
from tests.house import House, Person, Wire, open_house

NEWS = ("device:added", "device:removed", "identity:changed")


async def publish(person: Person, handset: Handset, one_time: int = 0) -> None:
    (await person.http.put("/keys", json=handset.upload(one_time))).raise_for_status()


async def certify(
    by: Person, owner: Owner, device: Person, handset: Handset, *, user_id: str = "", refused: bool = False
) -> httpx.Response:
    form = owner.certify(user_id or device.id, device.device_id, handset)
    answer = await by.http.put(f"/devices/{device.device_id}/certificate", json=form)
    assert answer.status_code == 204 or refused, answer.text
    return answer


async def claimed(by: Person, user_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await by.http.post("/keys/claim", json={"userId": user_id})).raise_for_status().json()
    for bundle in answer["devices"]:
        verify(bundle)
    return answer


async def shown(by: Person, user_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await by.http.get(f"/users/{user_id}/devices")).raise_for_status().json()
    return answer


async def listed(by: Person, room: str) -> dict[str, Any]:
    answer: dict[str, Any] = (await by.http.get(f"/conversations/{room}/devices")).raise_for_status().json()
    return answer


async def ids_in(by: Person, room: str) -> set[str]:
    return {device["deviceId"] for device in (await listed(by, room))["devices"]}


async def heard(wire: Wire) -> list[tuple[str, str]]:
    """What was told of devices: the type and the device."""
    return [(frame["type"], frame["deviceId"]) for frame in await wire.fence() if frame["type"] in NEWS]


# --- certificates ----------------------------------------------------------------------------------------------------


async def test_a_device_certifies_itself_and_then_another_one_of_the_same_user(house: House) -> None:
    ann, bob = await house.people(2)
    laptop, owner, phone_keys, laptop_keys = await ann.another_device(), Owner(), Handset(), Handset("laptop")
    await publish(ann, phone_keys, 1)
    await publish(laptop, laptop_keys, 1)
    assert len((await claimed(bob, ann.id))["devices"]) == 2 and "accountKey" not in await shown(bob, ann.id)
    await certify(ann, owner, ann, phone_keys)
    answer = await claimed(bob, ann.id)
    assert answer["accountKey"] == owner.account_key
    assert [bundle["deviceId"] for bundle in answer["devices"]] == [ann.device_id]
    owner.verify(ann.id, answer["devices"][0])
    before = await shown(laptop, ann.id)  # where an old device finds the new one
    assert before["accountKey"] == owner.account_key and "accountKeyChangedAt" not in before
    assert {each["deviceId"]: "certificate" in each for each in before["devices"]} == {
        ann.device_id: True, laptop.device_id: False,
    }  # fmt: skip
    await certify(ann, owner, laptop, laptop_keys)
    await certify(laptop, owner, laptop, laptop_keys)  # again
    after = await shown(bob, ann.id)
    for each in after["devices"]:
        owner.verify(ann.id, each)
    assert len((await claimed(bob, ann.id))["devices"]) == 2 and "accountKeyChangedAt" not in after


async def test_nothing_is_stored_of_a_certificate_that_is_not_one(house: House) -> None:
    ann, bob = await house.people(2)
    owner, phone = Owner(), Handset()
    await publish(ann, phone)
    right = owner.certify(ann.id, ann.device_id, phone)
    small_order = text((1).to_bytes(32, "little"))
    wrong = {
        "of another user": owner.certify(bob.id, ann.device_id, phone),
        "of another device": owner.certify(ann.id, bob.device_id, phone),
        "of another identity key": owner.certify(ann.id, ann.device_id, Handset("other")),
        "by another account key": right
        | {"signature": Owner("bob").certify(ann.id, ann.device_id, phone)["signature"]},
        "over other bytes": right | {"signature": text(owner.key.sign(b"GearLink roster v1").signature)},
        "by the device itself": right | {"signature": text(phone.identity.sign(b"x").signature)},
        "of small order": right | {"accountKey": small_order},
        "no point": right | {"accountKey": text(bytes([2]) + bytes(31))},
        "with padding": right | {"accountKey": owner.account_key + "="},
        "not canonical": right | {"signature": right["signature"][:-1] + "B"},
        "without a signature": {"accountKey": owner.account_key},
        "with more": right | {"deviceId": ann.device_id},
    }
    path = f"/devices/{ann.device_id}/certificate"
    for why, form in wrong.items():
        answer = await ann.http.put(path, json=form)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), why
    store = house.app.store
    assert await store.scan(AccountKey, limit=9) == []
    assert [keys.certificate for keys in await store.scan(DeviceKeys, limit=9)] == [b""]
    (await ann.http.put(path, json=right)).raise_for_status()


async def test_only_ones_own_devices_with_keys_are_certified(house: House) -> None:
    ann, bob = await house.people(2)
    laptop, owner, phone = await ann.another_device(), Owner(), Handset()
    for device, by in ((ann, ann), (laptop, ann), (ann, bob)):  # no keys, no keys, somebody else's
        if by is bob:
            await publish(ann, phone)
        answer = await certify(by, owner, device, phone, user_id=by.id, refused=True)
        assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    answer = await ann.http.put(f"/devices/{'0' * 8}/certificate", json=owner.certify(ann.id, ann.device_id, phone))
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")
    assert await house.app.store.scan(AccountKey, limit=9) == []


async def test_another_account_key_voids_all_other_certificates_and_is_told(house: House) -> None:
    ann, bob = await house.people(2)
    laptop, room = await ann.another_device(), await ann.open("direct", bob, encryption="e2ee")
    first, second, phone_keys, laptop_keys = Owner(), Owner("again"), Handset(), Handset("laptop")
    await publish(ann, phone_keys)
    await publish(laptop, laptop_keys)
    for device, keys in ((ann, phone_keys), (laptop, laptop_keys)):
        await certify(ann, first, device, keys)
    async with ann.wire() as own, laptop.wire() as other, bob.wire() as peer:
        await certify(laptop, second, laptop, laptop_keys)
        news = ("identity:changed", laptop.device_id)
        assert await heard(peer) == [news, ("device:removed", ann.device_id)]
        assert (await heard(own), await heard(other)) == ([news], [])
    answer = await shown(bob, ann.id)
    assert answer["accountKey"] == second.account_key and answer["accountKeyChangedAt"].endswith("Z")
    assert [each["deviceId"] for each in answer["devices"] if "certificate" in each] == [laptop.device_id]
    assert await ids_in(bob, room) == {laptop.device_id}
    await certify(ann, second, ann, phone_keys)
    assert await ids_in(bob, room) == {ann.device_id, laptop.device_id}
    assert (await shown(bob, ann.id))["accountKeyChangedAt"] == answer["accountKeyChangedAt"]


async def test_changes_of_the_account_key_are_changes_of_identity_and_so_many_are_allowed(house: House) -> None:
    ann = await house.sign_up()
    phone = Handset()
    await publish(ann, phone)
    for number in range(limits.IDENTITY_CHANGES_PER_DAY + 1):  # the first one is no change
        await certify(ann, Owner(str(number)), ann, phone)
    answer = await certify(ann, Owner("too many"), ann, phone, refused=True)
    assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
    assert (await shown(ann, ann.id))["accountKey"] == Owner(str(limits.IDENTITY_CHANGES_PER_DAY)).account_key


async def test_another_identity_key_voids_the_certificate_of_its_device(house: House) -> None:
    ann, bob = await house.people(2)
    room, owner = await ann.open("direct", bob, encryption="e2ee"), Owner()
    await publish(ann, Handset(), 1)
    await certify(ann, owner, ann, Handset())
    async with bob.wire() as peer:
        await publish(ann, Handset(), 1)
        assert await heard(peer) == []
        await publish(ann, Handset("fresh"), 1)
        assert await heard(peer) == [("identity:changed", ann.device_id), ("device:removed", ann.device_id)]
        assert (await claimed(bob, ann.id))["devices"] == [] and await ids_in(bob, room) == set()
        await certify(ann, owner, ann, Handset("fresh"))
        assert await heard(peer) == [("device:added", ann.device_id)]


async def test_an_identity_key_that_changes_while_it_is_certified_is_not_certified(house: House) -> None:
    ann, owner, old = await house.sign_up(), Owner(), Handset()
    for number in range(limits.IDENTITY_CHANGES_PER_DAY):
        await publish(ann, old)
        fresh, statuses = Handset(f"number {number}"), list[int]()

        async def sign(handset: Handset = old, into: list[int] = statuses) -> None:
            into.append((await certify(ann, owner, ann, handset, refused=True)).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sign)
            nursery.start_soon(publish, ann, fresh)
        (keys,) = await house.app.store.scan(DeviceKeys, limit=2)
        assert statuses in ([204], [422]) and keys.certificate == b""
        old = fresh


# --- the devices of a conversation -----------------------------------------------------------------------------------


async def test_everybody_in_a_conversation_is_told_of_the_same_devices_and_their_digest(house: House) -> None:
    ann, bob, cem = await house.people(3)
    laptop, group = await ann.another_device(), await ann.open("group", bob, cem, encryption="e2ee")
    handsets = {each.device_id: Handset(each.device_id) for each in (ann, laptop, bob)}
    for each in (ann, laptop, bob):  # Cem has no keys yet
        await publish(each, handsets[each.device_id])
    await certify(ann, Owner(), ann, handsets[ann.device_id])
    everybody = [(each.id, each.device_id, handsets[each.device_id]) for each in (ann, bob)]
    for reader in (ann, laptop, bob, cem):
        answer = await listed(reader, group)
        assert answer["digest"] == devices_digest(everybody)
        assert answer["accountKeys"] == {ann.id: Owner().account_key}
        assert [(each["userId"], each["deviceId"]) for each in answer["devices"]] == sorted(
            (user_id, device_id) for user_id, device_id, _handset in everybody
        )
    mine, bobs = sorted(answer["devices"], key=lambda each: each["userId"] != ann.id)
    Owner().verify(ann.id, mine)
    assert "certificate" not in bobs


async def test_where_nothing_is_encrypted_or_nothing_can_be_said_nobodys_devices_are_shown(house: House) -> None:
    ann, bob, eve = await house.people(3)
    for each in (ann, bob):
        await publish(each, Handset(each.id))
    plain, direct = await ann.open("group", bob), await ann.open("direct", bob, encryption="e2ee")
    assert await listed(bob, plain) == {"digest": devices_digest([]), "accountKeys": {}, "devices": []}
    assert await ids_in(bob, direct) == {ann.device_id, bob.device_id}
    (await ann.http.put(f"/blocks/{bob.id}")).raise_for_status()
    for each in (ann, bob):
        answer = await listed(each, direct)
        assert [device["deviceId"] for device in answer["devices"]] == [each.device_id]
        assert answer["digest"] == devices_digest([(each.id, each.device_id, Handset(each.id))])
    assert (await eve.http.get(f"/conversations/{direct}/devices")).status_code == 404


async def test_who_comes_goes_signs_out_is_suspended_or_deleted_is_in_the_list_no_longer(house: House) -> None:
    boss, ann, bob, cem, dan = await house.people(5)
    group = await ann.open("group", bob, cem, dan, encryption="e2ee")
    for each in (ann, bob, cem, dan):
        await publish(each, Handset(each.id))
    present = {each.device_id for each in (ann, bob, cem, dan)}
    assert await ids_in(ann, group) == present
    eve = await house.sign_up()
    await publish(eve, Handset("eve"))
    (await ann.http.post(f"/conversations/{group}/members", json={"userIds": [eve.id]})).raise_for_status()
    assert await ids_in(ann, group) == present | {eve.device_id}
    for answer, gone in (
        (await eve.http.delete(f"/conversations/{group}/members/{eve.id}"), eve),
        (await bob.http.post("/auth/logout"), bob),
        (await boss.http.put(f"/users/{cem.id}/suspension"), cem),
        (await dan.http.delete("/users/me"), dan),
    ):
        answer.raise_for_status()
        present -= {gone.device_id}
    assert await ids_in(ann, group) == present == {ann.device_id}
    again = await house.sign_up(bob.phone_number, deviceId=bob.device_id)  # with the keys that it had
    assert await ids_in(again, group) == {ann.device_id, bob.device_id}


async def test_members_hear_when_a_device_begins_and_ceases_to_count_in_encrypted_conversations_alone(
    house: House,
) -> None:
    boss, ann, bob, cem = await house.people(4)
    await ann.open("group", bob, encryption="e2ee")
    await ann.open("direct", bob, encryption="e2ee")
    await ann.open("group", cem)
    laptop = await ann.another_device()
    added, removed = [("device:added", laptop.device_id)], [("device:removed", laptop.device_id)]
    async with AsyncExitStack() as sockets:
        wires = [await sockets.enter_async_context(each.wire()) for each in (bob, cem, ann)]

        async def told() -> list[list[tuple[str, str]]]:
            return [await heard(wire) for wire in wires]

        await publish(laptop, Handset("laptop"))
        assert await told() == [added, [], []]
        await publish(laptop, Handset("laptop"), 3)
        assert await told() == [[], [], []]
        (await laptop.http.post("/auth/logout")).raise_for_status()
        assert await told() == [removed, [], []]
        laptop = await house.sign_up(ann.phone_number, deviceId=laptop.device_id)
        assert await told() == [added, [], []]
        for expected in (200, 401):  # somebody else has its refresh token too
            answer = await laptop.http.post("/auth/refresh", json={"refreshToken": laptop.refresh_token})
            assert answer.status_code == expected
        assert await told() == [removed, [], []]
        laptop = await house.sign_up(ann.phone_number, deviceId=laptop.device_id)
        assert await told() == [added, [], []]
        (await ann.http.delete(f"/devices/{laptop.device_id}")).raise_for_status()
        assert await told() == [removed, [], removed]
        await publish(ann, Handset())
        assert await told() == [[("device:added", ann.device_id)], [], []]
        (await boss.http.put(f"/users/{ann.id}/suspension")).raise_for_status()
        assert (await heard(wires[0])) == [("device:removed", ann.device_id)]


async def test_a_claim_introduces_a_changed_device_to_the_one_that_claimed_until_it_is_removed(house: House) -> None:
    ann, bob = await house.people(2)
    await publish(ann, Handset(), 3)
    await claimed(bob, ann.id)
    store = house.app.store
    assert await store.scan(Introduced, limit=9) == []  # it never had another identity
    await publish(ann, Handset("fresh"), 3)
    await claimed(bob, ann.id)
    fresh = bytes(Handset("fresh").identity.verify_key)
    assert await store.scan(Introduced, limit=9) == [Introduced(ann.device_id, bob.device_id, fresh)]
    other = await ann.another_device()
    (await other.http.delete(f"/devices/{ann.device_id}")).raise_for_status()
    assert await store.scan(Introduced, limit=9) == []


async def test_nothing_of_keys_is_left_of_an_account_that_was_erased(tmp_path: Path) -> None:
    clock = FakeClock()
    async with open_house(tmp_path / "data", clock=clock) as house:
        boss, ann = await house.people(2)
        await publish(ann, Handset())
        await certify(ann, Owner(), ann, Handset())
        await publish(ann, Handset("fresh"))
        await certify(ann, Owner(), ann, Handset("fresh"))
        await claimed(boss, ann.id)
        (await ann.http.delete("/users/me")).raise_for_status()
        store = house.app.store
        assert [len(await store.scan(kind, limit=9)) for kind in (AccountKey, DeviceKeys, Introduced)] == [1, 1, 1]
        clock.advance(days=limits.ACCOUNT_ERASURE_DAYS + 1)
        await house.app.domain.standing.erase(ann.id)
        assert [len(await store.scan(kind, limit=9)) for kind in (AccountKey, DeviceKeys, Introduced)] == [0, 0, 0]


# --- amid sends ------------------------------------------------------------------------------------------------------


async def test_a_send_amid_certificates_is_for_the_devices_of_that_moment_or_is_refused(house: House) -> None:
    """What was taken with a digest had the devices of that digest: never one less than those that counted by then."""
    ann, bob = await house.people(2)
    room, owner, keys = await ann.open("direct", bob, encryption="e2ee"), Owner("bob"), Handset("bob")
    await publish(ann, Handset())
    await publish(bob, keys)
    await certify(bob, owner, bob, keys)
    others = [await bob.another_device() for _ in range(6)]
    for each in others:
        await publish(each, Handset(each.device_id))
    done, taken = trio.Event(), list[tuple[str, int]]()

    async def send() -> None:
        while not done.is_set():
            digest = (await listed(ann, room))["digest"]
            for _ in range(3):
                answer = await post(ann, room, to_all(devicesDigest=digest))
                if answer.status_code == 409:
                    assert answer.json()["code"] == "stale-devices"
                    continue
                taken.append((digest, int(answer.raise_for_status().json()["sequenceNumber"])))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        digests = [(await listed(bob, room))["digest"]]
        for each in others:
            await certify(bob, owner, each, Handset(each.device_id))
            digests.append((await listed(bob, room))["digest"])
        done.set()
    assert len(set(digests)) == len(others) + 1
    order = [digests.index(digest) for digest, _number in sorted(taken, key=lambda each: each[1])]
    assert order == sorted(order) and order


async def test_after_a_restart_the_devices_are_those_of_before(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        ann, bob = await house.people(2)
        room = await ann.open("direct", bob, encryption="e2ee")
        for each in (ann, bob):
            await publish(each, Handset(each.id))
        await certify(ann, Owner(), ann, Handset(ann.id))
        before = await listed(bob, room)
    async with open_house(tmp_path / "data") as house:
        assert await listed(await house.back(bob), room) == before
