"""Who gets in where, for every call and every frame: the outcome is worked out from the declaration, then tried.

A call or frame says which right it needs (`Route.right`, `FrameRoute.right`); who holds it follows from the rules
(`rights.holders`). Each is tried by everybody: owner, admin, member, a stranger, somebody who left, somebody who was
banned, each side of a block, dead sessions of every kind, in a direct conversation, a group and a channel. Outside there
is nothing (404, the same answer as for what never existed), inside without the right it is forbidden, and with it the
call is done. A new call or frame is tried without a line here, as soon as its form has an example.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from msgspec import structs

from gearlink import calls, protocol
from gearlink.clock import new_id
from gearlink.http_api.routes import ROUTES
from gearlink.http_api.table import Route
from gearlink.rights import RIGHTS, Right, holders
from gearlink.ws_frames import FRAMES, FrameRoute
from storage.events import ConversationType, Role
from storage.records import Conversation
from tests import pictures
from tests.handsets import Handset, Owner
from tests.house import House, Person, Wire, open_house, open_wire
from tests.http_examples import OTHER, example_of

NEEDS_NO_RIGHT = {
    "DELETE /conversations/{conversationId}/requests": "one's own request, by somebody who is not in yet",
}
"""Calls about a conversation or message that declare no right, and why. All others declare one."""
SILENCED = {Right.SEND, Right.REACT, Right.PIN, Right.SET_TIMER}
"""What is over between two as soon as one of them blocks the other."""
FRAME_FIELDS: dict[str, Any] = {
    "content": "canary", "tempId": "t-frame", "sequenceNumber": 1, "emoji": "\N{THUMBS UP SIGN}", "options": [0],
    "forEveryone": False,
}  # fmt: skip
"""What stands in a frame of an example, besides ids."""
POLL = {"kind": "poll", "poll": {"options": ["yes", "no"]}}
QUERIES = {"/users": {"username": "nobody"}}
ENDS_THE_SESSION = {"POST /auth/logout", "DELETE /users/me", "DELETE /devices/{deviceId}"}
DELETES_THE_MESSAGE = "DELETE /messages/{messageId}"
ENCRYPTED_ONLY = "/conversations/{conversationId}/roster"
"""What only encrypted groups have: to others' members it is no valid request (`tests/flows/test_rosters.py`)."""
ABOUT_CONVERSATIONS = [route for route in ROUTES if {"conversationId", "messageId"} & set(route.ids)]
ELSEWHERE = [route for route in ROUTES if route not in ABOUT_CONVERSATIONS]


def name_of(route: Route) -> str:
    return f"{route.method} {route.path}"


class Town:
    """Everybody whom the tests need. Nobody but `boss` is an admin of the server."""

    def __init__(self, house: House, people: list[Person]) -> None:
        self.house = house
        self.boss, self.owner, self.admin, self.member, self.victim, *others = people
        self.stranger, self.leaver, self.banned, self.asker, self.newcomer, self.blocker, self.blocked = others

    def inside(self, kind: ConversationType) -> list[tuple[Person, Role]]:
        if kind == "direct":
            return [(self.member, "member")]
        return [(self.owner, "owner"), (self.admin, "admin"), (self.member, "member")]

    def outside(self, kind: ConversationType) -> list[Person]:
        return [self.stranger] if kind == "direct" else [self.stranger, self.leaver, self.banned]


class Place:
    """A conversation in which each of `authors` has written a text and a poll, and the ids of all that is there."""

    def __init__(self, town: Town, conversation_id: str, owner: Person) -> None:
        self.town, self.id, self.owner = town, conversation_id, owner
        self.texts: dict[str, str] = {}
        self.polls: dict[str, str] = {}
        self.links: dict[str, str] = {}
        self.asker_link = ""

    async def stored(self) -> Conversation:
        found = await self.town.house.app.store.get(Conversation, self.id)
        assert found is not None
        return found

    async def write(self, *authors: Person) -> None:
        for author in authors:
            for ids, more in ((self.texts, {}), (self.polls, POLL)):
                answer = await author.post(self.id, "canary", new_id(), **more)
                ids[author.id] = answer.raise_for_status().json()["id"]

    async def link(self, *makers: Person) -> None:
        for maker in makers:
            answer = await maker.http.post(f"/conversations/{self.id}/links", json={"needsApproval": True})
            link = answer.raise_for_status().json()
            self.links[maker.id], self.asker_link = link["id"], link["code"]

    async def ask_to_be_let_in(self) -> None:
        (await self.town.asker.http.post(f"/join/{self.asker_link}")).raise_for_status()

    def ids(self, route: Route, actor: Person) -> dict[str, str]:
        """What `actor` puts into the path: things of their own where there are some."""
        messages = self.polls if "/poll" in route.path or "/vote" in route.path else self.texts
        return {
            "conversationId": self.id,
            "messageId": messages.get(actor.id) or messages.get(self.owner.id, ""),
            "userId": (self.town.asker if "/requests" in route.path else self.town.victim).id,
            "linkId": self.links.get(actor.id) or self.links.get(self.owner.id, ""),
        }


async def set_role(actor: Person, place: Place, target: Person, role: Role) -> None:
    path = f"/conversations/{place.id}/members/{target.id}"
    (await actor.http.patch(path, json={"role": role})).raise_for_status()


async def found_direct(town: Town, one: Person, other: Person) -> Place:
    place = Place(town, await one.open("direct", other), one)
    await place.write(one, other)
    return place


async def found(town: Town, kind: ConversationType, route: Route | None = None) -> Place:
    """A fresh place with what `route` needs; without one with everything and everybody."""
    if kind == "direct":
        return await found_direct(town, town.member, await town.house.sign_up())
    path, everybody = route.path if route else "", route is None
    guests = [town.leaver, town.banned] if everybody else []
    place = Place(town, await town.owner.open(kind, town.admin, town.member, town.victim, *guests), town.owner)
    await set_role(town.owner, place, town.admin, "admin")
    here = f"/conversations/{place.id}"
    if everybody or "{messageId}" in path:
        await town.owner.http.patch(here, json={"settings": {"write": "everyone"}})
        await place.write(town.owner, town.admin, town.member, *guests)
        await town.owner.http.patch(here, json={"settings": {"write": "admins" if kind == "channel" else "everyone"}})
    if everybody or "/links" in path or "/requests" in path:
        await place.link(town.owner, town.admin)
    if everybody or "/requests/{" in path:
        await place.ask_to_be_let_in()
    if everybody:
        (await town.leaver.http.delete(f"{here}/members/{town.leaver.id}")).raise_for_status()
        (await town.owner.http.delete(f"{here}/members/{town.banned.id}")).raise_for_status()
        (await town.owner.http.put(f"{here}/bans/{town.banned.id}")).raise_for_status()
    return place


async def ask(route: Route, actor: httpx.AsyncClient, ids: dict[str, str], newcomer: str) -> httpx.Response:
    """The call with its example; what is not among `ids` is the id of nothing."""
    texts = {"emoji": quote("\N{THUMBS UP SIGN}"), "code": "x" * 24, "number": "0"} | ids
    path = route.path.format(**{name: texts.get(name) or new_id() for name in route.ids})
    if route.takes:
        picture = {"image/png": pictures.png(), "image/jpeg": pictures.jpeg()}.get(route.takes[0], b"sealed")
        return await actor.request(route.method, path, content=picture, headers={"Content-Type": route.takes[0]})
    body = example_of(route.body)
    if route.body is calls.CertificateForm and "keysOf" in ids:  # a signature names whose device it is about
        body = Owner().certify(ids["keysOf"], ids["deviceId"], Handset())
    if body is not None:  # whom it names is nobody in the example, and somebody here
        there = {OTHER: newcomer, str([OTHER]): [newcomer]}
        body = {key: there.get(str(value), value) for key, value in body.items()}
    return await actor.request(route.method, path, json=body, params=QUERIES.get(route.path))


def outcome(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"] if answer.is_error else ""


def named(answer: httpx.Response) -> dict[str, Any]:
    """The problem without what is of this request alone."""
    return {key: value for key, value in answer.json().items() if key != "correlationId"}


def refusal_of(conversation: Conversation, role: Role, right: Right) -> str:
    """The code with which a member of this role is refused; empty if they may."""
    if role not in holders(conversation, right):
        return "forbidden"
    return "refused-by-privacy" if conversation.is_blocked and right in SILENCED else ""


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    async with open_house(tmp_path / "data") as house:
        yield Town(house, await house.people(12))


# --- what the tables say ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ABOUT_CONVERSATIONS, ids=name_of)
def test_a_call_about_a_conversation_or_a_message_declares_the_right_that_it_needs(route: Route) -> None:
    assert (route.right is None) == (name_of(route) in NEEDS_NO_RIGHT)
    assert route.needs != "nobody"


@pytest.mark.parametrize("route", FRAMES, ids=lambda route: route.type)
def test_a_frame_about_a_conversation_or_a_message_declares_the_right_that_it_needs(route: FrameRoute) -> None:
    names = {field.name for field in structs.fields(route.form)}
    assert (route.right is not None) == bool({"conversation_id", "message_id"} & names)


# --- calls about conversations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", RIGHTS)
async def test_a_conversation_does_not_exist_for_those_outside_of_it(town: Town, kind: ConversationType) -> None:
    place = await found(town, kind)
    before = await place.owner.view(place.id)
    for person in town.outside(kind):
        for route in ABOUT_CONVERSATIONS:
            answer = await ask(route, person.http, place.ids(route, person), town.newcomer.id)
            assert outcome(answer) == (404, "not-found"), (person.phone_number, name_of(route))
            nowhere = {"userId": place.ids(route, person)["userId"]}
            assert named(answer) == named(await ask(route, person.http, nowhere, town.newcomer.id)), name_of(route)
    assert await place.owner.view(place.id) == before


@pytest.mark.parametrize("kind", RIGHTS)
async def test_a_member_may_do_what_the_declared_right_allows_and_nothing_else(
    town: Town, kind: ConversationType
) -> None:
    shared = await found(town, kind)
    conversation = await shared.stored()
    for route in ABOUT_CONVERSATIONS:
        if route.right is None:
            continue
        for person, role in town.inside(kind):
            refusal = refusal_of(conversation, role, route.right)
            # What is done changes the place, so it is done in one of its own.
            place = shared if refusal or route.method == "GET" else await found(town, kind, route)
            answer = await ask(route, person.http, place.ids(route, person), town.newcomer.id)
            where = (name_of(route), role, answer.text)
            if refusal:
                assert outcome(answer) == (403, refusal), where
            elif route.path == ENCRYPTED_ONLY:
                assert outcome(answer) == (422, "invalid-request"), where
            else:
                assert answer.is_success, where


async def test_between_two_of_whom_one_blocked_the_other_nothing_new_is_said(town: Town) -> None:
    place = await found_direct(town, town.blocker, town.blocked)
    (await town.blocker.http.put(f"/blocks/{town.blocked.id}")).raise_for_status()
    conversation = await place.stored()
    refused = set()
    for route in sorted(ABOUT_CONVERSATIONS, key=lambda route: name_of(route) == DELETES_THE_MESSAGE):
        if route.right is None:
            continue
        for person in (town.blocker, town.blocked):
            refusal = refusal_of(conversation, "member", route.right)
            answer = await ask(route, person.http, place.ids(route, person), town.newcomer.id)
            if refusal:
                assert outcome(answer) == (403, refusal), name_of(route)
                refused.add(refusal)
            elif route.path == ENCRYPTED_ONLY:
                assert outcome(answer) == (422, "invalid-request"), name_of(route)
            else:
                assert answer.is_success, (name_of(route), answer.text)
    assert refused == {"forbidden", "refused-by-privacy"}


@pytest.mark.parametrize("kind", RIGHTS)
async def test_leaving_needs_another_right_than_removing(town: Town, kind: ConversationType) -> None:
    for person, role in town.inside(kind):
        place = await found(town, kind)
        answer = await person.http.delete(f"/conversations/{place.id}/members/{person.id}")
        if role not in holders(await place.stored(), Right.LEAVE):
            assert outcome(answer) == (403, "forbidden")
        else:
            assert outcome(answer) == ((409, "last-owner") if role == "owner" else (204, ""))


async def test_a_request_is_taken_back_by_the_one_who_asked_and_by_nobody_else(town: Town) -> None:
    place = await found(town, "group")
    path = f"/conversations/{place.id}/requests"
    for person in (town.owner, town.member, town.stranger, town.leaver, town.banned):
        assert outcome(await person.http.delete(path)) == (404, "not-found")
    assert (await place.owner.view(place.id))["joinRequestCount"] == 1
    assert outcome(await town.asker.http.delete(path)) == (204, "")
    assert outcome(await town.asker.http.delete(path)) == (404, "not-found")


# --- all other calls -------------------------------------------------------------------------------------------------


async def own_things(town: Town, person: Person) -> dict[str, str]:
    """Ids of what is this person's own, and of others whom they may act on."""
    place = await person.open("group")
    scheduled = await person.http.post(f"/conversations/{place}/scheduled", json=example_of(calls.ScheduleForm))
    link = await town.owner.http.post(f"/conversations/{await town.owner.open('group')}/links", json={})
    headers = {"Content-Type": "image/png"}
    avatar = await person.http.put("/users/me/avatar", content=pictures.png(), headers=headers)
    archive = f"/archives/{person.device_id}"  # any id will do, and another one each time would be too many
    (await person.http.put(archive, json={"kind": "backup"})).raise_for_status()
    octets = {"Content-Type": "application/octet-stream"}
    (await person.http.put(f"{archive}/chunks/0", content=b"sealed", headers=octets)).raise_for_status()
    (await person.http.put("/keys", json=example_of(calls.KeysForm))).raise_for_status()
    return {
        "keysOf": person.id,
        "archiveId": person.device_id,
        "userId": town.victim.id,
        "deviceId": person.device_id,
        "scheduledId": scheduled.raise_for_status().json()["id"],
        "code": link.raise_for_status().json()["code"],
        "avatarId": avatar.raise_for_status().json()["avatarUrl"].rpartition("/")[2],
    }


async def test_every_other_call_is_open_to_whom_it_is_declared_for(town: Town) -> None:
    for route in ELSEWHERE:
        if route.needs == "nobody":  # everybody here came in over these
            continue
        person = await town.house.sign_up() if name_of(route) in ENDS_THE_SESSION else town.member
        ids = await own_things(town, person)
        answer = await ask(route, person.http, ids, town.newcomer.id)
        if route.needs == "admin":
            assert outcome(answer) == (403, "forbidden"), name_of(route)
            answer = await ask(route, town.boss.http, ids, town.newcomer.id)
        assert answer.is_success, (name_of(route), answer.text)
        assert (name_of(route) in ENDS_THE_SESSION) == ((await person.http.get("/users/me")).status_code == 401)
    pair = await town.member.http.post("/auth/refresh", json={"refreshToken": town.member.refresh_token})
    assert outcome(pair) == (200, "")


async def test_what_is_somebody_elses_own_does_not_exist(town: Town) -> None:
    theirs = await own_things(town, town.member)
    tried = 0
    for route in ELSEWHERE:
        if {"deviceId", "scheduledId"} & set(route.ids):
            for person in (town.stranger, town.boss):
                answer = await ask(route, person.http, theirs, "")
                assert outcome(answer) == (404, "not-found"), name_of(route)
                assert named(answer) == named(await ask(route, person.http, {}, "")), name_of(route)
                tried += 1
    assert tried >= 6
    assert outcome(await town.member.http.get("/users/me")) == (200, "")


# --- dead sessions ---------------------------------------------------------------------------------------------------


async def end_sessions(town: Town, people: list[Person]) -> None:
    """One is suspended, one deletes their account, one signs out, and the device of one is removed."""
    suspended, deleted, left, removed = people
    other = await removed.another_device()
    for answer in (
        await town.boss.http.put(f"/users/{suspended.id}/suspension"),
        await deleted.http.delete("/users/me"),
        await left.http.post("/auth/logout"),
        await other.http.delete(f"/devices/{removed.device_id}"),
    ):
        answer.raise_for_status()


async def test_nothing_opens_to_a_session_that_is_over_or_never_was(town: Town) -> None:
    people = await town.house.people(4)
    conversation = await town.owner.open("group", *people)
    place = Place(town, conversation, town.owner)
    await place.write(town.owner, *people)
    await end_sessions(town, people)
    clients = [person.http for person in people]
    tokens = [person.access_token for person in people]
    for token in ("", "x", f"{town.owner.access_token}x"):
        client = await town.house.at_end.enter_async_context(town.house.http())
        client.headers.update({"Authorization": f"Bearer {token}"} if token else {})
        clients, tokens = [*clients, client], [*tokens, token]
    for route in ROUTES:
        for number, client in enumerate(clients):
            actor = people[number] if number < len(people) else town.owner
            ids = place.ids(route, actor) | {"deviceId": actor.device_id}
            answer = await ask(route, client, ids, town.newcomer.id)
            if route.needs == "nobody":
                assert "not-authenticated" not in answer.text, name_of(route)
            else:
                assert outcome(answer) == (401, "not-authenticated"), name_of(route)
    for token in filter(None, tokens):
        async with open_wire(town.house) as wire:
            await wire.say("auth", accessToken=token)
            await wire.refused("not-authenticated")
            assert await wire.closed() == 4401


# --- frames ----------------------------------------------------------------------------------------------------------


def fields_of(route: FrameRoute, conversation_id: str, message_id: str) -> dict[str, Any]:
    """The frame with something in each field that it needs."""
    known = {"conversationId": conversation_id, "messageId": message_id, **FRAME_FIELDS}
    needed = {each.encode_name for each in structs.fields(route.form) if each.required}
    assert needed <= set(known), f"{route.type}: {needed - set(known)} wants an example in FRAME_FIELDS"
    if route.form in (protocol.SetDraft, protocol.Send):  # without content the one is given up, the other encrypted
        needed.add("content")
    return {name: known[name] for name in needed}


async def say(wire: Wire, route: FrameRoute, fields: dict[str, Any]) -> dict[str, Any]:
    """The answer: what brings the `ref` back."""
    ref = new_id()
    await wire.say(route.type, ref=ref, **fields)
    while (frame := await wire.hear_any()).get("ref") != ref:
        pass
    del frame["ref"]
    return frame


def frames_about_conversations() -> list[FrameRoute]:
    """Deleting comes last: what is gone cannot be acted on."""
    return sorted((route for route in FRAMES if route.right), key=lambda route: route.form is protocol.Delete)


def message_for(route: FrameRoute, place: Place, actor: Person) -> str:
    messages = place.polls if route.form is protocol.Vote else place.texts
    return messages.get(actor.id) or messages[place.owner.id]


async def expect(wire: Wire, route: FrameRoute, place: Place, actor: Person, refusal: str) -> None:
    answer = await say(wire, route, fields_of(route, place.id, message_for(route, place, actor)))
    expected = ("error", refusal) if refusal else (route.answer.__struct_config__.tag, None)
    assert (answer["type"], answer.get("code")) == expected, (route.type, answer)


@pytest.mark.parametrize("kind", RIGHTS)
async def test_a_frame_is_refused_to_exactly_those_who_may_not_say_it(town: Town, kind: ConversationType) -> None:
    place = await found(town, kind)
    conversation = await place.stored()
    async with place.owner.wire() as witness:
        for person in town.outside(kind):
            async with person.wire() as wire:
                for route in frames_about_conversations():
                    await expect(wire, route, place, person, "not-found")
                    here = await say(wire, route, fields_of(route, place.id, message_for(route, place, person)))
                    assert here == await say(wire, route, fields_of(route, new_id(), new_id())), route.type
        assert await witness.fence() == []
    for person, role in town.inside(kind):
        async with person.wire() as wire:
            for route in frames_about_conversations():
                assert route.right is not None
                await expect(wire, route, place, person, refusal_of(conversation, role, route.right))


async def test_frames_between_two_of_whom_one_blocked_the_other_say_nothing_new(town: Town) -> None:
    place = await found_direct(town, town.blocker, town.blocked)
    (await town.blocker.http.put(f"/blocks/{town.blocked.id}")).raise_for_status()
    conversation = await place.stored()
    for person in (town.blocker, town.blocked):
        async with person.wire() as wire:
            for route in frames_about_conversations():
                assert route.right is not None
                await expect(wire, route, place, person, refusal_of(conversation, "member", route.right))
