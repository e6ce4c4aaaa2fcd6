"""The figures of many people at once: somebody joins them, all react to one message, all watch who comes.

What is counted is what arrives on real sockets, all of them read by one thread. Each figure stands beside the same crowd
doing something plainer in the same run: joining a small group, hearing of plain messages.
"""

import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

from tests.bench.report import Figure, percentile
from tests.bench.seeding import Ground
from tests.bench.stage import Person, Served, Stage
from tests.bench.wire import Crowd, Http, masked, open_sockets, send_frame

_TEXT = b"x" * 200
_QUIET_SECONDS = 0.5
_MESSAGE_NEW = b'"type":"message:new"'

# --- joining ---------------------------------------------------------------------------------------------------------

_LARGE = 10_000
_CONNECTED = 300  # members of either group, online; of more than 200 nobody is sent the list
_NEWCOMERS = 30  # each of whom tries twice in a repetition; the server allows thirty tries in a minute


class _Joining:
    """A newcomer after the other comes into the groups, large and small in turn, and leaves again."""

    def __init__(
        self, served: Served, group_ids: list[str], adder: Person, newcomers: list[Person], crowd: Crowd
    ) -> None:
        self._adder, self._crowd, self._newcomers = Http(served.port, adder.access_token), crowd, newcomers
        self._own = [Http(served.port, each.access_token) for each in newcomers]
        links = [self._adder.post(f"/api/v1/conversations/{each}/links", {}) for each in group_ids]
        self._codes = dict(zip(group_ids, (str(link["code"]) for link in links), strict=True))

    def over_a_link(self, number: int, group_id: str) -> tuple[float, float]:
        """The milliseconds until the newcomer has the answer, and until all who are connected have heard of it."""
        return self._come(number, group_id, self._own[number], f"/api/v1/join/{self._codes[group_id]}", None)

    def added(self, number: int, group_id: str) -> tuple[float, float]:
        """The same for the answer to whoever added them."""
        path, form = f"/api/v1/conversations/{group_id}/members", {"userIds": [self._newcomers[number].user_id]}
        return self._come(number, group_id, self._adder, path, form)

    def _come(
        self, number: int, group_id: str, caller: Http, path: str, form: dict[str, Any] | None
    ) -> tuple[float, float]:
        request, started = caller.request("POST", path, form), perf_counter()
        answered = caller.timed_ms(request)
        told, _times = self._crowd.hear(b'"type":"member:joined"')
        user_id, own = self._newcomers[number].user_id, self._own[number]
        own.call(own.request("DELETE", f"/api/v1/conversations/{group_id}/members/{user_id}"))
        self._crowd.hear(b'"type":"member:left"')
        return answered, (told - started) * 1000

    def close(self) -> None:
        for each in (self._adder, *self._own):
            each.close()


def join(stage: Stage) -> list[Figure]:
    """Coming into a group of 10,000, 300 of them online, over a link or added by its owner; beside a group of 300."""
    group_ids: list[str] = []

    async def sowing(ground: Ground) -> None:
        connected = await ground.people(_CONNECTED)
        await ground.people(_NEWCOMERS)
        others = await ground.people(_LARGE - _CONNECTED - 1)
        group_ids[:] = [await ground.group([*connected, *others]), await ground.group(connected)]

    with stage.server(sowing=sowing) as served:
        people = served.sign_up(_CONNECTED + _NEWCOMERS)
        connected, newcomers = people[:_CONNECTED], people[_CONNECTED:]
        crowd = Crowd(open_sockets(served.port, [each.access_token for each in connected]))
        joining = _Joining(served, group_ids, connected[0], newcomers, crowd)
        figures = []
        for name, way in (("over a link", joining.over_a_link), ("added", joining.added)):
            figures += _timed_joins(stage, name, way, group_ids)
        joining.close()
        crowd.close()
    return figures


def _timed_joins(
    stage: Stage, name: str, way: Callable[[int, str], tuple[float, float]], group_ids: list[str]
) -> list[Figure]:
    answers: list[list[float]] = [[], []]  # of the large group and of the small one
    medians: list[list[float]] = [[], []]
    told: list[list[float]] = [[], []]
    for _ in range(stage.scale.repetitions):
        found: list[list[tuple[float, float]]] = [[], []]
        for number in range(_NEWCOMERS):
            for place, group_id in enumerate(group_ids):
                found[place].append(way(number, group_id))
        for place, times in enumerate(found):
            answers[place] += [answered for answered, _told in times]
            medians[place].append(percentile([answered for answered, _told in times], 0.5))
            told[place].append(percentile([heard for _answered, heard in times], 0.5))
    label = f"joining {_LARGE:,}, {name}"
    rows = (
        (f"{label}, p50", medians, 100.0),
        (f"{label}, p99", [[percentile(each, 0.99)] for each in answers], None),
        (f"{label}, told", told, None),  # to all who are online
    )
    return [
        Figure(row, "ms", tuple(large), f"a group of {_CONNECTED}", tuple(small), aim, less_is_better=True)
        for row, (large, small), aim in rows
    ]


# --- reacting --------------------------------------------------------------------------------------------------------

_REACTING = 500
_TOLD_A_SECOND_MAX = 11  # ten in any second of the server; the socket's seconds may hold one of the next


def reactions(stage: Stage) -> list[Figure]:
    """500 people online react to one message at the same moment; beside 500 messages of theirs at the same moment."""
    group_ids: list[str] = []

    async def sowing(ground: Ground) -> None:
        group_ids.append(await ground.group(await ground.people(_REACTING + 1)))

    ends, rates, raw_ends, raw_rates = [], [], [], []
    with stage.server(sowing=sowing) as served:
        people = served.sign_up(_REACTING + 1)
        (group_id,) = group_ids
        caller = Http(served.port, people[-1].access_token)
        crowd = Crowd(open_sockets(served.port, [each.access_token for each in people]))
        for repetition in range(stage.scale.repetitions):
            form = {"tempId": f"m{repetition}", "content": "what do you say?"}
            message_id = caller.post(f"/api/v1/conversations/{group_id}/messages", form)["id"]
            crowd.drain(_QUIET_SECONDS)
            frame = masked(json.dumps({"type": "reaction:add", "messageId": message_id, "emoji": "👍"}).encode())
            end, times = _all_at_once(
                crowd, [frame] * _REACTING, b'"count":%d,' % _REACTING, 1, b'"type":"reaction:added"'
            )
            ends.append(end)
            rates.append(_most_in_a_second(times))
            crowd.drain(_QUIET_SECONDS)
            frames = [send_frame(b"%d-%d" % (repetition, each), group_id, _TEXT) for each in range(_REACTING)]
            end, times = _all_at_once(crowd, frames, b'"type":"message:', _REACTING, _MESSAGE_NEW)
            raw_ends.append(end)
            raw_rates.append(_most_in_a_second(times))
            crowd.drain(_QUIET_SECONDS)
        crowd.close()
        caller.close()
    return [
        Figure(f"{_REACTING} reactions, last tally told", "s", tuple(ends), f"{_REACTING} messages", tuple(raw_ends),
               2.5, less_is_better=True),
        Figure("events of them in a second, most", "a second", tuple(rates), f"{_REACTING} messages", tuple(raw_rates),
               _TOLD_A_SECOND_MAX, less_is_better=True),
    ]  # fmt: skip


def _all_at_once(
    crowd: Crowd, frames: list[bytes], pattern: bytes, count: int, noted: bytes
) -> tuple[float, list[float]]:
    """One frame from each socket but the last, which only listens; seconds until all have heard, and `Crowd.hear`."""
    started = perf_counter()
    for each, frame in zip(crowd.sockets[:-1], frames, strict=True):
        each.send(frame)
    end, times = crowd.hear(pattern, count, noted=noted)
    return end - started, times


def _most_in_a_second(times: list[float]) -> float:
    return float(max(sum(start <= at < start + 1 for at in times) for start in times))


# --- watching --------------------------------------------------------------------------------------------------------

_WATCHERS = 1_000
_SOCKETS_EACH = 10


def presence(stage: Stage) -> list[Figure]:
    """1,000 sockets watch somebody who comes; beside a message of theirs to the same sockets."""
    group_ids: list[str] = []

    async def sowing(ground: Ground) -> None:
        group_ids.append(await ground.group(await ground.people(_WATCHERS // _SOCKETS_EACH + 1)))

    times, raws = [], []
    with stage.server(sowing=sowing) as served:
        people = served.sign_up(_WATCHERS // _SOCKETS_EACH + 1)
        watched, tokens = people[0], [each.access_token for each in people[1:]] * _SOCKETS_EACH
        crowd = Crowd(open_sockets(served.port, tokens))
        watch = masked(json.dumps({"type": "presence:watch", "userIds": [watched.user_id]}).encode())
        for each in crowd.sockets:
            each.send(watch)
        crowd.hear(b'"status":"offline"')
        caller = Http(served.port, watched.access_token)
        for repetition in range(stage.scale.repetitions):
            crowd.drain(2 * _QUIET_SECONDS + 0.1)  # presence is told once a second at most: this is a fresh one
            started = perf_counter()
            (socket,) = open_sockets(served.port, [watched.access_token])
            times.append((crowd.hear(b'"status":"online"')[0] - started) * 1000)
            form = {"tempId": f"m{repetition}", "content": "x" * 100}
            request, started = (
                caller.request("POST", f"/api/v1/conversations/{group_ids[0]}/messages", form),
                perf_counter(),
            )
            caller.call(request)
            raws.append((crowd.hear(_MESSAGE_NEW)[0] - started) * 1000)
            socket.close()
            crowd.hear(b'"status":"offline"')
        crowd.close()
        caller.close()
    name = "a message to them"
    return [Figure(f"{_WATCHERS:,} know who came", "ms", tuple(times), name, tuple(raws), 1_000, less_is_better=True)]
