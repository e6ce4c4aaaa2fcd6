"""Numbered steps from one data format to the next; the first one makes an empty store.

A step is one batch: it happens whole or not at all, and the format number that it reaches is in the same batch, so a start
that dies half-way goes on where it was. Steps are append-only: never change or renumber one that was released. The stamp
beside the database follows, and tells older programs to keep away.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from storage.engine import Engine, Put, Stamp, read_stamp, write_stamp
from storage.store import StoreForeign

META = "meta"  # the table of the store's own facts; keys are plain words
_FORMAT = b"format"
EPOCH = b"epoch"


class Step(NamedTuple):
    """`number` is the format that it reaches; `compatible` the oldest program format that may still open the result."""

    number: int
    compatible: int
    name: str
    run: Callable[[Engine, str], Iterable[Put]]


def _first_layout(_engine: Engine, fresh_id: str) -> Iterable[Put]:
    yield (META, EPOCH, fresh_id.encode())


STEPS: tuple[Step, ...] = (Step(1, 1, "first layout: tables as in storage.keys, and an epoch", _first_layout),)
FORMAT_NOW = STEPS[-1].number


def format_of(engine: Engine) -> int:
    """The format that the data is in; 0 for an empty store."""
    return int(engine.get(META, _FORMAT) or b"0")


async def migrate(engine: Engine, fresh_id: str, steps: tuple[Step, ...] = STEPS) -> list[Step]:
    """Runs the steps that the data has not seen yet and returns them. `fresh_id` becomes the epoch of a new store.

    Raises StoreForeign if the data is newer than the last step and says that older programs may not read it.
    """
    reached = format_of(engine)
    stamp = read_stamp(engine.path)
    if stamp.compatible > steps[-1].number:
        raise StoreForeign(f"{engine.path} was written by a newer gearlink: upgrade")
    done = []
    for step in steps:
        if step.number <= reached:
            continue
        await engine.commit([*step.run(engine, fresh_id), (META, _FORMAT, str(step.number).encode())])
        done.append(step)
    newest = max(reached, steps[-1].number)
    if stamp.format < newest:
        write_stamp(
            engine.path, Stamp(stamp.product, newest, max(stamp.compatible, steps[-1].compatible), stamp.created_at)
        )
    return done
