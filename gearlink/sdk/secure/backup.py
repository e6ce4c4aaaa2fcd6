"""The backup: the account key and the history on the server, where only the recovery key opens them.

It is set up once, with a person who has written the key down and types it; from then on `run` adds what is new or has
changed, a chunk at a time, and writes the manifest behind it. A chunk that is there is never written again, so whatever
a crash or a restored server leaves behind is whole as far as it goes; if it lacks something the backup is made anew. Each
device of a user that has the key keeps a backup of its own.
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec
import trio
from msgspec.structs import replace

from gearlink.sdk.e2ee import certificates, recovery
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import Archive, Epoch, Kept, Peer, Trail
from gearlink.sdk.e2ee.recovery import BadRecoveryKey, DamagedChunk, Manifest, Verified
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.options import Backoff
from gearlink.sdk.secure import archiving
from gearlink.sdk.secure.archiving import Fetching, OnProgress
from gearlink.sdk.secure.keeping import Keeping
from gearlink.sdk.secure.own_device import Device
from gearlink.sdk.secure.told import IdentityChanged
from gearlink.views import ArchiveView

LOOK_SECONDS: Final = 60.0
ADD_AFTER_MS: Final = 10 * 60_000
ADD_AFTER_MESSAGES: Final = 200
VERIFIED_MAX: Final = 1500  # so that the manifest fits into its chunk
SMALL_CHUNKS_MAX: Final = 2000  # that were added to a backup before it is made anew, with full ones
_FULL: Final = frozenset({"quota-exceeded", "too-many"})
_WRONG: Final = "this is a recovery key, but not of this backup: is it an older one, or of another account?"


@dataclass(frozen=True, slots=True)
class Covered:
    """Up to which message of a conversation the backup is complete, and when that was sent (ms)."""

    sequence: int
    sent_at: int


@dataclass(frozen=True, slots=True)
class BackupStatus:
    """`complete`: all that this device has is in its backup. `made_at` is when it was added to last (ms), `size_bytes` what
    it takes on the server, `trouble` why it does not get on. `others` are backups of other devices of the user."""

    enabled: bool
    complete: bool
    conversations: Mapping[str, Covered]
    chunks: int
    size_bytes: int
    made_at: int
    others: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Restored:
    """What came out of a backup. `damaged` chunks could not be read; what was in them is lost. `made_at` is when the newest
    one was added to last (ms): a server can hand out an older state, and only the person can tell."""

    messages: int
    verified: int
    damaged: int
    made_at: int


@dataclass(slots=True)
class _Pending:
    """A backup of which the recovery key was shown and not typed yet."""

    key: bytes
    archive_id: str


class Backup:
    """The backup of this device. Owned by one task: `run`."""

    def __init__(self, device: Device, keeping: Keeping, fetching: Fetching) -> None:
        self._device, self._keeping, self._fetching = device, keeping, fetching
        self._pending: _Pending | None = None
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._trouble = ""

    # --- setting up --------------------------------------------------------------------------------------------------

    async def begin(self) -> str:
        """Makes a recovery key and a first backup with it, and returns the key: to be shown once, and written down. It
        counts once it was typed (`confirm`); until then a backup that is there stays. Raises Refused `not-linked`,
        `quota-exceeded`, `too-many`; Unreachable."""
        device, own = self._device, self._device.own
        if not own.account_seed:
            raise Refused("not-linked", detail="Link this device first: a backup is of an account")
        async with self._lock:
            await self._give_up()
            shown = recovery.new_recovery_key()
            key = recovery.backup_key(own.user_id, recovery.parse_recovery_key(shown))
            now = device.now()
            record = Archive("backup", archiving.new_archive_id(now), b"", 0, 0, 0, {}, 0, own.device_id, over=True)
            await self._note(record)  # without the key: after a crash there is only something to clear away
            self._pending = _Pending(key, record.archive_id)
            await self._start(replace(record, key=key))
            return shown

    async def confirm(self, typed: str) -> None:
        """The person typed the recovery key: the backup is fetched from the server and opened with it, and only then this
        device has a backup. Raises BadRecoveryKey if it does not open it; then they may try again."""
        device, own = self._device, self._device.own
        if self._pending is None:
            raise RuntimeError("`begin` comes first")
        async with self._lock:
            key = recovery.backup_key(own.user_id, recovery.parse_recovery_key(typed))
            archive_id, is_shown = self._pending.archive_id, hmac.compare_digest(key, self._pending.key)
            record = Archive("backup", archive_id, key, 0, 0, 0, {}, 0, own.device_id)
            chunk = await device.client.get_chunk(archive_id, record.manifest)
            try:
                opened = archiving.open_manifest(own, record, chunk).account_seed
            except DamagedChunk:
                if is_shown:
                    raise Refused("not-found", 404, "The server does not give back what was put there") from None
                raise BadRecoveryKey(
                    "this is not the key that was shown: compare it with what was written down"
                ) from None
            if not hmac.compare_digest(opened, own.account_seed):
                raise BadRecoveryKey("this is not the key that was shown")

            def settle(tx: Tx) -> None:
                for before in tx.scan(Archive, "backup"):
                    tx.put(replace(before, over=True))
                tx.put(record)

            await device.write(settle)
            await device.change_own(lambda known: replace(known, backup_key=key))
            self._pending = None
        self.look()

    async def disable(self) -> None:
        """Deletes this device's backups and forgets the key. Those of other devices stay. Raises Refused, Unreachable."""
        device = self._device
        async with self._lock:
            self._pending = None
            await device.change_own(lambda own: replace(own, backup_key=b""))
            for record in await device.read(lambda tx: tx.scan(Archive, "backup")):
                await self._drop(record)

    # --- how it is ---------------------------------------------------------------------------------------------------

    async def status(self) -> BackupStatus:
        """What is in the backup, as this device and the server know it now. Raises Refused, Unreachable."""
        device, own = self._device, self._device.own
        views = [each async for each in device.client.archives() if each.kind == "backup"]
        others = sum(each.device_id != own.device_id for each in views)

        def look(tx: Tx) -> tuple[Archive | None, bool, dict[str, Covered]]:
            record = _current(tx, own.backup_key)
            if record is None:
                return None, False, {}
            covered = {each: _covered(tx, each, sequence) for each, sequence in record.cursors.items()}
            return record, not _pending(tx, record, 1), covered

        record, is_followed, covered = await device.read(look)
        view = next((each for each in views if record is not None and each.archive_id == record.archive_id), None)
        if record is None or view is None:
            return BackupStatus(bool(own.backup_key), False, {}, 0, 0, 0, others, self._trouble)
        is_there = view.chunk_count > record.done and record.chunks == record.done and record.changed_at > 0
        return BackupStatus(
            True,
            is_followed and is_there,
            covered,
            view.chunk_count,
            view.size_bytes,
            record.changed_at,
            others,
            self._trouble,
        )

    # --- keeping it --------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. What the network prevents is tried again."""
        task_status.started()
        backoff = Backoff(self._device.client.options)
        while True:
            self._wake = trio.Event()
            seconds = LOOK_SECONDS
            try:
                if await self._is_due():
                    await self.flush()
                backoff.reset()
            except (Refused, Unreachable) as trouble:
                self._trouble = trouble.detail
                seconds = max(seconds, backoff.next(trouble.retry_after_seconds))
            with trio.move_on_after(seconds):
                await self._wake.wait()

    def look(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def _is_due(self) -> bool:
        own, now = self._device.own, self._device.now()
        if not own.backup_key or not own.account_seed:
            return False

        def look(tx: Tx) -> bool:
            record = _current(tx, own.backup_key)
            if record is None or not record.changed_at or record.done != record.chunks:
                return True
            waiting = _pending(tx, record, ADD_AFTER_MESSAGES)
            is_late = now - record.changed_at >= ADD_AFTER_MS
            return waiting >= ADD_AFTER_MESSAGES or (is_late and (waiting > 0 or record.mark != _mark(tx)))

        return await self._device.read(look)

    async def flush(self) -> None:
        """Adds everything that is not in the backup yet. Raises Refused, Unreachable."""
        async with self._lock:
            if not self._device.own.backup_key or not self._device.own.account_seed:
                return
            try:
                await self._add()
            except Refused as refused:
                if refused.code not in _FULL or not await self._clear():
                    raise
                await self._add()  # without what it replaces there is room
            self._trouble = ""

    async def _add(self) -> None:
        device = self._device
        views = {each.archive_id: each async for each in device.client.archives()}
        record = await self._record(views)
        while True:
            number = record.done + 1
            packed = await device.read(partial(archiving.pack_next, record=record, number=number))
            if packed.chunk:
                record = await archiving.put_next(device, record, number, packed)
            if packed.cursors is not None:
                break
        record = replace(record, cursors=dict(packed.cursors), base=record.base or record.done)
        await self._put_manifest(record)
        await self._clear()

    async def _record(self, views: Mapping[str, ArchiveView]) -> Archive:
        """The backup to add to. A server that was restored may have lost it, or a part of it. One that has more was given
        that by a vault of which this is an older copy."""
        device, own = self._device, self._device.own
        record = await device.read(lambda tx: _current(tx, own.backup_key))
        if record is not None:
            view = views.get(record.archive_id)
            chunks = view.chunk_count - 1 if view is not None else -1  # behind the manifest
            if record.underway[0] and chunks == record.done + 1:
                record = await archiving.arrived(device, record)
            if chunks == record.done and record.done - record.base <= SMALL_CHUNKS_MAX:
                return record
            await self._note(replace(record, over=True))
        now = device.now()
        fresh = Archive("backup", archiving.new_archive_id(now), own.backup_key, 0, 0, 0, {}, 0, own.device_id)
        await self._note(fresh)
        return await self._start(fresh)

    async def _start(self, record: Archive) -> Archive:
        """An archive with a manifest, and no history yet."""
        await self._device.client.make_archive(record.archive_id, "backup")
        return await self._put_manifest(record, is_noted=not record.over)

    async def _put_manifest(self, record: Archive, *, is_noted: bool = True) -> Archive:
        device, own = self._device, self._device.own
        now = device.now()

        def gather(tx: Tx) -> tuple[tuple[Verified, ...], dict[str, int], bytes]:
            return _verified(tx), archiving.eras(tx), _mark(tx)

        verified, eras, mark = await device.read(gather)
        manifest = Manifest(
            user_id=own.user_id,
            device_id=own.device_id,
            account_key=to_base64url(own.account_seed),
            chunks=record.done,
            digest=to_base64url(record.digest),
            cursors=record.cursors,
            eras=eras,
            verified=verified,
            made_at=now,
        )
        chunk = archiving.seal_manifest(own, record, manifest)
        await device.client.put_chunk(record.archive_id, record.manifest, chunk)
        written = replace(record, chunks=record.done, changed_at=now, mark=mark)
        return await self._note(written) if is_noted else written

    async def _note(self, record: Archive) -> Archive:
        await self._device.write(lambda tx: tx.put(record))
        return record

    async def _clear(self) -> bool:
        """Deletes what was replaced, and what was restored here from devices that are gone. Whether there was something."""
        device = self._device
        pending = self._pending.archive_id if self._pending is not None else ""
        over = await device.read(lambda tx: [each for each in tx.scan(Archive, "backup") if each.over])
        over = [each for each in over if each.archive_id != pending]
        restored = await device.read(lambda tx: [each for each in tx.scan(Archive, "fetching") if each.over])
        if restored:
            present = {each.id for each in await device.client.devices()}
            over += [each for each in restored if each.device_id not in present and not each.damaged]
        for record in over:
            await self._drop(record)
        return bool(over)

    async def _give_up(self) -> None:
        """Keys that were shown and never typed are of no use any more, nor what was made with them."""
        self._pending = None
        for record in await self._device.read(lambda tx: tx.scan(Archive, "backup")):
            if not record.key:
                await self._drop(record)

    async def _drop(self, record: Archive) -> None:
        await self._device.client.delete_archive(record.archive_id)
        await self._device.write(lambda tx: tx.delete(Archive, record.kind, record.archive_id))

    # --- restoring ---------------------------------------------------------------------------------------------------

    async def restore(self, typed: str, on_progress: OnProgress | None = None) -> Restored:
        """With the recovery key this device becomes one of the user's own: it takes the account key, who was verified and
        the history from all backups that the key opens. If that is interrupted, the rest is fetched by itself later.

        Raises BadRecoveryKey if it is none, or opens no backup; Refused `not-found` if there is no backup,
        `identity-changed` if the account has another key now than in the backup; Unreachable.
        """
        device, own = self._device, self._device.own
        key = recovery.backup_key(own.user_id, recovery.parse_recovery_key(typed))
        found = await self._open_backups(key)
        seed = next((manifest.account_seed for _record, manifest in found if manifest.account_seed), b"")
        shown = await device.client.identities_of(own.user_id)
        is_other = bool(own.account_seed) and own.account_seed != seed
        if isinstance(shown.account_key, str):
            is_other = is_other or not seed or shown.account_key != to_base64url(certificates.account_public(seed))
        if is_other or not seed:
            raise Refused("identity-changed", detail="This account has another key now than in this backup")

        def take(tx: Tx) -> int:
            archiving.take_account(tx, seed, key, device.now())
            known: dict[str, Verified] = {}
            for record, manifest in reversed(found):
                before = tx.get(Archive, "fetching", record.archive_id)
                if before is None or before.over:
                    tx.put(record)
                known.update((each.user_id, each) for each in manifest.verified)
            return sum(_take_verified(tx, device, each) for each in known.values())

        verified = await device.write(take)
        await device.refresh()
        await self._keeping.adopt(seed)
        for record, _manifest in reversed(found):
            try:
                await self._fetching.fetch(record.archive_id, on_progress or (lambda _done, _total: None))
            except DamagedChunk:
                continue  # it is counted
        ids = [record.archive_id for record, _manifest in found]
        ends = await device.read(lambda tx: [tx.get(Archive, "fetching", each) for each in ids])
        self.look()
        return Restored(
            sum(each.rows for each in ends if each is not None),
            verified,
            sum(each.damaged for each in ends if each is not None),
            found[0][1].made_at,
        )

    async def _open_backups(self, key: bytes) -> Sequence[tuple[Archive, Manifest]]:
        """The backups that this key opens, the newest first."""
        device, own = self._device, self._device.own
        views = [each async for each in device.client.archives() if each.kind == "backup" and each.chunk_count]
        if not views:
            raise Refused("not-found", 404, "There is no backup of this account on the server")
        found: list[tuple[Archive, Manifest]] = []
        newer = False
        for view in views:
            record = Archive("fetching", view.archive_id, key, 0, 0, 0, {}, device.now(), view.device_id)
            try:
                chunk = await device.client.get_chunk(view.archive_id, record.manifest)
                found.append((record, archiving.open_manifest(own, record, chunk)))
            except DamagedChunk as damage:
                newer = newer or damage.reason == "newer"
            except ValueError:
                continue  # not an id: no archive of ours
        if not found and newer:
            raise Refused("not-found", detail="The backup was made by a newer version of this program: upgrade it")
        if not found:
            raise BadRecoveryKey(_WRONG)
        return sorted(found, key=lambda each: each[1].made_at, reverse=True)


# --- over transactions -----------------------------------------------------------------------------------------------


def _current(tx: Tx, key: bytes) -> Archive | None:
    """The backup that is added to."""
    return next((each for each in tx.scan(Archive, "backup") if key and each.key == key and not each.over), None)


def _pending(tx: Tx, record: Archive, limit: int) -> int:
    """How many messages are not in the backup, or have changed since; counted up to `limit`."""
    return len(tx.scan(Trail, after=record.position, limit=limit))


def _covered(tx: Tx, conversation_id: str, sequence: int) -> Covered:
    eras = sorted((each.era for each in tx.scan(Epoch)), reverse=True)
    for era in eras:
        kept = tx.get(Kept, conversation_id, era, sequence)
        if kept is not None:
            return Covered(sequence, kept.created_at)
    return Covered(sequence, 0)


def _verified(tx: Tx) -> tuple[Verified, ...]:
    peers = [peer for peer in tx.scan(Peer) if peer.verified_at and peer.account_key]
    peers.sort(key=lambda peer: peer.verified_at, reverse=True)
    return tuple(
        Verified(user_id=peer.user_id, account_key=to_base64url(peer.account_key), verified_at=peer.verified_at)
        for peer in peers[:VERIFIED_MAX]
    )


def _mark(tx: Tx) -> bytes:
    return hashlib.sha256(msgspec.json.encode(_verified(tx))).digest()


def _take_verified(tx: Tx, device: Device, verified: Verified) -> bool:
    """A person had compared this key: if another one was met here meanwhile, that is a changed identity."""
    now, key = device.now(), from_base64url(verified.account_key)
    known = tx.get(Peer, verified.user_id)
    if verified.user_id == device.own.user_id:
        return False
    if known is None or known.account_key == key:
        met_at = known.met_at if known is not None else now
        changed = (known.offered_key, known.changed_at) if known is not None else (b"", 0)
        tx.put(Peer(verified.user_id, key, met_at, verified.verified_at, *changed))
        return True
    shown = known.offered_key if known.changed_at else known.account_key
    if shown == key:
        tx.put(Peer(verified.user_id, key, known.met_at, verified.verified_at))
        return True
    tx.put(Peer(verified.user_id, key, known.met_at, verified.verified_at, shown, now))
    device.tell(IdentityChanged(user_id=verified.user_id, was_verified=True))
    return True
