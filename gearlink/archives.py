"""What a user keeps on the server in a form that it cannot read: backups, and history on its way to a new device.

An archive is a row of chunks without a hole, under an id that its maker chose, so a broken upload goes on where it was
and a repeated call does no harm. A chunk is on the disk before its writer is answered. What one user may keep has a
quota. What is deleted or has expired is there for nobody from that moment on, and is erased in small steps which may be
interrupted anywhere. It knows nothing of keys, of HTTP or of what is inside.
"""

from typing import Final

from msgspec import UNSET
from msgspec.structs import replace

from config import limits
from config.settings import Settings
from gearlink.accounts import Actor
from gearlink.calls import ArchiveForm
from gearlink.clock import DAY, Clock, rfc3339
from gearlink.cursors import page_of
from gearlink.errors import NOT_FOUND, QUOTA_EXCEEDED, TOO_MANY, Refusal, invalid
from gearlink.throttle import Throttle
from gearlink.views import ArchiveView, Page
from storage.records import Archive, ArchiveChunk, Due
from storage.store import Reads, Store, Transaction

END_ARCHIVES: Final = "end-archives"
"""`Due.what` of a user some of whose archives are over."""
_ENDED: Final = 1  # an `expires_at` that is always over


class Archives:
    """The rules of archives over a store."""

    def __init__(self, store: Store, clock: Clock, settings: Settings) -> None:
        self._store, self._clock = store, clock
        per_minute = limits.ARCHIVE_WRITES_PER_MINUTE
        self._writes = Throttle("archive-writes", per_minute / 60, per_minute)
        self.reload(settings)

    def reload(self, settings: Settings) -> None:
        """Takes over what a reload may change. What is there already stays, also above a smaller quota."""
        self._bytes_max = settings.limits.archive_mib << 20

    async def list(self, actor: Actor, limit: int, cursor: str | None) -> Page[ArchiveView]:
        """The caller's, by id. Raises Refusal `invalid-request` for a foreign cursor."""
        found, more = await page_of(
            self._store, Archive, actor.user_id, cursor=cursor, limit=limit, key=lambda each: each.archive_id
        )
        now = self._clock.now()
        return Page(items=[_view(each) for each in found if not each.is_over(now)], next=more)

    async def make(self, actor: Actor, archive_id: str, form: ArchiveForm) -> tuple[ArchiveView, bool]:
        """An empty archive, and whether it is new: one that is there already is answered as it is.

        Raises Refusal `too-many`; `quota-exceeded` where no archives are kept; `invalid-request` if the one that is there
        is of another kind; `rate-limited`.
        """
        self._writes.check(actor.user_id)
        now = self._clock.now()

        async def change(tx: Transaction) -> tuple[Archive, bool] | None:
            """None if one of this id is being erased."""
            archive = await tx.get(Archive, actor.user_id, archive_id)
            if archive is not None and archive.is_over(now):
                return None
            if archive is not None:
                if archive.kind != form.kind:
                    raise invalid("kind", f"this archive is of kind {archive.kind}")
                return archive, False
            if not self._bytes_max:
                raise Refusal(QUOTA_EXCEEDED, "This server keeps no archives")
            if len(await _of(tx, actor.user_id)) >= limits.ARCHIVES_PER_USER_MAX:
                raise Refusal(TOO_MANY)
            expires_at = now + limits.TRANSFER_DAYS * DAY if form.kind == "transfer" else 0
            archive = Archive(
                actor.user_id, archive_id, form.kind, actor.device_id, now, now, expires_at=expires_at
            )  # fmt: skip
            tx.put(archive)
            if expires_at:
                tx.put(Due(expires_at, END_ARCHIVES, actor.user_id, 0, actor.user_id))
            return archive, True

        while (made := await self._store.write(change)) is None:
            await self.expire(actor.user_id)
        archive, is_new = made
        return _view(archive), is_new

    async def put(self, actor: Actor, archive_id: str, number: int, data: bytes) -> None:
        """Writes the chunk of this number: one that is there, or the next.

        Raises Refusal `not-found`, `invalid-request` (an empty chunk, a hole), `too-many` chunks, `quota-exceeded`,
        `rate-limited`.
        """
        self._writes.check(actor.user_id)
        if not data:
            raise invalid("", "a chunk has at least one byte")
        now = self._clock.now()

        async def change(tx: Transaction) -> None:
            archive = await self._found(tx, actor, archive_id)
            if number > archive.chunk_count:
                raise invalid("number", f"no hole is left: the next chunk is {archive.chunk_count}")
            old = await tx.get(ArchiveChunk, actor.user_id, archive_id, number)
            if old is not None and old.data == data:
                return
            if old is None and number >= limits.ARCHIVE_CHUNKS_MAX:
                raise Refusal(TOO_MANY, f"An archive has at most {limits.ARCHIVE_CHUNKS_MAX} chunks")
            grown = len(data) - (len(old.data) if old is not None else 0)
            kept = sum(each.size_bytes for each in await _of(tx, actor.user_id))
            if grown > 0 and kept + grown > self._bytes_max:
                raise Refusal(QUOTA_EXCEEDED)
            tx.put(ArchiveChunk(actor.user_id, archive_id, number, data))
            tx.put(
                replace(
                    archive,
                    chunk_count=max(archive.chunk_count, number + 1),
                    size_bytes=archive.size_bytes + grown,
                    updated_at=now,
                )
            )

        await self._store.write(change)

    async def read(self, actor: Actor, archive_id: str, number: int) -> bytes:
        """One chunk as it was written. Raises Refusal `not-found`."""
        await self._found(self._store, actor, archive_id)
        chunk = await self._store.get(ArchiveChunk, actor.user_id, archive_id, number)
        if chunk is None:
            raise Refusal(NOT_FOUND)
        return chunk.data

    async def delete(self, actor: Actor, archive_id: str) -> None:
        """The archive is gone when this is done; so is one that was not there. Raises Refusal `rate-limited`."""
        self._writes.check(actor.user_id)
        now = self._clock.now()

        async def change(tx: Transaction) -> bool:
            archive = await tx.get(Archive, actor.user_id, archive_id)
            if archive is not None:
                tx.put(replace(archive, expires_at=_ENDED))
                tx.put(Due(now, END_ARCHIVES, actor.user_id, 0, actor.user_id))  # should this be interrupted
            return archive is not None

        if await self._store.write(change):
            await _erase(self._store, self._clock, actor.user_id, archive_id)

    async def expire(self, user_id: str) -> None:
        """Erases those of a user's archives that are over."""
        for archive in await _of(self._store, user_id):
            await _erase(self._store, self._clock, user_id, archive.archive_id)

    async def _found(self, reads: Reads, actor: Actor, archive_id: str) -> Archive:
        archive = await reads.get(Archive, actor.user_id, archive_id)
        if archive is None or archive.is_over(self._clock.now()):
            raise Refusal(NOT_FOUND)
        return archive


async def erase_all(store: Store, clock: Clock, user_id: str) -> None:
    """Ends and erases everything that a user keeps. It may be begun again after it was interrupted anywhere."""

    async def change(tx: Transaction) -> None:
        for archive in await _of(tx, user_id):
            tx.put(replace(archive, expires_at=_ENDED))

    await store.write(change)
    for archive in await _of(store, user_id):
        await _erase(store, clock, user_id, archive.archive_id)


async def _of(reads: Reads, user_id: str) -> list[Archive]:
    return await reads.scan(Archive, user_id, limit=limits.ARCHIVES_PER_USER_MAX)


async def _erase(store: Store, clock: Clock, user_id: str, archive_id: str) -> None:
    """Erases an archive if it is over, the last chunks first, which needs no look at them."""
    now = clock.now()

    async def step(tx: Transaction) -> bool:
        """True once nothing is left."""
        archive = await tx.get(Archive, user_id, archive_id)
        if archive is None or not archive.is_over(now):  # the same id may have been taken for another one meanwhile
            return True
        left = max(0, archive.chunk_count - limits.ARCHIVE_CHUNKS_PER_STEP)
        for number in range(left, archive.chunk_count):
            tx.delete(ArchiveChunk, user_id, archive_id, number)
        if left:
            tx.put(replace(archive, chunk_count=left))
            return False
        tx.delete(Archive, user_id, archive_id)
        return True

    while not await store.write(step):
        pass


def _view(archive: Archive) -> ArchiveView:
    return ArchiveView(
        archive_id=archive.archive_id,
        kind=archive.kind,
        device_id=archive.device_id,
        chunk_count=archive.chunk_count,
        size_bytes=archive.size_bytes,
        created_at=rfc3339(archive.created_at),
        updated_at=rfc3339(archive.updated_at),
        expires_at=rfc3339(archive.expires_at) if archive.expires_at else UNSET,
    )
