"""Rosters on a running server: signed by many at once, brought by whoever has them, told to those who are connected."""

import json
from typing import Any

import httpx
import pytest
import trio

from config import limits
from gearlink.clock import new_id
from gearlink.purge import purge
from gearlink.sdk import Refused
from storage.records import RosterStatement
from tests.changes import putting
from tests.house import House, Person
from tests.signers import Signer
from tests.test_sdk_areas import Party, all_of, me


async def signer_of(person: Person) -> Signer:
    """The person's device, whose keys and certificate the server has."""
    signer = Signer(person.id, person.device_id)
    await person.house.app.store.write(putting(*signer.records()))
    return signer


class Group:
    """An encrypted group of people each of whom has signing devices. The first one owns it, the second is an admin."""

    def __init__(self, people: list[Person], signers: list[Signer], conversation_id: str) -> None:
        self.people, self.signers, self.id = people, signers, conversation_id
        self.path = f"/conversations/{conversation_id}/roster"

    async def publish(self, statement: str, signer: Signer, by: Person) -> httpx.Response:
        return await by.http.post(self.path, json=signer.form(statement))

    async def roster(self, person: Person, **query: Any) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (
            (await person.http.get(self.path, params=query)).raise_for_status().json()["items"]
        )
        return items


async def found(house: House, count: int = 3, kind: str = "group") -> Group:
    people = await house.people(count)
    conversation_id = await people[0].open(kind, *people[1:], encryption="e2ee")
    path = f"/conversations/{conversation_id}/members/{people[1].id}"
    (await people[0].http.patch(path, json={"role": "admin"})).raise_for_status()
    return Group(people, [await signer_of(person) for person in people], conversation_id)


@pytest.mark.parametrize("kind", ["group", "channel"])
async def test_members_read_what_was_signed_and_hear_when_there_is_more(house: House, kind: str) -> None:
    group = await found(house, kind=kind)
    owner, _admin, member = group.people
    stranger = await house.sign_up()
    signer, first = group.signers[0], group.signers[0].statement(group.id, None)
    async with member.wire() as wire, owner.wire() as own, stranger.wire() as outside:
        answer = await group.publish(first, signer, by=member)
        assert (answer.status_code, answer.json()) == (201, {"version": 1})
        again = await group.publish(first, signer, by=owner)
        assert (again.status_code, again.json()) == (200, {"version": 1})
        news = {"type": "roster:changed", "conversationId": group.id, "version": 1}
        assert [await wire.fence(), await own.fence(), await outside.fence()] == [[news], [news], []]
    assert await group.roster(member) == [{"version": 1, **signer.form(first)}]
    assert await group.roster(member, after=1) == []
    for call in (stranger.http.get(group.path), stranger.http.post(group.path, json=signer.form(first))):
        assert (await call).status_code == 404


async def test_of_statements_that_are_signed_at_once_one_follows_and_the_others_hear_which_version(
    house: House,
) -> None:
    group = await found(house, 8)
    first = group.signers[0].statement(group.id, None)
    (await group.publish(first, group.signers[0], group.people[0])).raise_for_status()
    answers: list[httpx.Response] = []

    async def race(number: int) -> None:
        signer = group.signers[number % 2]
        statement = signer.statement(group.id, first, (group.people[number].id, "member"))
        answers.append(await group.publish(statement, signer, group.people[number % 2]))

    async with trio.open_nursery() as nursery:
        for number in range(2, 8):
            nursery.start_soon(race, number)
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5
    problems = [answer.json() for answer in answers if answer.is_error]
    assert {(each["code"], each["version"]) for each in problems} == {("roster-conflict", 2)}
    assert [each["version"] for each in await group.roster(group.people[5])] == [1, 2]


async def test_a_chain_of_many_hands_is_whole_when_everybody_signs_anew_after_a_conflict(house: House) -> None:
    group = await found(house, 2)
    rounds = 6
    (
        await group.publish(group.signers[0].statement(group.id, None), group.signers[0], group.people[0])
    ).raise_for_status()

    async def one_hand(number: int) -> None:
        person, signer, done = group.people[number], group.signers[number], 0
        while done < rounds:
            newest = (await group.roster(person))[-1]["statement"]
            answer = await group.publish(signer.statement(group.id, newest, (new_id(), "member")), signer, person)
            assert answer.status_code in (201, 409), answer.text
            done += answer.status_code == 201

    async with trio.open_nursery() as nursery:
        for number in (0, 1):
            nursery.start_soon(one_hand, number)
    chain = await group.roster(group.people[1])
    assert [each["version"] for each in chain] == [*range(1, 2 * rounds + 2)]
    text = None
    for each in chain:  # the hash of the one before stands in each
        assert (
            json.loads(each["statement"])["previous"]
            == json.loads(group.signers[0].statement(group.id, text))["previous"]
        )
        text = each["statement"]


async def test_foreign_forged_and_hostile_statements_are_refused_and_leave_nothing(house: House) -> None:
    group = await found(house)
    _owner, admin, member = group.people
    signer, stranger = group.signers[0], await signer_of(await house.sign_up())
    first = signer.statement(group.id, None)
    of_stranger = stranger.statement(group.id, None)
    for body, status in (
        (stranger.form(of_stranger), 403),
        (group.signers[1].form(group.signers[1].statement(group.id, None)), 403),
        ({**signer.form(first), "signature": stranger.sign(first)}, 422),
        (signer.form(signer.statement(new_id(), None)), 422),
        (signer.form("x" * limits.ROSTER_STATEMENT_BYTES_MAX * 2), 413),
        (signer.form("x" * limits.ROSTER_STATEMENT_BYTES_MAX + "x"), 422),
        (signer.form("[" * 60_000), 422),
        (signer.form("\u0000"), 422),
        ({"statement": first}, 422),
        ({"statement": None, "signature": "A" * 86}, 422),
        ({**signer.form(first), "signature": "A" * 85}, 422),
    ):
        answer = await member.http.post(group.path, json=body)
        assert answer.status_code == status, answer.text
    raw = b'{"statement": "\\ud800", "signature": "%s"}' % (b"A" * 86)
    headers = {"Content-Type": "application/json"}
    assert (await member.http.post(group.path, content=raw, headers=headers)).status_code == 400
    for query in ({"after": -1}, {"after": "x"}, {"limit": 201}, {"cursor": "1"}):
        assert (await member.http.get(group.path, params=query)).status_code == 422
    assert await group.roster(admin) == []


async def test_the_largest_statements_come_back_page_by_page(house: House, nursery: trio.Nursery) -> None:
    party = Party(house, nursery)
    ann = await party.newcomer("ann")
    signer = Signer(me(ann), ann.state.device_id or "")
    await house.app.store.write(putting(*signer.records()))
    group = await ann.create_conversation("group", encryption="e2ee")
    texts: list[str] = []
    for _ in range(6):
        after = texts[-1] if texts else None
        members = [(new_id(), "member") for _ in range(limits.ROSTER_CHANGES_MAX - 1)]
        wide = json.loads(signer.statement(group.id, after, (me(ann), "owner"), *members))
        texts.append(json.dumps(wide, separators=(",", ":")).ljust(limits.ROSTER_STATEMENT_BYTES_MAX))
        assert await ann.publish_roster(group.id, texts[-1], signer.sign(texts[-1])) == len(texts)
    assert [each.statement for each in await all_of(ann.roster(group.id))] == texts
    assert [each.version for each in await all_of(ann.roster(group.id, 4))] == [5, 6]
    late = signer.statement(group.id, texts[3])
    with pytest.raises(Refused) as refused:
        await ann.publish_roster(group.id, late, signer.sign(late))
    assert (refused.value.code, refused.value.version) == ("roster-conflict", 6)


async def test_in_an_encrypted_group_nobody_comes_in_unsigned(house: House) -> None:
    group = await found(house)
    owner, here = group.people[0], f"/conversations/{group.id}"
    everyone = {"settings": {"invite": "everyone"}}
    for answer in (
        await owner.http.patch(here, json=everyone),
        await owner.http.post("/conversations", json={"type": "channel", "encryption": "e2ee", **everyone}),
        await owner.http.post(f"{here}/links", json={}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
    form = {"type": "group", "encryption": "e2ee", "memberIds": [new_id() for _ in range(limits.E2EE_MEMBERS_MAX)]}
    answer = await owner.http.post("/conversations", json=form)
    assert (answer.status_code, answer.json()["code"]) == (409, "too-many")
    (await owner.http.post(f"{here}/links", json={"needsApproval": True})).raise_for_status()


async def test_a_conversation_that_is_deleted_takes_its_roster_along(house: House) -> None:
    group = await found(house)
    owner, signer = group.people[0], group.signers[0]
    (await group.publish(signer.statement(group.id, None), signer, owner)).raise_for_status()
    (await owner.http.delete(f"/conversations/{group.id}")).raise_for_status()
    assert (await owner.http.get(group.path)).status_code == 404
    await purge(house.app.store, house.app.clock)
    assert await house.app.store.scan(RosterStatement, limit=10) == []
