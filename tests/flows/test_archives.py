"""Archives on a running server: written from one device and read by another, through broken uploads, restarts and time."""

import os
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from config import limits
from gearlink.clock import DAY, new_id
from gearlink.sdk import Refused
from storage.records import Archive, ArchiveChunk
from tests.fakes import FakeClock
from tests.flows.test_keys import client_of, sign_up
from tests.house import SECONDS_MAX, House, Person, open_house
from tests.process import ServerProcess, running
from tests.test_sdk_areas import Party, all_of

OCTETS = {"Content-Type": "application/octet-stream"}


async def make(person: Person, archive_id: str, kind: str = "backup") -> httpx.Response:
    return await person.http.put(f"/archives/{archive_id}", json={"kind": kind})


async def put(person: Person, archive_id: str, number: int | str, data: bytes) -> httpx.Response:
    return await person.http.put(f"/archives/{archive_id}/chunks/{number}", content=data, headers=OCTETS)


async def get(person: Person, archive_id: str, number: int | str) -> httpx.Response:
    return await person.http.get(f"/archives/{archive_id}/chunks/{number}")


async def test_one_device_writes_and_another_of_the_same_user_reads_over_the_sdk(
    house: House, nursery: trio.Nursery
) -> None:
    party, archive_id = Party(house, nursery), new_id()
    old = await party.newcomer("ann")
    new = await party.newcomer("ann's laptop", party.phone("ann"))
    stranger = await party.newcomer("bob")
    chunks = [b"manifest", os.urandom(limits.ARCHIVE_CHUNK_BYTES_MAX), b"\0"]
    await old.make_archive(archive_id, "transfer")
    for number, data in enumerate(chunks):
        await old.put_chunk(archive_id, number, data)
    [seen] = await all_of(new.archives())
    assert (seen.archive_id, seen.kind, seen.device_id) == (archive_id, "transfer", old.state.device_id)
    assert (seen.chunk_count, seen.size_bytes) == (3, sum(map(len, chunks)))
    assert [await new.get_chunk(archive_id, number) for number in range(3)] == chunks
    for call in (partial(stranger.get_chunk, archive_id, 0), partial(stranger.put_chunk, archive_id, 3, b"x")):
        with pytest.raises(Refused, match="no such thing"):
            await call()
    await stranger.delete_archive(archive_id)
    assert await new.get_chunk(archive_id, 0) == b"manifest"
    await new.delete_archive(archive_id)
    await new.delete_archive(archive_id)
    assert await all_of(old.archives()) == []
    assert await house.app.store.scan(ArchiveChunk, limit=10) == []
    await new.report_decryption({"no-session": 2})


async def test_a_chunk_is_answered_as_bytes_that_no_browser_takes_for_more_and_no_cache_keeps(house: House) -> None:
    ann, archive_id = await house.sign_up(), new_id()
    assert (await make(ann, archive_id)).status_code == 201
    assert (await make(ann, archive_id)).status_code == 200
    assert (await put(ann, archive_id, 0, b"<script>")).status_code == 204
    answer = await get(ann, archive_id, 0)
    assert answer.content == b"<script>"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store" and "etag" not in answer.headers
    assert answer.headers["content-disposition"].startswith("attachment")
    assert (await get(ann, archive_id, 1)).status_code == 404


async def test_hostile_sizes_numbers_and_types_are_refused_and_change_nothing(house: House) -> None:
    ann, archive_id = await house.sign_up(), new_id()
    (await make(ann, archive_id)).raise_for_status()
    largest = limits.ARCHIVE_CHUNK_BYTES_MAX
    for data, status in ((b"", 422), (bytes(largest + 1), 413), (bytes(largest), 204)):
        assert (await put(ann, archive_id, 0, data)).status_code == status, len(data)
    for number in ("00", "01", "-1", "+1", "1.0", "x", "٣", "1234567", "%30%30", ""):
        assert (await put(ann, archive_id, number, b"x")).status_code == 404, number
        assert (await get(ann, archive_id, number)).status_code == 404, number
    for number in ("2", "999999"):
        assert (await put(ann, archive_id, number, b"x")).status_code == 422
    for headers in ({"Content-Type": "application/json"}, {}, OCTETS | {"Content-Encoding": "gzip"}):
        path = f"/archives/{archive_id}/chunks/0"
        assert (await ann.http.put(path, content=b"{}", headers=headers)).status_code == 415
    for body in ({"kind": "secret"}, {}, {"kind": "backup", "sizeBytes": 1}, {"kind": None}):
        assert (await ann.http.put(f"/archives/{new_id()}", json=body)).status_code == 422
    assert (await make(ann, "not-an-id")).status_code == 404
    [view] = (await ann.http.get("/archives")).json()["items"]
    assert (view["chunkCount"], view["sizeBytes"]) == (1, largest)


async def test_chunks_that_come_at_once_leave_no_hole_and_no_wrong_size(house: House) -> None:
    ann, archive_id = await house.sign_up(), new_id()
    (await make(ann, archive_id)).raise_for_status()
    taken: dict[int, bytes] = {}

    async def write(number: int, data: bytes) -> None:
        answer = await put(ann, archive_id, number, data)
        assert answer.status_code in (204, 422), answer.text

    async with trio.open_nursery() as nursery:
        for number in range(30):
            for size in (10, 20):
                nursery.start_soon(write, number % 10, bytes(size))
    [view] = (await ann.http.get("/archives")).json()["items"]
    for number in range(view["chunkCount"]):
        taken[number] = (await get(ann, archive_id, number)).content
    assert view["chunkCount"] >= 1 and sum(map(len, taken.values())) == view["sizeBytes"]
    assert (await get(ann, archive_id, view["chunkCount"])).status_code == 404


async def test_the_quota_may_change_while_the_server_runs(tmp_path: Path) -> None:
    async with open_house(tmp_path / "data", limits__archive_mib="1") as house:
        ann, archive_id = await house.sign_up(), new_id()
        (await make(ann, archive_id)).raise_for_status()
        numbers = iter(range(100))
        while (answer := await put(ann, archive_id, next(numbers), bytes(128 << 10))).status_code == 204:
            pass
        assert (answer.status_code, answer.json()["code"]) == (409, "quota-exceeded")
        [view] = (await ann.http.get("/archives")).json()["items"]
        assert (view["chunkCount"], view["sizeBytes"]) == (8, 1 << 20)
    async with open_house(tmp_path / "data", limits__archive_mib="0") as house:
        ann = await house.back(ann)
        assert (await get(ann, archive_id, 7)).content == bytes(128 << 10)
        refused = await make(ann, new_id())
        assert (refused.status_code, refused.json()["code"]) == (409, "quota-exceeded")
        assert (await ann.http.delete(f"/archives/{archive_id}")).status_code == 204


async def test_a_transfer_ends_by_itself_also_when_its_time_came_while_the_server_was_down(tmp_path: Path) -> None:
    clock, ids = FakeClock(), [new_id(), new_id()]
    async with open_house(tmp_path / "data", clock=clock, auth__refresh_token_days="30") as house:
        ann = await house.sign_up()
        for archive_id, kind in zip(ids, ("transfer", "backup"), strict=True):
            (await make(ann, archive_id, kind)).raise_for_status()
            (await put(ann, archive_id, 0, b"sealed")).raise_for_status()
        [transfer] = [each for each in (await ann.http.get("/archives")).json()["items"] if "expiresAt" in each]
        assert transfer["archiveId"] == ids[0]
    clock.advance(seconds=limits.TRANSFER_DAYS * DAY / 1000)
    async with open_house(tmp_path / "data", clock=clock) as house:
        with trio.fail_after(SECONDS_MAX):
            while len(await house.app.store.scan(ArchiveChunk, limit=10)) > 1:
                await trio.lowlevel.checkpoint()
        while len(left := await house.app.store.scan(Archive, limit=10)) > 1:
            await trio.lowlevel.checkpoint()
        assert [each.archive_id for each in left] == [ids[1]]


async def test_a_report_is_counted_and_nothing_of_it_is_kept(house: House) -> None:
    ann = await house.sign_up()
    for body, status in (
        ({"counts": {"no-session": 2, "misdirected": 1}}, 204),
        ({"counts": {"no-session": 1}}, 204),
        ({"counts": {}}, 422),
        ({"counts": {"no-session": 0}}, 422),
        ({"counts": {"no-session": limits.DECRYPTION_COUNT_MAX + 1}}, 422),
        ({"counts": {"canary": 1}}, 422),
        ({"counts": {"no-session": 1}, "messageId": new_id()}, 422),
    ):
        answer = await ann.http.post("/reports/decryption", json=body)
        assert answer.status_code == status, answer.text
    registry = house.app.metrics.registry
    counted = {
        reason: registry.get_sample_value("gearlink_undecryptable_total", {"reason": reason})
        for reason in ("no-session", "misdirected", "canary")
    }
    assert counted == {"no-session": 3, "misdirected": 1, "canary": None}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")
async def test_what_was_answered_survives_a_kill_and_the_upload_goes_on(tmp_path: Path) -> None:
    start, archive_id = partial(ServerProcess, tmp_path / "data", tmp_path / "log"), new_id()
    path, answered = f"/archives/{archive_id}", 0
    chunks = [os.urandom(50_000) for _ in range(12)]
    with running(start()) as server:
        token = (await sign_up(server, "+15551230001"))["accessToken"]
        async with client_of(server, token) as http:
            (await http.put(path, json={"kind": "backup"})).raise_for_status()
            for answered in range(1, 6):
                body = chunks[answered - 1]
                (await http.put(f"{path}/chunks/{answered - 1}", content=body, headers=OCTETS)).raise_for_status()
            server.strike()
        await trio.to_thread.run_sync(server.kill)
    with running(start()) as server:
        async with client_of(server, token) as http:
            [view] = (await http.get("/archives")).raise_for_status().json()["items"]
            assert view["chunkCount"] == answered == 5
            for number in range(view["chunkCount"], len(chunks)):
                (await http.put(f"{path}/chunks/{number}", content=chunks[number], headers=OCTETS)).raise_for_status()
            found = [(await http.get(f"{path}/chunks/{number}")).content for number in range(len(chunks))]
    assert found == chunks
