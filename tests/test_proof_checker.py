"""The judge of the durability proof has to see every broken promise, and nothing in records where all was kept."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.proof.checker import check, sabotage
from tests.proof.records import Ack, Connection, Event, Ledger, Mark, Sent
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
