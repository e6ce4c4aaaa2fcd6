"""The numbers of letters: what one device says in one conversation is numbered from 1, inside of what is encrypted.

So a letter that the server withheld is noticed with the next one that it passes on, and one that comes twice under another
name is known as a replay. Letters that came and could not be opened explain as many missing numbers.
"""

from collections.abc import Sequence
from typing import Final

from msgspec.structs import replace

from gearlink.sdk.e2ee.records import Count
from gearlink.sdk.e2ee.store import Tx

MISSING_MAX: Final = 1000  # that are remembered of one device, the newest
LATE_MAX: Final = 100  # before the first one that is seen
NOBODY: Final = ""  # stands for a device that is not known


class Replayed(Exception):
    """A letter of this number was opened before."""


def opened(tx: Tx, conversation_id: str, device_id: str, count: int) -> tuple[Sequence[int], bool]:
    """Notes the number of a letter that was opened. Returns those that are to be asked for, and whether nothing explains
    that they are missing. What was before the first letter that is ever seen of a device was before our time, or is late.
    Raises Replayed."""
    known = tx.get(Count, conversation_id, device_id)
    if known is None:
        tx.put(Count(conversation_id, device_id, count, tuple(range(max(1, count - LATE_MAX), count))))
        return (), False
    if count <= known.count:
        if count not in known.missing:
            raise Replayed
        left = tuple(each for each in known.missing if each != count)
        unread, failed = max(0, known.unread - 1), max(0, known.failed - 1)
        tx.put(replace(known, missing=left, unread=unread, failed=failed))
        return (), False
    gap = range(known.count + 1, count)
    explained = min(known.unread, len(gap))
    strange = _explain(tx, conversation_id, len(gap) - explained)
    doubtful = min(known.failed, explained)  # anybody can make what cannot be opened, to hide that something is missing
    missing = (*known.missing, *gap[-MISSING_MAX:])[-MISSING_MAX:]  # a made-up number is no reason to count up to it
    unread, failed = known.unread - explained, known.failed - doubtful
    tx.put(replace(known, count=count, missing=missing, unread=unread, failed=failed))
    return gap[len(gap) - strange - doubtful :], strange > 0


def _explain(tx: Tx, conversation_id: str, missing: int) -> int:
    """How many of so many missing ones nothing explains: of those that disappeared nobody knows whose they were."""
    gone = tx.get(Count, conversation_id, NOBODY)
    if not missing or gone is None:
        return missing
    explained = min(gone.unread, missing)
    tx.put(replace(gone, unread=gone.unread - explained))
    return missing - explained


def unopened(tx: Tx, conversation_id: str, device_id: str = NOBODY, *, failed: bool = False) -> None:
    """A letter came from this device and was deleted, or (`failed`) cannot be opened; or one of nobody knows whom has
    disappeared."""
    known = tx.get(Count, conversation_id, device_id)
    if known is not None:
        unread = min(known.unread + 1, MISSING_MAX)
        tx.put(replace(known, unread=unread, failed=min(known.failed + failed, unread)))
    elif device_id == NOBODY:
        tx.put(Count(conversation_id, NOBODY, 0, unread=1))


def begin_anew(tx: Tx, conversation_id: str, own_device_id: str) -> None:
    """This device was not in the conversation for a while: what it did not hear then is not missing."""
    for known in tx.scan(Count, conversation_id):
        if known.device_id != own_device_id:
            tx.delete(Count, conversation_id, known.device_id)
