"""Copies of images as people make them: saved again, scaled, cut, drawn over; knows no detector and no file."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from data.images import decode
from data.pairs import ImageBytes, ImageTextPair


def _saved_again(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return decode(buffer.getvalue())


def _smaller(image: Image.Image) -> Image.Image:
    size = (max(1, image.width // 2), max(1, image.height // 2))
    return image.resize(size, Image.Resampling.BICUBIC)


def _cut(left: float, top: float, right: float, bottom: float) -> Callable[[Image.Image], Image.Image]:
    """Without these shares of the sides."""

    def cut(image: Image.Image) -> Image.Image:
        width, height = image.size
        return image.crop(
            (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
        )

    return cut


def _written_over(image: Image.Image) -> Image.Image:
    """A line of text on a dark bar, 30 % of the width and 7 % of the height, in a corner: a caption or a watermark."""
    image = image.copy()
    width, height = image.size
    bar = (round(0.66 * width), round(0.9 * height), round(0.96 * width), round(0.97 * height))
    canvas = ImageDraw.Draw(image)
    canvas.rectangle(bar, "#202020")
    canvas.text((bar[0] + 2, bar[1]), "photo: archive", "white", font_size=max(6, bar[3] - bar[1] - 2))
    return image


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again, quality 50": _saved_again,
    "half the size": _smaller,
    "mirrored": ImageOps.mirror,
    "cut, 2.5 % at every edge": _cut(0.025, 0.025, 0.025, 0.025),
    "cut, 5 % at one corner": _cut(0.05, 0.05, 0, 0),
    "cut, 10 % at one corner": _cut(0, 0, 0.1, 0.1),
    "brighter by 20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "written over": _written_over,
}


@dataclass(frozen=True)
class _Copy:
    """Makes the copy of an image when it is asked for."""

    original: ImageTextPair
    kind: str

    def __call__(self) -> bytes:
        buffer = io.BytesIO()
        KINDS[self.kind](decode(self.original.image.read())).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


def copy_of(pair: ImageTextPair, kind: str) -> ImageTextPair:
    """An image of its own, one of the `KINDS` of copies of a pair's image."""
    return replace(pair, image_id=f"{pair.image_id}, {kind}", image=ImageBytes(_Copy(pair, kind)), digest=None)
