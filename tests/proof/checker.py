"""The judge: reads the records of a run and names every promise that was broken. Pure, so that it can be tested.

It counts on nothing that the server says about itself. Each check is one sentence of the protocol's promises; what it
returns are descriptions for a person, with conversation, device and sequence number.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

from tests.proof import room_checker
from tests.proof.records import Ack, Connection, Event, Ledger

Violations = Iterator[str]


def check(ledger: Ledger) -> list[str]:
    """Every violation that the records show; none is what is hoped for."""
    found: list[str] = []
    for each in CHECKS:
        found.extend(each(ledger))
    return found


def _log(ledger: Ledger) -> dict[str, dict[int, Event]]:
    """Each conversation's events by number, as one of its members read them."""
    log: dict[str, dict[int, Event]] = {}
    for (conversation_id, _reader), events in ledger.histories.items():
        log.setdefault(conversation_id, {event.sequence: event for event in events})
    return log


# --- promise 1: an ack means that the message is in the log ----------------------------------------------------------


def acknowledged_messages_are_there(ledger: Ledger) -> Violations:
    log = _log(ledger)
    for ack in ledger.acks:
        event = log.get(ack.conversation_id, {}).get(ack.sequence)
        told = f"message {ack.temp_id} of device {ack.device_id}, acknowledged by {ack.transport} as {ack.sequence}"
        if event is None:
            yield f"lost: {told}, is not in conversation {ack.conversation_id}"
            continue
        sent = ledger.sent[ack.device_id, ack.temp_id]
        if event.message_id != ack.message_id:
            yield f"{told}, has id {event.message_id} in the log and {ack.message_id} in the ack"
        if (event.device_id, event.content) != (ack.device_id, sent.content):
            yield f"{told}: the log holds another text or sender at that number"


def every_message_was_sent_and_is_stored_once(ledger: Ledger) -> Violations:
    """An unacknowledged message may be absent or there, but never twice; what nobody sent may not be there at all."""
    contents = {(sent.conversation_id, sent.device_id, sent.content): sent for sent in ledger.sent.values()}
    for conversation_id, events in _log(ledger).items():
        places: defaultdict[str, list[int]] = defaultdict(list)
        for event in events.values():
            if not event.device_id:
                continue
            if (conversation_id, event.device_id, event.content) not in contents:
                yield f"invented: nobody sent what is number {event.sequence} of conversation {conversation_id}"
                continue
            sent = contents[conversation_id, event.device_id, event.content]
            places[f"{sent.device_id}/{sent.temp_id}"].append(event.sequence)
        for name, sequences in places.items():
            if len(sequences) > 1:
                yield f"doubled: message {name} is at numbers {sequences} of conversation {conversation_id}"


def orderly_ends_answer_everybody(ledger: Ledger) -> Violations:
    """What a server accepted before an orderly end it also acknowledged."""
    for sent in ledger.unanswered:
        yield f"message {sent.temp_id} of device {sent.device_id} was stored before an orderly end and never acknowledged"


# --- promise 2: one order, no gap, no duplicate ----------------------------------------------------------------------


def histories_have_no_gaps_and_are_the_same_for_all(ledger: Ledger) -> Violations:
    first: dict[str, list[Event]] = {}
    for (conversation_id, reader), events in ledger.histories.items():
        numbers = [event.sequence for event in events]
        start = numbers[0] if numbers else 1
        for number, found in zip(range(start, start + len(numbers)), numbers, strict=True):
            if number != found:
                yield f"conversation {conversation_id} as {reader} reads it has {found} in the place of {number}"
                break
        if start != 1:
            yield f"conversation {conversation_id} as {reader} reads it begins with {start}"
        ids = [event.message_id for event in events]
        if len(set(ids)) != len(ids):
            yield f"conversation {conversation_id} as {reader} reads it has an id twice"
        if events != first.setdefault(conversation_id, events):
            yield f"conversation {conversation_id} is not the same for {reader} as for others"


def a_socket_is_answered_in_the_order_of_its_sends(ledger: Ledger) -> Violations:
    """Messages that one device sent once, one after the other, on one socket, are in the log in that order."""
    numbers = {(ack.device_id, ack.temp_id): ack.sequence for ack in ledger.acks}
    sent_together: defaultdict[tuple[int, str], list[tuple[int, int, str]]] = defaultdict(list)
    for key, sent in ledger.sent.items():
        if sent.socket and sent.attempts == 1 and key in numbers:
            sent_together[sent.socket, sent.conversation_id].append((sent.order, numbers[key], sent.temp_id))
    for (socket, _conversation_id), sends in sent_together.items():
        for (_o1, before, temp_before), (_o2, after, temp_after) in pairwise(sorted(sends)):
            if before >= after:
                yield f"socket {socket} sent {temp_before} before {temp_after}; they got numbers {before} and {after}"


# --- promise 3: a tempId names a message -----------------------------------------------------------------------------


def repeated_temp_ids_answer_the_same(ledger: Ledger) -> Violations:
    answers: dict[tuple[str, str], Ack] = {}
    for ack in ledger.acks:
        earlier = answers.setdefault((ack.device_id, ack.temp_id), ack)
        if replace(earlier, transport="") != replace(ack, transport=""):
            yield (
                f"message {ack.temp_id} of device {ack.device_id} was acknowledged as {earlier.message_id}, number "
                f"{earlier.sequence} ({earlier.transport}), and then as {ack.message_id}, number {ack.sequence} "
                f"({ack.transport})"
            )


# --- promise 4: a device that was away gets all that it missed, once, in order ---------------------------------------


def sockets_hear_everything_once_in_order(ledger: Ledger) -> Violations:
    log = _log(ledger)
    for connection in ledger.connections:
        if connection.complete is False:
            yield f"{_name(connection)} was told that its resume is not complete"
        for conversation_id, heard in connection.heard.items():
            yield from _heard_in_order(connection, conversation_id, heard, log.get(conversation_id, {}))
        if connection.last:
            yield from _heard_to_the_end(connection, log)


def _heard_in_order(
    connection: Connection, conversation_id: str, heard: list[Event], log: dict[int, Event]
) -> Violations:
    """From its cursor on a socket hears each event; its own device's live messages it knows from their acks."""
    position = connection.cursors.get(conversation_id, 0)
    where = f"{_name(connection)} in conversation {conversation_id}"
    for event in heard:
        if event.sequence <= position:
            yield f"{where} heard {event.sequence} after {position}: twice, or out of order"
            continue
        for number in range(position + 1, event.sequence):
            if number in log and log[number].device_id != connection.device_id:
                yield f"{where} heard {event.sequence} after {position} and never {number}"
        if log.get(event.sequence) != event:
            yield f"{where} heard another event at {event.sequence} than the history holds"
        position = event.sequence


def _heard_to_the_end(connection: Connection, log: dict[str, dict[int, Event]]) -> Violations:
    for conversation_id, cursor in connection.cursors.items():
        heard = connection.heard.get(conversation_id, [])
        position = heard[-1].sequence if heard else cursor
        for number, event in log.get(conversation_id, {}).items():
            if number > position and event.device_id != connection.device_id:
                yield f"{_name(connection)} was never told number {number} of conversation {conversation_id}"


def _name(connection: Connection) -> str:
    return f"socket {connection.number} of device {connection.device_id}"


def the_epoch_stays(ledger: Ledger) -> Violations:
    """Nothing was restored from a backup here."""
    epochs = sorted({connection.epoch for connection in ledger.connections if connection.epoch})
    if len(epochs) > 1:
        yield f"the epoch changed: {', '.join(epochs)}"


# --- promise 5: watermarks never move backwards ----------------------------------------------------------------------


def watermarks_never_move_backwards(ledger: Ledger) -> Violations:
    """For each observer they only grow; and what REST tells after a restart is at least what anybody was told before."""
    highest: defaultdict[tuple[str, str, str, str], int] = defaultdict(int)
    for mark in ledger.marks:
        place = (mark.conversation_id, mark.user_id, mark.kind)
        if mark.sequence < (before := highest[mark.observer, *place]):
            yield f"{mark.kind} of {mark.user_id} in {mark.conversation_id} was {before} and is {mark.sequence}"
        for observer in {mark.observer, ""}:
            highest[observer, *place] = max(mark.sequence, highest[observer, *place])


CHECKS: tuple[Callable[[Ledger], Violations], ...] = (
    acknowledged_messages_are_there,
    every_message_was_sent_and_is_stored_once,
    orderly_ends_answer_everybody,
    histories_have_no_gaps_and_are_the_same_for_all,
    a_socket_is_answered_in_the_order_of_its_sends,
    repeated_temp_ids_answer_the_same,
    sockets_hear_everything_once_in_order,
    the_epoch_stays,
    watermarks_never_move_backwards,
    *room_checker.CHECKS,
)


# --- can it fail? ----------------------------------------------------------------------------------------------------


SABOTAGES = ("drop", "duplicate", "reorder", *room_checker.SABOTAGES)


def sabotage(ledger: Ledger, kind: str) -> None:
    """Tampers with the records, in one of `SABOTAGES`, as a bad server would have done."""
    if kind in room_checker.SABOTAGES:
        room_checker.SABOTAGES[kind](ledger.room)
    else:
        _sabotage_histories(ledger, kind)


def _sabotage_histories(ledger: Ledger, kind: str) -> None:
    acked = {ack.message_id for ack in ledger.acks}
    conversation_id, place = next(
        (conversation_id, place)
        for (conversation_id, _reader), events in ledger.histories.items()
        for place, event in enumerate(events[:-1])
        if event.message_id in acked and events[place + 1].message_id in acked
    )
    for (conversation, _reader), events in ledger.histories.items():
        if conversation == conversation_id:
            contents = list(events)
            if kind == "drop":
                del contents[place]
            elif kind == "duplicate":
                contents.insert(place, contents[place])
            else:
                contents[place], contents[place + 1] = contents[place + 1], contents[place]
            # Numbered again, as a server would that lost or repeated something and never noticed.
            events[:] = [replace(event, sequence=number) for number, event in enumerate(contents, 1)]
