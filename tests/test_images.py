"""Decoding: every format right, and whatever is damaged, huge or no image refused in one line."""

from __future__ import annotations

import itertools
import random
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from curate.headers import without_stray_bytes
from curate.images import EncodedImage, Refused, resize_crop
from curate.settings import ImageSettings
from tests.imagery import bombs, encode, every_format, picture

FORMATS = sorted(every_format())


def decode(data: bytes, target_px: int | None = None, **limits: int) -> Image.Image:
    return EncodedImage(data, ImageSettings(**limits)).decode(target_px)


def pixels_of(data: bytes, **options: int | None) -> np.ndarray:
    return np.asarray(decode(data, **options))


def refusal_of(data: bytes, **options: int | None) -> str:
    with pytest.raises(Refused) as refused:
        decode(data, **options)
    reason = str(refused.value)
    assert reason and "\n" not in reason and len(reason) < 250
    return reason


# Whole files


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_shows_the_picture(name: str) -> None:
    image = EncodedImage(every_format()[name], ImageSettings())
    rgb = image.decode()
    assert (rgb.mode, rgb.size) == ("RGB", (48, 32))
    assert (image.width, image.height) == image.size == (48, 32)
    expected = np.asarray(picture(), np.float64)
    got = np.asarray(rgb, np.float64)
    if "grey" in name or "1bit" in name:
        expected = np.asarray(picture().convert("L").convert("RGB"), np.float64)
    if "alpha" in name:  # the gradient lets white through at the top
        assert (got[0] >= 250).all()
        expected, got = expected[-2:], got[-2:]
    if "1bit" in name:  # dithered: right on average
        expected, got = expected.mean((0, 1)), got.mean((0, 1))
    if "grey-alpha" in name:
        expected = expected.mean(2, keepdims=True)
    assert np.abs(got - expected).mean() < 16


@pytest.mark.parametrize("name", ["png", "png-rgb16", "webp-lossless", "bmp", "tiff", "tiff-lzw"])
def test_lossless_formats_are_exact(name: str) -> None:
    assert (pixels_of(every_format()[name]) == np.asarray(picture())).all()


@pytest.mark.parametrize("name", ["png-grey16", "tiff-grey16"])
def test_16_bits_keep_their_upper_8(name: str) -> None:
    grey = np.asarray(picture().convert("L"))
    assert (pixels_of(every_format()[name]) == grey[..., None]).all()


def test_transparency_is_over_white() -> None:
    palette = picture().quantize(64)
    got = pixels_of(encode(palette, "PNG", transparency=3))
    through = np.asarray(palette) == 3
    assert through.any()
    assert (got[through] == 255).all()
    assert (got[~through] == np.asarray(palette.convert("RGB"))[~through]).all()


def test_transparency_of_one_colour() -> None:
    rgb = picture()
    rgb.putpixel((5, 5), (1, 2, 3))
    assert pixels_of(encode(rgb, "PNG", transparency=(1, 2, 3)))[5, 5].tolist() == [255] * 3


@pytest.mark.parametrize("name", ["gif-animated", "webp-animated", "jpeg-mpo"])
def test_an_animation_is_its_first_picture(name: str) -> None:
    got = pixels_of(every_format()[name]).astype(int)
    first, second = (np.asarray(p, int) for p in (picture(), picture().rotate(180)))
    assert np.abs(got - first).mean() < 16 < np.abs(got - second).mean()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    """Stored so that EXIF's table for each orientation brings back the upright picture."""
    upright = np.asarray(picture())
    # EXIF 2.32, table 6: where row 0 and column 0 of the stored picture lie when it is upright
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 95} if kind in ("JPEG", "WEBP") else {}
    image = Image.fromarray(np.ascontiguousarray(stored))
    got = pixels_of(encode(image, kind, exif=exif, **options)).astype(int)
    assert got.shape == upright.shape
    assert np.abs(got - upright).mean() < 8


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff"])
def test_unreadable_exif_leaves_the_picture_as_it_is(exif: bytes) -> None:
    plain = pixels_of(encode(picture(), "JPEG"))
    assert (pixels_of(encode(picture(), "JPEG", exif=exif)) == plain).all()


# Damage

GOOD_AFTER_ALL = {  # what may be cut off without the loss of a pixel
    "gif": 2,  # the terminators
    "gif-flat": 2,
    "jpeg-mpo": None,  # further pictures
    "gif-animated": None,
}


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_wherever_it_is_cut(name: str) -> None:
    """Every length of every file is refused, but where what is missing holds nothing of the
    picture."""
    data = every_format()[name]
    whole = pixels_of(data)
    accepted = []
    for length in range(len(data)):
        try:
            got = pixels_of(data[:length])
        except Refused:
            continue
        assert (got == whole).all(), f"cut at {length} of {len(data)} changed the picture"
        accepted.append(length)
    allowed = 4 if name.startswith("png") else GOOD_AFTER_ALL.get(name, 0)  # the end's checksum
    if allowed is not None:
        assert len(accepted) <= allowed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_when_larger_than_one_read(kind: str) -> None:
    """Pillow reads 64 KB at a time, and images of more than that take other ways through it."""
    options = {"quality": 98} if kind in ("JPEG", "WEBP") else {}
    data = encode(picture(600, 500), kind, **options)
    assert len(data) > 2 << 16
    for share in (0.1, 0.4, 0.7, 0.95, 0.999):
        refusal_of(data[: int(len(data) * share)])
        refusal_of(data[: int(len(data) * share)], target_px=64)


@pytest.mark.parametrize("target_px", [None, 20])
@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg-grey", "jpeg-cmyk", "jpeg-restart", "jpeg-444", "jpeg-exif"]
)
def test_jpeg_cut_and_closed_with_an_end_marker(name: str, target_px: int | None) -> None:
    """libjpeg fills in grey and reports success; the last block is all that may go unnoticed."""
    data = every_format(200, 160)[name]
    start = data.index(b"\xff\xda") + 30
    accepted = [
        cut
        for cut in range(start, len(data) - 4, max(5, len(data) // 300))
        if _decodes(data[:cut] + b"\xff\xd9", target_px=target_px)
    ]
    assert all(len(data) - cut < len(data) / 50 for cut in accepted), accepted


def test_progressive_jpeg_cut_and_closed_with_an_end_marker() -> None:
    """Refused wherever a scan is missing. Inside the last one only the finest detail is."""
    data = every_format(200, 160)["jpeg-progressive"]
    whole = pixels_of(data).astype(int)
    last_scan = data.rindex(b"\xff\xda")
    for cut in range(data.index(b"\xff\xda") + 30, len(data) - 2, 11):
        closed = data[:cut] + b"\xff\xd9"
        if cut < last_scan:
            refusal_of(closed)
        elif _decodes(closed):
            assert np.abs(pixels_of(closed) - whole).mean() < 4


@pytest.mark.parametrize("target_px", [None, 20])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_grey_corners_are_no_damage(mode: str, options: dict, target_px: int | None) -> None:
    """What looks like the filling of a JPEG that ended early, and is in the picture: it is shown,
    and so is all around it."""
    image = picture(200, 160)
    image.paste((128, 128, 128), (100, 60, 200, 160))
    for drawn in (image, Image.new("RGB", (64, 64), (128, 128, 128))):
        got = decode(encode(drawn.convert(mode), "JPEG", **options), target_px)
        expected = drawn.convert(mode).convert("RGB").resize(got.size, Image.Resampling.BOX)
        difference = np.abs(np.asarray(got, int) - np.asarray(expected))
        assert difference.mean() < 4
        # Inside the grey, away from its edges
        assert difference[got.height * 5 // 8 :, got.width * 5 // 8 :].max() <= 2


# Where segments of a JPEG begin, up to its first scan: SOI is 2 bytes, and then each has its length
def segments(data: bytes) -> list[int]:
    starts, place = [], 2
    while data[place + 1] != 0xDA:
        starts.append(place)
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return [*starts, place]


STRAYS = [b"\0", b"\0\0\0\0", b"stray bytes", b"\xff\0", b"\x12\xff\xff\xff\0\x34", bytes(70_000)]


@pytest.mark.parametrize("target_px", [None, 20])
@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("jpeg")])
def test_stray_bytes_between_the_segments_of_a_jpeg(name: str, target_px: int | None) -> None:
    """libjpeg steps over them with a warning, and the picture is whole."""
    data = every_format(120, 90)[name]
    whole = pixels_of(data, target_px=target_px)
    places = segments(data)
    assert len(places) > 3
    for place in places:
        for stray in STRAYS:
            spoilt = data[:place] + stray + data[place:]
            assert (pixels_of(spoilt, target_px=target_px) == whole).all()
    everywhere = b"ab".join(data[a:b] for a, b in itertools.pairwise([0, *places, len(data)]))
    assert (pixels_of(everywhere, target_px=target_px) == whole).all()


@pytest.mark.parametrize("stray", STRAYS[:4])
def test_stray_bytes_save_no_damaged_jpeg(stray: bytes) -> None:
    """What libjpeg warns of further on is as much damage as without them."""
    data = every_format(120, 90)["jpeg"]
    place = segments(data)[2]
    spoilt = data[:place] + stray + data[place:]
    assert "damaged" in refusal_of(spoilt[:-200])
    assert "damaged" in refusal_of(spoilt[:-200] + b"\xff\xd9")
    inside = bytearray(spoilt)
    inside[-300:-280] = b"\xff\xd9" * 10
    assert "damaged" in refusal_of(bytes(inside))


def test_a_jpeg_without_stray_bytes_is_left_alone() -> None:
    for name in FORMATS:
        data = every_format()[name]
        assert without_stray_bytes(data) is data, name
        for cut in range(0, len(data), 7):
            assert without_stray_bytes(data[:cut]) == data[:cut]


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_mutated_jpegs_are_refused_or_decoded_and_nothing_else(data: st.DataObject) -> None:
    kinds = [name for name in FORMATS if name.startswith("jpeg")]
    image = bytearray(every_format()[data.draw(st.sampled_from(kinds))])
    header = segments(bytes(image))[-1] + 20
    for _ in range(data.draw(st.integers(1, 4))):
        end = data.draw(st.sampled_from([min(header, len(image)), len(image)]))
        start = data.draw(st.integers(0, end))
        length = data.draw(st.integers(0, 40))
        image[start : start + length] = data.draw(st.binary(max_size=40))
    try:
        opened = EncodedImage(bytes(image), ImageSettings())
        size, rgb = opened.size, opened.decode(data.draw(st.sampled_from([None, 8])))
        assert rgb.mode == "RGB" and min(size) >= 8
    except Refused as reason:
        assert str(reason) and "\n" not in str(reason)


def test_png_checksums() -> None:
    """Any flipped bit of the image data is found, wherever the picture would have been cut."""
    data = bytearray(every_format()["png"])
    start = data.index(b"IDAT") + 4
    for place in range(start, len(data) - 16, 97):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        refusal_of(bytes(damaged))


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bits_are_refused_or_decoded_and_nothing_else(name: str) -> None:
    data = every_format()[name]
    rng = random.Random(f"flips of {name}")
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        # Headers are where the crashes are
        span = rng.choice([60, 600, len(data)])
        for _ in range(rng.choice([1, 1, 2, 8])):
            damaged[rng.randrange(min(span, len(data)))] ^= 1 << rng.randrange(8)
        try:
            assert decode(bytes(damaged), rng.choice([None, 8])).mode == "RGB"
        except Refused as reason:
            assert "\n" not in str(reason)
            refused += 1
    assert refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
        (b"PK\x03\x04\x14\0\0\0\x08\0" + bytes(100), "not an image"),
        (random.Random(0).randbytes(5000), "not an image"),
        (b"\xff\xd8\xff", "not an image"),
        (b"RIFF\x10\0\0\0WEBP", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    ],
    ids=["empty", "html", "zip", "random", "jpeg-start", "webp-start", "postscript"],
)
def test_no_image(data: bytes, reason: str) -> None:
    assert reason in refusal_of(data)


# Sizes


@pytest.mark.parametrize(("side", "fits"), [(7, False), (8, True)])
def test_smallest_side(side: int, fits: bool) -> None:
    for kind in ("JPEG", "PNG", "WEBP"):
        assert _decodes(encode(picture(side, 40), kind)) == fits
        assert _decodes(encode(picture(40, side), kind)) == fits
    assert refusal_of(encode(picture(7, 40), "PNG")) == "7×40 is under min_px 8"


def test_most_pixels() -> None:
    data = encode(picture(40, 25), "PNG")
    assert pixels_of(data, max_pixels=1000).shape == (25, 40, 3)
    assert refusal_of(data, max_pixels=999) == "40×25 is over max_pixels 999"


@pytest.mark.parametrize("name", sorted(bombs()))
def test_bombs_are_refused_before_their_pixels_are_allocated(name: str) -> None:
    """20,000 × 20,000 takes 1.2 GB; the process may grow by 100 MB and must say no."""
    data = bombs()[name]
    tracemalloc.start()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert "is over max_pixels" in refusal_of(data) or "bomb" in refusal_of(data)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kb < 100_000


def test_bombs_in_a_process_that_has_no_memory_for_them() -> None:
    """The same with the address space limited, where an allocation of that size fails."""
    script = """
import resource
from curate.images import EncodedImage, Refused
from curate.settings import ImageSettings
from tests.imagery import bombs
files = bombs()
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20),) * 2)
for name, data in files.items():
    try:
        EncodedImage(data, ImageSettings()).decode()
    except Refused as reason:
        assert "max_pixels" in str(reason) or "bomb" in str(reason), (name, reason)
    else:
        raise SystemExit(name + " was decoded")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


# On the way to the encoder


@pytest.mark.parametrize("target_px", [16, 50, 64, 100, 128, 160, 224, 256])
@pytest.mark.parametrize(("width", "height"), [(1023, 769), (512, 513), (300, 900)])
def test_draft_keeps_twice_the_target(target_px: int, width: int, height: int) -> None:
    image = EncodedImage(encode(picture(width, height), "JPEG"), ImageSettings())
    rgb = image.decode(target_px)
    assert (image.width, image.height) == (width, height)
    assert min(rgb.size) >= min(2 * target_px, width, height)
    if min(width, height) >= 4 * target_px:
        assert rgb.width < width, "and is smaller where that is possible"


@pytest.mark.parametrize("crop_fraction", [1.0, 0.875, 0.9, 0.5])
@pytest.mark.parametrize(
    ("width", "height"), [(64, 64), (500, 375), (375, 500), (61, 300), (20, 24), (1500, 1100)]
)
def test_resize_crop_is_resize_then_crop(width: int, height: int, crop_fraction: float) -> None:
    """Against the whole image resized and then cropped: 1 grey level on average. It is no exact
    match since there the crop snaps to whole pixels of the resized image, and so does its other
    side, and here to those of the source; hence the field is smooth."""
    smooth = picture(6, 5).resize((width, height), Image.Resampling.BICUBIC)
    image_px = 56
    resized_px = round(image_px / crop_fraction)
    scale = resized_px / min(width, height)
    whole = smooth.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    left, top = (whole.width - image_px) / 2, (whole.height - image_px) / 2
    whole = whole.crop((round(left), round(top), round(left) + image_px, round(top) + image_px))
    got = resize_crop(np.asarray(smooth), image_px, crop_fraction)
    assert (got.shape, got.dtype) == ((image_px, image_px, 3), np.uint8)
    difference = np.abs(got.astype(int) - np.asarray(whole))
    steepest = np.abs(np.diff(np.asarray(whole).astype(int), axis=1)).mean()
    snap = max(1, scale) / 2  # pixels of the result
    assert difference.mean() < 1 + steepest * snap


def bicubic_weights(pixels: int, first: int, side: int, image_px: int) -> np.ndarray:
    """(image_px, pixels): Keys' kernel with a = -1/2, stretched where it shrinks."""
    scale = side / image_px
    centres = first + (np.arange(image_px) + 0.5) * scale
    x = np.abs(np.arange(pixels) + 0.5 - centres[:, None]) / max(scale, 1)
    inner, outer = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, inner, np.where(x < 2, outer, 0))
    weights[:, :first] = weights[:, first + side :] = 0
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("width", "height", "least_db"),
    [(90, 80, 48), (164, 164, 48), (250, 500, 48), (20, 24, 45), (400, 384, 36), (1203, 900, 40)],
)
def test_resize_crop_is_bicubic_over_all_that_a_pixel_stands_for(
    width: int, height: int, least_db: float
) -> None:
    """Of noise, where whatever is left out or aliased shows; float64 is the oracle. From a quarter
    on, means of blocks come first."""
    image_px, crop_fraction = 56, 0.875
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    side = round(min(width, height) * crop_fraction)
    weights = [
        bicubic_weights(pixels, (pixels - side) // 2, side, image_px) for pixels in (height, width)
    ]
    expected = np.einsum("ih,hwc,jw->ijc", weights[0], noise, weights[1], optimize=True)
    got = resize_crop(noise, image_px, crop_fraction)
    error = np.mean((got - expected.clip(0, 255)) ** 2)
    assert 10 * np.log10(255**2 / error) > least_db


@pytest.mark.parametrize("side", [500, 1500, 4100])
def test_what_is_finer_than_a_pixel_becomes_grey(side: int) -> None:
    """Stripes of one pixel, which any resampling that skips pixels shows as stripes or as flats."""
    stripes = np.zeros((side, side, 3), np.uint8)
    stripes[:, ::2] = 255
    got = resize_crop(stripes, 64, 0.875).astype(int)[2:-2, 2:-2]
    assert np.abs(got - 128).max() < 12


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((240, 180), (120, 90)),  # ⅜ would do
        ((127, 125), (127, 125)),
        ((128, 129), (64, 65)),
        ((255, 400), (128, 200)),
        ((300, 256), (75, 64)),
        ((515, 620), (65, 78)),
    ],
)
def test_jpegs_are_halved_once_twice_or_thrice(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    data = encode(picture(*size), "JPEG")
    assert decode(data, 32).size == expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("target_px", [None, 40])
def test_pixels_are_those_of_the_picture(name: str, target_px: int | None) -> None:
    image = EncodedImage(every_format(200, 160)[name], ImageSettings())
    got = image.pixels(target_px)
    assert got.dtype == np.uint8
    assert (got == np.asarray(image.decode(target_px))).all()


def test_resize_crop_after_draft_is_close_to_without() -> None:
    data = encode(picture(1023, 769), "JPEG", quality=95)
    shrunk = pixels_of(data, target_px=100)
    assert shrunk.shape[1] < 1023
    with_draft = resize_crop(shrunk, 88, 0.875).astype(int)
    without = resize_crop(pixels_of(data), 88, 0.875).astype(int)
    assert np.abs(with_draft - without).mean() < 1.5


@pytest.mark.parametrize("name", FORMATS)
def test_the_size_is_known_before_the_picture_is_decoded(name: str) -> None:
    """Width and height of every format, whatever figure they lead to; of others than JPEGs, which
    come in one size, the whole picture."""
    data = every_format(300, 200)[name]
    image = EncodedImage(data, ImageSettings())
    assert image.size == (300, 200) == (image.width, image.height)
    rgb = image.decode(30)
    assert (np.asarray(rgb) == pixels_of(data, target_px=30)).all()
    assert (np.asarray(image.decode(30)) == np.asarray(rgb)).all(), "as often as one likes"
    if "jpeg" in name and name not in ("tiff-jpeg", "jpeg-cmyk"):
        assert 60 <= rgb.height < 200
    else:
        assert rgb.size == (300, 200)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    """Orientations 5 to 8 lie on their side in the file; crops are drawn in what is seen."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(picture(320, 200), kind, exif=exif)
    image = EncodedImage(data, ImageSettings())
    width, height = image.size
    assert (width, height) == ((200, 320) if orientation >= 5 else (320, 200))
    if kind != "TIFF":  # which Pillow turns by itself
        assert (image.width, image.height) == (320, 200), "as the file states them"
    rgb = image.decode(20)
    assert rgb.width / rgb.height == pytest.approx(width / height)


def test_what_is_refused_by_its_size_is_refused_by_its_header() -> None:
    """The bytes after the header are not even there."""
    for kind in ("JPEG", "PNG"):
        data = encode(picture(7, 40), kind)
        end = data.index({"JPEG": b"\xff\xda", "PNG": b"IDAT"}[kind])
        with pytest.raises(Refused, match="under min_px"):
            EncodedImage(data[: end + 40], ImageSettings())


def test_damaged_images_may_have_a_size() -> None:
    """It may have been asked by then; the image is refused still."""
    data = encode(picture(300, 200), "JPEG")
    for cut in (len(data) // 2, len(data) - 60):
        image = EncodedImage(data[:cut], ImageSettings())
        assert image.size == (300, 200)
        with pytest.raises(Refused, match="damaged"):
            image.decode(30)


def _decodes(data: bytes, **options: int | None) -> bool:
    try:
        decode(data, **options)
    except Refused:
        return False
    return True
