"""Devices that were away for long, and servers that crash or are put back: people go on talking, and read everything."""

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from gearlink.clock import Clock, new_id
from gearlink.sdk import Options, Unreachable, open_client
from gearlink.sdk.secure.client import SecureClient, open_secure
from gearlink.sdk.secure.told import Recovered
from storage.embedded import open_store
from storage.migrations import EPOCH, META
from tests.house import SECONDS_MAX, House, open_house
from tests.messengers import Messenger, Phone, phones, switched_on
from tests.process import ServerProcess, running

ANN, BOB, CID = "+15551230001", "+15551230002", "+15551230003"
DAY = 86_400.0
LASTING: dict[str, Any] = {
    "auth__refresh_token_days": "365",
    "auth__access_token_minutes": "1440",
    "retention__ciphertext_days": "60",
}


@dataclass
class Calendar:
    """The time of the server and of its devices."""

    days: float = 0.0

    def wall(self) -> float:
        return time.time() + self.days * DAY

    @property
    def options(self) -> Options:
        return Options(wall=self.wall)


@asynccontextmanager
async def away(
    house: House, calendar: Calendar, days: int
) -> AsyncIterator[tuple[Messenger, Messenger, Phone, str, str]]:
    """Cid's device is off for so many days; Ann talks to him and to a group at the beginning, and her device is on at the
    end of them, too. Both conversations were used before."""
    anns, bobs, cids = await phones(house, ANN, BOB, CID)
    async with anns.on(calendar.options) as ann, bobs.on(calendar.options) as bob:
        async with cids.on(calendar.options) as cid:
            direct, group = await ann.direct(cid), await ann.group(bob, cid)
            await ann.say(direct, "hello")
            await ann.say(group, "hello all")
            await cid.hears("hello", "hello all")
            await cid.say(direct, "hi")
            await ann.hears("hi")
        await ann.say(direct, "are you there?")
        await ann.say(group, "is he there?")
        for _week in range(days // 7):
            calendar.days += 7
            for each in (ann, bob):
                await each.secure.keeping.renew()  # another signed pre-key
            await ann.say(group, f"week {calendar.days:.0f}")
            await house.app.ciphertexts.sweep()
        yield ann, bob, cids, direct, group


async def test_who_was_away_for_a_month_reads_all_of_it_at_once(tmp_path: Path) -> None:
    calendar = Calendar()
    async with (
        open_house(tmp_path / "data", clock=Clock(calendar.wall), **LASTING) as house,
        away(house, calendar, 31) as (ann, _bob, cids, direct, group),
        cids.on(calendar.options) as cid,
    ):
        weeks = [f"week {each}" for each in (7, 14, 21, 28)]
        await cid.hears("are you there?", "is he there?", *weeks)
        await cid.say(direct, "I am back")
        await cid.say(group, "me too")
        await ann.hears("I am back", "me too")
        assert await cid.kept(group) == ["hello all", "is he there?", *weeks, "me too"]
        assert not await cid.unreadable() and not await ann.unreadable()
        assert not cid.noticed and not ann.noticed


async def test_who_was_away_for_longer_than_the_server_keeps_ciphertext_is_told_again_by_who_said_it(
    tmp_path: Path,
) -> None:
    calendar = Calendar()
    async with (
        open_house(tmp_path / "data", clock=Clock(calendar.wall), **LASTING) as house,
        away(house, calendar, 70) as (ann, _bob, cids, direct, group),
        cids.on(calendar.options) as cid,
    ):
        weeks = [f"week {each}" for each in range(7, 71, 7)]
        await cid.hears("are you there?", "is he there?", *weeks)
        assert {each.message.content for each in cid.heard if isinstance(each, Recovered)} >= {"is he there?"}
        await cid.say(direct, "I am back")
        await cid.say(group, "me too")
        await ann.hears("I am back", "me too")
        assert await cid.kept(direct) == ["hello", "hi", "are you there?", "I am back"]
        assert await cid.kept(group) == ["hello all", "is he there?", *weeks, "me too"]
        assert not cid.suspicions


# --- the server ------------------------------------------------------------------------------------------------------


async def _another_epoch(data: Path) -> None:
    """What was put back is another store than the one that went on."""
    async with open_store(data, now=0, fresh_id="") as store:
        await store._engine.commit([(META, EPOCH, new_id().encode())])


async def test_after_a_restart_and_after_a_restore_people_go_on_and_read_everything(tmp_path: Path) -> None:
    data, backup = tmp_path / "data", tmp_path / "backup"
    async with open_house(data) as house:
        devices = await phones(house, ANN, BOB, CID)
        async with switched_on(devices) as (ann, bob, cid):
            group, direct = await ann.group(bob, cid), await bob.direct(cid)
            await ann.say(group, "one")
            await cid.say(direct, "psst")
            await cid.hears("one")
            await bob.hears("one", "psst")
        address = house.url.removeprefix("http://")
    shutil.copytree(data, backup)
    async with open_house(data, server__listen=address), switched_on(devices) as (ann, bob, cid):
        await ann.say(group, "after the restart", "and more")
        await bob.say(direct, "yes?")
        await bob.say(group, "fine")
        await cid.hears("after the restart", "and more", "yes?", "fine")
        await ann.hears("fine")
        for each in (ann, bob, cid):
            assert not await each.unreadable() and not each.noticed
    shutil.rmtree(data)
    backup.rename(data)
    await _another_epoch(data)
    async with open_house(data, server__listen=address), switched_on(devices) as (ann, bob, cid):
        await bob.say(group, "is this an old server?")
        await ann.say(group, "it seems so")
        await cid.say(direct, "I still hear you")
        await bob.say(direct, "good")
        await ann.hears("is this an old server?")
        await bob.hears("it seems so", "I still hear you")
        await cid.hears("is this an old server?", "it seems so", "good")
        said = ["one", "after the restart", "and more", "fine"]
        for each in (ann, bob, cid):
            assert [text for text in await each.kept(group) if text in said] == said
            assert all(text is not None for text in await each.kept(group))
            assert not each.suspicions


async def test_what_was_acknowledged_survives_kill_9_and_what_is_sent_again_is_there_once(tmp_path: Path) -> None:
    data, log, quick = tmp_path / "data", tmp_path / "log", Options(backoff_seconds_max=0.5)
    anns, bobs = (Phone(None, number) for number in (ANN, BOB))  # type: ignore[arg-type]
    port = 0
    acknowledged: list[str] = []
    async with trio.open_nursery() as nursery:
        server = ServerProcess(data, log)
        with running(server):
            url = await trio.to_thread.run_sync(server.url)
            port = int(url.rpartition(":")[2])
            for phone in (anns, bobs):
                async with open_client(url, phone.state) as client:
                    asked = await client.request_code(phone.phone_number)
                    code = await trio.to_thread.run_sync(server.code, phone.phone_number)
                    await client.confirm(asked.verification_id, code, "a phone", "desktop")

            async def talk(secure: SecureClient, room: str) -> None:
                for number in range(60):
                    with trio.fail_after(SECONDS_MAX):
                        await _say(secure, room, f"text {number}")
                    acknowledged.append(f"text {number}")

            async with (
                open_client(url, anns.state, quick) as annc, open_secure(annc, anns.vault) as ann, annc.connect(),
                open_client(url, bobs.state, quick) as bobc, open_secure(bobc, bobs.vault) as bob, bobc.connect(),
            ):  # fmt: skip
                messenger = Messenger(bob)
                nursery.start_soon(messenger.listen)
                room = (await ann.groups.create("group", [bob.device.own.user_id], name="g", description=None)).id
                async with trio.open_nursery() as talking:
                    talking.start_soon(talk, ann, room)
                    for _time in range(2):
                        done = len(acknowledged)
                        with trio.fail_after(SECONDS_MAX):
                            while len(acknowledged) < done + 10:
                                await trio.lowlevel.checkpoint()
                        await trio.to_thread.run_sync(server.kill)
                        server = ServerProcess(data, log, port=port)
                        await trio.to_thread.run_sync(server.url)
                with running(server):
                    await messenger.hears(*acknowledged)
                    assert await messenger.kept(room) == acknowledged == [f"text {number}" for number in range(60)]
                    assert not await messenger.unreadable() and not messenger.noticed
                    views = [view async for page in bobc.history(room) for view in page if view.kind == "text"]
                    assert len(views) == 60
                nursery.cancel_scope.cancel()


async def _say(secure: SecureClient, room: str, text: str) -> None:
    """Until it is there: under one name, however often it takes."""
    temp_id = f"t-{text}"
    while True:
        try:
            await secure.send(room, text, temp_id)
        except Unreachable:
            await trio.sleep(0.05)
        else:
            return
