"""Pictures by hand, with a canary in every place where metadata can hide. None of their pixels has to make sense."""

import struct
import zlib

CANARY = b"canary-48.1372N-11.5755E"  # where somebody lives


# --- JPEG ------------------------------------------------------------------------------------------------------------


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def exif(orientation: int | None = None, order: str = ">") -> bytes:
    """An EXIF segment with a description, and an orientation if there is to be one."""
    entries = [struct.pack(order + "HHII", 0x010E, 2, len(CANARY), 200)]
    if orientation is not None:
        entries.append(struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0))
    head = struct.pack(order + "HI", 42, 8) + struct.pack(order + "H", len(entries))
    return segment(0xE1, b"Exif\0\0" + {">": b"MM", "<": b"II"}[order] + head + b"".join(entries) + CANARY)


JFIF = segment(0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\0\0")
ICC = segment(0xE2, b"ICC_PROFILE\0\1\1" + b"profile")
ADOBE = segment(0xEE, b"Adobe\0\x64\0\0\0\0\1")
TABLES = segment(0xDB, bytes(65)) + segment(0xC4, bytes(17)) + segment(0xDD, b"\0\4")


def frame(width: int = 16, height: int = 9, marker: int = 0xC0) -> bytes:
    return segment(marker, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")


def scan(coded: bytes = b"pixels\xff\0\xff\xd0more") -> bytes:
    return segment(0xDA, b"\1\1\0\0\x3f\0") + coded


def jpeg(*first: bytes, width: int = 16, height: int = 9, end: bytes = b"\xff\xd9") -> bytes:
    return b"".join([b"\xff\xd8", *first, TABLES, frame(width, height), scan(), end])


JPEG_METADATA = (
    exif(), segment(0xFE, CANARY), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + CANARY),
    segment(0xED, b"Photoshop 3.0\0" + CANARY), segment(0xE2, b"MPF\0" + CANARY), segment(0xE0, b"JFXX\0\x10" + CANARY),
    segment(0xEF, CANARY), segment(0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\1\3" + CANARY), segment(0xEE, b"Adobe" + CANARY),
)  # fmt: skip
"""Segments that have to go. Each also holds for a thumbnail: that is what some of them carry."""


# --- PNG -------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def header(width: int = 16, height: int = 9, depth: int = 8, colour: int = 6) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = chunk(b"IDAT", b"some ") + chunk(b"IDAT", b"pixels")
NEEDED = (
    chunk(b"gAMA", b"\0\0\xb1\x8f"), chunk(b"cHRM", bytes(32)), chunk(b"sRGB", b"\0"), chunk(b"sBIT", b"\x08" * 4),
    chunk(b"iCCP", b"icc\0\0profile"), chunk(b"pHYs", bytes(9)),
)  # fmt: skip


def png(*first: bytes, width: int = 16, height: int = 9, end: bytes = b"") -> bytes:
    return b"".join([SIGNATURE, header(width, height), *first, PIXELS, chunk(b"IEND"), end])


PNG_METADATA = tuple(
    chunk(kind, CANARY)
    for kind in (b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"acTL", b"fdAT", b"prVt", b"gAMA", b"pHYs")
)


# --- WebP ------------------------------------------------------------------------------------------------------------


def riff(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def webp(*chunks: bytes, end: bytes = b"") -> bytes:
    body = b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body + end


def lossy(width: int = 16, height: int = 9) -> bytes:
    return riff(b"VP8 ", b"\x50\1\0\x9d\x01\x2a" + struct.pack("<HH", width, height) + b"ten bytes!")


def lossless(width: int = 16, height: int = 9) -> bytes:
    return riff(b"VP8L", b"\x2f" + struct.pack("<I", (height - 1) << 14 | (width - 1)) + b"pixels")


def extended(flags: int, width: int = 16, height: int = 9) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return riff(b"VP8X", bytes([flags, 0, 0, 0]) + sizes)


def moving(*chunks: bytes, left: int = 0) -> bytes:
    sizes = b"".join(number.to_bytes(3, "little") for number in (left, 0, 15, 8, 100))
    return riff(b"ANMF", sizes + b"\0" + b"".join(chunks))


ANIMATION = riff(b"ANIM", bytes(6))
WEBP_METADATA = (riff(b"EXIF", CANARY), riff(b"XMP ", CANARY), riff(b"JUNK", CANARY))
ALL_FLAGS = 0x20 | 0x10 | 0x08 | 0x04
EXTENDED = webp(extended(ALL_FLAGS), riff(b"ICCP", b"profile"), riff(b"ALPH", b"alpha"), lossy(), *WEBP_METADATA)
ANIMATED = webp(
    extended(ALL_FLAGS | 0x02), riff(b"ICCP", b"profile"), ANIMATION, moving(lossless()), riff(b"JUNK", CANARY),
    moving(riff(b"ALPH", b"alpha"), lossy(), riff(b"JUNK", CANARY)), *WEBP_METADATA,
)  # fmt: skip
