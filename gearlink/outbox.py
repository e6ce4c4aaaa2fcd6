"""What waits to be sent on each socket, and the one who sends it.

An outbox is a list of bytes with a cap: `put` never waits, and one that is over its cap is closed for good, because a
slow reader may cost memory up to that cap and nobody else anything. The flusher writes to many sockets in a row, one write
each, without waking a task for any of them; what a socket does not take at once is left to the outbox's own task. Nothing
here knows frames, users or conversations.
"""

from typing import Literal

import trio

from gearlink.streams import GuestStream

_State = Literal["idle", "dirty", "waiting"]  # of an outbox: nothing to do, for the flusher, for its own task
_FLUSHES_PER_STEP = 500  # at ten microseconds each


class Flusher:
    """Sends what was put into many outboxes, each in one write, without waking a task for each of them.

    An outbox whose socket does not take everything at once is left to its own task. `flush` is called after every commit;
    what is put in between is sent by `run`.
    """

    def __init__(self) -> None:
        self._dirty: list[Outbox] = []
        self._wanted = trio.Event()

    def add(self, outbox: "Outbox") -> None:
        self._dirty.append(outbox)
        self._wanted.set()

    def flush(self) -> None:
        """Flushes at most `_FLUSHES_PER_STEP` outboxes, those that have waited longest; `run` does the others."""
        step, self._dirty = self._dirty[:_FLUSHES_PER_STEP], self._dirty[_FLUSHES_PER_STEP:]
        for outbox in step:
            outbox.flush()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        while True:
            await self._wanted.wait()
            self.flush()
            if self._dirty:
                await trio.lowlevel.checkpoint()  # a step ends here: nobody waits for ten thousand writes
            else:
                self._wanted = trio.Event()


class Outbox:
    """What waits to be sent on one socket. `put` never waits; a full outbox is closed for good.

    An empty one takes whatever comes: a cap below the largest frame or commit must not cut those who read well.
    """

    __slots__ = (
        "_bytes_max",
        "_chunks",
        "_drained",
        "_flusher",
        "_rest",
        "_state",
        "_stream",
        "_wanted",
        "closing",
        "overflowed",
        "size",
    )

    def __init__(self, stream: GuestStream, flusher: Flusher, bytes_max: int) -> None:
        self._stream, self._flusher, self._bytes_max = stream, flusher, bytes_max
        self._chunks: list[bytes] = []
        self.size = 0  # of what is not sent: chunks, rest and what is being sent
        self._rest: memoryview | None = None  # of a write that was begun
        self._state: _State = "idle"
        self._wanted: trio.Event | None = None
        self._drained: trio.Event | None = None
        self.overflowed = False
        self.closing = False

    def put(self, data: bytes) -> None:
        """Queues whole frames; over the cap it closes the outbox instead, and the device will have to resume."""
        if self.closing or not data:
            return
        if self.size and self.size + len(data) > self._bytes_max:
            self.overflowed = True
            self._chunks.clear()  # the device will resume: what it was not sent is in the log
            self.close()
            return
        self.size += len(data)
        self._chunks.append(data)
        if self._state == "idle":
            self._state = "dirty"
            self._flusher.add(self)

    def close(self) -> None:
        """Nothing more is taken; `run` ends once what waits is sent."""
        self.closing = True
        if self._state == "idle":
            self._state = "dirty"
            self._flusher.add(self)
        if self._drained is not None:
            self._drained.set()

    def flush(self) -> None:
        """Sends what waits if the socket takes it; otherwise, or at the end, wakes the outbox's own task."""
        try:
            if self._chunks:
                data = self._joined()
                sent = self._stream.send_nowait(data)
                self.size -= sent
                if sent != len(data):
                    self._rest = memoryview(data)[sent:] if sent else None
                    if not sent:
                        self._chunks.insert(0, data)
                    self._wake()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.closing = True
        if self.closing:
            self._wake()
            return
        self._state = "idle"
        if self._drained is not None:
            self._drained.set()

    def _joined(self) -> bytes:
        chunks, self._chunks = self._chunks, []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _wake(self) -> None:
        self._state = "waiting"
        if self._wanted is not None:
            self._wanted.set()

    async def run(self) -> None:
        """Sends what the flusher could not, and returns once the outbox is closed and empty.

        Raises trio.BrokenResourceError or ClosedResourceError if the peer is gone or does not read for too long.
        """
        while True:
            if self._state != "waiting":
                self._wanted = trio.Event()
                await self._wanted.wait()
                self._wanted = None
            if self._rest is not None:
                rest, self._rest = self._rest, None
                await self._stream.send_rest(rest)
                self.size -= len(rest)
            while self._chunks:
                data = self._joined()
                await self._stream.send_all(data)
                self.size -= len(data)
            if self.closing:
                return
            self._state = "idle"
            if self._drained is not None:
                self._drained.set()

    async def drained(self) -> None:
        """Waits until all that was put has been sent, or the outbox is closed: back-pressure for a long resume."""
        if self.closing or not self.size:
            return
        self._drained = trio.Event()
        await self._drained.wait()
        self._drained = None
