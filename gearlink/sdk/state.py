"""What a device has to remember between two runs: who it is, its tokens, and how far its caller has read.

`MemoryState` forgets, `FileState` keeps it in one JSON file that only its owner can read, replaced as a whole or not at
all. Several processes may share a file: whoever renews the tokens holds its lock, and newer tokens are never
overwritten by older ones. This module knows nothing of the network.
"""

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

import msgspec
import trio

STATE_BYTES_MAX = 4 * 1024 * 1024
LOCK_SECONDS_MAX = 60.0
LOCK_POLL_SECONDS = 0.05


class State(msgspec.Struct, rename="camel", kw_only=True):
    """`generation` counts changes of the tokens, so that of two states the newer tokens are known. `cursors` holds, for
    each conversation, the last event that the caller has taken; they are valid in `epoch` only."""

    version: int = 1
    server: str = ""
    user_id: str | None = None
    device_id: str | None = None
    access_token: str | None = None
    access_expires_at: int = 0
    refresh_token: str | None = None
    generation: int = 0
    epoch: str | None = None
    cursors: dict[str, int] = msgspec.field(default_factory=dict)

    def __repr__(self) -> str:
        signed_in = self.refresh_token is not None
        return f"State(server={self.server!r}, device_id={self.device_id!r}, signed_in={signed_in})"

    def adopt_identity(self, other: "State") -> None:
        """Takes over who `other` is and its tokens; cursors stay."""
        self.user_id, self.device_id = other.user_id, other.device_id
        self.access_token, self.access_expires_at = other.access_token, other.access_expires_at
        self.refresh_token, self.generation = other.refresh_token, other.generation


class StateStore(Protocol):
    """Where a `State` is kept. `load` gives None when nothing was saved. `save` replaces it as a whole, durably, but
    leaves newer tokens alone. `exclusive` is held while tokens are renewed."""

    async def load(self) -> State | None: ...

    async def save(self, state: State) -> None: ...

    def exclusive(self) -> contextlib.AbstractAsyncContextManager[None]: ...


class MemoryState:
    """Keeps the state as long as this object lives."""

    __slots__ = ("_lock", "_saved")

    def __init__(self, state: State | None = None) -> None:
        self._saved = None if state is None else msgspec.json.encode(state)
        self._lock = trio.Lock()

    def __repr__(self) -> str:
        return "MemoryState()"

    async def load(self) -> State | None:
        await trio.lowlevel.checkpoint()
        return None if self._saved is None else msgspec.json.decode(self._saved, type=State)

    async def save(self, state: State) -> None:
        await trio.lowlevel.checkpoint()
        if self._saved is not None:
            keep_newer_tokens(state, msgspec.json.decode(self._saved, type=State))
        self._saved = msgspec.json.encode(state)

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        async with self._lock:
            yield


def keep_newer_tokens(state: State, saved: State) -> None:
    """Before `state` replaces `saved`: what another process learnt since then is kept."""
    if saved.generation > state.generation:
        state.adopt_identity(saved)
    if saved.epoch == state.epoch and saved.device_id == state.device_id:
        for conversation_id, sequence in saved.cursors.items():
            if conversation_id in state.cursors:
                state.cursors[conversation_id] = max(sequence, state.cursors[conversation_id])


class FileState:
    """Keeps the state in the JSON file `path` (mode 0600, its folder 0700); `path` with `.lock` behind it is the lock.
    Raises OSError if the disk does, and ValueError if the file holds something else."""

    __slots__ = ("_writing", "path")

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._writing = trio.Lock()

    def __repr__(self) -> str:
        return f"FileState({str(self.path)!r})"

    async def load(self) -> State | None:
        return await trio.to_thread.run_sync(self._read)

    async def save(self, state: State) -> None:
        # Encoded here, on the loop: the caller may change `state` while the thread writes.
        async with self._writing, self._locked("write"):
            saved = await trio.to_thread.run_sync(self._read)
            if saved is not None:
                keep_newer_tokens(state, saved)
            await trio.to_thread.run_sync(self._replace, msgspec.json.format(msgspec.json.encode(state)))

    def exclusive(self) -> contextlib.AbstractAsyncContextManager[None]:
        return self._locked("renew")

    @contextlib.asynccontextmanager
    async def _locked(self, purpose: str) -> AsyncIterator[None]:
        """Two purposes, because a renewal saves while it is exclusive. A flock ends with its process: none stays."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(f"{self.path}.{purpose}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            with trio.move_on_after(LOCK_SECONDS_MAX) as scope:
                while not _try_flock(lock):  # noqa: ASYNC110 - another process holds it: there is no event to wait for
                    await trio.sleep(LOCK_POLL_SECONDS)
            if scope.cancelled_caught:
                raise OSError(f"{self.path} is held by another process")
            yield
        finally:
            os.close(lock)

    def _read(self) -> State | None:
        try:
            with self.path.open("rb") as file:
                data = file.read(STATE_BYTES_MAX + 1)
        except FileNotFoundError:
            return None
        try:
            state = msgspec.json.decode(data, type=State)
        except (msgspec.DecodeError, UnicodeError):
            raise ValueError(f"{self.path} is not a file of this program") from None
        if state.version != 1:
            raise ValueError(f"{self.path} was written by a newer version of this program")
        return state

    def _replace(self, data: bytes) -> None:
        scratch = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        scratch.unlink(missing_ok=True)
        file = os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(file, "wb") as writer:
                writer.write(data)
                writer.flush()
                os.fsync(writer.fileno())
            scratch.replace(self.path)
        except OSError:
            scratch.unlink(missing_ok=True)
            raise


def _try_flock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
