"""What backups and transfers share: packing the history into sealed chunks, and taking it from them again.

Packing follows the trail of the history (`trail`), so it goes on after a crash where it was, and what changed meanwhile comes
behind. Taking is done a chunk at a time, each in one transaction with the note that it is through: nothing comes twice,
and what a device knows better by itself stays. What the server makes of a chunk can only damage it.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import trio
from msgspec.structs import replace

from gearlink.sdk.e2ee import certificates, letters, recovery
from gearlink.sdk.e2ee.agreement import identity_of, own_of
from gearlink.sdk.e2ee.encoding import id_text
from gearlink.sdk.e2ee.letters import Message, Undecryptable
from gearlink.sdk.e2ee.records import Archive, Epoch, Kept, KeptIndex, Own, Peer, Repair, Since, Trail
from gearlink.sdk.e2ee.recovery import DamagedChunk, Manifest, Row
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused
from gearlink.sdk.secure import history
from gearlink.sdk.secure.own_device import Device
from gearlink.sdk.secure.told import HistoryFetched

OnProgress = Callable[[int, int], None]
"""Called with how much is done and how much there is, in chunks or messages; the second grows when more turns up."""
ENTRIES_AT_ONCE: Final = 500
CURSORS_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Packed:
    """One sealed chunk, or none if nothing is left; `position` is where the next one goes on. `cursors` say up to where the
    archive is complete, once it is."""

    chunk: bytes
    position: int
    messages: int
    cursors: Mapping[str, int] | None


def new_archive_id(now: int) -> str:
    """A fresh UUIDv7 (RFC 9562 §5.7)."""
    raw = bytearray(now.to_bytes(6, "big") + secrets.token_bytes(10))
    raw[6], raw[8] = raw[6] & 0x0F | 0x70, raw[8] & 0x3F | 0x80
    return id_text(bytes(raw))


# --- packing ---------------------------------------------------------------------------------------------------------


def pack_next(tx: Tx, *, record: Archive, number: int) -> Packed:
    """What follows in the trail, sealed as chunk `number`."""
    position = record.position
    numbers: list[int] = []

    def rows() -> Iterator[Row]:
        for kept in _following(tx, position):
            numbers.append(kept.change)
            yield Row.of(kept)

    plain, count = next(recovery.pack_rows(rows()), (b"", 0))
    chunk = b""
    if count:
        position = numbers[count - 1]
        chunk = recovery.seal_chunk(record.key, own_of(tx).user_id, record.archive_id, number, plain)
    if next(_following(tx, position), None) is None:
        return Packed(chunk, position, count, _cursors(tx))
    return Packed(chunk, position, count, None)


def _following(tx: Tx, position: int) -> Iterator[Kept]:
    """The messages that were changed after this position, in that order."""
    while entries := tx.scan(Trail, after=position, limit=ENTRIES_AT_ONCE):
        for entry in entries:
            kept = tx.get(Kept, entry.conversation_id, entry.era, entry.sequence)
            if kept is not None and kept.change == entry.number:
                yield kept
        position = entries[-1].number


def _cursors(tx: Tx) -> dict[str, int]:
    """The newest number of each conversation, of so many conversations as a manifest can name."""
    newest: list[Kept] = []
    conversation_id = ""
    while following := tx.scan(Kept, after=conversation_id, limit=1):
        conversation_id = following[0].conversation_id
        newest += tx.scan(Kept, conversation_id, limit=1, reverse=True)
    newest.sort(key=lambda kept: kept.created_at, reverse=True)
    return {kept.conversation_id: kept.sequence for kept in newest[:CURSORS_MAX]}


def eras(tx: Tx) -> dict[str, int]:
    """By which number the rows of this device name each epoch."""
    return {each.epoch: each.era for each in tx.scan(Epoch) if each.epoch}


async def put_next(device: Device, record: Archive, number: int, packed: Packed) -> Archive:
    """Puts a chunk on the server. What it is, is noted before: whatever happens, the digest will be that of what is there.
    Raises Refused, Unreachable."""
    underway = (recovery.chunk_hash(packed.chunk), packed.position, packed.messages)
    record = await note(device, replace(record, underway=underway))
    await device.client.put_chunk(record.archive_id, number, packed.chunk)
    return await arrived(device, record)


async def arrived(device: Device, record: Archive) -> Archive:
    """The chunk that was under way is on the server."""
    chunk_hash, position, messages = record.underway
    through = replace(
        record,
        done=record.done + 1,
        position=position,
        rows=record.rows + messages,
        digest=recovery.chained(record.digest, chunk_hash),
        underway=(b"", 0, 0),
    )
    return await note(device, through)


async def note(device: Device, record: Archive) -> Archive:
    await device.write(lambda tx: tx.put(record))
    return record


def seal_manifest(own: Own, record: Archive, manifest: Manifest) -> bytes:
    """The chunk with the manifest of this archive."""
    plain = recovery.encode_manifest(manifest)
    return recovery.seal_chunk(record.key, own.user_id, record.archive_id, record.manifest, plain)


def open_manifest(own: Own, record: Archive, chunk: bytes) -> Manifest:
    """The manifest in a chunk of this archive. Raises DamagedChunk."""
    plain = recovery.open_chunk(record.key, own.user_id, record.archive_id, record.manifest, chunk)
    return recovery.decode_manifest(plain)


# --- taking ----------------------------------------------------------------------------------------------------------


def take_account(tx: Tx, account_seed: bytes, backup_key: bytes, now: int) -> None:
    """This device has the account key from now on. That it is the right one is known to the caller."""
    own, key = own_of(tx), certificates.account_public(account_seed)
    certificate = certificates.certify(account_seed, own.user_id, own.device_id, identity_of(own))
    taken = replace(own, account_seed=account_seed, certificate=certificate, link_secret=b"", link_failures=0)
    tx.put(replace(taken, backup_key=backup_key or own.backup_key))
    known = tx.get(Peer, own.user_id)
    if known is None or known.account_key != key or known.changed_at:
        tx.put(Peer(own.user_id, key, now))


def take_chunk(tx: Tx, *, record: Archive, number: int, chunk: bytes, manifest: Manifest, now: int) -> Archive:
    """Takes the rows of chunk `number`. Raises DamagedChunk; then nothing of it was taken."""
    rows = recovery.unpack_rows(recovery.open_chunk(record.key, own_of(tx).user_id, record.archive_id, number, chunk))
    local = _settle_eras(tx, manifest.eras)
    taken = sum(_take(tx, row, local, now) for row in rows)
    digest = recovery.chained(record.digest, recovery.chunk_hash(chunk))
    done = replace(record, done=number, rows=record.rows + taken, digest=digest)
    tx.put(done)
    return done


def _settle_eras(tx: Tx, theirs: Mapping[str, int]) -> dict[int, int]:
    """By which number this device names the eras of an archive. Epochs that it has not heard of keep theirs if they can."""
    known = eras(tx)
    local: dict[int, int] = {}
    for epoch, number in theirs.items():
        era = known.get(epoch)
        if era is None:
            era = _free(known, number)
            known[epoch] = era
            tx.put(Epoch(epoch, era))
        local[number] = era
    return local


def _free(known: Mapping[str, int], era: int) -> int:
    while era in known.values():
        era -= 1
    return era


def _take(tx: Tx, row: Row, local: dict[int, int], now: int) -> bool:
    """Takes one row; False for one that is not new here."""
    if row.kind != "text" or (row.letter and not _is_message(row)):
        return False
    if row.era not in local:
        local |= _settle_eras(tx, {f"era {row.era}": row.era})
    kept = replace(row.kept(), era=local[row.era])
    index = tx.get(KeptIndex, kept.message_id)
    known = history.find(tx, kept.message_id)
    if known is not None:
        merged = _merged(tx, known, kept)
        if merged is None:
            return False
        kept = merged
    elif index is not None:
        return False  # it has disappeared here, or was deleted before it came
    elif tx.get(Kept, kept.conversation_id, kept.era, kept.sequence) is not None:
        return False  # another message stands there
    else:
        tx.put(KeptIndex(kept.message_id, kept.conversation_id, kept.era, kept.sequence))
    if kept.expires_at and kept.expires_at <= now:
        if known is not None:
            tx.delete(Kept, known.conversation_id, known.era, known.sequence)
        return False
    history.note_expiry(tx, kept)
    if kept.letter:
        tx.delete(Repair, kept.message_id)
        kept = history.catch_up(tx, kept)
    else:
        tx.put(kept)
    return known is None or (bool(kept.letter) and not known.letter)


def _is_message(row: Row) -> bool:
    try:
        return isinstance(letters.from_json(row.letter), Message)
    except Undecryptable:
        return False


def _merged(tx: Tx, known: Kept, came: Kept) -> Kept | None:
    """What is known of a message and what came: the newer of both. None if what came says nothing new."""
    came = replace(
        came, era=known.era, sequence=known.sequence, audience=known.audience, count=known.count or came.count
    )
    if known.deleted_at or came.sender_id != known.sender_id:
        return None
    if came.deleted_at:
        return came
    if not came.letter:
        return None
    if not known.letter or came.edited_at > known.edited_at:
        return came
    if came.edited_at < known.edited_at:
        return None
    epoch = next((each.epoch for each in tx.scan(Epoch) if each.era == known.era), "")
    since = tx.get(Since, known.conversation_id, epoch)
    if since is not None and known.sequence > since.sequence:
        return None  # this device heard it, and what was said about it, itself
    return None if came.reactions == known.reactions else came


# --- fetching --------------------------------------------------------------------------------------------------------

Fetched = Literal["all", "more"]


class Fetching:
    """Fetches the history from archives, a chunk at a time, and goes on where it was."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = trio.Lock()

    async def fetch(self, archive_id: str, on_progress: OnProgress) -> Fetched:
        """Takes what is there of an archive of which there is a record. "more": its maker has not finished it. Raises
        Refused, Unreachable; DamagedChunk if its manifest cannot be read: then it is over."""
        async with self._lock:
            record = await self._device.read(lambda tx: tx.get(Archive, "fetching", archive_id))
            return "all" if record is None or record.over else await self._fetch(record, on_progress)

    async def _fetch(self, record: Archive, on_progress: OnProgress) -> Fetched:
        try:
            manifest = await self._manifest(record)
        except DamagedChunk:
            await self._end(replace(record, damaged=record.damaged + 1))
            raise
        is_whole = not record.manifest or manifest.chunks > 0
        last = manifest.chunks if is_whole else record.done + 1
        while record.done < last:
            number = record.done + 1
            try:
                record = await self._take(record, number, manifest)
            except Refused as refused:
                if refused.code != "not-found":
                    raise
                if not is_whole:
                    return "more"
                record = await self._skip(record, number, b"")
            if not is_whole:
                last = number + 1
            on_progress(record.done - record.manifest, last - record.manifest)
        if not manifest.is_of(record.done, record.digest):  # each opened by itself, but they were never together
            record = replace(record, damaged=max(record.damaged, 1))
        await self._end(record)
        return "all"

    async def _manifest(self, record: Archive) -> Manifest:
        chunk = await self._device.client.get_chunk(record.archive_id, record.manifest)
        return open_manifest(self._device.own, record, chunk)

    async def _take(self, record: Archive, number: int, manifest: Manifest) -> Archive:
        device = self._device
        chunk = await device.client.get_chunk(record.archive_id, number)
        try:
            return await device.write(
                partial(take_chunk, record=record, number=number, chunk=chunk, manifest=manifest, now=device.now())
            )
        except DamagedChunk:
            return await self._skip(record, number, chunk)

    async def _skip(self, record: Archive, number: int, chunk: bytes) -> Archive:
        """A chunk that cannot be had: the rest is worth having."""
        digest = recovery.chained(record.digest, recovery.chunk_hash(chunk))
        skipped = replace(record, done=number, damaged=record.damaged + 1, digest=digest)
        await self._device.write(lambda tx: tx.put(skipped))
        return skipped

    async def _end(self, record: Archive) -> None:
        """All is here. A transfer is of no use any more; a backup may be somebody's only one."""
        device = self._device
        if record.manifest:
            await device.client.delete_archive(record.archive_id)

        def end(tx: Tx) -> None:
            if record.manifest:
                tx.delete(Archive, "fetching", record.archive_id)
            else:
                tx.put(replace(record, over=True))

        await device.write(end)
        device.tell(HistoryFetched(messages=record.rows, damaged=record.damaged))
