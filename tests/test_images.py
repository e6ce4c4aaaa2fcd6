"""Pictures lose their metadata and nothing else, and what is no whole picture is refused, whatever it is made of."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import limits
from gearlink.errors import Refusal
from gearlink.images import JPEG, PNG, WEBP, clean_image
from tests import pictures
from tests.pictures import CANARY, chunk, exif, jpeg, png, riff, segment, webp

CLEAN = {
    "jpeg": (JPEG, jpeg()),
    "jfif": (JPEG, jpeg(pictures.JFIF, pictures.ICC, pictures.ADOBE)),
    "turned": (JPEG, clean_image(jpeg(exif(6)))[1]),
    "png": (PNG, png()),
    "png-in-colour": (PNG, png(*pictures.NEEDED)),
    "lossy": (WEBP, webp(pictures.lossy())),
    "lossless": (WEBP, webp(pictures.lossless())),
    "extended": (WEBP, webp(pictures.extended(0x10), riff(b"ALPH", b"alpha"), pictures.lossy())),
    "animated": (WEBP, webp(pictures.extended(0x12), pictures.ANIMATION, pictures.moving(pictures.lossless()))),
}
DIRTY = {
    "jpeg": jpeg(*pictures.JPEG_METADATA, end=segment(0xFE, CANARY) + b"\xff\xd9" + CANARY),
    "jpeg-between-scans": jpeg(pictures.JFIF, exif(8, "<"), end=exif(3) + pictures.scan() + b"\xff\xff\xd9" + CANARY),
    "png": png(*pictures.NEEDED, *pictures.PNG_METADATA, end=CANARY),
    "png-behind-the-pixels": png()[:-12] + b"".join(pictures.PNG_METADATA) + chunk(b"IEND"),
    "simple": webp(pictures.lossy(), *pictures.WEBP_METADATA, end=CANARY),
    "extended": pictures.EXTENDED,
    "animated": pictures.ANIMATED,
}


def refused(data: bytes) -> str:
    with pytest.raises(Refusal) as caught:
        clean_image(data)
    return caught.value.code


# --- what stays and what goes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLEAN)
def test_a_picture_without_metadata_stays_as_it_is(name: str) -> None:
    assert clean_image(CLEAN[name][1]) == CLEAN[name]


@pytest.mark.parametrize("name", DIRTY)
def test_nothing_that_tells_of_people_and_places_is_left(name: str) -> None:
    assert CANARY in DIRTY[name]
    kind, cleaned = clean_image(DIRTY[name])
    assert b"canary" not in cleaned and b"48.1372N" not in cleaned
    assert clean_image(cleaned) == (kind, cleaned), "cleaning twice is cleaning once"


def test_a_photo_keeps_what_is_needed_to_show_it() -> None:
    _kind, cleaned = clean_image(jpeg(exif(), pictures.JFIF, pictures.ICC, pictures.ADOBE))
    assert cleaned == jpeg(pictures.JFIF, pictures.ICC, pictures.ADOBE)


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(10))
def test_a_photo_that_was_taken_upright_stays_upright_and_says_nothing_else(orientation: int, order: str) -> None:
    _kind, cleaned = clean_image(jpeg(exif(orientation, order), pictures.JFIF))
    if not 2 <= orientation <= 8:  # 1 is as it is, and the others are none
        assert cleaned == jpeg(pictures.JFIF)
        return
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    alone = segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\1" + entry + bytes(4))
    assert cleaned == jpeg(pictures.JFIF, alone)


@pytest.mark.parametrize(
    "tiff", [b"", b"MM\0*", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff" + bytes(30), b"??"]
)
def test_exif_that_cannot_be_read_is_gone_like_any_other(tiff: bytes) -> None:
    assert clean_image(jpeg(segment(0xE1, b"Exif\0\0" + tiff)))[1] == jpeg()


def test_the_thumbnail_of_a_photo_goes_and_its_density_stays() -> None:
    with_thumbnail = segment(0xE0, b"JFIF\0\1\2\1\0\x48\0\x48\1\2" + CANARY)
    assert clean_image(jpeg(with_thumbnail))[1] == jpeg(pictures.JFIF)


def test_a_png_keeps_its_palette_its_colours_and_its_transparency() -> None:
    palette = [pictures.header(colour=3), chunk(b"PLTE", b"rgbRGB"), chunk(b"tRNS", b"\0\x80")]
    whole = b"".join([pictures.SIGNATURE, *palette, pictures.PIXELS, chunk(b"IEND")])
    assert clean_image(whole) == (PNG, whole)
    dirty = whole.replace(pictures.PIXELS, chunk(b"gAMA", bytes(4)) * 2 + pictures.PIXELS + chunk(b"tRNS", CANARY))
    assert clean_image(dirty)[1] == whole.replace(pictures.PIXELS, chunk(b"gAMA", bytes(4)) + pictures.PIXELS)


def test_a_webp_says_no_more_that_it_has_what_was_taken_out() -> None:
    _kind, cleaned = clean_image(pictures.EXTENDED)
    profile, alpha = riff(b"ICCP", b"profile"), riff(b"ALPH", b"alpha")
    assert cleaned == webp(pictures.extended(0x30), profile, alpha, pictures.lossy())


def test_an_animation_keeps_moving() -> None:
    _kind, cleaned = clean_image(pictures.ANIMATED)
    frames = (pictures.moving(pictures.lossless()), pictures.moving(riff(b"ALPH", b"alpha"), pictures.lossy()))
    assert cleaned == webp(pictures.extended(0x32), riff(b"ICCP", b"profile"), pictures.ANIMATION, *frames)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"GIF89a" + bytes(50), b"BM" + bytes(50), b"<svg xmlns='http://www.w3.org/2000/svg'/>",
     b"\0\0\0\x1cftypavif" + bytes(40), b"RIFF\x24\0\0\0WAVE" + bytes(40), b"II*\0" + bytes(50), b"%PDF-1.7",
     b"<html>" + jpeg(), b"\0" + png()],
)  # fmt: skip
def test_what_is_no_picture_that_we_take_is_refused(data: bytes) -> None:
    assert refused(data) == "unsupported-media-type"


@pytest.mark.parametrize(("width", "height"), [(0, 9), (16, 0), (4097, 9), (16, 4097), (16_384, 16_384)])
def test_a_picture_without_a_size_or_with_a_huge_one_is_refused(width: int, height: int) -> None:
    assert refused(jpeg(width=width, height=height)) == refused(png(width=width, height=height)) == "invalid-request"
    assert refused(webp(pictures.lossy(width % 16_384, height % 16_384))) == "invalid-request"
    if width and height:
        assert refused(webp(pictures.lossless(width, height))) == "invalid-request"
        still = webp(pictures.extended(0, width, height), pictures.lossless(width, height))
        assert refused(still) == "invalid-request"


def test_the_largest_picture_is_taken() -> None:
    side = limits.AVATAR_PIXELS_SIDE_MAX
    for data in (jpeg(width=side, height=side), png(width=side, height=side), webp(pictures.lossless(side, side))):
        assert clean_image(data)[1] == data


def test_a_picture_has_at_most_so_many_bytes() -> None:
    room = limits.AVATAR_BYTES_MAX - len(jpeg())
    assert clean_image(jpeg(end=b"\xff\xd9" + bytes(room)))[1] == jpeg()
    assert refused(jpeg(end=b"\xff\xd9" + bytes(room + 1))) == "too-large"


@pytest.mark.parametrize("name", [name for name in CLEAN if name != "lossless"])
def test_a_picture_that_is_cut_off_anywhere_is_refused(name: str) -> None:
    data = CLEAN[name][1]
    for size in range(12, len(data)):
        assert refused(data[:size]) == "invalid-request", size


BROKEN = {
    "jpeg-in-a-jpeg": jpeg(b"\xff\xd8"),
    "jpeg-something-between": jpeg(pictures.JFIF, b"\0"),
    "jpeg-restart-outside": jpeg(b"\xff\xd0"),
    "jpeg-arithmetic": jpeg().replace(b"\xff\xc0", b"\xff\xc9"),
    "jpeg-hierarchical": jpeg(segment(0xDE, bytes(6))),
    "jpeg-unknown": jpeg(segment(0xF0, CANARY)),
    "jpeg-two-frames": jpeg(pictures.frame()),
    "jpeg-no-frame": b"\xff\xd8" + pictures.scan() + b"\xff\xd9",
    "jpeg-no-scan": b"\xff\xd8" + pictures.frame() + b"\xff\xd9",
    "jpeg-twelve-bits": jpeg().replace(b"\0\x0b\x08", b"\0\x0b\x0c"),
    "jpeg-segment-of-nothing": jpeg(b"\xff\xfe\0\0"),
    "jpeg-scans": jpeg(end=pictures.scan() * 100 + b"\xff\xd9"),
    "jpeg-segments": jpeg(b"\xff\xfe\0\2" * 5000),
    "png-checksum": png(chunk(b"tEXt", CANARY)[:-1] + b"?"),
    "png-no-header": pictures.SIGNATURE + pictures.PIXELS + chunk(b"IEND"),
    "png-two-headers": png(pictures.header()),
    "png-header": pictures.SIGNATURE + chunk(b"IHDR", bytes(12)) + pictures.PIXELS + chunk(b"IEND"),
    "png-depth": png().replace(pictures.header(), pictures.header(depth=4)),
    "png-colour": png().replace(pictures.header(), pictures.header(colour=5)),
    "png-no-pixels": pictures.SIGNATURE + pictures.header() + chunk(b"IEND"),
    "png-no-palette": png().replace(pictures.header(), pictures.header(colour=3)),
    "png-palette": png(chunk(b"PLTE", b"rg")),
    "png-two-palettes": png(chunk(b"PLTE", b"rgb") * 2),
    "png-grey-palette": png(chunk(b"PLTE", b"rgb")).replace(pictures.header(), pictures.header(colour=0)),
    "png-critical": png(chunk(b"CgBI", CANARY)),
    "png-critical-unknown": png(chunk(b"ABCD", CANARY)),
    "png-no-letters": png(chunk(b"a\0C\xff", CANARY)),
    "png-pixels-in-pieces": png(chunk(b"IDAT", b"first") + chunk(b"tEXt", b"between")),
    "png-chunks": png(chunk(b"tEXt") * 5000),
    "webp-nothing": webp(),
    "webp-metadata-first": webp(riff(b"EXIF", CANARY), pictures.lossy()),
    "webp-not-a-key-frame": webp(pictures.lossy()).replace(b"\x50\1\0", b"\x51\1\0"),
    "webp-partition": webp(pictures.lossy()).replace(b"\x50\1\0", b"\x70\1\0"),
    "webp-lossless-version": webp(pictures.lossless(16, 9 + (1 << 15))),
    "webp-header": webp(riff(b"VP8X", bytes(9)), pictures.lossy()),
    "webp-two-pictures": webp(pictures.extended(0), pictures.lossy(), pictures.lossy()),
    "webp-no-picture": webp(pictures.extended(0), pictures.ANIMATION),
    "webp-sizes": webp(pictures.extended(0, 17, 9), pictures.lossy()),
    "webp-no-frames": webp(pictures.extended(2), pictures.ANIMATION, pictures.lossy()),
    "webp-no-animation": webp(pictures.extended(2), pictures.moving(pictures.lossy())),
    "webp-frame-outside": webp(pictures.extended(2), pictures.ANIMATION, pictures.moving(pictures.lossy(), left=1)),
    "webp-frame-cut": webp(pictures.extended(2), pictures.ANIMATION, riff(b"ANMF", bytes(15))),
    "webp-frame-without-picture": webp(pictures.extended(2), pictures.ANIMATION, pictures.moving()),
    "webp-chunks": webp(pictures.extended(0), riff(b"JUNK", b"") * 5000, pictures.lossy()),
    "webp-chunks-in-frames": webp(
        pictures.extended(2), pictures.ANIMATION, pictures.moving(pictures.lossy(), riff(b"JUNK", b"") * 3000) * 2
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_picture_is_refused(name: str) -> None:
    assert refused(BROKEN[name]) == "invalid-request"


# --- whatever comes --------------------------------------------------------------------------------------------------

BEGINNINGS = st.sampled_from([b"\xff\xd8\xff", pictures.SIGNATURE, b"RIFF\x40\0\0\0WEBP", b""])
PIECES = st.sampled_from(
    [
        *pictures.JPEG_METADATA, pictures.JFIF, pictures.TABLES, pictures.frame(), pictures.scan(), exif(6), b"\xff\xd9",
        pictures.header(), pictures.PIXELS, chunk(b"IEND"), *pictures.NEEDED, *pictures.PNG_METADATA, b"\xff\xff",
        pictures.extended(0x3E), pictures.lossy(), pictures.lossless(), pictures.ANIMATION, *pictures.WEBP_METADATA,
    ]
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from([*DIRTY.values(), *(data for _kind, data in CLEAN.values())])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8) | PIECES)
    return bytes(data)


ANYTHING = st.one_of(
    damaged(),
    st.builds(bytes.__add__, BEGINNINGS, st.binary(max_size=200)),
    st.builds(lambda first, rest: first + b"".join(rest), BEGINNINGS, st.lists(PIECES, max_size=12)),
)


@given(ANYTHING)
def test_whatever_comes_is_cleaned_for_good_or_refused(data: bytes) -> None:
    try:
        kind, cleaned = clean_image(data)
    except Refusal as refusal:
        assert refusal.code in ("invalid-request", "unsupported-media-type")
        assert "canary" not in refusal.detail
    else:
        assert clean_image(cleaned) == (kind, cleaned)


@given(st.lists(st.sampled_from(pictures.JPEG_METADATA), max_size=6), st.permutations([*pictures.PNG_METADATA]))
def test_metadata_goes_in_any_order_and_number(segments: list[bytes], chunks: list[bytes]) -> None:
    for dirty in (jpeg(*segments), png(*chunks)):
        assert b"canary" not in clean_image(dirty)[1]
