"""Looking at the lively room while nobody is in it: its history, single messages, counts, and what a device replays.

Timers go on while it is looked at: messages go out and disappear. So counts are compared with a reading only if the
conversation's newest number stood still over both; else it is looked at again.
"""

import json
import random

import httpx
import trio

from tests.proof.client import Identity, Unexpected, World, body_of, now_ms, socket_to
from tests.proof.records import Count, Mark, Reading, Replay
from tests.proof.room import Room, number_of, shown_of

_PAGE, _SYNC_PAGE = 200, 1000
_TRIES = 10
_SINGLE = 8  # messages that are asked for by their id
_DUE_SECONDS_MAX = 30.0
_REPLAY_SECONDS_MAX = 60.0


async def look(room: Room, people: list[Identity], chance: random.Random, *, is_last: bool = False) -> None:
    """What one of these people is shown, or at the end each of them; all their counts; a replay from the start."""
    readers = people if is_last else [chance.choice(people)]
    for reader in readers:
        async with room.world.http(reader.access_token) as http:
            for _try in range(_TRIES):
                if await _read_and_count(room, http, reader, people, is_last):
                    break
            else:
                if is_last:
                    raise Unexpected("the lively room does not come to rest")
            await _read_singles(room, http, reader)
            await _sync(room, http)


async def _read_and_count(
    room: Room, http: httpx.AsyncClient, reader: Identity, people: list[Identity], is_last: bool
) -> bool:
    """Reads the history, then the counts; False if something came in between."""
    newest = (await _view(room, http))["sequenceNumber"]
    reading = await _read(room, http, reader, is_last)
    counts = []
    for each in people:
        async with room.world.http(each.access_token) as theirs:
            view = await _view(room, theirs)
        if view["sequenceNumber"] != newest:
            return False
        counted = (view["readSequenceNumber"], view["unreadCount"], view["mentionCount"])
        counts.append(Count(reading, each.user_id, *counted, now_ms()))
    room.records.counts += counts
    for count in counts:
        room.world.ledger.marks.append(Mark("", room.id, count.user_id, "read", count.read))
    return True


async def _view(room: Room, http: httpx.AsyncClient) -> dict[str, int]:
    found: dict[str, int] = body_of(await room.ask(http, "GET", f"/conversations/{room.id}"))
    return found


async def _read(room: Room, http: httpx.AsyncClient, reader: Identity, is_last: bool) -> Reading:
    reading = Reading(room.world.next_order(), now_ms(), 0, reader.user_id, [], is_last=is_last)
    after = "0"
    while after:
        query = {"after": after, "limit": _PAGE}
        page = body_of(await room.ask(http, "GET", f"/conversations/{room.id}/messages", params=query))
        for message in page["items"]:
            if (shown := shown_of(message)) is not None:
                room.saw(message)
                reading.shown.append(shown)
        after = page["next"]
    reading.ended_at = now_ms()
    room.records.readings.append(reading)
    return reading


async def _read_singles(room: Room, http: httpx.AsyncClient, reader: Identity) -> None:
    """The messages that something was done to last, and the last that were to disappear."""
    reading = Reading(room.world.next_order(), now_ms(), 0, reader.user_id, [], is_whole=False)
    disappearing = [saying.message_id for saying in room.known if saying.expires_in]
    amended = [deed.message_id for deed in room.records.deeds if deed.answered]
    for message_id in dict.fromkeys([*amended[-_SINGLE:], *disappearing[-_SINGLE:]]):
        answer = await room.ask(http, "GET", f"/messages/{message_id}")
        if answer.status_code == 404:
            reading.missing.append(message_id)
        elif (shown := shown_of(body_of(answer))) is not None:
            reading.shown.append(shown)
    reading.ended_at = now_ms()
    room.records.readings.append(reading)


async def _sync(room: Room, http: httpx.AsyncClient) -> None:
    """All that a device hears which has no socket and knows nothing yet."""
    told = room.told("POST /sync from the start")
    replay = Replay(told.name, room.id, "", 0, upto=(await _view(room, http))["sequenceNumber"])
    room.records.replays.append(replay)
    form = {"cursors": {room.id: 0}, "limit": _SYNC_PAGE}
    while True:
        answer = body_of(await http.post("/sync", json=form))
        for frame in answer["events"]:
            room.heard(frame, json.dumps(frame), told, replay)
        if answer["complete"]:
            return
        if "reload" in answer:
            raise Unexpected("the lively room cannot be replayed from its start")
        form = {"epoch": answer["epoch"], "cursors": answer["cursors"], "limit": _SYNC_PAGE}


async def replay_anew(world: World, room: Room, device: Identity, conversations: list[str]) -> None:
    """What a fresh device hears of these conversations from their start, until it stands in the present."""
    told = room.told(f"the socket of fresh device {device.device_id}")
    replays = {}
    async with world.http(device.access_token) as http:
        for conversation_id in conversations:
            end = body_of(await http.get(f"/conversations/{conversation_id}"))["sequenceNumber"]
            replays[conversation_id] = Replay(told.name, conversation_id, "", 0, upto=end)
    async with socket_to(world.url) as socket:
        auth = {"accessToken": device.access_token, "cursors": dict.fromkeys(conversations, 0)}
        await socket.send_message(json.dumps({"type": "auth", **auth}))
        with trio.fail_after(_REPLAY_SECONDS_MAX):
            while True:
                text = await socket.get_message()
                frame = json.loads(text)
                if frame["type"] == "sync:done":
                    if not frame["complete"]:
                        raise Unexpected(f"fresh device {device.device_id} is told that its replay is not complete")
                    break
                if number_of(frame):
                    about = frame["message"] if frame["type"] == "message:new" else frame
                    room.heard(frame, text, told, replays[about["conversationId"]])
    room.records.replays += replays.values()


async def wait_for_due(room: Room, people: list[Identity]) -> None:
    """Until all that was scheduled is sent, and all that was to disappear has: then the checker can say what is lost."""
    times = [time for each in room.records.sayings.values() for time in (each.send_at, each.expires_at)]
    await trio.sleep(max(0, max(times, default=0) - now_ms()) / 1000)
    with trio.move_on_after(_DUE_SECONDS_MAX):
        for each in people:
            async with room.world.http(each.access_token) as http:
                while True:
                    if not body_of(await http.get(f"/conversations/{room.id}/scheduled"))["items"]:
                        break
                    await trio.sleep(0.2)
