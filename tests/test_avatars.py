"""Pictures of people and groups, told with a real server: who sees which, and what becomes of the old ones."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config import limits
from gearlink.images import clean_image
from storage.records import Avatar
from tests import pictures
from tests.house import House, Person, open_house
from tests.pictures import CANARY, exif, jpeg, png, webp

PNG = {"Content-Type": "image/png"}
PREFIX = "/api/v1"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with open_house(tmp_path / "data") as house:
        yield house


async def put(person: Person, data: bytes, path: str = "/users/me/avatar", kind: str = "image/png") -> httpx.Response:
    return await person.http.put(path, content=data, headers={"Content-Type": kind})


async def put_well(person: Person, data: bytes, path: str = "/users/me/avatar") -> str:
    """Where the picture is to be found, below the prefix."""
    answer = await put(person, data, path)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["avatarUrl"]).removeprefix(PREFIX)


async def profile(person: Person, of: Person) -> dict[str, Any]:
    found: dict[str, Any] = (await person.http.get(f"/users/{of.id}")).raise_for_status().json()
    return found


def count(house: House) -> Any:
    """How many pictures are stored."""
    return house.app.store.scan(Avatar, limit=100)


async def test_a_photo_from_a_phone_is_shown_to_others_without_what_it_tells_of_its_owner(house: House) -> None:
    ann, bob = await house.people(2)
    assert (await profile(bob, ann))["avatarUrl"] is None
    photo = jpeg(exif(6), *pictures.JPEG_METADATA, end=b"\xff\xd9" + CANARY)
    url = await put_well(ann, photo)
    assert (await profile(bob, ann))["avatarUrl"] == PREFIX + url
    seen = await bob.http.get(url)
    assert (seen.status_code, seen.headers["content-type"]) == (200, "image/jpeg")
    assert seen.content == clean_image(photo)[1] and b"canary" not in seen.content
    assert seen.headers["cache-control"] == "private, max-age=31536000, immutable"
    again = await bob.http.get(url, headers={"If-None-Match": seen.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


async def test_what_a_picture_is_is_seen_from_the_picture(house: House) -> None:
    (ann,) = await house.people(1)
    for data, kind in ((png(), "image/png"), (webp(pictures.lossless()), "image/webp"), (jpeg(), "image/jpeg")):
        shown = await ann.http.get(await put_well(ann, data))  # each is sent as a PNG
        assert (shown.headers["content-type"], shown.content) == (kind, data)


async def test_a_new_picture_takes_the_place_of_the_old_one(house: House) -> None:
    (ann,) = await house.people(1)
    first = await put_well(ann, png())
    second = await put_well(ann, png(width=17))
    assert first != second
    assert (await ann.http.get(first)).status_code == 404
    assert (await ann.http.get(second)).content == png(width=17)
    assert len(await count(house)) == 1


async def test_the_same_picture_again_is_the_same_picture(house: House) -> None:
    (ann,) = await house.people(1)
    first = await put_well(ann, png())
    assert await put_well(ann, png(end=CANARY)) == first
    assert len(await count(house)) == 1


async def test_a_picture_that_is_taken_away_is_gone(house: House) -> None:
    ann, bob = await house.people(2)
    url = await put_well(ann, png())
    for _ in range(2):  # the second time there is none
        assert (await ann.http.delete("/users/me/avatar")).status_code == 204
    assert (await profile(bob, ann))["avatarUrl"] is None
    assert (await bob.http.get(url)).status_code == 404
    assert await count(house) == []


async def test_a_picture_outlives_a_restart(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data") as house:
        (ann,) = await house.people(1)
        url = await put_well(ann, png())
    async with open_house(tmp_path / "data") as house:
        ann = await house.back(ann)
        assert (await ann.http.get(url)).content == png()


REFUSED = {
    "nothing": (b"", "image/png", "unsupported-media-type"),
    "svg": (b"<svg/>", "image/png", "unsupported-media-type"),
    "said-to-be-svg": (png(), "image/svg+xml", "unsupported-media-type"),
    "json": (b"{}", "application/json", "unsupported-media-type"),
    "cut-off": (png()[:-1], "image/png", "invalid-request"),
    "wide": (png(width=4097), "image/png", "invalid-request"),
    "large": (png(end=bytes(limits.AVATAR_BYTES_MAX)), "image/png", "too-large"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_no_picture_that_can_be_used_is_refused(house: House, name: str) -> None:
    data, kind, code = REFUSED[name]
    (ann,) = await house.people(1)
    url = await put_well(ann, png())
    assert (await put(ann, data, kind=kind)).json()["code"] == code
    assert (await ann.http.get(url)).status_code == 200, "the old one stays"


async def test_a_picture_of_the_largest_size_is_taken(house: House) -> None:
    (ann,) = await house.people(1)
    filler = pictures.chunk(b"IDAT", bytes(limits.AVATAR_BYTES_MAX - len(png()) - 12))
    data = png(filler)
    assert len(data) == limits.AVATAR_BYTES_MAX
    assert (await ann.http.get(await put_well(ann, data))).content == data


async def test_pictures_are_for_those_who_are_signed_in(house: House) -> None:
    (ann,) = await house.people(1)
    url = await put_well(ann, png())
    async with house.http() as stranger:
        assert (await stranger.get(url)).status_code == 401
        assert (await stranger.put("/users/me/avatar", content=png(), headers=PNG)).status_code == 401
    assert (await ann.http.get(f"/avatars/{ann.id}")).status_code == 404


async def test_a_picture_that_is_not_in_the_profile_that_somebody_sees_is_not_shown_to_them(house: House) -> None:
    ann, bob, eve = await house.people(3)
    url = await put_well(bob, png())
    (await bob.http.put(f"/blocks/{eve.id}")).raise_for_status()
    assert (await profile(eve, bob))["avatarUrl"] is None
    assert [(await person.http.get(url)).status_code for person in (ann, bob, eve)] == [200, 200, 404]
    (await bob.http.delete("/users/me")).raise_for_status()
    assert (await ann.http.get(url)).status_code == 404


async def test_somebody_who_changes_pictures_all_day_has_to_wait(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob, name="Garden")
    for turn in range(limits.AVATAR_CHANGES_PER_HOUR):
        path = f"/conversations/{group}/avatar" if turn % 2 else "/users/me/avatar"
        await put_well(ann, png(width=16 + turn), path)
    answer = await put(ann, png())
    assert (answer.status_code, answer.json()["code"]) == (429, "rate-limited")
    assert int(answer.headers["retry-after"]) > 0
    await put_well(bob, png())


# --- conversations ---------------------------------------------------------------------------------------------------


async def test_the_picture_of_a_group_is_told_to_its_members_and_stands_in_its_history(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob, name="Garden", description="Tomatoes")
    assert (await bob.view(group))["avatarUrl"] is None
    path = f"/conversations/{group}/avatar"
    async with bob.wire() as wire:
        url = await put_well(ann, png(*pictures.PNG_METADATA), path)
        told = await wire.hear("conversation:updated")
        assert (told["sequenceNumber"], told["actorId"], told["avatarUrl"]) == (1, ann.id, PREFIX + url)
        assert (told["name"], told["description"]) == ("Garden", "Tomatoes")
        assert (await ann.http.delete(path)).status_code == 204
        assert (await wire.hear("conversation:updated"))["avatarUrl"] is None
    assert [message["kind"] for message in await bob.history(group)] == ["system", "system"]
    assert (await bob.view(group))["avatarUrl"] is None
    assert await count(house) == []


async def test_a_group_that_is_shown_has_its_picture(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob, name="Garden")
    url = await put_well(ann, png(), f"/conversations/{group}/avatar")
    assert (await bob.view(group))["avatarUrl"] == PREFIX + url
    listed = (await bob.http.get("/conversations")).json()["items"]
    assert [each["avatarUrl"] for each in listed] == [PREFIX + url]
    assert (await bob.http.get(url)).content == png()


async def test_the_same_picture_of_a_group_again_is_no_event(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob, name="Garden")
    path = f"/conversations/{group}/avatar"
    assert await put_well(ann, png(), path) == await put_well(ann, png(), path)
    assert (await ann.view(group))["sequenceNumber"] == 1
    for _ in range(2):
        assert (await ann.http.delete(path)).status_code == 204
    assert (await ann.view(group))["sequenceNumber"] == 2


async def test_a_new_picture_of_a_group_leaves_those_of_its_members_alone(house: House) -> None:
    ann, bob = await house.people(2)
    group = await ann.open("group", bob, name="Garden")
    own = await put_well(ann, png())
    for width in (20, 30):
        await put_well(ann, png(width=width), f"/conversations/{group}/avatar")
    assert (await bob.http.get(own)).status_code == 200
    assert len(await count(house)) == 2


async def test_who_may_not_change_a_group_may_not_change_its_picture(house: House) -> None:
    ann, bob, eve = await house.people(3)
    group, direct = await ann.open("group", bob, name="Garden"), await ann.open("direct", bob)
    url = await put_well(ann, png(), f"/conversations/{group}/avatar")
    for person, place, status in ((bob, group, 403), (eve, group, 404), (ann, direct, 403), (eve, direct, 404)):
        path = f"/conversations/{place}/avatar"
        for data in (png(width=20), b"no picture"):
            assert (await put(person, data, path)).status_code == status
        assert (await person.http.delete(path)).status_code == status
    assert (await ann.view(group))["avatarUrl"] == PREFIX + url
    assert len(await count(house)) == 1
