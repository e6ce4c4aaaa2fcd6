"""What a history of encrypted conversations has to have come to, held against what the devices have.

The server's ledger says whom each message had to be for; the vault of the device that sent it says what was in it. From that
follows what every device has: each letter that was for it once, changed by what was said later and was for it, and nothing
else. `wrongs` are the differences, one line each.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from gearlink.sdk.e2ee import letters, sender_keys
from gearlink.sdk.e2ee.encoding import from_base64url
from gearlink.sdk.e2ee.letters import Duplicate, Edit, Message, Reaction, Undecryptable
from gearlink.sdk.e2ee.records import Kept, SenderKey, Tally
from storage.records import Amendment, LogEntry
from tests.sim.secure_handset import Handset
from tests.sim.secure_net import Written
from tests.sim.secure_world import World

Numbered = Message | Edit | Reaction


@dataclass
class Shown:
    """A message as a device has to show it."""

    content: str
    reactions: set[tuple[str, str]] = field(default_factory=set)


class Truth:
    """All that was said in a world that has come to rest."""

    def __init__(self, world: World) -> None:
        self.world = world
        store = world.server.store
        self.there = {each.event.event_id for kind in (LogEntry, Amendment) for each in store.all(kind)}
        self.by_device = {each.device_id: each for each in world.handsets}
        self.kept = {each: _kept(each) for each in world.handsets}
        self.letters: dict[str, Numbered] = {}
        for written in world.server.ledger.written:
            own = self.kept[self.by_device[written.message.device_id]].get(written.message.event_id)
            if own is not None and own.letter:
                letter = letters.from_json(own.letter)
                if isinstance(letter, Numbered):
                    self.letters[written.message.event_id] = letter

    def is_for(self, written: Written, handset: Handset) -> bool:
        """Whether this device was to be able to read it."""
        return written.message.device_id == handset.device_id or (handset.user_id, handset.device_id) in written.places

    def is_due(self, number: int, written: Written, handset: Handset) -> bool:
        """Whether it has to be there by now: its user was in the conversation ever since."""
        gone = any(
            user_id == handset.user_id and room == written.entry.conversation_id and at > number
            for user_id, room, at in self.world.server.ledger.left
        )
        is_there = written.message.event_id in self.there
        if self.world.restores and not self.was_meant(written, handset):
            return False
        return is_there and self.is_for(written, handset) and not gone and not handset.is_removed

    def was_meant(self, written: Written, handset: Handset) -> bool:
        """Whether who sent it meant this device. A server that was put back takes somebody for a member who was signed out
        since: the roster, which members give back, holds."""
        sender = self.by_device[written.message.device_id]
        own = self.kept[sender].get(written.message.event_id)
        return sender is handset or (own is not None and (handset.user_id, handset.device_id) in own.audience)

    def expected(self, handset: Handset) -> dict[str, Shown]:
        """What a device that was always a member of everything shows, by message id: letters that were for it, in order."""
        shown: dict[str, Shown] = {}
        authors: dict[str, str] = {}
        for written in self.world.server.ledger.written:
            message = written.message
            if not self.is_for(written, handset) or message.event_id not in self.there:
                continue
            if message.kind == "text":
                shown[message.event_id] = Shown(self.world.said[message.temp_id])
                authors[message.event_id] = message.actor_id
                continue
            letter = self.letters.get(message.event_id)
            if isinstance(letter, Edit) and authors.get(letter.message_id) == message.actor_id:
                shown[letter.message_id].content = letter.content
            elif isinstance(letter, Reaction) and letter.message_id in shown:
                change = shown[letter.message_id].reactions
                (change.add if letter.added else change.discard)((message.actor_id, letter.emoji))
        return shown


def _kept(handset: Handset) -> dict[str, Kept]:
    found: list[Kept] = handset.vault.look(lambda tx: tx.scan(Kept))
    return {each.message_id: each for each in found}


def wrongs(world: World) -> Iterator[str]:
    """All that is not as it has to be."""
    truth = Truth(world)
    yield from world.troubles
    yield from leaks(world)
    for handset in world.handsets:
        yield from _histories(truth, handset)
        yield from _told(truth, handset)
        yield from _noticed(world, handset)
        yield from _counts(truth, handset)


def leaks(world: World) -> Iterator[str]:
    """What must not be whatever the server does, also when it was put back to an older backup."""
    truth = Truth(world)
    for handset in world.handsets:
        yield from _strange(truth, handset)
        yield from _secrets(truth, handset)


def _strange(truth: Truth, handset: Handset) -> Iterator[str]:
    """What a device has twice, and what it has though it was not for it."""
    twice = [text for text, times in Counter(_texts(handset)).items() if times > 1]
    yield from (f"{handset} has twice {text!r}" for text in twice)
    for written in truth.world.server.ledger.written:
        content = _content(truth.kept[handset].get(written.message.event_id))
        if content is not None and not truth.is_for(written, handset):
            yield f"{handset} reads {truth.world.name_of(written.message.event_id)}, which was not for it"


def _histories(truth: Truth, handset: Handset) -> Iterator[str]:
    """Each message that was for it is there, as it was changed since."""
    kept, expected, texts = truth.kept[handset], truth.expected(handset), set(_texts(handset))
    for number, written in enumerate(truth.world.server.ledger.written):
        message = written.message
        if message.kind != "text" or not truth.is_due(number, written, handset):
            continue
        name = f"{truth.world.said[message.temp_id]!r} of {truth.by_device[message.device_id]}"
        mine = kept.get(message.event_id)
        content = _content(mine)
        if truth.world.restores and content is None and message.temp_id in texts:
            continue  # it was said again, and the server has forgotten the first time
        if mine is None or content is None:
            yield f"{handset} does not have {name} ({mine.trouble if mine else 'nothing'})"
        elif not truth.world.restores:
            shown = expected[message.event_id]
            if content != shown.content:
                yield f"{handset} shows {name} as {content!r}, not as {shown.content!r}"
            if sorted(mine.reactions) != sorted(shown.reactions):
                yield f"{handset} shows {len(mine.reactions)} reactions to {name}, not {len(shown.reactions)}"


def _content(kept: Kept | None) -> str | None:
    letter = letters.from_json(kept.letter) if kept is not None and kept.letter else None
    return letter.content if isinstance(letter, Message) else None


def _texts(handset: Handset) -> list[str]:
    kept: list[Kept] = handset.vault.look(lambda tx: tx.scan(Kept))
    opened = [letters.from_json(each.letter) for each in kept if each.letter and each.kind == "text"]
    return [f"{each.temp_id}" for each in opened if isinstance(each, Message)]


def _told(truth: Truth, handset: Handset) -> Iterator[str]:
    """Each run is told of a message as new once at most; of what others said the device is told at least once."""
    for run in handset.runs if not truth.world.restores else ():  # what a restored server tells begins anew
        times = Counter(each.id for each in run.messages)
        yield from (f"{handset} was told twice of {truth.world.name_of(each)}" for each in times if times[each] > 1)
    told = {each.id for run in handset.runs for each in run.messages}
    was_killed = any(run.killed for run in handset.runs)
    for number, written in enumerate(truth.world.server.ledger.written):
        message = written.message
        is_own = message.device_id == handset.device_id
        if message.kind != "text" or is_own or was_killed or not truth.is_due(number, written, handset):
            continue
        if message.event_id not in told and message.event_id in truth.kept[handset]:
            yield f"{handset} was never told of {truth.world.name_of(message.event_id)}"


def _noticed(world: World, handset: Handset) -> Iterator[str]:
    for each in handset.suspicions:
        if not world.restores:
            yield f"{handset} suspects {each.code} of {world.device_name(each.device_id) or each.user_id}"
    tallies: list[Tally] = handset.vault.look(lambda tx: tx.scan(Tally))
    if not world.restores:
        yield from (f"{handset} could not read {each.count} times: {each.reason}" for each in tallies)
    troubled = [
        each
        for each in handset.vault.look(lambda tx: tx.scan(Kept))
        if each.trouble and not each.letter and each.kind == "text"
    ]
    if not handset.is_removed:
        truth = Truth(world)
        meant = {each.message.event_id for each in world.server.ledger.written if truth.was_meant(each, handset)}
        for each in troubled:
            sender = next((one for one in world.handsets if one.device_id == each.sender_device_id), None)
            is_due = each.message_id in truth.there and (not world.restores or each.message_id in meant)
            if sender is not None and not sender.is_removed and is_due:
                yield f"{handset} still cannot read {world.name_of(each.message_id)} of {sender}: {each.trouble}"


def _secrets(truth: Truth, handset: Handset) -> Iterator[str]:
    """No device has a sender key that opens what was not for it."""
    for written in truth.world.server.ledger.written:
        sealed = written.sealed
        if sealed.scheme != "sender-key" or truth.is_for(written, handset):
            continue
        room, device_id, key_id = (
            written.entry.conversation_id,
            written.message.device_id,
            from_base64url(sealed.key_id),
        )
        key = handset.vault.look(lambda tx, at=(room, device_id, key_id): tx.get(SenderKey, *at))  # type: ignore[misc]
        if key is None:
            continue
        try:
            sender_keys.open_body(key, sealed.body)
        except (Undecryptable, Duplicate):
            continue
        yield f"{handset} could open {truth.world.name_of(written.message.event_id)}, which was not for it"


def _counts(truth: Truth, handset: Handset) -> Iterator[str]:
    """What the server has of a device is all in its own history, numbered from 1 without a gap."""
    rooms: dict[str, list[int]] = {}
    for written in truth.world.server.ledger.written:
        message = written.message
        if message.device_id != handset.device_id or message.event_id not in truth.there:
            continue
        letter = truth.letters.get(message.event_id)
        if letter is not None:
            rooms.setdefault(written.entry.conversation_id, []).append(letter.count)
        elif message.kind == "text" and not handset.is_removed:
            yield f"{handset} does not have its own {truth.world.name_of(message.event_id)}"
    for numbers in rooms.values():
        if numbers != list(range(1, len(numbers) + 1)) and not handset.is_removed and not truth.world.restores:
            yield f"the letters of {handset} are numbered {numbers}"
