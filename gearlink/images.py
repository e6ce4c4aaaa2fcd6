"""Pictures without their metadata: JPEG, PNG and WebP taken apart into their pieces, and only known pieces put together.

A piece stays because it is needed to show the picture, and everything else goes: EXIF with its places and times, XMP,
comments, text, thumbnails, what no specification knows, and what stands behind the end. The pixels are copied and never
decoded, so no hostile picture meets a decoder in this process; whether they can be decoded is therefore not known here,
nor what somebody hid in them. Colour profiles stay. It knows nothing of who shows which picture where.

JPEG: ITU-T T.81 annex B, JFIF: ITU-T T.871, orientation: CIPA DC-008 §4.6; PNG: W3C PNG third edition; WebP: RFC 9649
§2 and §3, VP8 in it: RFC 6386 §9.1.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import Final

from config import limits
from gearlink.errors import INVALID_REQUEST, TOO_LARGE, UNSUPPORTED_MEDIA_TYPE, Refusal

JPEG: Final = "image/jpeg"
PNG: Final = "image/png"
WEBP: Final = "image/webp"
IMAGE_TYPES: Final = (JPEG, PNG, WEBP)

_PIECES_MAX: Final = 4096  # segments or chunks: far more than any program writes, and a few milliseconds of the loop
_SCANS_MAX: Final = 100  # a progressive JPEG has some ten; each one makes a viewer go through the whole picture


def clean_image(data: bytes) -> tuple[str, bytes]:
    """The media type of the picture, judged by its content alone, and the picture without metadata.

    Cleaning twice is cleaning once. Raises Refusal: `too-large` above `limits.AVATAR_BYTES_MAX`,
    `unsupported-media-type` for what begins like no picture that we take, `invalid-request` for one that is broken, cut
    off, or larger than `limits.AVATAR_PIXELS_SIDE_MAX` on a side.
    """
    if len(data) > limits.AVATAR_BYTES_MAX:
        raise Refusal(TOO_LARGE, f"A picture has {limits.AVATAR_BYTES_MAX // 1024} KiB at most")
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return JPEG, _clean_jpeg(data)
        if data.startswith(_PNG_SIGNATURE):
            return PNG, _clean_png(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return WEBP, _clean_webp(data)
    except (struct.error, IndexError):  # a field reaches beyond the end
        raise _broken("it ends too early") from None
    raise Refusal(UNSUPPORTED_MEDIA_TYPE, "A picture is JPEG, PNG or WebP", headers={"Accept": ", ".join(IMAGE_TYPES)})


def _broken(what: str) -> Refusal:
    return Refusal(INVALID_REQUEST, f"The picture cannot be used: {what}")


def _require(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise _broken(otherwise)


def _require_size(width: int, height: int) -> None:
    largest = limits.AVATAR_PIXELS_SIDE_MAX
    _require(width > 0 and height > 0, "it has no size")
    _require(width <= largest and height <= largest, f"it has more than {largest} pixels on a side")


# --- JPEG ------------------------------------------------------------------------------------------------------------

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # Huffman coded: baseline, extended, progressive. Nobody shows the others.
_TABLES = frozenset({0xC4, 0xDB, 0xDD})  # DHT, DQT, DRI
_DROPPED = frozenset({*range(0xE0, 0xF0), 0xFE})  # APPn and COM, but for those of APPn that are known
# T.81 §B.1.1.5: inside of a scan 0xFF stands before a stuffed zero or a restart marker; anything else ends the scan.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_EXIF = b"Exif\0\0"
_ORIENTATION_TAG, _SHORT = 0x0112, 3


def _clean_jpeg(data: bytes) -> bytes:
    kept: list[bytes] = []
    jfif, orientation, has_exif, scans, has_frame = b"", 1, False, 0, False
    for marker, content, scan in _jpeg_segments(data):
        if marker in _FRAMES:
            _require(not has_frame, "it has two frames")
            _check_frame(content)
            has_frame = True
        elif marker == _SOS:
            scans += 1
            _require(has_frame and scans <= _SCANS_MAX, "its scans are not in order")
            _require(len(content) > 0 and len(content) == 4 + 2 * content[0], "the head of a scan is wrong")
        elif marker == _APP0:
            jfif = jfif or _jfif(content)
            continue
        elif marker == _APP1 and content.startswith(_EXIF) and not has_exif:
            orientation, has_exif = _orientation(content[len(_EXIF) :]), True
            continue
        elif marker == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            content = b"Adobe\0\x64\0\0\0\0" + content[11:12]  # of all of it only the colour transform is ever read
        elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
            pass
        elif marker in _DROPPED:
            continue
        else:
            _require(marker in _TABLES, "it has a segment that is none of a photo")
        kept.append(_segment(marker, content) + scan)
    _require(scans > 0, "it has no pixels")
    first = [_segment(_APP0, jfif)] if jfif else []
    if orientation != 1:
        first.append(_segment(_APP1, _EXIF + _orientation_alone(orientation)))
    return b"".join([b"\xff\xd8", *first, *kept, b"\xff\xd9"])


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, content and, after a start of scan, the coded data, of each segment up to the end of the image."""
    at, pieces = 2, 0
    while True:
        pieces += 1
        _require(pieces <= _PIECES_MAX, "it has too many segments")
        _require(data[at] == 0xFF, "there is something between its segments")
        while data[at] == 0xFF:  # T.81 §B.1.1.2: any marker may be preceded by fill bytes
            at += 1
        marker = data[at]
        if marker == _EOI:
            return
        _require(marker > 0xBF and not 0xD0 <= marker <= _SOI, "a marker stands where none may")
        (size,) = struct.unpack_from(">H", data, at + 1)
        at, content = at + 1 + size, data[at + 3 : at + 1 + size]
        _require(size >= 2 and at <= len(data), "a segment ends too early")
        scan = b""
        if marker == _SOS:
            end = _SCAN_END.search(data, at)
            _require(end is not None, "it ends too early")
            assert end is not None
            scan, at = data[at : end.start()].rstrip(b"\xff"), end.start()
        yield marker, content, scan


def _segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def _check_frame(content: bytes) -> None:
    """T.81 §B.2.2. A height of 0, to be told after the first scan, is refused with the other sizes."""
    precision, height, width, components = struct.unpack_from(">BHHB", content)
    _require(precision == 8 and 1 <= components <= 4 and len(content) == 6 + 3 * components, "its frame is wrong")
    _require_size(width, height)


def _jfif(content: bytes) -> bytes:
    """T.871 §10.1 without its thumbnail; nothing of the other uses of APP0, which are thumbnails too."""
    return content[:12] + b"\0\0" if content.startswith(b"JFIF\0") and len(content) >= 14 else b""


def _orientation(tiff: bytes) -> int:
    """What EXIF says of how to turn the picture; 1, as it is, where that cannot be read."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(order + "HHIH", tiff, entry)
            if (tag, kind, values) == (_ORIENTATION_TAG, _SHORT, 1):
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it is metadata: a broken one is gone like a whole one
        pass
    return 1


def _orientation_alone(orientation: int) -> bytes:
    """A TIFF header and one directory with one entry, without which a photo would lie on its side."""
    return struct.pack(">4sIHHHIHHI", b"MM\0*", 8, 1, _ORIENTATION_TAG, _SHORT, 1, orientation, 0, 0)


# --- PNG -------------------------------------------------------------------------------------------------------------

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHUNK_TYPE = re.compile(rb"[A-Za-z]{2}[A-Z][A-Za-z]")  # PNG §5.4: the third letter is reserved
_DEPTHS = {0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}  # PNG §11.2.1, by colour type
_BEFORE_PIXELS = {  # kept if they stand before the pixels, with the lengths that they may have
    b"tRNS": range(1, 257), b"gAMA": range(4, 5), b"cHRM": range(32, 33), b"sRGB": range(1, 2),
    b"iCCP": range(4, limits.AVATAR_BYTES_MAX), b"sBIT": range(1, 5), b"pHYs": range(9, 10),
}  # fmt: skip


def _clean_png(data: bytes) -> bytes:
    kept: list[bytes] = []
    seen: set[bytes] = set()
    previous, colour = b"", 0
    for kind, content, whole in _png_chunks(data):
        _require((kind == b"IHDR") == (previous == b""), "its header is not the first chunk")
        if kind == b"IHDR":
            colour = _check_header(content)
        elif kind == b"PLTE":
            _require(kind not in seen and b"IDAT" not in seen and colour not in (0, 4), "its palette is misplaced")
            _require(0 < len(content) <= 768 and len(content) % 3 == 0, "its palette is wrong")
        elif kind == b"IDAT":
            _require(kind not in seen or previous == kind, "its pixels are not in one piece")
            _require(colour != 3 or b"PLTE" in seen, "it has no palette")
        elif kind == b"IEND":
            _require(b"IDAT" in seen and not content, "it has no pixels")
        else:
            _require(kind[0] & 0x20 != 0, "it has a critical chunk that is not known")
        if kind[0] & 0x20 == 0 or _is_needed(kind, content, seen):
            kept.append(whole)
        seen.add(kind)
        previous = kind
    return b"".join([_PNG_SIGNATURE, *kept])


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Type, content and the whole chunk, of each one up to and with the end (PNG §5.3)."""
    at, pieces, kind = len(_PNG_SIGNATURE), 0, b""
    while kind != b"IEND":
        pieces += 1
        _require(pieces <= _PIECES_MAX, "it has too many chunks")
        size, kind = struct.unpack_from(">I4s", data, at)
        whole = data[at : at + 12 + size]
        _require(len(whole) == 12 + size, "it ends too early")
        _require(_CHUNK_TYPE.fullmatch(kind) is not None, "a chunk has a wrong type")
        _require(zlib.crc32(whole[4:-4]) == int.from_bytes(whole[-4:], "big"), "a checksum is wrong")
        yield kind, whole[8:-4], whole
        at += 12 + size


def _check_header(content: bytes) -> int:
    """The colour type of the image header (PNG §11.2.1)."""
    _require(len(content) == 13, "its header is wrong")
    width, height, depth, colour, compression, method, interlace = struct.unpack(">IIBBBBB", content)
    _require(depth in _DEPTHS.get(colour, ()), "its header is wrong")
    _require((compression, method) == (0, 0) and interlace <= 1, "its header is wrong")
    _require_size(width, height)
    return int(colour)


def _is_needed(kind: bytes, content: bytes, seen: set[bytes]) -> bool:
    """Whether an ancillary chunk has to do with how the picture looks, and stands where it may, for the first time."""
    lengths = _BEFORE_PIXELS.get(kind)
    return lengths is not None and len(content) in lengths and kind not in seen and b"IDAT" not in seen


# --- WebP ------------------------------------------------------------------------------------------------------------

_ICC, _ALPHA, _ANIMATION = 0x20, 0x10, 0x02  # the flags of VP8X that we keep (RFC 9649 §2.7.1)
_BITSTREAMS = (b"VP8 ", b"VP8L")


def _clean_webp(data: bytes) -> bytes:
    (size,) = struct.unpack_from("<I", data, 4)
    _require(size >= 4 and 8 + size <= len(data), "it ends too early")
    chunks = list(_riff_chunks(data[12 : 8 + size]))
    _require(bool(chunks), "it has no pixels")
    kind, content = chunks[0]
    if kind in _BITSTREAMS:  # the simple formats (RFC 9649 §2.5, §2.6): one chunk
        _require_size(*_bitstream_size(kind, content))
        body = _chunk(kind, content)
    else:
        _require(kind == b"VP8X", "it begins with a chunk that is not known")
        body = _extended(content, chunks[1:])
    return struct.pack("<4sI4s", b"RIFF", len(body) + 4, b"WEBP") + body


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, pieces = 0, 0
    while at < len(data):
        pieces += 1
        _require(pieces <= _PIECES_MAX, "it has too many chunks")
        kind, size = struct.unpack_from("<4sI", data, at)
        content = data[at + 8 : at + 8 + size]
        _require(len(content) == size, "it ends too early")
        yield kind, content
        at += 8 + size + size % 2


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(content)) + content + b"\0" * (len(content) % 2)


def _extended(head: bytes, chunks: list[tuple[bytes, bytes]]) -> bytes:
    """The extended format (RFC 9649 §2.7): a profile, and one picture or frames."""
    _require(len(head) == 10, "its header is wrong")
    width, height = _int24(head, 4) + 1, _int24(head, 7) + 1
    _require_size(width, height)
    profile = next((content for kind, content in chunks if kind == b"ICCP"), b"")
    make = _animation if head[0] & _ANIMATION else _picture
    body = make(chunks, width, height)
    flags = head[0] & (_ALPHA | _ANIMATION) | (_ICC if profile else 0)
    body = (_chunk(b"ICCP", profile) if profile else b"") + body
    return _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + head[4:]) + body


def _picture(chunks: list[tuple[bytes, bytes]], width: int, height: int) -> bytes:
    """The one bitstream among `chunks`, which has to have this size, and the transparency that belongs to it."""
    found = [each for each in chunks if each[0] in _BITSTREAMS]
    _require(len(found) == 1, "it is not one picture")
    kind, content = found[0]
    _require(_bitstream_size(kind, content) == (width, height), "its sizes do not agree")
    alpha = next((content for kind, content in chunks if kind == b"ALPH"), b"") if kind == b"VP8 " else b""
    return (_chunk(b"ALPH", alpha) if alpha else b"") + _chunk(kind, content)


def _animation(chunks: list[tuple[bytes, bytes]], width: int, height: int) -> bytes:
    """RFC 9649 §2.7.1.1. Unknown chunks may also hide inside of a frame."""
    parameters = next((content for kind, content in chunks if kind == b"ANIM"), b"")
    _require(len(parameters) == 6, "its animation has no parameters")
    kept = [_chunk(b"ANIM", parameters)]
    pieces = 0
    for kind, content in chunks:
        if kind != b"ANMF":
            continue
        _require(len(content) >= 16, "a frame is wrong")
        left, top = 2 * _int24(content, 0), 2 * _int24(content, 3)
        frame_width, frame_height = _int24(content, 6) + 1, _int24(content, 9) + 1
        _require(left + frame_width <= width and top + frame_height <= height, "a frame is larger than the picture")
        inner = list(_riff_chunks(content[16:]))
        pieces += len(inner)
        _require(pieces <= _PIECES_MAX, "it has too many chunks")
        kept.append(_chunk(kind, content[:16] + _picture(inner, frame_width, frame_height)))
    _require(len(kept) > 1, "it has no frames")
    return b"".join(kept)


def _bitstream_size(kind: bytes, content: bytes) -> tuple[int, int]:
    """Width and height, from the first bytes of what is coded."""
    if kind == b"VP8L":  # RFC 9649 §3.4
        signature, bits = struct.unpack_from("<BI", content)
        _require(signature == 0x2F and bits >> 29 == 0, "its pixels are not in order")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    tag, start, width, height = struct.unpack_from("<3s3sHH", content)  # RFC 6386 §9.1
    _require(tag[0] & 1 == 0 and start == b"\x9d\x01\x2a", "its pixels are not in order")
    _require(10 + (_int24(tag, 0) >> 5) <= len(content), "it ends too early")
    return width & 0x3FFF, height & 0x3FFF


def _int24(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 3], "little")
