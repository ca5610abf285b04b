"""The only place where image bytes become pixels: decoding under limits, resizing, normalising.

Training, indexing and serving all call `load_pixels`, so the same file gives the same tensor everywhere. Knows no model
and no file system. Every refusal is an `ImageError` with a stable `reason`.
"""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import ImageError

# Pillow's names of the formats that may be decoded; anything else is refused before its decoder runs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

# Pillow warns on standard error of large headers and damaged EXIF data; `decode` judges both itself.
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION = 0x0112  # the number of EXIF's tag

# How many times as long as wide a scaled image may be; a longer one is not scaled as a whole.
_SCALED_WHOLE = 8

# Mean and standard deviation of ImageNet's RGB values in [0, 1], as used by most published image backbones.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageLimits:
    """How much an image may cost: encoded bytes, decoded pixels, and the length of a side in pixels.

    Pillow's own limit, about 179 million pixels, stays in force above `max_pixels`.
    """

    max_bytes: int = 32 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_side: int = 30_000


DEFAULT_LIMITS = ImageLimits()

Resize = Literal["squash", "crop", "pad", "shortest_edge", "shortest_edge_rounded"]
Interpolation = Literal["bicubic", "bilinear", "lanczos"]


@dataclass(frozen=True)
class ImagePreprocessing:
    """How a decoded image becomes a backbone's input.

    `resize` is "squash" (whole image, aspect ratio lost), "crop" (central square), "pad" (whole image on white), or
    "shortest_edge", a central square as published CLIP models cut it: the shorter side is scaled to `size`, the longer
    one to whole pixels, and whole pixels are cut off. Where their number is odd, one more goes at the end, or with
    "shortest_edge_rounded" at the even side that torchvision rounds to.

    `size` is in pixels; `mean` and `std` are of RGB values in [0, 1]; `mirror` flips left and right.

    A JPEG file may be decoded at 1/2, 1/4 or 1/8 of its size as long as the shorter side keeps `jpeg_margin` × `size`
    pixels; 0 decodes every pixel. At 2, embeddings keep a cosine of 0.999 (docs/adr/0024).
    """

    size: int = 224
    resize: Resize = "squash"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    mirror: bool = False
    interpolation: Interpolation = "bicubic"
    jpeg_margin: int = 2

    @property
    def enough(self) -> int:
        """How many pixels the shorter side of a decoded JPEG must keep; 0 for all."""
        return self.jpeg_margin * self.size

    def to_config(self) -> dict[str, Any]:
        """JSON form, read back by `from_config`."""
        config = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        # What was before there was a choice is left out, so that what was made then stays valid.
        if self.interpolation == "bicubic":
            del config["interpolation"]
        if self.jpeg_margin == 0:
            del config["jpeg_margin"]
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ImagePreprocessing:
        """The inverse of `to_config`; unknown keys are a `TypeError`."""
        given = {"jpeg_margin": 0, **config}
        return cls(**{**given, "mean": tuple(config["mean"]), "std": tuple(config["std"])})


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, enough: int = 0) -> Image.Image:
    """Decode a JPEG, PNG, WebP or GIF (first frame) to an upright RGB image, alpha on white.

    A JPEG comes scaled down by 2, 4 or 8 where its shorter side then still has `enough` pixels; 0 wants all of them.
    The decoder leaves out the finer waves of each block, which is quicker than to decode and to average. The size is
    checked from the header, before any pixel is decoded, so a decompression bomb costs milliseconds.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(
            "too_many_bytes", f"at most {limits.max_bytes:,} bytes", f"{len(data):,} bytes", "send a smaller copy"
        )
    image: Image.Image
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(
            "not_an_image", "a JPEG, PNG, WebP or GIF image", _first_bytes(data), "convert the file to one of these"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits, str(error)) from None
    except _DECODER_ERRORS as error:
        raise _damaged(error) from None
    width, height = image.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise _too_many_pixels(limits, f"{width} × {height}")
    try:
        if enough:
            image.draft(None, (enough, enough))
        image.load()
        _turn_upright(image)
        return _to_rgb(image)
    except _DECODER_ERRORS as error:
        raise _damaged(error) from None


def upright_size(source: bytes | Path) -> tuple[int, int]:
    """Width and height of an encoded image, or of a file of one, once it is upright; from its header, undecoded."""
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            width, height = image.size
            with contextlib.suppress(*_DECODER_ERRORS):
                if image.getexif().get(_ORIENTATION) in (5, 6, 7, 8):  # lying on a side
                    width, height = height, width
            return width, height
    except (UnidentifiedImageError, Image.DecompressionBombError, *_DECODER_ERRORS) as error:
        raise _damaged(error) from None


def resize(image: Image.Image, preprocessing: ImagePreprocessing) -> np.ndarray:
    """Resize an RGB image to `(size, size, 3)` uint8 by interpolation with antialiasing."""
    size = preprocessing.size
    width, height = image.size
    method = Image.Resampling[preprocessing.interpolation.upper()]
    if preprocessing.resize == "squash":
        resized = image.resize((size, size), method)
    elif preprocessing.resize in ("shortest_edge", "shortest_edge_rounded"):
        resized = _shortest_edge(image, size, method, rounded=preprocessing.resize == "shortest_edge_rounded")
    elif preprocessing.resize == "crop":
        # Cropping first keeps a 1 × 30,000 image from growing to gigabytes.
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        resized = image.resize((size, size), method, box=box)
    else:
        resized = ImageOps.pad(image, (size, size), method, color="white")
    return np.asarray(ImageOps.mirror(resized) if preprocessing.mirror else resized)


def _shortest_edge(image: Image.Image, size: int, method: Image.Resampling, rounded: bool) -> Image.Image:
    """The central square of the image scaled so that its shorter side is `size`."""
    width, height = image.size
    shorter = min(width, height)
    scaled = (size * width // shorter, size * height // shorter)
    cut = [round((side - size) / 2) if rounded else (side - size) // 2 for side in scaled]
    if max(scaled) <= _SCALED_WHOLE * size:
        left, top = cut
        return image.resize(scaled, method).crop((left, top, left + size, top + size))
    # A 1 × 30,000 image would grow to gigabytes: the same pixels but for rounding, from the square alone.
    (left, top), steps = cut, (width / scaled[0], height / scaled[1])
    box = (left * steps[0], top * steps[1], (left + size) * steps[0], (top + size) * steps[1])
    return image.resize((size, size), method, box=box)


def normalise(pixels: np.ndarray, preprocessing: ImagePreprocessing) -> np.ndarray:
    """Map uint8 `(…, W, 3)` to float32: value / 255, minus mean, divided by standard deviation."""
    result = np.empty(pixels.shape, np.float32)
    _normalise_into(result, pixels, preprocessing)
    return result


def normalise_batch(images: Sequence[np.ndarray], preprocessing: ImagePreprocessing) -> np.ndarray:
    """`normalise` of B images `(S, S, 3)` uint8 as one array `(B, S, S, 3)` float32, written once."""
    size = preprocessing.size
    result = np.empty((len(images), size, size, 3), np.float32)
    for row, pixels in enumerate(images):
        _normalise_into(result[row], pixels, preprocessing)
    return result


def _normalise_into(result: np.ndarray, pixels: np.ndarray, preprocessing: ImagePreprocessing) -> None:
    scale = 1.0 / (255.0 * np.asarray(preprocessing.std, np.float32))
    shift = np.asarray(preprocessing.mean, np.float32) / np.asarray(preprocessing.std, np.float32)
    # Row by row of the image: NumPy's inner loop over three channels alone would take ten times as long.
    width = pixels.shape[-2]
    rows = result.reshape(*pixels.shape[:-2], width * 3)
    np.multiply(pixels.reshape(rows.shape), np.tile(scale.astype(np.float32), width), out=rows)
    rows -= np.tile(shift, width)


def load_resized(data: bytes, preprocessing: ImagePreprocessing, limits: ImageLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Encoded image to `(size, size, 3)` uint8, a quarter of the memory of a backbone's input."""
    return resize(decode(data, limits, preprocessing.enough), preprocessing)


def load_pixels(data: bytes, preprocessing: ImagePreprocessing, limits: ImageLimits = DEFAULT_LIMITS) -> np.ndarray:
    """Encoded image to a backbone's input, `(size, size, 3)` float32."""
    return normalise(load_resized(data, preprocessing, limits), preprocessing)


# What Pillow's decoders raise on damaged input.
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, OverflowError, MemoryError)


def _too_many_pixels(limits: ImageLimits, received: str) -> ImageError:
    return ImageError(
        "too_many_pixels",
        f"at most {limits.max_pixels:,} pixels and {limits.max_side:,} a side",
        received,
        "scale the image down first",
    )


def _damaged(error: BaseException) -> ImageError:
    return ImageError("damaged", "a complete image", f"one that does not decode ({error})", "fetch or save it again")


def _first_bytes(data: bytes) -> str:
    return f"{len(data):,} bytes that begin with {data[:12]!r}" if data else "no bytes"


def _turn_upright(image: Image.Image) -> None:
    """Apply the EXIF orientation; unreadable EXIF data means none."""
    with contextlib.suppress(*_DECODER_ERRORS):
        ImageOps.exif_transpose(image, in_place=True)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):
        # 16-bit grey; Pillow would clip at 255 instead of scaling.
        values = np.asarray(image)
        grey = np.clip(values.astype(np.float32) / 257.0 + 0.5, 0, 255).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        image = Image.fromarray(grey)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
