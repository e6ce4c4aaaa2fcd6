"""The figures of somebody who opens the client: a conversation, the list of them, and a sync that has nothing to tell.

What is measured is one call after the other on one connection to a server with nothing else to do, so a figure is the time
that somebody waits. What stands in the store was written before the server started (`tests.bench.seeding`).
"""

import json
from functools import partial

from tests.bench.report import Figure, percentile
from tests.bench.seeding import Ground
from tests.bench.stage import Stage
from tests.bench.wire import BenchFailed, Http

_PAGE = 50
_RATIO_MAX = 1.25  # what "costs the same" may cost more


# --- a conversation --------------------------------------------------------------------------------------------------


def conversation(stage: Stage) -> list[Figure]:
    """The conversation and its newest page, 50 unread, every message edited or reacted to; beside a short history."""
    sizes = stage.scale.amended
    group_ids: list[str] = []

    async def sowing(ground: Ground) -> None:
        people = await ground.people(2)
        for size in sizes:
            group_ids.append(await ground.group(people, messages=size, amended=True, unread=_PAGE))

    found: list[list[float]] = [[] for _ in sizes]
    with stage.server(sowing=sowing) as served:
        person = served.sign_up(2)[1]
        http = Http(served.port, person.access_token)
        for group_id in group_ids:
            _check(http, group_id)
        for _ in range(stage.scale.repetitions):
            times: list[list[float]] = [[] for _ in sizes]
            for _ in range(stage.scale.calls):
                for place, group_id in enumerate(group_ids):  # in turn, so that a disturbance is everybody's
                    times[place].append(_open_ms(http, group_id))
            for place, each in enumerate(times):
                found[place].append(percentile(each, 0.5))
        http.close()
    return [
        Figure(f"opening, {size:,} messages, p50", "ms", tuple(found[place]), f"{sizes[0]} messages", tuple(found[0]),
               less_is_better=True, ratio_aim=_RATIO_MAX)
        for place, size in enumerate(sizes) if place
    ]  # fmt: skip


def _open_ms(http: Http, group_id: str) -> float:
    path = f"/api/v1/conversations/{group_id}"
    return http.timed_ms(http.get(path)) + http.timed_ms(http.get(f"{path}/messages?limit={_PAGE}"))


def _check(http: Http, group_id: str) -> None:
    view = json.loads(http.call(http.get(f"/api/v1/conversations/{group_id}")))
    page = json.loads(http.call(http.get(f"/api/v1/conversations/{group_id}/messages?limit={_PAGE}")))
    amended = sum(bool(each.get("editedAt") or each["reactions"]) for each in page["items"])
    if (view["unreadCount"], len(page["items"]), amended) != (_PAGE, _PAGE, _PAGE):
        raise BenchFailed(f"{view['unreadCount']} unread, a page of {len(page['items'])}, of which {amended} amended")


# --- all conversations -----------------------------------------------------------------------------------------------

_CONVERSATIONS = 200
_UNREAD = 20


def lists(stage: Stage) -> list[Figure]:
    """The newest 50 of 200 conversations with 20 unread each, and a sync with 200 cursors that finds nothing new."""

    async def sowing(ground: Ground) -> None:
        people = await ground.people(4)
        for _ in range(_CONVERSATIONS):
            await ground.group(people, messages=2 * _UNREAD, unread=_UNREAD)

    listed: list[float] = []
    synced: list[float] = []
    healths: list[float] = []
    with stage.server(sowing=sowing) as served:
        person = served.sign_up(2)[1]
        http = Http(served.port, person.access_token)
        listing, health = http.get(f"/api/v1/conversations?limit={_PAGE}"), http.get("/healthz")
        page = json.loads(http.call(listing))
        if [each["unreadCount"] for each in page["items"]] != [_UNREAD] * _PAGE:
            raise BenchFailed(
                f"{len(page['items'])} conversations, {page['items'][0]['unreadCount']} unread in the first"
            )
        syncing = _nothing_new(http)
        for _ in range(stage.scale.repetitions):
            for samples, request in ((listed, listing), (synced, syncing), (healths, health)):
                samples.append(percentile([http.timed_ms(request) for _ in range(stage.scale.calls)], 0.5))
        http.close()
    figure = partial(
        Figure, unit="ms", reference_name="/healthz", reference_samples=tuple(healths), less_is_better=True
    )
    return [
        figure(f"list of {_PAGE} conversations, p50", samples=tuple(listed)),
        figure(f"sync of {_CONVERSATIONS} cursors, nothing new, p50", samples=tuple(synced)),
    ]


def _nothing_new(http: Http) -> bytes:
    """A sync by somebody who knows everything: the cursors that syncs answer until there is nothing more."""
    cursors: dict[str, int] = {}
    while True:
        answer = http.post("/api/v1/sync", {"cursors": cursors})
        if answer["complete"] and answer["cursors"] == cursors:
            break
        cursors = answer["cursors"]
    if len(cursors) != _CONVERSATIONS:
        raise BenchFailed(f"{len(cursors)} conversations in the answer to a sync")
    request = http.request("POST", "/api/v1/sync", {"cursors": cursors})
    if events := json.loads(http.call(request))["events"]:
        raise BenchFailed(f"{len(events)} events, and nothing has happened")
    return request
