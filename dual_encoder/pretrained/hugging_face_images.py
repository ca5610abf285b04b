"""How a Hugging Face model wants its images: `preprocessor_config.json` as settings of an image tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import PretrainedError
from data.published_files import read_object
from dual_encoder.towers.clip import CLIP_MEAN, CLIP_STD
from dual_encoder.towers.siglip import HALF

FILES = ("preprocessor_config.json", "processor_config.json")

# Pillow's numbers of filters.
FILTERS = {1: "lanczos", 2: "bilinear", 3: "bicubic"}

# The steps that the image processors of both kinds take when their file does not say.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    },
    "siglip": {
        "size": {"height": 224, "width": 224},
        "crop_size": None,
        "do_center_crop": False,
        "image_mean": HALF,
        "image_std": HALF,
    },
}


def image_settings(directory: Path, kind: str, image_size: int) -> dict[str, Any]:
    """`size`, `resize`, `interpolation`, `mean` and `std` of the image tower; `kind` is "clip" or "siglip".

    `PretrainedError` for steps that this project does not take, and for another size than the tower's.
    """
    path = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if path is None:
        raise PretrainedError(f"{FILES[0]} in {directory}", "none", "copy it there: it says how images are prepared")
    stated = read_object(path)
    if isinstance(stated.get("image_processor"), dict):
        stated = stated["image_processor"]
    steps = {**_DEFAULTS[kind], **{name: value for name, value in stated.items() if value is not None}}
    _check_steps(steps, path)
    resize, size = _geometry(steps, kind, path)
    if size != image_size:
        raise PretrainedError(
            f"images of the tower's {image_size} pixels from {path}", f"{size}", "use the model's own preprocessing"
        )
    if steps.get("resample", 3) not in FILTERS:
        raise PretrainedError(f"resample among {FILTERS} in {path}", repr(steps["resample"]), "use another model")
    normalised = steps.get("do_normalize", True)
    mean, std = (steps["image_mean"], steps["image_std"]) if normalised else ((0.0,) * 3, (1.0,) * 3)
    if len(mean) != 3 or len(std) != 3 or not all(value > 0 for value in std):
        raise PretrainedError(f"three means and three positive deviations in {path}", f"{mean}, {std}", "correct them")
    return {
        "size": size,
        "resize": resize,
        "interpolation": FILTERS[steps.get("resample", 3)],
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
    }


def _check_steps(steps: dict[str, Any], path: Path) -> None:
    """Resizing and scaling to [0, 1] are what `data.images` does in any case; padding by these settings it does not."""
    wrong = [name for name in ("do_resize", "do_rescale") if not steps.get(name, True)]
    wrong += [name for name in ("do_pad",) if steps.get(name)]
    if abs(float(steps.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6:
        wrong.append("rescale_factor")
    if wrong:
        shown = ", ".join(f"{name} {steps[name]!r}" for name in wrong)
        raise PretrainedError(f"images resized and divided by 255 in {path}", shown, "use another model")


def _geometry(steps: dict[str, Any], kind: str, path: Path) -> tuple[str, int]:
    """How an image becomes a square, and the square's side."""
    size, crop = steps["size"], steps["crop_size"]
    if isinstance(size, int):
        size = {"shortest_edge": size} if kind == "clip" else {"height": size, "width": size}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    cropped = bool(steps["do_center_crop"])
    side = size.get("shortest_edge", size.get("height"))
    square = {"height": side, "width": side}
    if cropped and crop != square or not cropped and "shortest_edge" in size or "height" in size and size != square:
        raise PretrainedError(
            f"in {path} a square: both sides scaled to it, or the shorter side, and the rest cut off",
            f"size {size}, crop_size {crop}, do_center_crop {cropped}",
            "use another model",
        )
    return ("shortest_edge" if "shortest_edge" in size else "squash"), int(side)
