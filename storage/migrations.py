"""Numbered steps from one data format to the next; the first one makes an empty store.

A step is one batch: it happens whole or not at all, and the format number that it reaches is in the same batch, so a start
that dies half-way goes on where it was. Steps are append-only: never change or renumber one that was released. The stamp
beside the database repeats the numbers, so that an older program keeps away without opening anything.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec.structs import replace

from storage.engine import Engine, Put, read_stamp, write_stamp
from storage.store import StoreForeign

META = "meta"  # the table of the store's own facts; keys are plain words
_FORMAT = b"format"
_COMPATIBLE = b"compatible"
EPOCH = b"epoch"


class Step(NamedTuple):
    """`number` is the format that it reaches; `compatible` the oldest program format that may still open the result."""

    number: int
    compatible: int
    name: str
    run: Callable[[Engine, str], Iterable[Put]]


def _first_layout(_engine: Engine, fresh_id: str) -> Iterable[Put]:
    yield (META, EPOCH, fresh_id.encode())


def _nothing(_engine: Engine, _fresh_id: str) -> Iterable[Put]:
    """What is there stays as it is; new tables are made when the database is opened."""
    return ()


STEPS: tuple[Step, ...] = (
    Step(1, 1, "first layout: tables as in storage.keys, and an epoch", _first_layout),
    # A program of format 1 would take the numbers of amendments for lost messages.
    Step(2, 2, "messages that are edited, deleted, reacted to and scheduled; settings, blocks, links", _nothing),
    # A program of format 2 knows no letters between devices: it would take them for damage.
    Step(3, 3, "encrypted messages and their envelopes, account keys and certificates, rosters, archives", _nothing),
)
FORMAT_NOW = STEPS[-1].number


def _number(engine: Engine, name: bytes) -> int:
    return int(engine.get(META, name) or b"0")


def format_of(engine: Engine) -> int:
    """The format that the data is in; 0 for an empty store."""
    return _number(engine, _FORMAT)


async def migrate(engine: Engine, fresh_id: str, steps: tuple[Step, ...] = STEPS) -> list[Step]:
    """Runs the steps that the data has not seen yet and returns them. `fresh_id` becomes the epoch of a new store.

    Raises StoreForeign if the data is newer than the last step and says that older programs may not read it.
    """
    reached, compatible = format_of(engine), _number(engine, _COMPATIBLE)
    if compatible > steps[-1].number:  # the stamp says so too, unless the power went before it was written
        raise StoreForeign(f"{engine.path} was written by a newer gearlink: upgrade")
    done = [step for step in steps if step.number > reached]
    for step in done:
        reached, compatible = step.number, max(compatible, step.compatible)
        numbers = ((META, _FORMAT, str(reached).encode()), (META, _COMPATIBLE, str(compatible).encode()))
        await engine.commit([*step.run(engine, fresh_id), *numbers])
    stamp = read_stamp(engine.path)
    if (stamp.format, stamp.compatible) != (reached, compatible):
        write_stamp(engine.path, replace(stamp, format=reached, compatible=compatible))
    return done
