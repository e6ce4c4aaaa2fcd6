"""The figures of encryption on one device: how many messages a core seals and opens, in memory and through the vault on the
disk, and how large what it sends is.

Nothing here needs the server. Each figure stands beside bare AES-GCM over the same bytes, or beside a sync of the disk, of
the same run. Rates are of processor time; where the disk is waited for, of time.
"""

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter, process_time
from typing import Any, Final, Protocol

import msgspec
import trio
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gearlink.protocol import DoubleRatchetForm, EncryptedForm, EnvelopeForm, Send, SenderKeyForm
from gearlink.sdk.e2ee import letters, sender_keys
from gearlink.sdk.e2ee.encoding import to_base64url
from gearlink.sdk.e2ee.records import OwnSenderKey, PeerDevice, PreKey, Record, SenderKey, Session
from gearlink.sdk.e2ee.sessions import Envelope
from gearlink.sdk.e2ee.store import Tx
from gearlink.sdk.e2ee.vault import Vault, open_vault
from tests.bench.report import Figure
from tests.bench.stage import Stage
from tests.bench.talking import sync_times_ms
from tests.bench.wire import BenchFailed
from tests.phones import EPOCH, Phone, identifier

_ROOM: Final = identifier(7000)
_TEMP_ID: Final = "x" * 22
_BURST: Final = 10  # messages of one side before the other one answers
_SIZES: Final = (10, 200, 2_000)
_SEEDS: Final = (b"\x01" * 32, b"\x02" * 32)


def _letter(size: int) -> bytes:
    content = "x" * size
    return letters.encode(
        letters.Message(conversation_id=_ROOM, count=1, temp_id=_TEMP_ID, kind="text", content=content)
    )


LETTER: Final = _letter(200)


class _Talk(Protocol):
    """One side says something, and the other side reads it."""

    @property
    def sender(self) -> Phone: ...
    @property
    def reader(self) -> Phone: ...
    def seal(self, tx: Tx) -> Any: ...
    def open(self, tx: Tx, sealed: Any) -> bytes: ...


@dataclass(frozen=True)
class _Direct:
    """From one device to another."""

    sender: Phone
    reader: Phone

    def seal(self, tx: Tx) -> Envelope:
        return self.sender.cipher.seal(tx, self.reader.device_id, LETTER, 0)

    def open(self, tx: Tx, sealed: Envelope) -> bytes:
        return self.reader.cipher.open(tx, *self.sender.address, sealed, 0)


@dataclass(frozen=True)
class _Group:
    """With the sender key of one device, in a group."""

    sender: Phone
    reader: Phone

    def seal(self, tx: Tx) -> tuple[bytes, bytes]:
        return self.sender.cipher.seal_group(tx, _ROOM, LETTER, 0)

    def open(self, tx: Tx, sealed: tuple[bytes, bytes]) -> bytes:
        return self.reader.cipher.open_group(tx, _ROOM, *self.sender.address, *sealed, 0)


def _acquainted() -> tuple[Phone, Phone]:
    """Two devices with a session that both have used, and with each other's sender keys."""
    ann, bob = (Phone(number, account_seed=seed) for number, seed in enumerate(_SEEDS, 1))
    ann.begin(bob)
    bob.meet(ann)
    for talk in (_Direct(ann, bob), _Direct(bob, ann)):
        sealed = talk.sender.vault.do(talk.seal)
        talk.reader.vault.do(partial(talk.open, sealed=sealed))
    for sender, reader in ((ann, bob), (bob, ann)):
        _share(sender, reader)
    return ann, bob


def _share(sender: Phone, reader: Phone) -> OwnSenderKey:
    """A fresh sender key, given away."""
    sender.vault.do(lambda tx: sender.cipher.drop_sender_key(tx, _ROOM))
    key: OwnSenderKey = sender.vault.do(lambda tx: sender.cipher.sender_key_for(tx, _ROOM, 0, EPOCH))
    given = sender_keys.distribution(key)
    reader.vault.do(lambda tx: reader.cipher.take_sender_key(tx, _ROOM, *sender.address, given, 0))
    return key


def _talks(ann: Phone, bob: Phone) -> dict[str, tuple[_Talk, _Talk]]:
    return {"direct": (_Direct(ann, bob), _Direct(bob, ann)), "group": (_Group(ann, bob), _Group(bob, ann))}


def _aes(count: int) -> tuple[float, float]:
    """How many of the same bytes bare AES-256-GCM encrypts and decrypts in a second, each under another key."""
    keys, nonce = [os.urandom(32) for _ in range(count)], bytes(12)
    started = process_time()
    sealed = [AESGCM(key).encrypt(nonce, LETTER, None) for key in keys]
    between = process_time()
    for key, each in zip(keys, sealed, strict=True):
        AESGCM(key).decrypt(nonce, each, None)
    return count / (between - started), count / (process_time() - between)


# --- the cipher alone ------------------------------------------------------------------------------------------------


def _rates(talks: Sequence[_Talk], rounds: int) -> tuple[float, float]:
    """Messages sealed and opened in a second: a burst of one side, then one of the other."""
    sealing = opening = 0.0
    for number in range(rounds):
        talk = talks[number % len(talks)]
        started = process_time()
        sealed = [talk.sender.vault.do(talk.seal) for _ in range(_BURST)]
        between = process_time()
        read = [talk.reader.vault.do(partial(talk.open, sealed=each)) for each in sealed]
        sealing, opening = sealing + between - started, opening + process_time() - between
        if read != [LETTER] * _BURST:
            raise BenchFailed("what was read is not what was said")
    return rounds * _BURST / sealing, rounds * _BURST / opening


def cipher(stage: Stage) -> list[Figure]:
    """200 bytes sealed and opened, with keys in memory, by two devices that answer each other after ten messages."""
    rounds = stage.scale.calls // 2
    talks = _talks(*_acquainted())
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in talks}
    raws = []
    for _ in range(stage.scale.repetitions):
        for name, both in talks.items():
            samples[name].append(_rates(both, rounds))
        raws.append(_aes(10 * rounds * _BURST))
    return _told("", samples, "AES-GCM alone", raws)


def _told(
    where: str, samples: dict[str, list[tuple[float, float]]], name: str, raws: Sequence[tuple[float, float]]
) -> list[Figure]:
    sealed_raw, opened_raw = zip(*raws, strict=True)
    figures = []
    for chat, rates in samples.items():
        sealed, opened = zip(*rates, strict=True)
        figures += [
            Figure(f"sealed{where}, {chat}", "a second", sealed, name, sealed_raw),
            Figure(f"opened{where}, {chat}", "a second", opened, name, opened_raw),
        ]
    return figures


# --- through the vault -----------------------------------------------------------------------------------------------


def vault(stage: Stage) -> list[Figure]:
    """The same through the vault, one durable transaction for each message: by time, and by the processor time of it."""
    talks = _talks(*_acquainted())
    durable: dict[str, list[tuple[float, float]]] = {name: [] for name in talks}
    worked: dict[str, list[tuple[float, float]]] = {name: [] for name in talks}
    syncs: list[tuple[float, float]] = []
    raws = []

    async def main() -> None:
        directory, key = stage.directory, os.urandom(32)
        async with open_vault(directory / "ann", key) as ann, open_vault(directory / "bob", key) as bob:
            phones = (talks["direct"][0].sender, talks["direct"][0].reader)
            for phone, file in zip(phones, (ann, bob), strict=True):
                await file.write(partial(_keep, records=_records(phone)))
            files = {phones[0].device_id: ann, phones[1].device_id: bob}
            for _ in range(stage.scale.repetitions):
                for name, both in talks.items():
                    rates = await _durable_rates(both, files, stage.scale.calls // _BURST)
                    durable[name].append(rates[0])
                    worked[name].append(rates[1])
                a_second = 1000 / statistics.median(sync_times_ms(directory, stage.scale.calls))
                syncs.append((a_second, a_second))
                raws.append(_aes(10 * stage.scale.calls))

    trio.run(main)
    return [
        *_told(" on disk", durable, "fdatasyncs of 300 bytes", syncs),
        *_told(" on disk, of a core", worked, "AES-GCM alone", raws),
    ]


def _records(phone: Phone) -> list[Record]:
    kinds: tuple[type[Record], ...] = (Session, PeerDevice, PreKey, OwnSenderKey, SenderKey)
    return [record for kind in kinds for record in phone.vault.look(partial(_all, kind=kind))]


def _all(tx: Tx, kind: type[Record]) -> list[Record]:
    return tx.scan(kind)


def _keep(tx: Tx, records: Sequence[Record]) -> None:
    for record in records:
        tx.put(record)


async def _durable_rates(
    talks: Sequence[_Talk], files: dict[str, Vault], rounds: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Messages sealed and opened in a second, and in a second of processor time."""
    spent = [0.0] * 4
    for number in range(rounds):
        talk = talks[number % len(talks)]
        sender, reader = files[talk.sender.device_id], files[talk.reader.device_id]
        started = perf_counter(), process_time()
        sealed = [await sender.write(talk.seal) for _ in range(_BURST)]
        between = perf_counter(), process_time()
        for each in sealed:
            await reader.write(partial(talk.open, sealed=each))
        ended = perf_counter(), process_time()
        times = (between[0] - started[0], ended[0] - between[0], between[1] - started[1], ended[1] - between[1])
        spent = [before + time for before, time in zip(spent, times, strict=True)]
    sealed_time, opened_time, sealed_work, opened_work = (rounds * _BURST / each for each in spent)
    return (sealed_time, opened_time), (sealed_work, opened_work)


# --- size ------------------------------------------------------------------------------------------------------------


def sizes(_stage: Stage) -> list[Figure]:
    """The frame that is sent, for contents of 10, 200 and 2,000 bytes, beside that of a plain message."""
    ann, bob = _acquainted()
    figures = []
    for size in _SIZES:
        plain = _frame(content="x" * size)
        figures += [
            Figure(f"{size:,} bytes, {name}", "bytes", (frame,), "plain", (plain,), less_is_better=True)
            for name, frame in (
                ("direct to one device", _frame(encrypted=_direct_form(ann, bob, _letter(size)))),
                ("group", _frame(encrypted=_group_form(ann, _letter(size)))),
            )
        ]
    return figures


def _frame(content: str | None = None, encrypted: EncryptedForm | None = None) -> int:
    form = Send(temp_id=_TEMP_ID, conversation_id=_ROOM, content=content, encrypted=encrypted)
    return len(msgspec.json.encode(form))


def _direct_form(ann: Phone, bob: Phone, letter: bytes) -> EncryptedForm:
    sealed = ann.seal(bob, letter)
    body = to_base64url(sealed.body)
    return DoubleRatchetForm(
        envelopes=[EnvelopeForm(user_id=bob.user_id, device_id=bob.device_id, type=sealed.type, body=body)]
    )


def _group_form(ann: Phone, letter: bytes) -> EncryptedForm:
    key_id, body = ann.vault.do(lambda tx: ann.cipher.seal_group(tx, _ROOM, letter, 0))
    digest = to_base64url(bytes(32))
    return SenderKeyForm(key_id=to_base64url(key_id), body=to_base64url(body), devices_digest=digest)
