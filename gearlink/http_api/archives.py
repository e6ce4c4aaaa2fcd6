"""Rosters, archives, and reports of what could not be decrypted. Each handler is one call of the domain."""

from typing import Final

from config import limits
from gearlink.accounts import Actor
from gearlink.calls import ArchiveForm, DecryptionReport, RosterForm, RosterPublished
from gearlink.domain import Domain
from gearlink.errors import FORBIDDEN, NOT_FOUND, QUOTA_EXCEEDED, ROSTER_CONFLICT, TOO_MANY, Refusal
from gearlink.http_api.table import Blob, Limit, PageQuery, Reply, Route
from gearlink.rights import Right
from gearlink.views import ArchiveView, Page, Request, RosterStatement, Sequence

OCTETS: Final = "application/octet-stream"


class RosterQuery(Request):
    """The statements above version `after`."""

    limit: Limit = limits.PAGE_DEFAULT
    after: Sequence = 0


async def publish_roster(domain: Domain, actor: Actor, conversation_id: str, form: RosterForm) -> Reply:
    version, is_new = await domain.rosters.publish(actor, conversation_id, form)
    return (201 if is_new else 200), RosterPublished(version=version)


async def read_roster(domain: Domain, actor: Actor, conversation_id: str, query: RosterQuery) -> Reply:
    return 200, await domain.rosters.statements(actor, conversation_id, query.after, query.limit)


async def list_archives(domain: Domain, actor: Actor, query: PageQuery) -> Reply:
    return 200, await domain.archives.list(actor, query.limit, query.cursor)


async def make_archive(domain: Domain, actor: Actor, archive_id: str, form: ArchiveForm) -> Reply:
    archive, is_new = await domain.archives.make(actor, archive_id, form)
    return (201 if is_new else 200), archive


async def write_chunk(domain: Domain, actor: Actor, archive_id: str, number: str, data: bytes) -> Reply:
    await domain.archives.put(actor, archive_id, _number(number), data)
    return 204, None


async def read_chunk(domain: Domain, actor: Actor, archive_id: str, number: str) -> Reply:
    return 200, Blob(await domain.archives.read(actor, archive_id, _number(number)), OCTETS)


async def delete_archive(domain: Domain, actor: Actor, archive_id: str) -> Reply:
    await domain.archives.delete(actor, archive_id)
    return 204, None


async def report_decryption(domain: Domain, actor: Actor, form: DecryptionReport) -> Reply:
    await domain.reports.decryption(actor, form)
    return 204, None


def _number(text: str) -> int:
    """A chunk has one address. Raises Refusal `not-found` for zeros in front."""
    if text != str(int(text)):
        raise Refusal(NOT_FOUND)
    return int(text)


_ROSTER: Final = "/conversations/{conversationId}/roster"
_ARCHIVE: Final = "/archives/{archiveId}"
_CHUNK: Final = _ARCHIVE + "/chunks/{number}"

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET", _ROSTER, read_roster, "Who is in an encrypted group, as its admins signed it: the statements in order",
        query=RosterQuery, answers={200: Page[RosterStatement]}, refusals=(NOT_FOUND,), right=Right.READ,
    ),
    Route(
        "POST", _ROSTER, publish_roster, "Put a signed statement behind the newest one; the same again answers 200",
        body=RosterForm, answers={200: RosterPublished, 201: RosterPublished},
        refusals=(NOT_FOUND, FORBIDDEN, ROSTER_CONFLICT, TOO_MANY), right=Right.READ,
    ),
    Route(
        "GET", "/archives", list_archives, "What the caller keeps here encrypted, by id",
        query=PageQuery, answers={200: Page[ArchiveView]},
    ),
    Route(
        "PUT", _ARCHIVE, make_archive, "Make an empty archive under an id of one's own choice; again changes nothing",
        body=ArchiveForm, answers={200: ArchiveView, 201: ArchiveView}, refusals=(NOT_FOUND, TOO_MANY, QUOTA_EXCEEDED),
    ),
    Route(
        "DELETE", _ARCHIVE, delete_archive, "Delete an archive with its chunks, if it is there",
        answers={204: None}, refusals=(NOT_FOUND,),
    ),
    Route(
        "PUT", _CHUNK, write_chunk, "Write a chunk that is there already, or the next one",
        takes=(OCTETS,), body_bytes_max=limits.ARCHIVE_CHUNK_BYTES_MAX, answers={204: None},
        refusals=(NOT_FOUND, TOO_MANY, QUOTA_EXCEEDED),
    ),
    Route(
        "GET", _CHUNK, read_chunk, "A chunk as it was written",
        gives=(OCTETS,), answers={200: Blob}, refusals=(NOT_FOUND,),
    ),
    Route(
        "POST", "/reports/decryption", report_decryption,
        "Tell how many messages this device could not read, by reason; nothing else is told",
        body=DecryptionReport, answers={204: None},
    ),
)  # fmt: skip
