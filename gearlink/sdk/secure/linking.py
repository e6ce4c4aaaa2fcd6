"""Linking a device: an old one certifies a new one, gives it the account key, and hands it the history.

The way between them is an archive of kind `transfer`: chunk 0 is a letter, sealed for the new device, chunk 1 the manifest,
and the history is behind it. So it needs no conversation, and no moment at which both are online. What a person decides is
which device: they type the code that the new one shows, which is made of its identity key. Both sides go on after a crash.

The new device takes the account key only from where its code was typed: the code has a secret in it that no server sees, and
the letter proves that its writer knows it. The letter is also from a device that this key certifies, and it is the key
that the server shows for the user. A device that is linked opens no letter.
"""

import contextlib
import hashlib
import hmac
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Final

import trio
from msgspec import UNSET
from msgspec.structs import replace

from config.limits import DEVICES_PER_USER_MAX
from gearlink.sdk.e2ee import certificates, letters
from gearlink.sdk.e2ee.agreement import KEY_BYTES, own_of
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.letters import Duplicate, Link, Undecryptable
from gearlink.sdk.e2ee.records import Archive, Own, PeerDevice
from gearlink.sdk.e2ee.recovery import DamagedChunk, Manifest
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.options import Backoff
from gearlink.sdk.secure import archiving, trail
from gearlink.sdk.secure.archiving import Fetching, OnProgress
from gearlink.sdk.secure.keeping import Keeping
from gearlink.sdk.secure.own_device import Device
from gearlink.sdk.secure.posting import Posting
from gearlink.sdk.secure.told import Linked
from gearlink.views import ArchiveView

LOOK_SECONDS: Final = 3.0  # while a person waits for something of the other device
IDLE_SECONDS: Final = 3600.0
LETTER: Final = 0  # the numbers of the chunks
MANIFEST: Final = 1
FAILURES_MAX: Final = 20  # letters with a wrong proof before another code is shown
REFUSED_KEPT: Final = 200


class _WrongProof(Exception):
    """A letter of somebody who does not know the code."""


class Linking:
    """Both sides of linking. Owned by one task: `run`. `on_progress` hears how the history gets on, in either direction."""

    def __init__(self, device: Device, keeping: Keeping, posting: Posting, fetching: Fetching) -> None:
        self._device, self._keeping, self._posting, self._fetching = device, keeping, posting, fetching
        self._wake = trio.Event()
        self._lock = trio.Lock()
        self._refused: deque[bytes] = deque(maxlen=REFUSED_KEPT)  # hashes of letters with a wrong proof
        self.on_progress: OnProgress = lambda _done, _total: None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. What the network prevents is tried again."""
        task_status.started()
        backoff = Backoff(self._device.client.options)
        while True:
            self._wake = trio.Event()
            try:
                seconds = LOOK_SECONDS if await self.step() else IDLE_SECONDS
                backoff.reset()
            except (Refused, Unreachable) as trouble:
                seconds = backoff.next(trouble.retry_after_seconds)
            with trio.move_on_after(seconds):
                await self._wake.wait()

    def look(self) -> None:
        """There may be something to do."""
        self._wake.set()

    async def step(self) -> bool:
        """Does all that can be done now; whether more is expected of the other device. Raises Refused, Unreachable."""
        async with self._lock:
            waits = False
            if not self._keeping.linked.is_set():
                waits = not await self._look_for_a_letter()
            waits = await self._fetch() or waits
            for record in await self._device.read(lambda tx: tx.scan(Archive, "sending")):
                await self._send(record)
            return waits

    # --- the old device ----------------------------------------------------------------------------------------------

    async def link(self, code: str, *, history: bool = True) -> str:
        """Makes the device that shows this code one of the user's own, and returns its id. With `history` what was said
        so far goes to it afterwards, while `run` runs. The same again repeats it.

        Raises Refused: `not-linked` if this device is not linked itself; `not-found` if no device of the user has this
        code; `identity-changed` if the server shows another account key for this user.
        """
        device = self._device
        own = device.own
        if not own.account_seed or not self._keeping.linked.is_set():
            raise Refused("not-linked", detail="Only a device that is linked itself can link another one")
        device_id, identity_key = await self._find(code)
        certificate = certificates.certify(own.account_seed, own.user_id, device_id, identity_key)
        now = device.now()
        fresh = Archive(
            "sending", archiving.new_archive_id(now), certificates.new_account_seed() if history else b"",
            0, 0, 0, {}, now, device_id, MANIFEST, link_secret=certificates.code_secret(code),
        )  # fmt: skip

        def note(tx: Tx) -> Archive:
            known = tx.get(PeerDevice, own.user_id, device_id)
            tx.put(PeerDevice(own.user_id, device_id, identity_key, certificate, now))
            for before in tx.scan(Archive, "sending"):
                if before.device_id == device_id and not before.over:
                    if known is not None and known.identity_key == identity_key:
                        again = replace(before, link_secret=fresh.link_secret)
                        tx.put(again)  # what is on its way already goes on; the letter is written anew
                        return again
                    tx.put(replace(before, over=True))
            tx.put(fresh)
            return fresh

        async with self._lock:
            await self._introduce(await device.write(note))
        self.look()
        return device_id

    async def _find(self, code: str) -> tuple[str, bytes]:
        own = self._device.own
        shown = await self._device.client.identities_of(own.user_id)
        account_key = to_base64url(certificates.account_public(own.account_seed))
        if shown.account_key != account_key:
            raise Refused("identity-changed", detail="The server shows another key for this account: link nothing now")
        for each in shown.devices[:DEVICES_PER_USER_MAX]:  # a longer list would be a lottery
            identity_key = _key(each.identity_key)
            if each.device_id == own.device_id or not certificates.is_public_key(identity_key):
                continue
            if certificates.matches_code(code, own.user_id, each.device_id, identity_key):
                return each.device_id, identity_key
        raise Refused(
            "not-found",
            404,
            "No device of this account shows this code. Sign in on the new device with the same number, keep it open,"
            " and compare the code. If it is the right one, do not trust this server: it shows another key",
        )

    async def _introduce(self, record: Archive) -> Archive:
        """Certifies the device and puts the letter into chunk 0. May be repeated."""
        device, own = self._device, self._device.own
        known = await device.read(lambda tx: tx.get(PeerDevice, own.user_id, record.device_id))
        assert known is not None, "noted in the transaction that made the record"
        account_key = to_base64url(certificates.account_public(own.account_seed))
        try:
            await device.client.certify_device(record.device_id, account_key, to_base64url(known.certificate))
            await self._posting.open_sessions([(own.user_id, record.device_id)], anew=True)
            chunk = await device.write(partial(self._letter, record=record))
            await device.client.make_archive(record.archive_id, "transfer")
            await device.client.put_chunk(record.archive_id, LETTER, chunk)
        except Refused as refused:
            if not refused.retryable:
                await device.write(lambda tx: tx.delete(Archive, "sending", record.archive_id))
            raise
        return await self._note(replace(record, done=max(record.done, MANIFEST)))

    def _letter(self, tx: Tx, *, record: Archive) -> bytes:
        device, own = self._device, self._device.own
        account_key = certificates.account_public(own.account_seed)
        letter = Link(
            conversation_id=record.archive_id,
            certificate=to_base64url(own.certificate),
            account_key=to_base64url(own.account_seed),
            proof=to_base64url(certificates.link_proof(record.link_secret, own.user_id, record.device_id, account_key)),
            archive_id=record.archive_id if record.key else UNSET,
            archive_key=to_base64url(record.key) if record.key else UNSET,
            backup_key=to_base64url(own.backup_key) if own.backup_key else UNSET,
        )
        sealed = None
        if device.cipher.has_session(tx, record.device_id):
            sealed = device.cipher.seal(tx, record.device_id, letters.encode(letter), device.now())
        if sealed is None or sealed.type != "prekey":  # no session could be begun, at most there is an old one
            raise Refused("not-found", 404, "The new device has no usable keys on the server: open it once more")
        return sealed.body

    async def _send(self, record: Archive) -> None:
        """The history behind the letter. `done` is the number of the next chunk, 0 as long as there is no letter."""
        device = self._device
        if record.over:
            await device.client.delete_archive(record.archive_id)
            await device.write(lambda tx: tx.delete(Archive, "sending", record.archive_id))
            return
        try:
            if not record.done:
                record = await self._introduce(record)
            if record.key:
                await self._send_history(record)
        except Refused as refused:
            if refused.retryable:
                raise
            await self._cut_short(record.archive_id)
        await device.write(lambda tx: tx.delete(Archive, "sending", record.archive_id))

    async def _cut_short(self, archive_id: str) -> None:
        """There is no room for more, or nobody waits for it any more: what is there, is all."""
        record = await self._device.read(lambda tx: tx.get(Archive, "sending", archive_id))
        if record is not None and record.key and record.done > MANIFEST:
            with contextlib.suppress(Refused):
                await self._put_manifest(record, record.done - 1)

    async def _send_history(self, record: Archive) -> None:
        device = self._device
        if record.done == MANIFEST:
            await self._put_manifest(record, 0)
            record = await self._note(replace(record, done=MANIFEST + 1))
        if record.underway[0] and await self._has_arrived(record):
            record = await archiving.arrived(device, record)
        while True:
            packed = await device.read(partial(archiving.pack_next, record=record, number=record.done))
            if packed.chunk:
                record = await archiving.put_next(device, record, record.done, packed)
                self.on_progress(record.rows, max(record.rows, await device.read(trail.head)))
            if packed.cursors is not None:
                await self._put_manifest(replace(record, cursors=dict(packed.cursors)), record.done - 1)
                return

    async def _has_arrived(self, record: Archive) -> bool:
        """Whether the chunk of which the answer never came is on the server: then the other device may have read it."""
        views = [each async for each in self._device.client.archives() if each.archive_id == record.archive_id]
        return any(each.chunk_count > record.done for each in views)

    async def _put_manifest(self, record: Archive, chunks: int) -> None:
        """`chunks` is the number of the last one; 0 as long as more will come."""
        device, own = self._device, self._device.own
        manifest = Manifest(
            user_id=own.user_id,
            device_id=own.device_id,
            chunks=chunks,
            digest=to_base64url(record.digest),
            cursors=record.cursors,
            eras=await device.read(archiving.eras),
            made_at=device.now(),
        )
        chunk = archiving.seal_manifest(own, record, manifest)
        await device.client.put_chunk(record.archive_id, MANIFEST, chunk)

    async def _note(self, record: Archive) -> Archive:
        await self._device.write(lambda tx: tx.put(record))
        return record

    # --- the new device ----------------------------------------------------------------------------------------------

    async def _look_for_a_letter(self) -> bool:
        """Opens the letter of the device that linked this one, if it is there. Who would try out secrets gets `FAILURES_MAX`
        of them at once at most, and then the code is another one."""
        device, own = self._device, self._device.own
        shown = await device.client.identities_of(own.user_id)
        if not isinstance(shown.account_key, str):
            return False
        archives = [each async for each in device.client.archives()]
        for each in archives:
            if each.kind == "transfer" and each.chunk_count and each.device_id != own.device_id:
                chunk = await device.client.get_chunk(each.archive_id, LETTER)
                mark = hashlib.sha256(chunk).digest()
                if mark in self._refused:
                    continue
                try:
                    await device.write(partial(self._take, archive=each, chunk=chunk, shown=_key(shown.account_key)))
                except (Undecryptable, Duplicate):
                    continue  # it is for another device, or not what it says
                except _WrongProof:
                    self._refused.append(mark)
                    if await self._failed():
                        return False
                    continue
                await device.refresh()
                return True
        return False

    async def _failed(self) -> bool:
        """Counts a letter with a wrong proof; whether that were so many that the code is another one now."""

        def count(own: Own) -> Own:
            return replace(own, link_failures=own.link_failures + 1)

        await self._device.change_own(count)
        if self._device.own.link_failures < FAILURES_MAX:
            return False
        await self._keeping.show_code(anew=True)
        return True

    def _take(self, tx: Tx, *, archive: ArchiveView, chunk: bytes, shown: bytes) -> None:
        """Opens the letter and takes what is in it, or raises Undecryptable or _WrongProof and nothing has happened."""
        device, now = self._device, self._device.now()
        user_id, sender_id = device.own.user_id, archive.device_id
        envelope = Envelope("prekey", chunk)
        identity_key = device.cipher.identity_in(envelope)
        tx.put(PeerDevice(user_id, sender_id, identity_key, b"", now))
        letter = letters.decode(device.cipher.open(tx, user_id, sender_id, envelope, now))
        if not isinstance(letter, Link) or letter.conversation_id != archive.archive_id:
            raise Undecryptable("misdirected")
        account_seed = _key(letter.account_key)
        account_key = certificates.account_public(account_seed)
        if account_seed == own_of(tx).account_seed:
            raise Undecryptable("misdirected")  # nothing that this device does not have
        certificate = from_base64url(letter.certificate) if isinstance(letter.certificate, str) else b""
        is_ours = certificates.verify_certificate(account_key, user_id, sender_id, identity_key, certificate)
        if account_key != shown or not is_ours:
            raise Undecryptable("unknown-device")
        secret = own_of(tx).link_secret
        if not secret or not hmac.compare_digest(
            certificates.link_proof(secret, *device.address, account_key), _key(letter.proof)
        ):
            raise _WrongProof
        tx.put(PeerDevice(user_id, sender_id, identity_key, certificate, now))
        backup_key = _key(letter.backup_key) if isinstance(letter.backup_key, str) else b""
        archiving.take_account(tx, account_seed, backup_key, now)
        archive_key = _key(letter.archive_key) if isinstance(letter.archive_key, str) else b""
        tx.put(Archive("fetching", archive.archive_id, archive_key, 0, 0, 0, {}, now, sender_id, MANIFEST))

    async def fetch_history(self, on_progress: OnProgress | None = None) -> bool:
        """Fetches what there is of the history now, as `run` does by itself; whether all of it is here. Raises Refused,
        Unreachable."""
        if on_progress is not None:
            self.on_progress = on_progress
        async with self._lock:
            return not await self._fetch()

    async def _fetch(self) -> bool:
        """Whether something is still to come."""
        device = self._device
        waits = False
        for record in await device.read(_open_archives):
            if not record.done:
                await self._adopt(record)
            if record.manifest and not record.key:
                await device.client.delete_archive(record.archive_id)
                await device.write(partial(_forget, archive_id=record.archive_id))
                continue
            try:
                waits = await self._fetching.fetch(record.archive_id, self._progress) == "more" or waits
            except DamagedChunk:
                continue  # it was told
            except Refused as refused:
                if refused.code != "not-found":
                    raise
                waits = await self._missing(record) or waits
        return waits

    async def _missing(self, record: Archive) -> bool:
        """The manifest is not there: not yet, or not any more."""
        archives = [each.archive_id async for each in self._device.client.archives()]
        if record.archive_id in archives:
            return True
        await self._device.write(partial(_forget, archive_id=record.archive_id))
        return False

    async def _adopt(self, record: Archive) -> None:
        device = self._device
        await self._keeping.adopt(device.own.account_seed)
        if record.manifest:
            await self._note(replace(record, done=MANIFEST))
            device.tell(Linked(history=bool(record.key)))

    def _progress(self, done: int, total: int) -> None:
        self.on_progress(done, total)


def _open_archives(tx: Tx) -> Sequence[Archive]:
    return [each for each in tx.scan(Archive, "fetching") if not each.over]


def _forget(tx: Tx, *, archive_id: str) -> None:
    tx.delete(Archive, "fetching", archive_id)


def _key(text: str) -> bytes:
    """32 bytes of the wire, or none if it is something else."""
    try:
        return from_base64url(text, KEY_BYTES)
    except ValueError:
        return b""
