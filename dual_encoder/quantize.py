"""Entry point: gives a bundle a text tower in int8, if it is as good as float32 on captions of yours, and faster.

python -m dual_encoder.quantize --bundle build/model --data build/pairs
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import console
from data.errors import BundleError, SourceError
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.bundle import Bundle
    from dual_encoder.engines import Engine
    from dual_encoder.int8_graph import Int8Fit
    from dual_encoder.runtime import Runtime

TOWER = "text_tower"
LARGEST_LOSS = 0.005  # of recall@10, in either direction
LEAST_GAIN = 1.1  # times float32's speed, at either batch size
FEWEST = 200  # images: with fewer, one that is missed is more than the gate allows
CALIBRATION = 1024  # captions, unless fewer have tokens enough
CALIBRATION_BATCH = 32
BATCHES = (1, 32)
TURNS = 9
SHARES_IN_FLOAT = (0.0, 0.0625, 0.125, 0.25, 0.5)  # of the weights, tried in this order


def main(argv: Sequence[str] | None = None) -> int:
    """Quantise, measure, publish or say why not; 1 where the gate is not passed."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.quantize",
        description="Give a bundle a text tower in int8. It is published only if recall@10 on the given pairs falls by "
        f"at most {100 * LARGEST_LOSS:g} points in either direction and it is at least {LEAST_GAIN:g} times as fast. "
        f"Where recall falls further, up to {100 * max(SHARES_IN_FLOAT):g} % of its weights stay in float32.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, type=Path, help="a trained or imported model")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs to measure on, see below")
    parser.add_argument("--split", default="validation", choices=("validation", "train", "all"), help="(validation)")
    options = parser.parse_args(argv)
    from dual_encoder.bundle import open_bundle, with_quantised
    from dual_encoder.evaluate import pairs_of_split

    bundle = open_bundle(options.bundle)
    source = list(open_source(options.data))
    pairs = pairs_of_split(source, options.split)
    _require_images(len(pairs))
    told = {"data": options.data, "split": options.split}
    graph, figures = chosen(bundle, calibration_captions(source, pairs), pairs, lambda found: _print(found | told))
    figures |= told
    if reason := refusal(figures):
        console.say(f"not published: {reason}; the bundle stays as it is, in float32")
        return console.EXIT_FAILED
    with_quantised(bundle, TOWER, graph, figures)
    console.say(f"published in {bundle.path}: the text tower runs in int8 from now on; its fingerprint stays")
    return console.EXIT_OK


def calibration_captions(source: Sequence[ImageTextPair], measured: Sequence[ImageTextPair]) -> list[str]:
    """Captions to fit scales to: of the train split, or where it has too few, of the pairs that are measured."""
    both = (split_pairs(source)["train"], measured)
    captions = max(
        ([caption for pair in pairs for caption in pair.captions] for pairs in both),
        key=lambda found: min(len(found), CALIBRATION),  # the first of equals
    )
    chosen = np.random.default_rng(0).permutation(len(captions))[:CALIBRATION]
    return [captions[number] for number in chosen]


def chosen(
    bundle: Bundle,
    captions: Sequence[str],
    pairs: Sequence[ImageTextPair],
    tried: Callable[[dict[str, Any]], None] = lambda figures: None,
) -> tuple[bytes, dict[str, Any]]:
    """The text tower in int8 that passes the gate on `pairs`, or the last that was tried, and its figures.

    At first all products are in int8; where recall falls too far, those that harm the output most go back to float32,
    more of them each time, until too little speed is left. `tried` is told the figures of each.
    """
    fit = fitted(bundle, captions)
    for share in SHARES_IN_FLOAT:
        graph = fit.graph(share).SerializeToString()
        figures = measure(bundle, graph, pairs) | {"weights_in_float32": share}
        tried(figures)
        if not refusal(figures) or slow(figures):
            break
    return graph, figures


def fitted(bundle: Bundle, captions: Sequence[str]) -> Int8Fit:
    """The text tower's products in int8; `BundleError` for a bundle without an ONNX graph of it.

    Scales and rounding are fitted to `captions`, see `int8_rounding`. The head stays in float32: one small product,
    whose rounding nothing after it evens out.
    """
    file, tokenizer = bundle.engine_file(TOWER), bundle.tokenizer()
    if file is None or tokenizer is None:
        raise BundleError("a bundle with an ONNX graph of its text tower", f"{bundle.path} without", "it runs in Keras")
    import onnx

    from dual_encoder.int8_graph import Int8Fit
    from dual_encoder.onnx_attention import in_standard_operations
    from dual_encoder.onnx_export import HEAD_PREFIX, state_opsets_once

    model = in_standard_operations(onnx.load(file))
    state_opsets_once(model)  # bundles of earlier versions say it twice
    console.say(f"fitting int8 to {len(captions)} captions")
    starts = range(0, len(captions), CALIBRATION_BATCH)
    tokens = [tokenizer.encode(captions[start : start + CALIBRATION_BATCH]) for start in starts]
    return Int8Fit(model, [{"ids": batch.ids, "mask": batch.mask} for batch in tokens], HEAD_PREFIX)


def measure(bundle: Bundle, graph: bytes, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
    """Recall@10 of both on the pairs, and the speed of int8 against float32 on their captions, taking turns."""
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.engines import run_on_texts
    from dual_encoder.metrics import retrieval_metrics

    runtime, engine = _both(bundle, graph)
    embedded = embed_pairs(runtime, pairs)
    _require_images(len(embedded.pairs))
    captions = embedded.table.captions
    found = run_on_texts(engine, runtime.tokenizer, captions)
    recall = {
        name: {
            direction: figures["recall@10"]
            for direction, figures in retrieval_metrics(embedded.images, vectors, embedded.caption_image).items()
        }
        for name, vectors in (("float32", embedded.captions), ("int8", found))
    }
    return {
        "captions": len(captions),
        "recall@10": recall,
        "cosine": {
            "mean": float(np.mean(_cosines(found, embedded.captions))),
            "lowest": float(np.min(_cosines(found, embedded.captions))),
        },
        "speed": {str(batch): _speed(runtime, engine, captions, batch) for batch in BATCHES},
    }


def speed(bundle: Bundle, graph: bytes, texts: Sequence[str]) -> dict[int, float]:
    """How many times as fast as in float32 the text tower is, by the size of a batch of these texts."""
    runtime, engine = _both(bundle, graph)
    return {batch: _speed(runtime, engine, texts, batch) for batch in BATCHES}


def _both(bundle: Bundle, graph: bytes) -> tuple[Runtime, Engine]:
    """The bundle in float32, and the engine of its text tower in int8."""
    from dual_encoder.engines import OnnxEngine
    from dual_encoder.runtime import Runtime

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "int8.onnx"
        path.write_bytes(graph)
        return Runtime.load(bundle.path, engine="onnxruntime"), OnnxEngine(path)


def _require_images(count: int) -> None:
    if count < FEWEST:
        raise SourceError(
            f"at least {FEWEST} images to measure recall on",
            f"{count}",
            "take more data, or --split all where the model was trained on other pairs",
        )


def refusal(figures: dict[str, Any], candidate: str = "int8") -> str:
    """Why a candidate's figures do not pass the gate; nothing where they do."""
    for direction, full in figures["recall@10"]["float32"].items():
        loss = full - figures["recall@10"][candidate][direction]
        if not loss <= LARGEST_LOSS:
            return f"recall@10 of {direction.replace('_', ' ')} falls by {100 * loss:.2f} points"
    found = slow(figures)
    return f"it is only {figures['speed'][found[0]]:.2f} times as fast at batch {found[0]}" if found else ""


def slow(figures: dict[str, Any]) -> list[str]:
    """The sizes of batches at which it is not faster than float32 by enough."""
    return [batch for batch, gain in figures["speed"].items() if not gain >= LEAST_GAIN]


def _speed(runtime: Runtime, engine: Any, captions: Sequence[str], batch: int) -> float:
    """Median of the ratios of turns that followed each other."""
    from dual_encoder.engines import run_on_texts

    texts = [captions[number % len(captions)] for number in range(batch)]

    def seconds(chosen: Any) -> float:
        began = time.perf_counter()
        for _ in range(max(1, 64 // batch)):
            run_on_texts(chosen, runtime.tokenizer, texts)
        return time.perf_counter() - began

    for chosen in (runtime.text_engine, engine):
        seconds(chosen)
    return statistics.median(seconds(runtime.text_engine) / seconds(engine) for _ in range(TURNS))


def _cosines(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.einsum("bd,bd->b", ours, theirs)


def _print(figures: dict[str, Any]) -> None:
    recall = figures["recall@10"]
    rows = [
        [f"recall@10 %, {direction.replace('_', ' ')}", f"{100 * full:.2f}", f"{100 * recall['int8'][direction]:.2f}"]
        for direction, full in recall["float32"].items()
    ]
    rows += [[f"speed, batch {batch}", "1", f"{gain:.2f}"] for batch, gain in figures["speed"].items()]
    rows.append(["cosine to float32, mean", "1", f"{figures['cosine']['mean']:.4f}"])
    part = f", {100 * share:g} % of the weights in float32" if (share := figures["weights_in_float32"]) else ""
    title = f"text tower on {figures['data']}, {figures['split']}: {figures['captions']:,} captions{part}"
    console.print_table(title, ["", "float32", "int8"], rows)


if __name__ == "__main__":
    console.run(main)
