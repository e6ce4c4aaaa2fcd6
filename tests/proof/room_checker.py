"""The judge of the lively room: what was done to messages, what went out or disappeared at its time, and the counts.

Like `tests.proof.checker` it is pure, and trusts nothing but the records. A deed that was answered is kept, unless a
later one took its place; one that was not answered may have happened or not, so each of a message's sides has a set of
states that it may be in. What is found is described for a person.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tests.proof.records import Count, Deed, Ledger, Reading, RoomRecords, Saying, Shown

Violations = Iterator[str]
_PERSONAL = ("text", "deleted", "pinned")  # not: of these a message has one, of anything else each user has their own
_HARMLESS = frozenset(("overloaded", "restarting", "rate-limited", "too-many", "storage-full"))
UNREAD_MAX = 999


def _ids(room: RoomRecords) -> dict[str, Saying]:
    return {saying.message_id: saying for saying in room.sayings.values() if saying.message_id}


def _side(deed: Deed) -> tuple[str, str, str]:
    return deed.message_id, deed.what, "" if deed.what in _PERSONAL else deed.user_id


def possible(deeds: list[Deed], order: int, first: Any) -> list[Any]:
    """What one side of a message may be for who asked at `order`: as the last answered deed made it, or a later one."""
    states = [first]
    for deed in deeds:
        if deed.refused or deed.order > order:
            continue
        states = [deed.value] if 0 < deed.answered <= order else [*states, deed.value]
    return states


class _Past:
    """The deeds of a room by what they were done to."""

    def __init__(self, room: RoomRecords) -> None:
        self.by_side: defaultdict[tuple[str, str, str], list[Deed]] = defaultdict(list)
        self.sides: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
        for deed in room.deeds:
            message_id, what, user_id = _side(deed)
            self.by_side[message_id, what, user_id].append(deed)
            self.sides[message_id].add((what, user_id))

    def states(self, message_id: str, what: str, user_id: str, order: int, first: Any) -> list[Any]:
        return possible(self.by_side[message_id, what, user_id], order, first)

    def of(self, message_id: str, wanted: Callable[[str], bool]) -> list[tuple[str, str]]:
        return sorted(side for side in self.sides[message_id] if wanted(side[0]))


# --- messages and what was done to them -------------------------------------------------------------------------------


def what_was_said_is_there(ledger: Ledger) -> Violations:
    """What was acknowledged, unless its time is over. What goes out later has a check of its own."""
    for reading in _whole(ledger):
        shown = {each.message_id: each for each in reading.shown}
        if len(shown) != len(reading.shown):
            yield f"the lively room shows {reading.user_id} a message twice"
        for saying in ledger.room.sayings.values():
            if saying.send_at or not 0 < saying.answered <= reading.order or _is_over(saying, reading.ended_at):
                continue
            found = shown.get(saying.message_id)
            if found is None or (found.sequence, found.user_id) != (saying.sequence, saying.user_id):
                yield f"lost: {saying.mark}, acknowledged as {saying.sequence} of the lively room; there is {found}"


def every_saying_has_one_place(ledger: Ledger) -> Violations:
    for mark, places in ledger.room.places.items():
        if mark not in ledger.room.sayings:
            yield f"invented: nobody said {mark}"
        if len(places) > 1:
            yield f"doubled: {mark} was told as {sorted(places)}"


def messages_are_as_they_were_left(ledger: Ledger) -> Violations:
    """Edits, deletions, pins, reactions and votes are those that were answered last, or that were under way."""
    past, sayings = _Past(ledger.room), _ids(ledger.room)
    for reading in ledger.room.readings:
        for shown in reading.shown:
            if (saying := sayings.get(shown.message_id)) is None:
                yield f"invented: nobody sent what is number {shown.sequence} of the lively room"
                continue
            where = f"{saying.mark} (number {shown.sequence}) as {reading.user_id} reads it"
            if shown.is_deleted not in past.states(shown.message_id, "deleted", "", reading.order, False):
                yield f"{where} is {'' if shown.is_deleted else 'not '}deleted, against what was acknowledged"
            if shown.is_deleted:
                if (shown.text, shown.reactions, shown.votes, shown.is_pinned) != (None, (), (), False):
                    yield f"{where} is deleted, and something of it is left"
                continue
            yield from _wrong_sides(past, saying, shown, reading.order, where)


def _wrong_sides(past: _Past, saying: Saying, shown: Shown, order: int, where: str) -> Violations:
    texts = past.states(shown.message_id, "text", "", order, (saying.text, saying.mentions))
    if (shown.text, shown.mentions) not in texts:
        yield f"{where} says something else than the last acknowledged edit"
    if shown.is_pinned not in past.states(shown.message_id, "pinned", "", order, False):
        yield f"{where} is {'' if shown.is_pinned else 'not '}pinned, against what was acknowledged"
    there = {(emoji, user_id) for emoji, user_ids in shown.reactions for user_id in user_ids}
    asked = past.of(shown.message_id, lambda what: what not in (*_PERSONAL, "vote"))
    for emoji, user_id in sorted({*asked, *there}):
        if ((emoji, user_id) in there) not in past.states(shown.message_id, emoji, user_id, order, False):
            yield f"{where}: the reaction {emoji} of {user_id} is not as it was acknowledged"
    if saying.options:
        yield from _wrong_votes(past, saying, shown, order, where)


def _wrong_votes(past: _Past, saying: Saying, shown: Shown, order: int, where: str) -> Violations:
    """Who voted is not shown, but how many did: it has to fit what each of them may have chosen."""
    voters = past.of(shown.message_id, lambda what: what == "vote")
    choices = [past.states(shown.message_id, "vote", user_id, order, ()) for _what, user_id in voters]
    for option in range(saying.options):
        least = sum(all(option in choice for choice in each) for each in choices)
        most = sum(any(option in choice for choice in each) for each in choices)
        if not least <= shown.votes[option] <= most:
            yield f"{where}: option {option} has {shown.votes[option]} votes, acknowledged are {least} to {most}"
    least, most = sum(all(each) for each in choices), sum(any(each) for each in choices)
    if not least <= shown.votes[-1] <= most:
        yield f"{where} has {shown.votes[-1]} voters, acknowledged are {least} to {most}"


def single_messages_are_found(ledger: Ledger) -> Violations:
    sayings = _ids(ledger.room)
    for reading in ledger.room.readings:
        for message_id in reading.missing:
            if message_id in sayings and not _is_over(sayings[message_id], reading.ended_at):
                yield f"{sayings[message_id].mark} is not found by its id, and was neither lost nor has it expired"


def nothing_is_refused_without_reason(ledger: Ledger) -> Violations:
    """`message-deleted` needs somebody who deleted it, `not-found` an end that was near."""
    past, sayings = _Past(ledger.room), _ids(ledger.room)
    for deed in ledger.room.deeds:
        if deed.refused == "message-deleted":
            is_right = bool(past.by_side[deed.message_id, "deleted", ""])
        elif deed.refused == "not-found":
            is_right = deed.message_id in sayings and bool(sayings[deed.message_id].expires_in)
        else:
            is_right = not deed.refused or deed.refused in _HARMLESS
        if not is_right:
            yield f"{deed.what} for message {deed.message_id} was refused with {deed.refused}"


# --- what is gone stays gone ------------------------------------------------------------------------------------------


def what_is_gone_is_told_nowhere(ledger: Ledger) -> Violations:
    """No answer and no frame tells a text after its deletion was acknowledged or its time was over."""
    sayings = ledger.room.sayings
    deleted = {deed.message_id: deed.answered for deed in ledger.room.deeds if deed.what == "deleted" and deed.answered}
    for told in ledger.room.told:
        gone: set[str] = set()
        for what, name in told.said:
            if what == "gone":
                gone.add(name)
                continue
            if (saying := sayings.get(name)) is None:
                continue
            if saying.message_id in gone:
                yield f"{told.name} told the text of {name} after it said that it is gone"
            if 0 < deleted.get(saying.message_id, 0) < told.order:
                yield f"{told.name} told the text of {name}, whose deletion was acknowledged before"
            if _is_over(saying, told.began_at):
                yield f"{told.name} told the text of {name}, which had disappeared"


def what_disappeared_is_not_shown(ledger: Ledger) -> Violations:
    for reading in ledger.room.readings:
        for shown in reading.shown:
            if 0 < shown.expires_at <= reading.began_at:
                yield f"number {shown.sequence} of the lively room is shown {reading.user_id} after it disappeared"


def _is_over(saying: Saying, at: int) -> bool:
    return 0 < saying.expires_at <= at


# --- what goes out later ----------------------------------------------------------------------------------------------


def scheduled_messages_go_out_once_at_their_time(ledger: Ledger) -> Violations:
    """That none has two numbers is another check's."""
    planned = [saying for saying in ledger.room.sayings.values() if saying.send_at]
    by_id = {saying.message_id: saying for saying in planned if saying.message_id}
    for reading in _whole(ledger):
        for shown in reading.shown:
            if (saying := by_id.get(shown.message_id)) is not None and shown.created_at < saying.send_at:
                yield f"scheduled {saying.mark} went out {saying.send_at - shown.created_at} ms before its time"
        if reading.is_last:
            there = {each.message_id for each in reading.shown}
            for saying in planned:
                if saying.answered and saying.message_id not in there:
                    yield f"lost: scheduled {saying.mark} never went out"


# --- numbers and counts -----------------------------------------------------------------------------------------------


def replays_have_no_gap(ledger: Ledger) -> Violations:
    """Messages, and what became of them: every number, once, in order, to the end. A device need not be told what it
    sent itself."""
    for replay in ledger.room.replays:
        own = ledger.room.own.get(replay.device_id, set())
        where, position = f"{replay.name} in conversation {replay.conversation_id}", replay.after
        for number in replay.numbers:
            if number <= position:
                yield f"{where} heard {number} after {position}: twice, or out of order"
                continue
            if missing := [each for each in range(position + 1, number) if each not in own]:
                yield f"{where} heard {number} after {position} and never {missing}"
            position = number
        if missing := [each for each in range(position + 1, replay.upto + 1) if each not in own]:
            yield f"{where} was never told {missing}"


def counts_fit_the_history(ledger: Ledger) -> Violations:
    for count in ledger.room.counts:
        where = f"{count.user_id}, who has read up to {count.read} in the lively room,"
        for name, told, counts in (
            ("unread", count.unread, lambda _shown: True),
            ("mentions", count.mentions, lambda shown: not {count.user_id, "all"}.isdisjoint(shown.mentions)),  # noqa: B023
        ):
            least, most = _expected(count, counts)
            if not least <= told <= most:
                yield f"{where} is told {told} {name}; there are {least} to {most}"


def _expected(count: Count, counts: Callable[[Shown], bool]) -> tuple[int, int]:
    """How many messages count; two figures where some disappeared between the reading and the counting."""
    behind = [
        shown
        for shown in count.reading.shown
        if shown.sequence > count.read and shown.user_id != count.user_id and not shown.is_deleted and counts(shown)
    ]
    staying = [shown for shown in behind if not 0 < shown.expires_at <= count.ended_at]
    return min(len(staying), UNREAD_MAX), min(len(behind), UNREAD_MAX)


def _whole(ledger: Ledger) -> list[Reading]:
    return [reading for reading in ledger.room.readings if reading.is_whole]


CHECKS: tuple[Callable[[Ledger], Violations], ...] = (
    what_was_said_is_there,
    every_saying_has_one_place,
    messages_are_as_they_were_left,
    single_messages_are_found,
    nothing_is_refused_without_reason,
    what_is_gone_is_told_nowhere,
    what_disappeared_is_not_shown,
    scheduled_messages_go_out_once_at_their_time,
    replays_have_no_gap,
    counts_fit_the_history,
)


# --- can it fail? -----------------------------------------------------------------------------------------------------


def _last_of(room: RoomRecords, wanted: Callable[[Shown], bool]) -> tuple[Reading, int]:
    """Where the newest reading of the whole room shows such a message."""
    return next(
        (reading, place)
        for reading in reversed(room.readings)
        if reading.is_whole
        for place, shown in enumerate(reading.shown)
        if wanted(shown)
    )


def _forget_an_edit(room: RoomRecords) -> None:
    edits = {deed.message_id for deed in room.deeds if deed.what == "text" and deed.answered}
    sayings = _ids(room)
    reading, place = _last_of(room, lambda shown: shown.message_id in edits and not shown.is_deleted)
    shown = reading.shown[place]
    reading.shown[place] = replace(shown, text=sayings[shown.message_id].text + " as it was")


def _revive(room: RoomRecords) -> None:
    reading, place = _last_of(room, lambda shown: shown.is_deleted)
    reading.shown[place] = replace(reading.shown[place], is_deleted=False, text="again there")


def _forget_a_reaction(room: RoomRecords) -> None:
    reading, place = _last_of(room, lambda shown: bool(shown.reactions))
    reading.shown[place] = replace(reading.shown[place], reactions=())


def _forget_a_vote(room: RoomRecords) -> None:
    reading, place = _last_of(room, lambda shown: sum(shown.votes) > 0)
    reading.shown[place] = replace(reading.shown[place], votes=(0,) * len(reading.shown[place].votes))


def _unpin(room: RoomRecords) -> None:
    reading, place = _last_of(room, lambda shown: shown.is_pinned)
    reading.shown[place] = replace(reading.shown[place], is_pinned=False)


def _send_again(room: RoomRecords) -> None:
    mark = next(saying.mark for saying in room.sayings.values() if saying.send_at and saying.message_id)
    room.places[mark].add(("another id", 1_000_000))


def _reappear(room: RoomRecords) -> None:
    saying = next(saying for saying in room.sayings.values() if saying.expires_at)
    room.told[-1].began_at = saying.expires_at
    room.told[-1].said.append(("text", saying.mark))


def _skip_a_number(room: RoomRecords) -> None:
    replay = next(replay for replay in room.replays if not replay.device_id and len(replay.numbers) > 2)
    del replay.numbers[1]


def _miscount(room: RoomRecords) -> None:
    room.counts[-1] = replace(room.counts[-1], unread=room.counts[-1].unread + 1)


SABOTAGES: dict[str, Callable[[RoomRecords], None]] = {
    "forget-an-edit": _forget_an_edit,
    "revive": _revive,
    "forget-a-reaction": _forget_a_reaction,
    "forget-a-vote": _forget_a_vote,
    "unpin": _unpin,
    "send-again": _send_again,
    "reappear": _reappear,
    "skip-a-number": _skip_a_number,
    "miscount": _miscount,
}
"""Ways to tamper with the records as a bad server would have."""
