"""Calls about what a user keeps on the server in a form that it cannot read, and about what a device could not read.

One method is one call; each raises Refused or Unreachable, and says which refusals it has. An archive is a row of chunks
of bytes, for a backup or for handing the history to a new device; what is in them is for the caller to seal and to check.
All of them may be repeated without harm. It knows nothing of sockets or of keys.
"""

from collections.abc import Mapping

from gearlink import calls
from gearlink.sdk.exchange import Exchange, segment
from gearlink.sdk.paging import Items
from gearlink.views import ArchiveKind, ArchiveView, DecryptionReason

OCTETS = "application/octet-stream"


class Archives(Exchange):
    """The calls about archives, and the report of what could not be decrypted."""

    def archives(self) -> Items[ArchiveView]:
        """What the user keeps, by id. A broken upload goes on at `chunk_count`."""
        return self.items("/archives", ArchiveView)

    async def make_archive(self, archive_id: str, kind: ArchiveKind) -> ArchiveView:
        """An empty archive under an id of the caller's choice (a UUID); one that is there already stays as it is. Raises
        Refused `too-many`, `quota-exceeded` where the server keeps no archives."""
        return await self.call("PUT", _path(archive_id), ArchiveView, calls.ArchiveForm(kind=kind))

    async def put_chunk(self, archive_id: str, number: int, data: bytes) -> None:
        """Writes the chunk of this number, which is there already or the next one. It is on the server's disk when this
        returns. Raises Refused `not-found`, `invalid-request` for a hole, `quota-exceeded`, `too-many`."""
        await self.call("PUT", _path(archive_id, "chunks", str(number)), None, data, media_type=OCTETS)

    async def get_chunk(self, archive_id: str, number: int) -> bytes:
        """One chunk as it was written. Raises Refused `not-found`."""
        return await self.call("GET", _path(archive_id, "chunks", str(number)), bytes)

    async def delete_archive(self, archive_id: str) -> None:
        """Deletes an archive with its chunks, if it is there."""
        await self.call("DELETE", _path(archive_id), None)

    async def report_decryption(self, counts: Mapping[DecryptionReason, int]) -> None:
        """Tells the server how many messages this device could not read, by reason and without saying which."""
        await self.call("POST", "/reports/decryption", None, calls.DecryptionReport(counts=dict(counts)))


def _path(archive_id: str, *parts: str) -> str:
    return "/".join(("/archives", segment(archive_id), *map(segment, parts)))
