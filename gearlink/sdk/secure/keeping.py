"""This device's own keys: published, renewed, certified, and published again to a server that was restored.

The first device of a user makes the account key. A further one has none until it is linked, or the recovery key is given, and
says so. Everything here asks the server how things are first, so it may be interrupted anywhere and is simply done again.
"""

from functools import partial
from typing import Final

import trio
from msgspec.structs import replace

from gearlink.sdk.e2ee import agreement, certificates
from gearlink.sdk.e2ee.encoding import from_base64url, to_base64url
from gearlink.sdk.e2ee.records import Own, Peer, Since
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.failures import Refused, Unreachable
from gearlink.sdk.options import Backoff
from gearlink.sdk.secure.own_device import Device
from gearlink.sdk.secure.told import NotLinked

LOOK_SECONDS: Final = 3600.0


class Keeping:
    """Looks after the keys of this device. Owned by one task: `run`."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._wake = trio.Event()
        self._lock = trio.Lock()
        self.linked = trio.Event()

    def look(self) -> None:
        """Something may have changed: few keys are left, or the server is another one than it was."""
        self._wake.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until it is cancelled. What the network prevents is tried again."""
        task_status.started()
        backoff = Backoff(self._device.client.options)
        while True:
            self._wake = trio.Event()
            try:
                await self.renew()
            except (Refused, Unreachable) as trouble:
                with trio.move_on_after(backoff.next(trouble.retry_after_seconds)):
                    await self._wake.wait()
                continue
            backoff.reset()
            with trio.move_on_after(LOOK_SECONDS):
                await self._wake.wait()

    async def renew(self) -> None:
        """Publishes what is due. Raises Refused, Unreachable."""
        async with self._lock:
            await self._publish()
            await self._certify()

    async def _publish(self) -> None:
        device = self._device
        epoch = await self._epoch()
        status = await device.client.key_status()
        held, now = status.one_time_remaining, device.now()
        is_due = partial(agreement.is_due, now=now, one_time_held=held, digest=status.digest, epoch=epoch)
        if not await device.read(is_due):
            return
        is_other = await device.read(lambda tx: agreement.expected_digest(tx, held)) != status.digest
        form = await device.write(partial(agreement.upload, now=now, one_time_held=held, epoch=epoch, anew=is_other))
        await device.client.upload_keys(form)
        await device.write(partial(agreement.uploaded, now=now, form=form, epoch=epoch))
        await device.refresh()

    async def _epoch(self) -> str:
        """The epoch of the server; asked for if no socket has been greeted yet."""
        if self._device.client.epoch:
            return self._device.client.epoch
        return (await self._device.client.sync(limit=1)).epoch

    async def _certify(self) -> None:
        device = self._device
        shown = await device.client.identities_of(device.own.user_id)
        theirs = from_base64url(shown.account_key) if isinstance(shown.account_key, str) else b""
        own_key = certificates.account_public(device.own.account_seed) if device.own.account_seed else b""
        if theirs and theirs != own_key:  # not linked yet, or another device has started over
            self.linked, self._device.is_linked = trio.Event(), False
            await self.show_code()
            return
        if not own_key:
            await self.adopt(certificates.new_account_seed())
            return
        certificate = to_base64url(device.own.certificate)
        if not any(
            each.device_id == device.own.device_id and each.certificate == certificate for each in shown.devices
        ):
            await self._put_certificate()
        if not device.own.since_noted:  # it was interrupted in `adopt`
            await self._note_since()
        self._device.is_linked = True
        self.linked.set()

    async def show_code(self, *, anew: bool = False) -> None:
        """Tells the linking code of this device; `anew` with another secret."""

        def make(own: Own) -> Own:
            return replace(own, link_secret=certificates.new_link_secret(), link_failures=0)

        device = self._device
        if anew or not device.own.link_secret:
            await device.change_own(make)
        identity_key = agreement.identity_of(device.own)
        code = certificates.linking_code(*device.address, identity_key, device.own.link_secret)
        device.tell(NotLinked(code=code))

    async def adopt(self, account_seed: bytes) -> None:
        """This device has the account key from now on, and certifies itself with it. Raises Refused, Unreachable."""
        device = self._device
        identity_key = agreement.identity_of(device.own)
        certificate = certificates.certify(account_seed, *device.address, identity_key)

        def keep(own: Own) -> Own:
            return replace(own, account_seed=account_seed, certificate=certificate)

        def pin(tx: Tx) -> None:
            known = tx.get(Peer, device.own.user_id)
            key = certificates.account_public(account_seed)
            if known is None or known.account_key != key or known.changed_at:
                tx.put(Peer(device.own.user_id, key, device.now()))

        await device.change_own(keep)
        await device.write(pin)
        await self._put_certificate()
        await self._note_since()
        self._device.is_linked = True
        self.linked.set()

    async def start_over(self) -> None:
        """All devices and the recovery key are lost: makes another account key. Who talks to this user is told that their
        identity has changed, and the user's other devices have to be linked anew. Raises Refused, Unreachable."""
        async with self._lock:
            await self.adopt(certificates.new_account_seed())

    async def _put_certificate(self) -> None:
        own = self._device.own
        key = to_base64url(certificates.account_public(own.account_seed))
        await self._device.client.certify_device(own.device_id, key, to_base64url(own.certificate))

    async def _note_since(self) -> None:
        """What is in the conversations by now was said before this device counted: others do not encrypt it for us."""
        epoch = await self._epoch()
        heads = {view.id: view.sequence_number async for view in self._device.client.conversations()}

        def note(tx: Tx) -> None:
            for conversation_id, sequence in heads.items():
                if tx.get(Since, conversation_id, epoch) is None:
                    tx.put(Since(conversation_id, epoch, sequence, self._device.now()))
            tx.put(replace(agreement.own_of(tx), since_noted=True))

        await self._device.write(note)
        await self._device.refresh()
