"""The judge of the durability proof has to see every broken promise, and nothing in records where all was kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.proof.checker import check, sabotage
from tests.proof.records import (
    Ack,
    Connection,
    Count,
    Deed,
    Event,
    Ledger,
    Mark,
    Reading,
    Replay,
    RoomRecords,
    Saying,
    Sent,
    Shown,
    Told,
)
from tests.proof.room_checker import SABOTAGES
from tests.proof.trace import NotSynced, Step, check_order, steps_of

ROOM, ANN, BEN = "room", "ann", "ben"
ANNS, BENS = "ann-phone", "ben-phone"


def kept() -> Ledger:
    """Ann sends six messages in order, Ben hears them over two sockets; the third was answered twice."""
    ledger = Ledger()
    events = [Event(1, "", "", "")]
    for number in range(2, 8):
        temp_id, message_id = f"t{number}", f"m{number}"
        sent = Sent(ANNS, ROOM, temp_id, f"text {number}", order=number, socket=1, attempts=1)
        ledger.sent[ANNS, temp_id] = sent
        ledger.acks.append(Ack(ANNS, ROOM, temp_id, message_id, number, "then", "socket"))
        events.append(Event(number, message_id, ANNS, sent.content))
    ledger.acks.append(replace(ledger.acks[2], transport="rest"))
    ledger.sent[ANNS, "lost"] = Sent(ANNS, ROOM, "lost", "never answered", order=9, socket=1, attempts=1)
    ledger.histories = {(ROOM, ANN): list(events), (ROOM, BEN): list(events)}
    ledger.connections = [
        Connection(1, ANN, ANNS, {ROOM: 1}, "e", True, {}),
        Connection(2, BEN, BENS, {ROOM: 0}, "e", True, {ROOM: events[:4]}),
        Connection(3, BEN, BENS, {ROOM: 4}, "e", True, {ROOM: events[4:]}, last=True),
    ]
    ledger.marks = [Mark(ANNS, ROOM, BEN, "read", 3), Mark(ANNS, ROOM, BEN, "read", 3), Mark("", ROOM, BEN, "read", 5)]
    return ledger


def test_records_of_a_server_that_kept_its_promises_are_accepted() -> None:
    assert check(kept()) == []


@pytest.mark.parametrize("kind", ["drop", "duplicate", "reorder"])
def test_every_sabotage_is_found(kind: str) -> None:
    ledger = kept()
    sabotage(ledger, kind)
    assert check(ledger)


def hear(change: Callable[[list[Event]], object]) -> Callable[[Ledger], object]:
    """Changes what Ben's last socket heard."""
    return lambda ledger: change(ledger.connections[2].heard[ROOM])


def mark_backwards(ledger: Ledger) -> None:
    ledger.marks.append(Mark(ANNS, ROOM, BEN, "read", 2))


def forget_a_mark_over_a_restart(ledger: Ledger) -> None:
    ledger.marks = [Mark(ANNS, ROOM, BEN, "read", 3), Mark("", ROOM, BEN, "read", 2)]


def lose_the_newest_everywhere(ledger: Ledger) -> None:
    for events in ledger.histories.values():
        events.pop()
    ledger.connections[2].heard[ROOM].pop()


def answer_a_repetition_differently(ledger: Ledger) -> None:
    ledger.acks[-1] = replace(ledger.acks[-1], sequence=7, message_id="m7")


def answer_a_repetition_with_another_time(ledger: Ledger) -> None:
    ledger.acks[-1] = replace(ledger.acks[-1], created_at="later")


def store_a_repetition_again(ledger: Ledger) -> None:
    for events in ledger.histories.values():
        events.append(replace(events[2], sequence=8, message_id="m8"))
    ledger.connections[2].heard[ROOM].append(ledger.histories[ROOM, ANN][-1])


def invent_a_message(ledger: Ledger) -> None:
    for events in ledger.histories.values():
        events.append(Event(8, "m8", ANNS, "nobody said this"))
    ledger.connections[2].heard[ROOM].append(ledger.histories[ROOM, ANN][-1])


def leave_a_gap_for_one_reader(ledger: Ledger) -> None:
    del ledger.histories[ROOM, BEN][3]


def show_one_reader_another_order(ledger: Ledger) -> None:
    events = ledger.histories[ROOM, BEN]
    events[3], events[4] = replace(events[4], sequence=4), replace(events[3], sequence=5)


def take_sends_out_of_order(ledger: Ledger) -> None:
    ledger.sent[ANNS, "t2"].order = 8


def begin_a_new_epoch(ledger: Ledger) -> None:
    ledger.connections[2].epoch = "another"


def resume_incompletely(ledger: Ledger) -> None:
    ledger.connections[2].complete = False


def leave_somebody_unanswered(ledger: Ledger) -> None:
    ledger.unanswered.append(ledger.sent[ANNS, "lost"])


@pytest.mark.parametrize(
    "break_promise",
    [
        lose_the_newest_everywhere,
        answer_a_repetition_differently,
        answer_a_repetition_with_another_time,
        store_a_repetition_again,
        invent_a_message,
        leave_a_gap_for_one_reader,
        show_one_reader_another_order,
        take_sends_out_of_order,
        begin_a_new_epoch,
        resume_incompletely,
        leave_somebody_unanswered,
        mark_backwards,
        forget_a_mark_over_a_restart,
        pytest.param(hear(lambda heard: heard.pop(1)), id="skip one on a socket"),
        pytest.param(hear(lambda heard: heard.pop()), id="never tell the newest on a socket"),
        pytest.param(hear(lambda heard: heard.insert(1, heard[0])), id="tell one twice on a socket"),
        pytest.param(hear(lambda heard: heard.reverse()), id="tell in another order on a socket"),
        pytest.param(
            hear(lambda heard: heard.__setitem__(0, replace(heard[0], content="other"))), id="tell another text"
        ),
        pytest.param(
            hear(lambda heard: heard.insert(0, Event(4, "m4", ANNS, "text 4"))), id="repeat before the cursor"
        ),
    ],
)
def test_each_broken_promise_is_found(break_promise: Callable[[Ledger], None]) -> None:
    ledger = kept()
    break_promise(ledger)
    assert check(ledger)


def test_an_unanswered_message_may_be_in_the_log_once() -> None:
    ledger = kept()
    for events in ledger.histories.values():
        events.append(Event(8, "m8", ANNS, "never answered"))
    ledger.connections[2].heard[ROOM].append(Event(8, "m8", ANNS, "never answered"))
    assert check(ledger) == []


def test_a_device_need_not_hear_what_it_sent_itself() -> None:
    ledger = kept()
    ledger.connections[0].last = True
    assert check(ledger) == []


# --- the lively room --------------------------------------------------------------------------------------------------

ASKED_AT = 10_000


def lively() -> Ledger:
    """What was done to ten messages, and then read by Ann while nothing moved.

    Ann's first was edited twice, her second deleted, her third reacted to, the poll voted in, the fifth pinned; the sixth
    has disappeared, the seventh went out at its time. Ben has read up to 6; the eighth names him. The ninth was never
    acknowledged, and of the tenth a last edit was not.
    """
    ledger = Ledger()
    room = ledger.room
    texts = [say(room, number) for number in range(1, 11)]
    texts[3].options = 2
    texts[5].expires_at, texts[5].expires_in = 9_000, 1
    texts[6].send_at = 5_000
    texts[7].mentions = (BEN,)
    texts[8].answered = 0
    room.deeds = [
        Deed(21, ANN, "m1", "text", ("mark0000001.1", ()), answered=22),
        Deed(23, ANN, "m1", "text", ("mark0000001.2", ()), answered=24),
        Deed(25, ANN, "m2", "deleted", True, answered=26),
        Deed(27, BEN, "m2", "🎉", True, refused="message-deleted"),
        Deed(28, BEN, "m3", "👍", True, answered=29),
        Deed(30, ANN, "m3", "👍", True, answered=31),
        Deed(32, ANN, "m3", "👍", False, answered=33),
        Deed(34, BEN, "m4", "vote", (0,), answered=35),
        Deed(36, BEN, "m4", "vote", (1,), answered=37),
        Deed(38, ANN, "m5", "pinned", True, answered=39),
        Deed(40, ANN, "m10", "text", ("mark0000010.1", ())),
    ]
    shown = [
        Shown(each.message_id, each.sequence, ANN, each.text, each.mentions, 5_000)
        for each in texts
        if each is not texts[5]
    ]
    shown[0] = replace(shown[0], text="mark0000001.2")
    shown[1] = replace(shown[1], text=None, is_deleted=True)
    shown[2] = replace(shown[2], reactions=(("👍", (BEN,)),))
    shown[3] = replace(shown[3], votes=(0, 1, 1))
    shown[4] = replace(shown[4], is_pinned=True)
    reading = Reading(50, ASKED_AT, ASKED_AT + 10, ANN, shown, is_last=True)
    room.readings = [reading, Reading(51, ASKED_AT, ASKED_AT, ANN, shown[:2], is_whole=False, missing=["m6"])]
    room.counts = [Count(reading, BEN, 6, 4, 1, ASKED_AT + 20), Count(reading, ANN, 0, 0, 0, ASKED_AT + 20)]
    room.told = [
        Told("a socket", 1, 0, [("text", "mark0000002"), ("gone", "m2"), ("text", "mark0000006"), ("gone", "m6")]),
        Told("the history", 50, ASKED_AT, [("text", "mark0000001"), ("text", "mark0000003")]),
    ]
    room.replays = [
        Replay("a socket", ROOM, ANNS, 0, [1, 12, 13]),
        Replay("a fresh device", ROOM, "", 0, list(range(1, 21)), upto=20),
    ]
    room.own = {ANNS: set(range(2, 12))}
    return ledger


def say(room: RoomRecords, number: int) -> Saying:
    """Ann says something; it was acknowledged with the number after `number`."""
    mark = f"mark{number:07}"
    saying = Saying(
        mark, ANN, f"{mark}.0", (), order=number, answered=number, message_id=f"m{number}", sequence=number + 1
    )
    room.sayings[mark] = saying
    room.places[mark] = {(saying.message_id, saying.sequence)}
    return saying


def test_records_of_a_lively_room_that_kept_its_promises_are_accepted() -> None:
    assert check(lively()) == []


def show(message_id: str, **changes: object) -> Callable[[RoomRecords], object]:
    """Shows something else of one message in the reading."""

    def change(room: RoomRecords) -> None:
        shown = room.readings[0].shown
        place = next(place for place, each in enumerate(shown) if each.message_id == message_id)
        shown[place] = replace(shown[place], **changes)  # type: ignore[arg-type]

    return change


def count(place: int, **changes: int) -> Callable[[RoomRecords], object]:
    return lambda room: room.counts.__setitem__(place, replace(room.counts[place], **changes))  # type: ignore[arg-type]


def drop(message_id: str) -> Callable[[RoomRecords], object]:
    """Leaves one message out of the reading."""

    def change(room: RoomRecords) -> None:
        room.readings[0].shown = [each for each in room.readings[0].shown if each.message_id != message_id]

    return change


def tell(place: int, what: str, name: str) -> Callable[[RoomRecords], object]:
    return lambda room: room.told[place].said.append((what, name))


def replayed(change: Callable[[list[int]], object]) -> Callable[[RoomRecords], object]:
    return lambda room: change(room.replays[1].numbers)


def show_again_what_disappeared(room: RoomRecords) -> None:
    room.readings[0].shown.append(Shown("m6", 7, ANN, "mark0000006.0", (), 5_000, expires_at=9_000))


def find_by_id_what_disappeared(room: RoomRecords) -> None:
    room.readings[1].missing.clear()
    room.readings[1].shown.append(Shown("m6", 7, ANN, "mark0000006.0", (), 5_000, expires_at=9_000))


@pytest.mark.parametrize(
    ("break_promise", "words"),
    [
        pytest.param(show("m1", text="mark0000001.0"), "the last acknowledged edit", id="forget all edits"),
        pytest.param(show("m1", text="mark0000001.1"), "the last acknowledged edit", id="forget the last edit"),
        pytest.param(show("m1", mentions=(BEN,)), "the last acknowledged edit", id="keep a mention that was edited away"),
        pytest.param(show("m2", is_deleted=False, text="mark0000002.0"), "not deleted", id="forget a deletion"),
        pytest.param(show("m2", text="mark0000002.0"), "something of it is left", id="keep a deleted text"),
        pytest.param(show("m2", reactions=(("🎉", (BEN,)),)), "something of it is left", id="keep its reactions"),
        pytest.param(show("m3", is_deleted=True, text=None, reactions=()), "is deleted, ag", id="delete unasked"),
        pytest.param(show("m3", reactions=()), "reaction 👍 of ben", id="forget a reaction"),
        pytest.param(show("m3", reactions=(("👍", (BEN, ANN)),)), "reaction 👍 of ann", id="keep one taken back"),
        pytest.param(show("m5", reactions=(("🚀", (BEN,)),)), "reaction 🚀 of ben", id="invent a reaction"),
        pytest.param(show("m4", votes=(1, 0, 1)), "option 0 has 1", id="forget the last vote"),
        pytest.param(show("m4", votes=(0, 2, 1)), "option 1 has 2", id="count a vote twice"),
        pytest.param(show("m4", votes=(0, 1, 2)), "has 2 voters", id="count a voter twice"),
        pytest.param(show("m5", is_pinned=False), "not pinned", id="forget a pin"),
        pytest.param(show("m3", is_pinned=True), "is pinned", id="pin unasked"),
        pytest.param(drop("m3"), "lost: mark0000003", id="lose a message"),
        pytest.param(show("m3", sequence=9), "lost: mark0000003", id="renumber a message"),
        pytest.param(drop("m7"), "scheduled mark0000007 never", id="lose a scheduled message"),
        pytest.param(show("m7", created_at=4_999), "1 ms before its time", id="send one too early"),
        pytest.param(lambda room: room.places["mark0000007"].add(("m99", 99)), "doubled: mark0000007", id="send it twice"),
        pytest.param(lambda room: room.places.update(mark0000099={("m99", 99)}), "nobody said", id="invent a message"),
        pytest.param(show_again_what_disappeared, "after it disappeared", id="show what disappeared"),
        pytest.param(find_by_id_what_disappeared, "after it disappeared", id="find by id what disappeared"),
        pytest.param(lambda room: room.readings[1].missing.append("m3"), "not found by its id", id="find no message"),
        pytest.param(tell(0, "text", "mark0000002"), "after it said that it is gone", id="tell a deleted text live"),
        pytest.param(tell(1, "text", "mark0000002"), "deletion was acknowledged before", id="tell a deleted text later"),
        pytest.param(tell(0, "text", "mark0000006"), "after it said that it is gone", id="tell an expired text live"),
        pytest.param(tell(1, "text", "mark0000006"), "which had disappeared", id="tell an expired text later"),
        pytest.param(replayed(lambda numbers: numbers.pop(4)), "never [5]", id="replay with a gap"),
        pytest.param(replayed(lambda numbers: numbers.pop(0)), "never [1]", id="replay without the beginning"),
        pytest.param(replayed(lambda numbers: numbers.pop()), "was never told [20]", id="replay without the end"),
        pytest.param(replayed(lambda numbers: numbers.insert(4, 4)), "heard 4 after 4", id="replay one twice"),
        pytest.param(lambda room: room.own.clear(), "heard 12 after 1 and never", id="skip what others sent, live"),
        pytest.param(count(0, unread=3), "told 3 unread; there are 4 to 4", id="count too few unread"),
        pytest.param(count(0, unread=5), "told 5 unread; there are 4 to 4", id="count too many unread"),
        pytest.param(count(1, unread=1), "told 1 unread; there are 0 to 0", id="count one's own as unread"),
        pytest.param(count(0, mentions=0), "told 0 mentions; there are 1 to 1", id="forget a mention"),
        pytest.param(count(0, mentions=2), "told 2 mentions; there are 1 to 1", id="count a mention twice"),
        pytest.param(lambda room: setattr(room.deeds[4], "refused", "not-found"), "refused with not-found", id="refuse"),
    ],
)  # fmt: skip
def test_each_broken_promise_of_the_lively_room_is_found(
    break_promise: Callable[[RoomRecords], object], words: str
) -> None:
    ledger = lively()
    break_promise(ledger.room)
    assert any(words in violation for violation in check(ledger)), check(ledger)


@pytest.mark.parametrize("kind", list(SABOTAGES))
def test_every_sabotage_of_the_lively_room_is_found(kind: str) -> None:
    ledger = lively()
    ledger.room.sayings["mark0000006"].expires_at = 9_000
    sabotage(ledger, kind)
    assert check(ledger)


@pytest.mark.parametrize("text", ["mark0000010.0", "mark0000010.1"])
def test_an_edit_that_was_not_answered_may_have_happened_or_not(text: str) -> None:
    ledger = lively()
    show("m10", text=text)(ledger.room)
    assert check(ledger) == []


def test_a_deed_under_way_does_not_excuse_the_state_before_the_last_answered_one() -> None:
    ledger = lively()
    ledger.room.deeds.append(Deed(41, ANN, "m1", "text", ("mark0000001.3", ())))
    show("m1", text="mark0000001.3")(ledger.room)
    assert check(ledger) == []
    show("m1", text="mark0000001.2")(ledger.room)
    assert check(ledger) == []
    show("m1", text="mark0000001.1")(ledger.room)
    assert check(ledger)


def test_a_message_that_was_not_answered_may_be_absent() -> None:
    ledger = lively()
    drop("m9")(ledger.room)
    ledger.room.counts[0] = replace(ledger.room.counts[0], unread=3)
    assert check(ledger) == []


def test_a_message_that_disappears_while_it_is_counted_may_count_or_not() -> None:
    for unread in (3, 4):
        ledger = lively()
        show("m8", expires_at=ASKED_AT + 15)(ledger.room)
        ledger.room.sayings["mark0000008"].expires_at = ASKED_AT + 15
        count(0, unread=unread, mentions=unread - 3)(ledger.room)
        assert check(ledger) == []


# --- the order of sync and ack ---------------------------------------------------------------------------------------

WRITTEN, BEGAN, ENDED = Step("written", "wal", ("a",)), Step("sync began", "wal"), Step("sync ended", "wal")
TOLD = Step("told", "socket", ("a",))


def test_an_ack_behind_its_sync_is_accepted() -> None:
    assert check_order([WRITTEN, BEGAN, ENDED, TOLD, TOLD]) == (1, 1)


@pytest.mark.parametrize(
    "steps",
    [
        [WRITTEN, TOLD, BEGAN, ENDED],
        [WRITTEN, BEGAN, TOLD, ENDED],
        [BEGAN, WRITTEN, ENDED, TOLD],
        [BEGAN, ENDED, WRITTEN, TOLD],
        [BEGAN, ENDED, TOLD],
        [WRITTEN, Step("sync began", "other"), Step("sync ended", "other"), TOLD],
    ],
)
def test_an_ack_before_the_end_of_a_sync_that_began_after_its_write_is_refused(steps: list[Step]) -> None:
    with pytest.raises(NotSynced):
        check_order(steps)


def test_the_steps_are_read_from_a_trace() -> None:
    temp_id = "0a1b2c-0000001"
    ack = rf'"\201u{{\"type\":\"message:ack\",\"tempId\":\"{temp_id}\"}}"'
    lines = [
        rf'7 write(9</d/db/000004.log>, "\1{temp_id}\2{temp_id}", 44) = 44',
        "8 fdatasync(9</d/db/000004.log> <unfinished ...>",
        '7 write(2</d/x>, "log", 3) = 3',
        "8 <... fdatasync resumed>)           = 0",
        f"7 sendto(12<socket:[77]>, {ack}, 50, 0, NULL, 0) = 50",
    ]
    assert list(steps_of(iter(lines))) == [
        Step("written", "/d/db/000004.log", (temp_id, temp_id)),
        Step("sync began", "/d/db/000004.log"),
        Step("sync ended", "/d/db/000004.log"),
        Step("told", "socket:[77]", (temp_id,)),
    ]


def test_a_sync_that_failed_counts_for_nothing() -> None:
    lines = ["8 fdatasync(9</d/db/000004.log>) = -1 EIO (Input/output error)"]
    assert list(steps_of(iter(lines))) == [Step("sync began", "/d/db/000004.log")]
