"""Entry point: lets a bundle compute in 16 bits on GPUs, if it is as good as float32 on pairs of yours, and faster.

python -m dual_encoder.half_precision --bundle build/model --data build/pairs --precision mixed_float16
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.errors import SourceError
from data.quiet_tensorflow import load_tensorflow
from data.sources import SOURCE_HELP, open_source
from dual_encoder.quantize import FEWEST, LARGEST_LOSS, LEAST_GAIN, TURNS, refusal

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.bundle import Bundle

PRECISIONS = ("mixed_float16", "mixed_bfloat16")
BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, publish or say why not; 1 where the gate is not passed."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.half_precision",
        description="Let a bundle compute in 16 bits where it runs in TensorFlow on a GPU; weights stay in float32. It "
        f"is published only if recall@10 on the given pairs falls by at most {100 * LARGEST_LOSS:g} points in either "
        f"direction and both towers are at least {LEAST_GAIN:g} times as fast on this machine. Processors without "
        "16-bit arithmetic only get slower.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, type=Path, help="a trained or imported model")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs to measure on, see below")
    parser.add_argument("--split", default="validation", choices=("validation", "train", "all"), help="(validation)")
    parser.add_argument("--precision", default=PRECISIONS[0], choices=PRECISIONS, help="default %(default)s")
    options = parser.parse_args(argv)
    from dual_encoder.bundle import open_bundle, with_half_precision
    from dual_encoder.evaluate import pairs_of_split

    bundle = open_bundle(options.bundle)
    pairs = pairs_of_split(open_source(options.data), options.split)
    figures = measure(bundle, options.precision, pairs) | {"data": options.data, "split": options.split}
    _print(figures, options.precision)
    if reason := refusal(figures, options.precision):
        console.say(f"not published: {reason}; the bundle stays as it is, in float32")
        return console.EXIT_FAILED
    with_half_precision(bundle, options.precision, figures)
    console.say(f"published in {bundle.path}: on a GPU it computes in {options.precision} from now on")
    return console.EXIT_OK


def measure(bundle: Bundle, precision: str, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
    """Recall@10 in TensorFlow in both precisions on the pairs, and the speed of the towers, taking turns."""
    load_tensorflow()
    import numpy as np

    from dual_encoder.bundle_model import keras_engines
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.metrics import retrieval_metrics
    from dual_encoder.runtime import Runtime

    runtimes = {name: Runtime(bundle, *keras_engines(bundle, name)) for name in ("float32", precision)}
    recall = {}
    for name, runtime in runtimes.items():
        embedded = embed_pairs(runtime, pairs)
        if len(embedded.pairs) < FEWEST:
            raise SourceError(f"at least {FEWEST} images to measure recall on", f"{len(embedded.pairs)}", "take more")
        found = retrieval_metrics(embedded.images, embedded.captions, embedded.caption_image)
        recall[name] = {direction: figures["recall@10"] for direction, figures in found.items()}
    texts = [embedded.table.captions[number % len(embedded.table.captions)] for number in range(BATCH)]
    size = bundle.preprocessing.size
    pixels = np.zeros((BATCH, size, size, 3), np.float32)
    full, half = runtimes.values()
    speed = {
        f"{BATCH} texts": _speed(lambda: full.embed_texts(texts), lambda: half.embed_texts(texts)),
        f"{BATCH} images": _speed(lambda: full.embed_pixels(pixels), lambda: half.embed_pixels(pixels)),
    }
    return {"recall@10": recall, "speed": speed, "captions": len(embedded.table.captions)}


def _speed(full: Callable[[], Any], half: Callable[[], Any]) -> float:
    """How many times as fast the second is: the median of the ratios of turns that followed each other."""

    def seconds(step: Callable[[], Any]) -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    seconds(full), seconds(half)
    return statistics.median(seconds(full) / seconds(half) for _ in range(TURNS))


def _print(figures: dict[str, Any], precision: str) -> None:
    full, half = (figures["recall@10"][name] for name in ("float32", precision))
    rows = [
        [f"recall@10 %, {name.replace('_', ' ')}", f"{100 * full[name]:.2f}", f"{100 * half[name]:.2f}"]
        for name in full
    ]
    rows += [[f"speed, {what}", "1", f"{gain:.2f}"] for what, gain in figures["speed"].items()]
    title = f"{figures['data']}, {figures['split']}: {figures['captions']:,} captions"
    console.print_table(title, ["", "float32", precision], rows)


if __name__ == "__main__":
    console.run(main)
