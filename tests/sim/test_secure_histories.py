"""Every letter is read once by each device that it was for, and by nobody else, whatever breaks on the way.

Each seed is one history: people, devices and a random schedule of what they do and what happens to them. The default run is
short. `GEARLINK_SIM_EXAMPLES=2000` makes it as long as you have time for, `GEARLINK_SIM_SEED` names the first seed.
"""

import os
import random
import secrets
import uuid
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import trio
import trio.testing
import uuid_utils

from gearlink.hub import Seat, Session
from gearlink.sdk.connection import Connection
from gearlink.sdk.e2ee import agreement
from tests.sim.secure_handset import unruly
from tests.sim.secure_oracle import wrongs
from tests.sim.secure_world import Deed, World

EXAMPLES = int(os.environ.get("GEARLINK_SIM_EXAMPLES", "120")) // 12
FIRST = int(os.environ.get("GEARLINK_SIM_SEED", "0"))
STEPS = 60
KINDS = (
    *("say",) * 16, *("edit", "react", "react") * 4, *("add", "remove") * 2, *("found", "leave", "appoint", "arrive"),
    *("depart", "off", "on", "crash", "rest", "jump"), *("drop", "kill", "fuse", "fuse", "ons", "storm") * 2,
)  # fmt: skip
RESTORING = (*KINDS, *("keep", "restore") * 2)


def schedule(seed: int, kinds: Sequence[str] = KINDS) -> list[Deed]:
    chance = random.Random(f"deeds {seed}")
    return [
        Deed(chance.choice(kinds), chance.randrange(12), chance.randrange(12), chance.randrange(64))
        for _ in range(STEPS)
    ]


@contextmanager
def determined(chance: random.Random, world: list[World]) -> Any:
    """All chance of a history comes from one place."""
    ids = iter(range(1, 1 << 40))

    def uuid7() -> str:
        return str(
            uuid.UUID(int=next(ids) << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62))
        )

    def share() -> float:
        return world[0].trouble / 4 if world else 0.0

    with (
        patch.object(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
        patch.object(trio._core._run, "_r", random.Random(chance.random())),
        patch.object(secrets, "token_bytes", lambda size=32: chance.randbytes(size)),
        patch.object(uuid_utils, "uuid7", uuid7),
        patch.object(Connection, "hear", unruly(chance, share)),
        # The hub has these in sets, whose order would else be that of addresses.
        patch.object(Session, "__hash__", lambda session: zlib.crc32(session.actor.device_id.encode())),
        patch.object(Seat, "__hash__", lambda seat: zlib.crc32(seat.session.actor.device_id.encode())),
        patch.object(agreement, "ONE_TIME_KEYS", 12),
        patch.object(agreement, "ONE_TIME_KEYS_LOW", 6),
    ):
        yield


async def history(seed: int, deeds: Sequence[Deed], worlds: list[World], chance: random.Random) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, chance, seed)
        worlds.append(world)
        people = 2 + seed % 3
        await world.settle_in(people, [1 + (seed // (3 + i)) % 2 for i in range(people)])
        for deed in deeds:
            await world.do(deed)
        await world.calm()
        nursery.cancel_scope.cancel()


def run(seed: int, deeds: Sequence[Deed]) -> tuple[list[str], list[str]]:
    """What is wrong with this history, and what happened in it."""
    chance, worlds = random.Random(seed), list[World]()
    with determined(chance, worlds):
        trio.run(history, seed, deeds, worlds, chance, clock=trio.testing.MockClock(autojump_threshold=0))
        return list(wrongs(worlds[0])), worlds[0].log


@pytest.mark.parametrize("seed", range(FIRST, FIRST + EXAMPLES))
def test_every_letter_is_read_once_by_whom_it_was_for(seed: int) -> None:
    wrong, log = run(seed, schedule(seed))
    assert not wrong, "\n".join([*wrong, "", *log])


@pytest.mark.parametrize("seed", range(FIRST, FIRST + EXAMPLES // 3))
def test_when_a_server_is_put_back_to_a_backup_everything_repairs_itself_and_nobody_reads_more(seed: int) -> None:
    wrong, log = run(seed, schedule(seed, RESTORING))
    assert not wrong, "\n".join([*wrong, "", *log])
