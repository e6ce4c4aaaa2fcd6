"""Encrypted conversations as the server sees them: who is given which bytes, for which devices a message has to be, and
when the bytes go."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config import limits
from gearlink.clock import new_id
from gearlink.purge import purge
from storage.records import Amendment, Delivery, Envelope, LogEntry, Undropped
from tests.envelopes import KEY_ID, equip, post, posted, raw, text, to_all, to_each, told_alone
from tests.fakes import FakeClock
from tests.handsets import Handset, devices_digest
from tests.house import House, Person, open_house

EMPTY = {"scheme": "double-ratchet", "envelopes": []}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def house(tmp_path: Path, clock: FakeClock) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data", clock=clock, auth__access_token_minutes="1440") as opened:
        yield opened


async def with_devices(house: House, count: int, each: int = 1) -> list[list[Person]]:
    """So many people with so many devices that have keys."""
    people = []
    for person in await house.people(count):
        devices = [person, *[await person.another_device() for _ in range(each - 1)]]
        await equip(*devices)
        people.append(devices)
    return people


def news(frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [frame["message"] for frame in frames if frame["type"] == "message:new"]


async def envelopes(house: House, room: str) -> list[Envelope]:
    return await house.app.store.scan(Envelope, room, limit=999)


async def acknowledge(person: Person, room: str, sequence: int) -> None:
    """It is stored once this returns."""
    async with person.wire() as wire:
        await wire.say("message:ack", conversationId=room, sequenceNumber=sequence, ref="ack")
        await wire.hear_until("ok")
    await person.house.app.domain.receipts.flush()


def places(problem: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    return {
        name: [(each["userId"], each["deviceId"]) for each in problem[name]] for name in ("missing", "extra", "changed")
    }


def of(*devices: Person) -> list[tuple[str, str]]:
    return [(device.id, device.device_id) for device in devices]


# --- who is given what -------------------------------------------------------------------------------------------------


async def test_each_device_is_given_its_own_envelope_alone_by_whichever_way_it_asks(house: House) -> None:
    (phone, laptop), (bob, tablet) = await with_devices(house, 2, each=2)
    room = await phone.open("direct", bob, encryption="e2ee")
    async with phone.wire() as sender, laptop.wire() as own, bob.wire() as one, tablet.wire() as other:
        everybody = to_each(laptop, bob, tablet)
        await sender.say("message:send", conversationId=room, tempId="t-1", encrypted=everybody)
        assert (await sender.hear("message:ack"))["sequenceNumber"] == 1
        for device, wire in ((laptop, own), (bob, one), (tablet, other)):
            [message] = news(await wire.fence())
            assert told_alone(device, message) and message.get("tempId") == ("t-1" if device is laptop else None)
        assert news(await sender.fence()) == []
    for device in (laptop, bob, tablet):
        async with device.wire(cursors={room: 0}) as wire:
            assert told_alone(device, news(wire.missed)[0])
    async with phone.wire(cursors={room: 0}) as wire:  # what it sent itself it cannot read
        assert news(wire.missed)[0]["encrypted"] == EMPTY


async def test_every_call_that_shows_a_message_shows_the_envelope_of_the_asking_device(house: House) -> None:
    [ann], [bob, *_] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    sent = await posted(ann, room, to_each(bob), temp_id="t-1")
    assert (sent["content"], sent["encrypted"], sent["messageId"]) == (None, EMPTY, sent["id"])
    reply = await posted(ann, room, to_each(bob), replyToId=sent["id"], mentions=[bob.id])
    assert reply["replyTo"]["content"] is None and reply["mentions"] == [bob.id]
    (await bob.http.put(f"/messages/{sent['id']}/pin")).raise_for_status()

    async def shown(person: Person) -> list[dict[str, Any]]:
        async def ask(path: str) -> Any:
            return (await person.http.get(path)).raise_for_status().json()

        thread = await ask(f"/messages/{sent['id']}/thread")
        [line] = (await ask(f"/conversations/{room}/threads"))["items"]
        [listed] = (await ask("/conversations"))["items"]
        sync = (await person.http.post("/sync", json={"cursors": {room: 0}})).raise_for_status().json()
        return [
            *[message for message in await person.history(room) if message["kind"] == "text"],
            await ask(f"/messages/{sent['id']}"),
            (await ask(f"/conversations/{room}/pins"))["items"][0],
            (await person.view(room))["lastMessage"],
            listed["lastMessage"],
            thread["root"], *thread["items"], line["root"], line["lastReply"],
            *news(sync["events"]), sync["conversations"][0]["lastMessage"],
        ]  # fmt: skip

    for_bob, for_ann = await shown(bob), await shown(ann)
    assert len(for_bob) == len(for_ann) >= 13
    assert all(told_alone(bob, message) for message in for_bob)
    assert all(message["encrypted"] == EMPTY and message["content"] is None for message in for_ann)


async def test_a_sender_key_message_is_one_body_for_all_and_stands_in_the_log_once(house: House) -> None:
    [ann], [bob], [cem] = await with_devices(house, 3)
    group = await ann.open("group", bob, cem, encryption="e2ee", name="g")
    digest = devices_digest([(each.id, each.device_id, Handset(each.device_id)) for each in (ann, bob, cem)])
    async with bob.wire() as one, cem.wire() as other:
        sent = await posted(ann, group, to_all(devicesDigest=digest))
        assert sent["encrypted"] == to_all()
        for wire in (one, other):
            [message] = news(await wire.fence())
            assert (message["encrypted"], message["content"]) == (to_all(), None)
    assert await envelopes(house, group) == []
    [entry] = await house.app.store.scan(LogEntry, group, limit=9)
    assert entry.event.content.body == b"for all"  # type: ignore[union-attr]


async def test_a_room_where_some_are_addressed_and_some_are_not_hears_the_same_numbers(house: House) -> None:
    [ann], [bob], [cem] = await with_devices(house, 3)
    group = await ann.open("group", bob, cem, encryption="e2ee", name="g")
    async with ann.wire() as sender, bob.wire() as one, cem.wire() as other:
        for number, (kind, what) in enumerate(
            [("key-distribution", to_each(bob)), ("text", to_all()), ("control", to_all()), ("control", to_each(cem))]
        ):
            await sender.say("message:send", conversationId=group, tempId=f"t-{number}", kind=kind, encrypted=what)
        assert [(await sender.hear("message:ack"))["sequenceNumber"] for _ in range(4)] == [1, 2, 3, 4]
        told = {device: news(await wire.fence()) for device, wire in ((bob, one), (cem, other))}
    for device, messages in told.items():
        assert [message["sequenceNumber"] for message in messages] == [1, 2, 3, 4]
        assert [message["kind"] for message in messages] == ["key-distribution", "text", "control", "control"]
        assert [message["encrypted"] for message in messages] == [
            to_each(bob) if device is bob else EMPTY, to_all(), to_all(), to_each(cem) if device is cem else EMPTY,
        ]  # fmt: skip


# --- what is silent -----------------------------------------------------------------------------------------------------


async def test_what_programs_say_to_one_another_is_told_and_is_no_item_of_the_history(
    house: House, clock: FakeClock
) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    said = await posted(ann, room, to_each(bob))
    before = await bob.view(room)
    clock.advance(seconds=60)
    other = await ann.open("group", bob, name="g")
    await ann.post(other, "later", "t-1")
    clock.advance(seconds=60)
    for kind, encrypted in (("key-distribution", to_each(bob)), ("control", to_all())):
        silent = (await post(ann, room, encrypted, "t-silent" + kind, kind=kind)).raise_for_status().json()
        again = (await post(ann, room, encrypted, "t-silent" + kind, kind=kind)).raise_for_status().json()
        assert again == silent and silent["kind"] == kind and silent["content"] is None
        assert (await bob.http.get(f"/messages/{silent['id']}")).status_code == 404
        refused = await post(ann, room, to_each(bob), replyToId=silent["id"])
        assert refused.json()["errors"][0]["path"] == "replyToId"
    after = await bob.view(room)
    assert (before["sequenceNumber"], after["sequenceNumber"]) == (1, 3)
    assert after["unreadCount"] == before["unreadCount"] == 1
    assert after["lastMessage"]["id"] == said["id"]
    listed = (await bob.http.get("/conversations")).json()["items"]
    assert [each["id"] for each in listed] == [other, room], "it does not move up"
    assert [message["id"] for message in await bob.history(room)] == [said["id"]]
    async with bob.wire(cursors={room: 1}) as wire:
        assert [message["encrypted"] for message in news(wire.missed) if message["conversationId"] == room] == [
            to_each(bob), to_all(),
        ]  # fmt: skip


async def test_who_may_not_write_in_a_channel_may_still_ask_for_what_could_not_be_read(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    channel = await ann.open("channel", bob, encryption="e2ee", name="c")
    assert (await post(bob, channel, to_each(ann))).status_code == 403
    assert (await post(bob, channel, to_all())).status_code == 403
    assert (await post(bob, channel, to_each(ann), kind="control")).status_code == 201
    stranger = await house.sign_up()
    assert (await post(stranger, channel, to_each(ann), kind="control")).status_code == 404
    direct = await ann.open("direct", bob, encryption="e2ee")
    (await bob.http.put(f"/blocks/{ann.id}")).raise_for_status()
    assert (await post(ann, direct, to_each(bob), kind="control")).json()["code"] == "refused-by-privacy"


# --- for which devices --------------------------------------------------------------------------------------------------


async def test_a_message_that_does_not_fit_the_devices_is_refused_and_names_them(house: House) -> None:
    (phone, laptop), (bob, tablet) = await with_devices(house, 2, each=2)
    stranger = await house.sign_up()
    await equip(stranger)
    room = await phone.open("direct", bob, encryption="e2ee")
    refused = await post(phone, room, to_each(bob, stranger, phone))
    problem = refused.json()
    assert (refused.status_code, problem["code"]) == (409, "stale-devices")
    found = places(problem)
    assert sorted(found["missing"]) == sorted(of(laptop, tablet)) and found["changed"] == []
    assert sorted(found["extra"]) == sorted(of(stranger, phone))
    async with phone.wire() as wire:
        await wire.say("message:send", conversationId=room, tempId="t-1", encrypted=to_each(bob, laptop))
        error = await wire.refused("stale-devices")
        assert error["tempId"] == "t-1" and places(error) == {"missing": of(tablet), "extra": [], "changed": []}
        assert not error["retryable"]
        await wire.say("message:send", conversationId=room, tempId="t-1", encrypted=to_each(bob, laptop, tablet))
        await wire.hear("message:ack")
    some = await post(phone, room, to_each(tablet), kind="key-distribution")
    assert some.status_code == 201, "what is silent may be for some"
    astray = await post(phone, room, to_each(stranger), kind="control")
    assert places(astray.json()) == {"missing": [], "extra": of(stranger), "changed": []}
    (await bob.http.delete(f"/devices/{tablet.device_id}")).raise_for_status()
    late = await post(phone, room, to_each(bob, laptop, tablet))
    assert places(late.json()) == {"missing": [], "extra": of(tablet), "changed": []}


async def test_a_device_with_another_identity_key_is_named_as_changed(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    (await bob.http.put("/keys", json=Handset("reset").upload())).raise_for_status()
    refused = await post(ann, room, to_each(bob))
    assert places(refused.json()) == {"missing": [], "extra": [], "changed": of(bob)}
    (await ann.http.post("/keys/claim", json={"userId": bob.id})).raise_for_status()
    assert (await post(ann, room, to_each(bob))).status_code == 201


async def test_a_digest_of_other_devices_is_refused_without_any_names(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    group = await ann.open("group", bob, encryption="e2ee", name="g")
    known = [(each.id, each.device_id, Handset(each.device_id)) for each in (ann, bob)]
    assert (await post(ann, group, to_all(devicesDigest=devices_digest(known)))).status_code == 201
    await equip(await bob.another_device())
    refused = await post(ann, group, to_all(devicesDigest=devices_digest(known)))
    assert refused.status_code == 409
    assert places(refused.json()) == {"missing": [], "extra": [], "changed": []}
    assert (await post(ann, group, to_all())).status_code == 201, "who does not say is not asked"


async def test_the_same_temp_id_answers_the_same_whatever_devices_there_are_by_then(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    first = await posted(ann, room, to_each(bob), temp_id="t-1")
    await equip(await bob.another_device())
    assert await posted(ann, room, to_each(bob), temp_id="t-1") == first
    assert len(await bob.history(room)) == 1
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=room, tempId="t-1", encrypted=to_each(bob))
        assert (await wire.hear("message:ack"))["messageId"] == first["id"]


# --- what is refused ----------------------------------------------------------------------------------------------------


async def test_nothing_plain_gets_into_an_encrypted_conversation(house: House, clock: FakeClock) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    sent = await posted(ann, room, to_each(bob))
    here = f"/conversations/{room}"
    poll = {"kind": "poll", "poll": {"options": ["a", "b"]}}
    later = "2026-01-02T00:00:00Z"
    tries: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"{here}/messages", {"tempId": "p-1", "content": "plain"}),
        ("POST", f"{here}/messages", {"tempId": "p-2", "content": "plain", **poll}),
        ("POST", f"{here}/scheduled", {"tempId": "p-3", "content": "plain", "sendAt": later}),
        ("PUT", f"{here}/draft", {"content": "plain"}),
        ("PATCH", f"/messages/{sent['id']}", {"content": "plain"}),
    ]
    for method, path, body in tries:
        answer = await ann.http.request(method, path, json=body)
        assert (answer.status_code, answer.json()["code"]) == (422, "must-be-encrypted"), path
    async with ann.wire() as wire:
        await wire.say("message:send", conversationId=room, tempId="p-4", content="plain")
        await wire.refused("must-be-encrypted")
        await wire.say("message:edit", messageId=sent["id"], content="plain")
        await wire.refused("must-be-encrypted")
        await wire.say("draft:set", conversationId=room, content="plain")
        await wire.refused("must-be-encrypted")
    scheduled = await ann.http.post(
        f"{here}/scheduled", json={"tempId": "p-5", "encrypted": to_each(bob), "sendAt": later}
    )
    assert scheduled.status_code == 422
    assert len(await bob.history(room)) == 1
    plain = await ann.open("group", bob, name="g")
    refused = await post(ann, plain, to_each(bob))
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "encrypted")


BODY = text(b"body")
DEVICE = {"userId": new_id(), "deviceId": new_id(), "type": "message", "body": BODY}
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "both": ({"content": "plain", "encrypted": to_all()}, "content"),
    "neither": ({}, "content"),
    "silent-and-plain": ({"content": "plain", "kind": "control"}, "encrypted"),
    "another-scheme": ({"encrypted": {"scheme": "rot13", "body": BODY}}, "encrypted.scheme"),
    "no-scheme": ({"encrypted": {"keyId": KEY_ID, "body": BODY}}, "encrypted.scheme"),
    "no-object": ({"encrypted": BODY}, "encrypted"),
    "unknown-field": ({"encrypted": {**to_all(), "note": "x"}}, "encrypted.note"),
    "no-envelope": ({"encrypted": to_each()}, "encrypted.envelopes"),
    "another-type": (
        {"encrypted": {"scheme": "double-ratchet", "envelopes": [{**DEVICE, "type": "x"}]}}, "encrypted.envelopes[0].type",
    ),
    "no-id": (
        {"encrypted": {"scheme": "double-ratchet", "envelopes": [{**DEVICE, "deviceId": "x"}]}},
        "encrypted.envelopes[0].deviceId",
    ),
    "twice": (
        {"encrypted": {"scheme": "double-ratchet", "envelopes": [DEVICE, DEVICE]}}, "encrypted.envelopes[1].deviceId",
    ),
    "padded": ({"encrypted": {**to_all(), "body": BODY + "=="}}, "encrypted.body"),
    "standard-alphabet": ({"encrypted": {**to_all(), "body": "+/+/"}}, "encrypted.body"),
    "not-canonical": ({"encrypted": {**to_all(), "body": "AB"}}, "encrypted.body"),
    "one-left": ({"encrypted": {**to_all(), "body": "AAAAA"}}, "encrypted.body"),
    "line-break": ({"encrypted": {**to_all(), "body": "AAAA\n"}}, "encrypted.body"),
    "not-ascii": ({"encrypted": {**to_all(), "body": "\u00e9\u00e9\u00e9\u00e9"}}, "encrypted.body"),
    "empty": ({"encrypted": {**to_all(), "body": ""}}, "encrypted.body"),
    "envelope-body": (
        {"encrypted": {"scheme": "double-ratchet", "envelopes": [{**DEVICE, "body": "A="}]}},
        "encrypted.envelopes[0].body",
    ),
    "too-large": ({"encrypted": to_all(bytes(limits.CIPHERTEXT_BYTES_MAX + 1))}, "encrypted.body"),
    "key-id": ({"encrypted": {**to_all(), "keyId": "a+b"}}, "encrypted.keyId"),
    "key-id-line": ({"encrypted": {**to_all(), "keyId": "ab\n"}}, "encrypted.keyId"),
    "key-id-long": ({"encrypted": {**to_all(), "keyId": "a" * 65}}, "encrypted.keyId"),
    "digest": ({"encrypted": to_all(devicesDigest="x")}, "encrypted.devicesDigest"),
    "keys-for-all": ({"encrypted": to_all(), "kind": "key-distribution"}, "encrypted.scheme"),
    "silent-reply": ({"encrypted": to_all(), "kind": "control", "replyToId": new_id()}, "replyToId"),
    "silent-mention": ({"encrypted": to_all(), "kind": "control", "mentions": ["all"]}, "mentions"),
    "silent-expiry": ({"encrypted": to_all(), "kind": "control", "expiresInSeconds": 5}, "expiresInSeconds"),
    "silent-forward": ({"encrypted": to_all(), "kind": "control", "forwardedFromId": new_id()}, "forwardedFromId"),
    "poll": ({"encrypted": to_all(), "kind": "poll", "poll": {"options": ["a", "b"]}}, "poll"),
    "media": ({"encrypted": to_all(), "mediaIds": [new_id()]}, "mediaIds"),
    "system": ({"encrypted": to_all(), "kind": "system"}, "kind"),
}  # fmt: skip


async def test_hostile_forms_are_refused_by_the_field_that_is_wrong_through_both_doors(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    group = await ann.open("group", bob, encryption="e2ee", name="g")
    async with ann.wire() as wire:
        for why, (form, path) in HOSTILE.items():
            answer = await ann.http.post(f"/conversations/{group}/messages", json={"tempId": "h", **form})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), (why, answer.text)
            assert [each["path"] for each in answer.json()["errors"]] == [path], why
            await wire.say("message:send", conversationId=group, tempId="h", **form)
            error = await wire.refused("invalid-request")
            assert path in error["detail"] and error["tempId"] == "h", why
    assert (await ann.view(group))["sequenceNumber"] == 0


async def test_the_largest_body_goes_through_both_doors_and_back(house: House) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    largest = bytes(range(256)) * (limits.CIPHERTEXT_BYTES_MAX // 256)
    mentions = [bob.id] * limits.MENTIONS_MAX
    async with ann.wire() as wire, bob.wire() as heard:
        for number, encrypted in enumerate((to_all(largest), to_each(bob, body=largest))):
            await wire.say(
                "message:send", conversationId=room, tempId=f"t-{number}", encrypted=encrypted, mentions=mentions
            )
            await wire.hear("message:ack")
            assert (await heard.hear("message:new"))["message"]["encrypted"] == encrypted
            assert (await posted(ann, room, encrypted))["sequenceNumber"] == 2 * number + 2
            await heard.hear("message:new")
    [*_, last] = await bob.history(room)
    assert raw(last["encrypted"]["envelopes"][0]["body"]) == largest


async def test_pages_of_large_ciphertext_end_early_and_all_of_them_together_miss_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SYNC_ANSWER_BYTES_MAX", 8000)
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    for number in range(12):
        await posted(ann, room, to_all(bytes(2000)) if number % 2 else to_each(bob, body=bytes(2000)))
    for start, step in (({}, "before"), ({"after": 0}, "after")):
        found, query = list[int](), dict[str, Any](start)
        while True:
            answer = await bob.http.get(f"/conversations/{room}/messages", params={"limit": 200, **query})
            page = answer.raise_for_status().json()
            assert len(page["items"]) == 3 or not page["next"]
            found += [message["sequenceNumber"] for message in page["items"]]
            if page["next"] is None:
                break
            query[step] = page["next"]
        assert sorted(found) == list(range(1, 13))


async def test_ciphertext_counts_in_the_budget_of_bytes(tmp_path: Path) -> None:
    chosen = {"limits__messages_per_second": "1000", "limits__message_kib_per_second": "10"}
    async with open_house(tmp_path / "data", **chosen) as house:
        [ann], [bob] = await with_devices(house, 2)
        room = await ann.open("direct", bob, encryption="e2ee")
        answers = [await post(ann, room, to_each(bob, body=bytes(12 * 1024))) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 429, 429]


# --- when it goes -------------------------------------------------------------------------------------------------------


async def test_an_envelope_goes_with_the_mark_of_its_device_and_no_other(house: House) -> None:
    [ann], (bob, tablet) = [(await with_devices(house, 1))[0], (await with_devices(house, 1, each=2))[0]]
    room = await ann.open("direct", bob, encryption="e2ee")
    for _ in range(3):
        await posted(ann, room, to_each(bob, tablet))
    await acknowledge(bob, room, 2)
    left = [(each.device_id, each.sequence) for each in await envelopes(house, room)]
    assert sorted(left) == sorted([(bob.device_id, 3), *[(tablet.device_id, number) for number in (1, 2, 3)]])
    assert [message["encrypted"]["envelopes"] != [] for message in await bob.history(room)] == [False, False, True]
    async with bob.wire(cursors={room: 0}) as wire:
        assert [message["encrypted"]["envelopes"] != [] for message in news(wire.missed)] == [False, False, True]
    async with tablet.wire(cursors={room: 3}):  # what it says that it has counts as delivered
        await house.app.domain.receipts.flush()
    assert [each.device_id for each in await envelopes(house, room)] == [bob.device_id]


async def test_one_body_for_all_goes_once_every_device_but_the_sending_one_has_it(house: House) -> None:
    [ann, laptop], [bob], [cem] = [
        *(await with_devices(house, 1, each=2)), *(await with_devices(house, 2)),
    ]  # fmt: skip
    group = await ann.open("group", bob, cem, encryption="e2ee", name="g")
    for number in range(1, 4):
        await posted(ann, group, to_all(b"%d" % number), kind="control" if number == 2 else "text")
    for device, sequence in ((bob, 3), (laptop, 2), (cem, 1)):
        await house.app.ciphertexts.sweep()
        assert (await bodies(house, group)) == [b"1", b"2", b"3"]
        await acknowledge(device, group, sequence)
    await house.app.ciphertexts.sweep()
    assert (await bodies(house, group)) == [b"", b"2", b"3"]
    [first, third] = await cem.history(group)
    assert first["encrypted"] == {"scheme": "sender-key", "keyId": KEY_ID, "body": None} and first["content"] is None
    assert third["encrypted"] == to_all(b"3")
    for device in (laptop, cem):
        await acknowledge(device, group, 3)
    await house.app.ciphertexts.sweep()
    assert (await bodies(house, group)) == [b"", b"", b""]
    assert await house.app.store.get(Undropped, group) is None
    await posted(bob, group, to_all(b"4"))
    await acknowledge(ann, group, 4)
    await acknowledge(laptop, group, 4)
    await house.app.ciphertexts.sweep()
    assert (await bodies(house, group)) == [b"", b"", b"", b"4"]


async def test_a_moment_after_the_last_acknowledgement_it_goes_by_itself(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CIPHERTEXT_SECONDS", 0.05)
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    await posted(ann, room, to_all())
    async with bob.wire() as wire:
        await wire.say("message:ack", conversationId=room, sequenceNumber=1)
        while await bodies(house, room) != [b""]:
            await wire.fence()


async def bodies(house: House, room: str) -> list[bytes]:
    """What is left of sender-key messages, silent ones too."""
    store = house.app.store
    entries: list[LogEntry] = [
        *await store.scan(LogEntry, room, limit=99), *await store.scan(Amendment, room, limit=99),
    ]  # fmt: skip
    entries.sort(key=lambda entry: entry.sequence)
    return [entry.event.content.body for entry in entries if hasattr(entry.event, "content")]


async def test_after_the_days_that_the_operator_chose_it_goes_although_nobody_has_it(
    house: House, clock: FakeClock
) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    await posted(ann, room, to_each(bob))
    await posted(ann, room, to_all(), kind="control")
    clock.advance(days=40)
    ann = await house.sign_up(ann.phone_number, deviceId=ann.device_id)
    fresh = await posted(ann, room, to_each(bob))
    clock.advance(days=19.9)
    await house.app.ciphertexts.sweep()
    assert len(await envelopes(house, room)) == 2 and (await bodies(house, room))[1] == b"for all"
    clock.advance(days=0.2)
    await house.app.ciphertexts.sweep()
    assert [each.sequence for each in await envelopes(house, room)] == [fresh["sequenceNumber"]]
    assert (await bodies(house, room))[1] == b""
    undropped = await house.app.store.get(Undropped, room)
    assert undropped is not None and undropped.sequence == 3
    assert len(await stored(house, room)) == 2, "that they were sent remains"


async def test_what_is_deleted_for_everyone_or_disappears_takes_its_envelopes_along(
    house: House, clock: FakeClock
) -> None:
    [ann], [bob] = await with_devices(house, 2)
    room = await ann.open("direct", bob, encryption="e2ee")
    gone = await posted(ann, room, to_each(bob))
    await posted(ann, room, to_each(bob), expiresInSeconds=60)
    body = await posted(ann, room, to_all())
    for message in (gone, body):
        (await ann.http.delete(f"/messages/{message['id']}", params={"forEveryone": "true"})).raise_for_status()
    assert [each.sequence for each in await envelopes(house, room)] == [2]
    clock.advance(seconds=60)
    await house.app.timers.tick()
    assert await envelopes(house, room) == [] and not any(
        content.body for content in [entry.event.content for entry in await stored(house, room)] if content is not None
    )
    [first, *_] = await bob.history(room)
    assert first["content"] is None and "encrypted" not in first


async def stored(house: House, room: str) -> list[Any]:
    return list(await house.app.store.scan(LogEntry, room, limit=99))


async def test_who_is_out_leaves_no_envelopes_behind_nor_does_a_removed_device(house: House) -> None:
    (ann, laptop), (bob, tablet) = await with_devices(house, 2, each=2)
    [cem] = (await with_devices(house, 1))[0]
    group = await ann.open("group", bob, cem, encryption="e2ee", name="g")
    room = await ann.open("direct", bob, encryption="e2ee")
    await posted(ann, group, to_each(laptop, bob, tablet, cem))
    await posted(ann, room, to_each(laptop, bob, tablet))
    (await ann.http.delete(f"/conversations/{group}/members/{cem.id}")).raise_for_status()
    assert {each.device_id for each in await envelopes(house, group)} == {
        laptop.device_id, bob.device_id, tablet.device_id,
    }  # fmt: skip
    (await bob.http.delete(f"/devices/{tablet.device_id}")).raise_for_status()
    await house.app.timers.tick()
    for place in (group, room):
        assert {each.device_id for each in await envelopes(house, place)} == {laptop.device_id, bob.device_id}


async def test_what_only_a_device_lacks_that_is_gone_is_dropped(house: House) -> None:
    [ann], (bob, tablet) = [(await with_devices(house, 1))[0], (await with_devices(house, 1, each=2))[0]]
    room = await ann.open("direct", bob, encryption="e2ee")
    await posted(ann, room, to_all())
    await acknowledge(bob, room, 1)
    await house.app.ciphertexts.sweep()
    assert await bodies(house, room) == [b"for all"]
    (await bob.http.delete(f"/devices/{tablet.device_id}")).raise_for_status()
    await house.app.ciphertexts.sweep()
    assert await bodies(house, room) == [b""]


async def test_of_a_deleted_conversation_and_an_erased_account_no_ciphertext_is_left(
    house: House, clock: FakeClock
) -> None:

    [ann], [bob] = await with_devices(house, 2)
    [cem] = (await with_devices(house, 1))[0]
    group = await ann.open("group", bob, encryption="e2ee", name="g")
    kept = await ann.open("group", cem, encryption="e2ee", name="k")
    for place, other in ((group, bob), (kept, cem)):
        await posted(ann, place, to_each(other))
        await posted(ann, place, to_all(), kind="control")
    (await ann.http.delete(f"/conversations/{group}")).raise_for_status()
    await purge(house.app.store, clock)
    assert await envelopes(house, group) == []
    for kind in (LogEntry, Amendment, Undropped, Delivery):
        assert await house.app.store.scan(kind, group, limit=9) == []
    (await cem.http.delete("/users/me")).raise_for_status()
    clock.advance(days=31)
    await house.app.timers.tick()
    assert await envelopes(house, kept) == []
