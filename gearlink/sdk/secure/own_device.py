"""What the parts of a secure client share: the client, the vault, the cipher, who this device is, and the time.

It holds no rule. What one part notices and the caller has to see waits in `told`, bounded: beyond that the oldest goes,
because a person who does not read a thousand warnings will not read the next.
"""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeVar

import trio

from gearlink.sdk.client import Client
from gearlink.sdk.e2ee.agreement import own_of
from gearlink.sdk.e2ee.cipher import Cipher
from gearlink.sdk.e2ee.records import Epoch, Kept, Own
from gearlink.sdk.e2ee.store import KeyStore, Tx
from gearlink.sdk.inbox import Event
from gearlink.sdk.secure.told import SecurityEvent
from gearlink.sdk.secure.trail import trailed

T = TypeVar("T")
TOLD_MAX: Final = 1000
EPOCHS_MAX: Final = 200  # that are known; those that only others name are no more than that


class Device:
    """This device. Made by `open_secure`."""

    def __init__(self, client: Client, vault: KeyStore, own: Own) -> None:
        self.client, self.vault, self.own = client, vault, own
        self.cipher = Cipher(own)
        self.is_linked = False  # the server shows the account key that certified this device; `Keeping` looks after that
        self._told: deque[Event | SecurityEvent] = deque(maxlen=TOLD_MAX)
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def address(self) -> tuple[str, str]:
        """(user, device)."""
        return self.own.user_id, self.own.device_id

    @property
    def epoch(self) -> str:
        """The epoch of the server; without a socket that of the keys which were published last."""
        return self.client.epoch or self.own.epoch

    def now(self) -> int:
        """Wall time in milliseconds."""
        return int(self.client.options.wall() * 1000)

    async def read(self, look: Callable[[Tx], T]) -> T:
        return await self.vault.read(look)

    async def write(self, change: Callable[[Tx], T]) -> T:
        return await self.vault.write(trailed(change))

    async def change_own(self, change: Callable[[Own], Own]) -> None:
        """Rewrites the record of this device."""

        def rewrite(tx: Tx) -> Own:
            own = change(own_of(tx))
            tx.put(own)
            return own

        self.own = await self.vault.write(rewrite)

    async def refresh(self) -> None:
        """Reads the record of this device again, after a transaction that changed it."""
        self.own = await self.vault.read(own_of)

    # --- what is told ------------------------------------------------------------------------------------------------

    def tell(self, *events: Event | SecurityEvent) -> None:
        self._told.extend(events)
        self._lot.unpark_all()

    def take_told(self) -> Event | SecurityEvent | None:
        """The oldest that was not taken yet."""
        return self._told.popleft() if self._told else None

    async def told(self) -> None:
        """Waits until something is told."""
        if not self._told:
            await self._lot.park()


def era_of(tx: Tx, epoch: str, now: int) -> int:
    """The era of an epoch; a new one if this device hears of it for the first time."""
    known = tx.get(Epoch, epoch)
    if known is None:
        known = Epoch(epoch, max([now // 1000, *(each.era + 1 for each in tx.scan(Epoch))]))
        tx.put(known)
    return known.era


def era_named(tx: Tx, epoch: str, at: int) -> int | None:
    """The era of an epoch that somebody else names. One of which this device has never heard is put to the time `at`, but
    before the one that it is in; None if there are too many."""
    known = {each.epoch: each.era for each in tx.scan(Epoch)}
    if epoch in known:
        return known[epoch]
    era = max(EPOCHS_MAX, min(at // 1000, max(known.values(), default=at) - 1))
    return _noted(tx, epoch, era, set(known.values()))


def free_era(tx: Tx, conversation_id: str, era: int, sequence: int) -> int | None:
    """This era, or one right before it where another message has the number already: no message takes the place of
    another. None if there are too many."""
    known = {each.era for each in tx.scan(Epoch)}
    while tx.get(Kept, conversation_id, era, sequence) is not None:
        era -= 1
        if era not in known and _noted(tx, f"era {era}", era, known) is None:
            return None
    return era


def _noted(tx: Tx, epoch: str, era: int, known: set[int]) -> int | None:
    if len(known) >= EPOCHS_MAX:
        return None
    while era in known:
        era -= 1
    tx.put(Epoch(epoch, era))
    known.add(era)
    return era


def milliseconds(timestamp: str) -> int:
    """A time of the wire (RFC 3339) in milliseconds since the epoch."""
    return round(datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp() * 1000)


def timestamp(at: int) -> str:
    """The reverse of `milliseconds`."""
    text = datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")
