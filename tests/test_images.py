"""Image bytes become the same upright RGB pixels whatever their format, and hostile bytes cost next to nothing."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from data.errors import ImageError
from data.images import (
    FORMATS,
    ImageLimits,
    ImagePreprocessing,
    Resize,
    decode,
    load_pixels,
    normalise,
    normalise_batch,
    resize,
    upright_size,
)
from data.pairs import ImageBytes, ImageFile

RED, GREEN, BLUE, WHITE = (200, 30, 40), (20, 160, 60), (30, 50, 190), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def corners(width: int = 60, height: int = 40) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, width // 2 - 1, height // 2 - 1), RED)
    draw.rectangle((width // 2, 0, width, height // 2 - 1), GREEN)
    draw.rectangle((0, height // 2, width // 2 - 1, height), BLUE)
    return image


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters: top left, top right, bottom left, bottom right."""
    width, height = image.size
    places = [(x * width // 4, y * height // 4) for y in (1, 3) for x in (1, 3)]
    return [image.getpixel(place) for place in places]  # type: ignore[misc]


def reason(data: bytes, limits: ImageLimits | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits or ImageLimits())
    assert caught.value.expected
    assert caught.value.received
    assert caught.value.next_step
    return caught.value.reason


def png_header(width: int, height: int, *, body: bytes = b"") -> bytes:
    """A PNG that claims a size; `body` is its compressed data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("PNG", {"interlace": 1}, 0),
        ("JPEG", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "progressive": True}, 12),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 25),
        ("GIF", {}, 0),
    ],
)
def test_each_format_decodes_to_its_colours(kind: str, options: dict, tolerance: int) -> None:
    image = decode(encoded(corners(), kind, **options))
    assert (image.mode, image.size) == ("RGB", (60, 40))
    np.testing.assert_allclose(colours(image), [RED, GREEN, BLUE, WHITE], atol=tolerance)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, undo: Image.Transpose | None, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = corners() if undo is None else corners().transpose(undo)
    image = decode(encoded(stored, kind, exif=exif, quality=95))
    assert image.size == (60, 40)
    np.testing.assert_allclose(colours(image), [RED, GREEN, BLUE, WHITE], atol=25)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_unreadable_exif_means_no_orientation(exif: bytes) -> None:
    assert decode(encoded(corners(), "JPEG", exif=exif)).size == (60, 40)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_shown_on_white(kind: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((200, 0, 0, 128), (20, 0, 40, 40))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    left, right, *_ = colours(decode(encoded(image, kind, **options)))
    assert left == WHITE
    np.testing.assert_allclose(right, (227, 127, 127), atol=2)


def test_grey_with_alpha_is_shown_on_white() -> None:
    image = Image.new("LA", (8, 8), (0, 0))
    image.paste((100, 255), (4, 0, 8, 8))
    assert colours(decode(encoded(image)))[:2] == [WHITE, (100, 100, 100)]


def test_palette_images() -> None:
    palette = corners().quantize(4)
    assert palette.mode == "P"
    assert colours(decode(encoded(palette))) == [RED, GREEN, BLUE, WHITE]
    assert colours(decode(encoded(palette, "GIF"))) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_transparency_is_shown_on_white(kind: str) -> None:
    palette = corners().quantize(4)
    red = palette.getpixel((1, 1))
    assert colours(decode(encoded(palette, kind, transparency=red))) == [WHITE, GREEN, BLUE, WHITE]


def test_partial_transparency_of_a_palette() -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.paste(1, (4, 0, 8, 8))
    assert colours(decode(encoded(palette, transparency=bytes([0, 255]))))[:2] == [WHITE, (10, 20, 30)]


@pytest.mark.parametrize(("mode", "transparent"), [("L", 7), ("RGB", (7, 8, 9))])
def test_a_transparent_colour_is_shown_on_white(mode: str, transparent: int | tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), transparent)
    image.paste(50 if mode == "L" else (50, 50, 50), (4, 0, 8, 8))
    assert colours(decode(encoded(image, transparency=transparent)))[:2] == [WHITE, (50, 50, 50)]


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    red, green, blue = image.getpixel((8, 8))  # type: ignore[misc]
    assert (red > 230, green < 40, blue < 40) == (True, True, True)


@pytest.mark.parametrize(("mode", "level"), [("1", 1), ("L", 90)])
def test_grey_images(mode: str, level: int) -> None:
    expected = 255 if mode == "1" else level
    assert decode(encoded(Image.new(mode, (8, 8), level))).getpixel((4, 4)) == (expected,) * 3


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(decode(encoded(Image.fromarray(values))))
    np.testing.assert_allclose(grey[..., 0], values / 257.0, atol=1)


def test_sixteen_bit_grey_with_a_transparent_level() -> None:
    values = np.full((8, 8), 1000, np.uint16)
    values[:, 4:] = 40000
    image = decode(encoded(Image.fromarray(values), transparency=1000))
    assert colours(image)[:2] == [WHITE, (156, 156, 156)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_shows_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), colour) for colour in (RED, GREEN, BLUE)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    np.testing.assert_allclose(decode(data).getpixel((10, 10)), RED, atol=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    assert reason(data[: int(share * len(data))]) in ("damaged", "not_an_image")


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PPM", "ICO", "TGA", "PCX", "PDF"])
def test_other_formats_are_refused(kind: str) -> None:
    assert reason(encoded(corners(), kind)) == "not_an_image"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a shopping list\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"\xff\xd8\xff",
        b"GIF89a",
        b"RIFF\x00\x00\x00\x00WEBP",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_what_is_not_an_image_is_refused(data: bytes) -> None:
    assert reason(data) in ("not_an_image", "damaged")


def test_a_text_file_named_jpg_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "holiday.jpg"
    file.write_text("not a picture at all")
    assert reason(ImageFile(file).read()) == "not_an_image"


def test_a_bomb_is_refused_before_its_pixels_are_decoded() -> None:
    # 2.5 GB of pixels; the decoder must not get as far as allocating them.
    bomb = png_header(29_000, 29_000, body=zlib.compress(bytes(3_000_000)))
    tracemalloc.start()
    try:
        assert reason(bomb) == "too_many_pixels"
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_bomb_never_reaches_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile as PillowImageFile

    loaded: list[object] = []
    original: Callable = PillowImageFile.ImageFile.load
    monkeypatch.setattr(PillowImageFile.ImageFile, "load", lambda self: loaded.append(self) or original(self))
    for width, height in ((10_000, 10_000), (29_000, 29_000), (2**31 - 1, 1), (65_535, 65_535)):
        assert reason(png_header(width, height)) == "too_many_pixels"
    assert loaded == []
    decode(encoded(corners()))
    assert loaded, "the watch works"


def test_gif_and_jpeg_bombs_are_refused_by_their_header() -> None:
    gif = bytearray(encoded(corners(), "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    assert reason(bytes(gif)) == "too_many_pixels"
    jpeg = bytearray(encoded(corners(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 65_535, 65_535)
    assert reason(bytes(jpeg)) == "too_many_pixels"


def test_a_frame_larger_than_its_gif_is_refused_before_it_is_decoded() -> None:
    gif = bytearray(encoded(corners(), "GIF"))
    descriptor = gif.index(b"\x2c\x00\x00\x00\x00\x3c\x00\x28\x00")
    gif[descriptor + 5 : descriptor + 9] = struct.pack("<HH", 65_535, 65_535)
    assert reason(bytes(gif)) in ("too_many_pixels", "damaged")


def test_a_compressed_text_bomb_in_a_png_is_refused() -> None:
    payload = zlib.compress(bytes(200_000_000), 9)
    data = b"note\0\0" + payload
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    plain = encoded(corners())
    bomb = plain[:33] + chunk + plain[33:]  # after the IHDR chunk
    tracemalloc.start()
    try:
        assert reason(bomb) == "damaged"
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_limits_are_inclusive() -> None:
    data = encoded(corners(60, 40))
    assert decode(data, ImageLimits(max_bytes=len(data), max_pixels=2400, max_side=60)).size == (60, 40)
    assert reason(data, ImageLimits(max_bytes=len(data) - 1)) == "too_many_bytes"
    assert reason(data, ImageLimits(max_pixels=2399)) == "too_many_pixels"
    assert reason(data, ImageLimits(max_side=59)) == "too_many_pixels"


def test_pillows_own_limit_is_no_way_around() -> None:
    generous = ImageLimits(max_pixels=10**12, max_side=10**6)
    assert reason(png_header(100_000, 100_000), generous) == "too_many_pixels"


def test_bad_images_make_no_noise_on_standard_error(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(10_000, 10_000))
    (tmp_path / "exif.jpg").write_bytes(encoded(corners(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    code = """
import pathlib, sys, data.errors, data.images
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        data.images.decode(path.read_bytes())
    except data.errors.ImageError as error:
        print(error.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], capture_output=True, text=True, timeout=60, check=True
    )
    assert (done.stdout, done.stderr) == ("too_many_pixels\n", "")


def test_large_files_are_refused_unread(tmp_path: Path) -> None:
    file = tmp_path / "huge.jpg"
    with file.open("wb") as sparse:
        sparse.truncate(10**12)  # a terabyte that takes no disk
    with pytest.raises(ImageError, match="1,000,000,000,000 bytes") as caught:
        ImageFile(file).read()
    assert caught.value.reason == "too_many_bytes"
    with pytest.raises(ImageError) as caught:
        ImageBytes(lambda: bytes(11)).read(ImageLimits(max_bytes=10))
    assert caught.value.reason == "too_many_bytes"


def test_missing_and_unreadable_files_have_reasons(tmp_path: Path) -> None:
    for path, expected in ((tmp_path / "none.jpg", "missing"), (tmp_path, "missing")):
        with pytest.raises(ImageError) as caught:
            ImageFile(path).read()
        assert caught.value.reason == expected


@pytest.mark.parametrize("mode", ["squash", "crop", "pad"])
@pytest.mark.parametrize("shape", [(1, 30_000), (30_000, 1), (1, 1), (3, 2), (640, 480)])
def test_every_shape_gives_the_same_tensor_shape(mode: str, shape: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", shape, (10, 20, 30)))
    tracemalloc.start()
    try:
        pixels = load_pixels(data, ImagePreprocessing(size=32, resize=mode))  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.float32
    assert np.isfinite(pixels).all()


def test_resize_modes_keep_what_they_promise() -> None:
    image = corners(80, 40)
    assert colours(Image.fromarray(resize(image, ImagePreprocessing(32, "squash")))) == [RED, GREEN, BLUE, WHITE]
    assert colours(Image.fromarray(resize(image, ImagePreprocessing(32, "crop")))) == [RED, GREEN, BLUE, WHITE]
    padded = resize(image, ImagePreprocessing(32, "pad"))
    assert (padded[:7] == 255).all()
    assert (padded[-7:] == 255).all()
    assert tuple(padded[12, 8]) == RED


def test_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (300, 100), RED)
    image.paste(GREEN, (100, 0, 200, 100))
    cropped = resize(image, ImagePreprocessing(50, "crop"))
    assert (cropped[:, 2:-2] == GREEN).all()


def test_normalise_is_the_textbook_formula() -> None:
    preprocessing = ImagePreprocessing()
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(256, 3)
    expected = (pixels / 255.0 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    normalised = normalise(pixels, preprocessing)
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-6)


def test_mirrored_preprocessing_is_the_mirror_image() -> None:
    data = encoded(corners())
    plain, mirrored = (load_pixels(data, ImagePreprocessing(32, mirror=mirror)) for mirror in (False, True))
    np.testing.assert_array_equal(plain[:, ::-1], mirrored)
    assert not np.array_equal(plain, mirrored)


def test_preprocessing_round_trips_through_its_config() -> None:
    preprocessing = ImagePreprocessing(260, "crop", (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert ImagePreprocessing.from_config(preprocessing.to_config()) == preprocessing
    with pytest.raises(TypeError, match="sise"):
        ImagePreprocessing.from_config({**preprocessing.to_config(), "sise": 3})


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_refused_or_decoded(data: bytes) -> None:
    _image_or_error(data)


SEEDS = [encoded(corners(24, 16), kind) for kind in FORMATS] + [
    encoded(corners(24, 16).quantize(4), "PNG", transparency=0),
    encoded(corners(24, 16), "JPEG", progressive=True, exif=Image.Exif().tobytes()),
    encoded(Image.new("CMYK", (24, 16)), "JPEG"),
    encoded(Image.fromarray(np.zeros((16, 24), np.uint16))),
    encoded(corners(24, 16), "GIF", save_all=True, append_images=[Image.new("RGB", (24, 16))]),
]


@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=6),
    st.floats(0, 1),
)
@settings(max_examples=800, deadline=None)
def test_mutated_images_are_refused_or_decoded(seed: bytes, edits: list[tuple[float, bytes]], kept: float) -> None:
    data = bytearray(seed)
    for place, replacement in edits:
        start = int(place * len(data))
        data[start : start + len(replacement)] = replacement
    _image_or_error(bytes(data[: max(1, int(len(data) * (0.5 + kept)))]))


def _image_or_error(data: bytes) -> None:
    """Under small limits, so that a mutated header cannot ask for much."""
    try:
        image = decode(data, ImageLimits(max_pixels=1_000_000, max_side=5_000))
    except ImageError:
        return
    assert image.mode == "RGB"
    assert image.width * image.height <= 1_000_000


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("shape", [(64, 101), (103, 64), (65, 67), (30, 70), (64, 64)])
def test_the_shortest_edge_is_scaled_and_whole_pixels_are_cut(shape: tuple[int, int], rounded: bool) -> None:
    """By the two steps that CLIP's own preprocessing takes."""
    rows, columns = shape
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (rows, columns, 3)).astype(np.uint8))
    size = 32
    if rows < columns:
        scaled = image.resize((size * columns // rows, size), Image.Resampling.BILINEAR)
    else:
        scaled = image.resize((size, size * rows // columns), Image.Resampling.BILINEAR)
    left, top = ((side - size) / 2 for side in scaled.size)
    left, top = (round(left), round(top)) if rounded else (int(left), int(top))
    expected = np.asarray(scaled)[top : top + size, left : left + size]
    mode: Resize = "shortest_edge_rounded" if rounded else "shortest_edge"
    found = resize(image, ImagePreprocessing(size, mode, interpolation="bilinear"))
    np.testing.assert_array_equal(found, expected)


def test_a_long_strip_is_cut_before_it_is_scaled() -> None:
    """The same pixels, but for rounding, and never the gigabytes of the whole strip."""
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 400, 3)).astype(np.uint8))
    whole = strip.resize((640, 32), Image.Resampling.BICUBIC).crop((304, 0, 336, 32))
    found = resize(strip, ImagePreprocessing(32, "shortest_edge"))
    assert np.abs(found.astype(int) - np.asarray(whole)).max() <= 1
    assert resize(Image.new("RGB", (1, 30_000)), ImagePreprocessing(224, "shortest_edge")).shape == (224, 224, 3)


def test_preprocessing_survives_its_config_and_an_older_one_has_the_same_digest() -> None:
    chosen = ImagePreprocessing(32, "shortest_edge", interpolation="bilinear")
    assert ImagePreprocessing.from_config(chosen.to_config()) == chosen
    older = ImagePreprocessing(jpeg_margin=0).to_config()
    assert older.keys() == {"size", "resize", "mean", "std", "mirror"}
    assert ImagePreprocessing.from_config(older).jpeg_margin == 0, "a bundle of before keeps its pixels"
    assert ImagePreprocessing.from_config(ImagePreprocessing().to_config()) == ImagePreprocessing()


@pytest.mark.parametrize(
    ("enough", "expected"), [(0, (400, 300)), (151, (400, 300)), (150, (200, 150)), (75, (100, 75)), (10, (50, 38))]
)
def test_a_jpeg_is_decoded_as_small_as_is_enough_and_no_smaller(enough: int, expected: tuple[int, int]) -> None:
    image = corners(400, 300)
    found = decode(encoded(image, "JPEG", quality=95), enough=enough)
    assert found.size == expected
    np.testing.assert_allclose(colours(found), [RED, GREEN, BLUE, WHITE], atol=12)
    for kind in ("PNG", "WEBP"):
        assert decode(encoded(image, kind), enough=enough).size == (400, 300)


def test_a_turned_jpeg_is_scaled_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encoded(corners(400, 300), "JPEG", exif=exif), enough=100).size == (150, 200)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_jpeg_is_refused_when_it_is_scaled_too(share: float) -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (128, 128, 3), np.uint8)), "JPEG")
    with pytest.raises(ImageError):
        decode(data[: int(share * len(data))], enough=16)


def test_a_batch_is_normalised_as_its_images_are() -> None:
    preprocessing = ImagePreprocessing(16)
    images = [resize(corners(20 + row, 30), preprocessing) for row in range(3)]
    found = normalise_batch(images, preprocessing)
    np.testing.assert_array_equal(found, [normalise(image, preprocessing) for image in images])
    assert normalise_batch([], preprocessing).shape == (0, 16, 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_in_a_header_is_that_of_the_decoded_image(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), "red").save(buffer, "JPEG", exif=exif)
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert upright_size(buffer.getvalue()) == upright_size(tmp_path / "a.jpg") == decode(buffer.getvalue()).size


def test_what_has_no_size_is_refused(tmp_path):
    for source in (b"", b"no image", tmp_path, tmp_path / "absent.png"):
        with pytest.raises(ImageError):
            upright_size(source)
