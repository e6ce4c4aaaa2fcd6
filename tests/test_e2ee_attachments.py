"""Encrypted files: what was made of one comes out of it whole, or nothing does."""

import hashlib
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from gearlink.sdk.e2ee import attachments
from gearlink.sdk.e2ee.attachments import CHUNK_BYTES, DamagedFile, DamageReason, Sealed

STEP = CHUNK_BYTES + 16
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES + 5)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def sealed(plain: bytes) -> tuple[Sealed, bytes]:
    target = io.BytesIO()
    return attachments.seal_file(io.BytesIO(plain), target), target.getvalue()


def opened(made: Sealed, file: bytes) -> bytes:
    target = io.BytesIO()
    attachments.open_file(io.BytesIO(file), target, made.key, made.sha256, made.size)
    return target.getvalue()


def damage(made: Sealed, file: bytes) -> DamageReason:
    with pytest.raises(DamagedFile) as caught:
        opened(made, file)
    assert caught.value.__cause__ is None and caught.value.__context__ is None
    return caught.value.reason


class Trickle(io.RawIOBase):
    """A file that reads and writes a few bytes at a time, as a pipe may, and counts what it was asked for."""

    def __init__(self, data: bytes = b"", step: int = 1000) -> None:
        self.left, self.taken, self.step, self.largest = memoryview(data), bytearray(), step, 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "all of it at once"
        self.largest = max(self.largest, size)
        found, self.left = self.left[: min(size, self.step)], self.left[min(size, self.step) :]
        return bytes(found)

    def write(self, data: object) -> int:
        taken = bytes(cast(bytes, data))[: self.step]
        self.taken += taken
        return len(taken)


# --- whole ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_file_comes_out_as_it_went_in(size: int) -> None:
    made, file = sealed(content(size))
    assert (made.size, made.sha256) == (size, hashlib.sha256(file).digest())
    assert len(file) == attachments.sealed_size(size) == size + 16 * max(1, -(-size // CHUNK_BYTES))
    assert opened(made, file) == content(size)


@pytest.mark.parametrize("size", SIZES)
def test_the_bytes_are_those_of_the_document(size: int) -> None:
    made, file = sealed(content(size))
    chunks = [content(size)[at : at + CHUNK_BYTES] for at in range(0, size, CHUNK_BYTES)] or [b""]
    expected = b""
    for number, chunk in enumerate(chunks):
        last = b"\x01" if number == len(chunks) - 1 else b"\x00"
        expected += AESGCM(made.key).encrypt(number.to_bytes(8, "big") + b"\0\0\0" + last, chunk, None)
    assert file == expected


@given(st.integers(0, 3 * CHUNK_BYTES), st.integers(1, CHUNK_BYTES))
@settings(max_examples=30, deadline=None)
def test_it_does_not_matter_in_what_pieces_a_file_is_read_and_written(size: int, step: int) -> None:
    step = max(step, size // 200 + 1)
    source, target = Trickle(content(size), step), Trickle(step=step)
    made = attachments.seal_file(cast(BinaryIO, source), cast(BinaryIO, target))
    again, plain = Trickle(bytes(target.taken), step), Trickle(step=step)
    attachments.open_file(cast(BinaryIO, again), cast(BinaryIO, plain), made.key, made.sha256, made.size)
    assert bytes(plain.taken) == content(size)
    assert max(source.largest, again.largest) <= STEP, "more of a file at once than a chunk"


def test_every_chunk_can_be_read_by_itself() -> None:
    size = 3 * CHUNK_BYTES + 5
    made, file = sealed(content(size))
    for number in reversed(range(4)):
        data = file[number * STEP : (number + 1) * STEP]
        plain = attachments.open_chunk(made.key, number, number == 3, data)
        assert plain == content(size)[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        for wrong in ((number + 1, number == 3), (number, number != 3)):
            with pytest.raises(DamagedFile):
                attachments.open_chunk(made.key, *wrong, data)


def test_no_two_files_have_one_key_and_the_key_does_not_show() -> None:
    (one, _file), (two, _other) = sealed(b"x"), sealed(b"x")
    assert one.key != two.key and one.sha256 != two.sha256
    assert repr(one.key)[2:-1] not in repr(one)


# --- damaged ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_a_file_that_was_cut_anywhere_is_noticed(size: int) -> None:
    made, file = sealed(content(size))
    for left in {0, 1, 15, 16, STEP - 1, STEP, STEP + 1, 2 * STEP, len(file) - 17, len(file) - 16, len(file) - 1}:
        if 0 <= left < len(file):
            assert damage(made, file[:left]) == "truncated"


@pytest.mark.parametrize("size", SIZES)
def test_a_file_that_goes_on_after_its_end_is_noticed(size: int) -> None:
    made, file = sealed(content(size))
    _other, more = sealed(b"more")
    for tail in (b"\x00", bytes(16), file[-16:], more, file):
        assert damage(made, file + tail) == "too-long"


@pytest.mark.parametrize(
    "change",
    [
        lambda chunks: [chunks[1], chunks[0], *chunks[2:]],
        lambda chunks: [chunks[0], chunks[0], *chunks[2:]],
        lambda chunks: [*chunks[:2], chunks[0], chunks[3]],
        lambda chunks: [chunks[0], sealed(content(3 * CHUNK_BYTES + 5))[1][STEP : 2 * STEP], *chunks[2:]],
        lambda chunks: [chunks[0], bytes(STEP), *chunks[2:]],
    ],
    ids=["swapped", "said twice", "put elsewhere", "of another file", "zeros"],
)
def test_chunks_cannot_change_places_nor_come_from_elsewhere(change: Callable[[list[bytes]], list[bytes]]) -> None:
    made, file = sealed(content(3 * CHUNK_BYTES + 5))
    chunks = [file[at : at + STEP] for at in range(0, len(file), STEP)]
    assert damage(made, b"".join(change(chunks))) == "bad-chunk"
    left_out = b"".join(chunks[:1] + chunks[2:])
    assert damage(made, left_out) in ("truncated", "bad-chunk")


@given(st.sampled_from(SIZES), st.data())
@settings(max_examples=60, deadline=None)
def test_no_bit_of_a_file_can_be_changed(size: int, data: st.DataObject) -> None:
    made, file = sealed(content(size))
    at, bit = data.draw(st.integers(0, len(file) - 1)), data.draw(st.integers(0, 7))
    broken = bytearray(file)
    broken[at] ^= 1 << bit
    assert damage(made, bytes(broken)) == "bad-chunk"


def test_another_size_than_the_letters_is_noticed_also_where_a_chunk_ends() -> None:
    for size in SIZES:
        made, file = sealed(content(size))
        for said in {0, 1, size - 1, size + 1, CHUNK_BYTES, 2 * CHUNK_BYTES, 2**40} - {size}:
            if said >= 0:
                assert damage(Sealed(made.key, made.sha256, said), file) in ("truncated", "bad-chunk", "too-long")


def test_another_hash_or_another_key_than_the_letters_is_noticed() -> None:
    made, file = sealed(content(100))
    other, _file = sealed(content(100))
    assert damage(Sealed(made.key, other.sha256, made.size), file) == "wrong-hash"
    assert damage(Sealed(other.key, made.sha256, made.size), file) == "bad-chunk"
    with pytest.raises(ValueError, match="not a key"):
        opened(Sealed(b"short", made.sha256, made.size), file)


def test_an_empty_chunk_is_the_whole_of_an_empty_file_and_nothing_else() -> None:
    """Or a file of whole chunks could be written in two ways."""
    key = bytes(32)
    cipher = AESGCM(key)
    first = cipher.encrypt(bytes(12), bytes(CHUNK_BYTES), None)
    empty = cipher.encrypt(b"\0" * 7 + b"\x01" + bytes(3) + b"\x01", b"", None)
    with pytest.raises(DamagedFile):
        attachments.open_chunk(key, 1, True, empty)
    file = first + empty
    assert damage(Sealed(key, hashlib.sha256(file).digest(), CHUNK_BYTES), file) == "bad-chunk"
    last = cipher.encrypt(bytes(11) + b"\x01", b"", None)
    assert attachments.open_chunk(key, 0, True, last) == b""


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_a_whole_file_takes_its_name_and_is_its_owners_alone(tmp_path: Path) -> None:
    made, file = sealed(content(100_000))
    path = tmp_path / "holiday.png"
    path.write_bytes(b"an older one")
    attachments.open_file_to(io.BytesIO(file), path, made.key, made.sha256, made.size)
    assert path.read_bytes() == content(100_000)
    assert [each.name for each in tmp_path.iterdir()] == ["holiday.png"]
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [0, 1, 16, CHUNK_BYTES, 100_000])
def test_nothing_of_a_damaged_file_is_left(tmp_path: Path, cut: int) -> None:
    made, file = sealed(content(100_000))
    path = tmp_path / "holiday.png"
    with pytest.raises(DamagedFile):
        attachments.open_file_to(io.BytesIO(file[:cut]), path, made.key, made.sha256, made.size)
    with pytest.raises(DamagedFile):
        attachments.open_file_to(io.BytesIO(file), path, made.key, bytes(32), made.size)
    assert list(tmp_path.iterdir()) == []


def test_a_source_that_breaks_off_leaves_the_older_file_alone(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("the connection is gone")

    path = tmp_path / "holiday.png"
    path.write_bytes(b"an older one")
    with pytest.raises(OSError, match="gone"):
        attachments.open_file_to(Broken(), path, bytes(32), bytes(32), 5)
    assert path.read_bytes() == b"an older one" and len(list(tmp_path.iterdir())) == 1


def test_a_target_that_takes_nothing_more_is_said_so_and_not_waited_for() -> None:
    with pytest.raises(OSError, match="nothing more"):
        attachments.seal_file(io.BytesIO(b"x"), cast(BinaryIO, Trickle(step=0)))
