"""The trace without strace: a server in this process whose engine writes down its writes and syncs.

Its sockets write down what they are about to send, before they do: so an ack that came too early is never seen as late.
"""

from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

from gearlink.streams import GuestStream
from storage.engine import Engine, Put
from tests.house import open_house
from tests.proof.client import World
from tests.proof.trace import TEMP_ID, Step, acknowledged_in, send_some


async def recorded(directory: Path) -> list[Step]:
    """The same of a server in this process: its engine writes down its writes and syncs, its sockets what they send."""
    steps: list[Step] = []
    commit, sync, send = Engine.commit, Engine.sync, GuestStream.send_nowait

    async def recording_commit(engine: Engine, puts: Iterable[Put]) -> None:
        kept = list(puts)
        values = b"\n".join(value for _table, _key, value in kept if value is not None)
        steps.append(Step("written", "engine", tuple(TEMP_ID.findall(values.decode("latin-1")))))
        await commit(engine, kept)

    async def recording_sync(engine: Engine) -> None:
        steps.append(Step("sync began", "engine"))
        await sync(engine)
        steps.append(Step("sync ended", "engine"))

    def recording_send(stream: GuestStream, data: bytes) -> int:
        text = bytes(data).decode("latin-1").replace('"', '\\"')
        if temp_ids := acknowledged_in(text):
            steps.append(Step("told", "socket", temp_ids))
        return send(stream, data)

    with (
        patch.object(Engine, "commit", recording_commit),
        patch.object(Engine, "sync", recording_sync),
        patch.object(GuestStream, "send_nowait", recording_send),
    ):
        async with open_house(directory / "data") as house:

            async def code_of(_phone_number: str, verification_id: str) -> str:
                return await house.code(verification_id)

            await send_some(World(house.url, 0), code_of)
    return steps
