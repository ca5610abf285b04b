"""Entry point: measures how well a bundle finds images by text and texts by image.

python -m dual_encoder.evaluate --bundle build/model --data emoji --json build/metrics.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.durable import write_json
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    import numpy as np

    from data.pairs import ImageTextPair
    from dual_encoder.runtime import Runtime


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.evaluate",
        description="Retrieval metrics of a bundle, both directions, all captions, 95 % confidence intervals.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, help='a trained model, or "default": the untrained one')
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs, see below")
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test", "all"), help="(default: test)"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print, write."""
    options = parser().parse_args(argv)
    from dual_encoder.runtime import Runtime

    source = open_source(options.data)
    runtime = Runtime.load(options.bundle)
    report = evaluate(runtime, pairs_of_split(source, options.split))
    report |= {"data": source.name, "split": options.split}
    print_report(report)
    if options.json:
        write_json(options.json, report)
        console.say(f"written: {options.json}")
    return console.EXIT_OK


def pairs_of_split(source: Any, split: str) -> list[ImageTextPair]:
    """The captioned pairs of one split, or of all."""
    from dual_encoder.training_data import captioned

    splits = split_pairs(source)
    pairs = [pair for part in splits.values() for pair in part] if split == "all" else splits[split]
    return captioned(pairs, split)


def evaluate(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
    """Embed every image and every caption of `pairs` and measure both directions."""
    import numpy as np

    from dual_encoder.metrics import retrieval_metrics
    from dual_encoder.training_data import CaptionTable

    embeddings, bad = _embed_images(runtime, pairs)
    kept = [pair for position, pair in enumerate(pairs) if position not in bad]
    table = CaptionTable.of(kept)
    figures = retrieval_metrics(embeddings, runtime.embed_texts(table.captions), np.array(table.image_row))
    return {
        **figures,
        "bundle": {"name": runtime.name, "fingerprint": runtime.fingerprint},
        "rejected_images": sorted(pairs[position].image_id for position in bad),
    }


def _embed_images(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, set[int]]:
    import numpy as np

    from data.errors import SourceError
    from data.loading import decoded_batches

    rows: list[np.ndarray] = []
    bad: set[int] = set()
    batches = decoded_batches((pair.image for pair in pairs), runtime.preprocessing)
    for batch in console.progress(batches, "embedding images (batches of 32)", (len(pairs) + 31) // 32):
        bad.update(position for position, _ in batch.rejected)
        if batch.positions:
            rows.append(runtime.embed_pixels(batch.pixels))
    if not rows:
        raise SourceError("images that decode", f"{len(bad)} that do not", "check the data set with data.prepare")
    return np.concatenate(rows), bad


def print_report(report: dict[str, Any]) -> None:
    """Two tables: recall with intervals, and ranks."""
    rows = []
    for direction, label in (("text_to_image", "text → image"), ("image_to_text", "image → text")):
        figures = report[direction]
        for name in ("recall@1", "recall@5", "recall@10", "hits@100"):
            low, high = figures["confidence_95"][name]
            k = int(name.split("@")[1])
            chance = min(1.0, k / figures["gallery"])
            rows.append(
                [
                    label,
                    name,
                    f"{100 * figures[name]:.1f}",
                    f"{100 * low:.1f} to {100 * high:.1f}",
                    f"{100 * chance:.1f}",
                ]
            )
    title = f"{report['bundle']['name']} on {report.get('data', 'pairs')}, split {report.get('split', '')}"
    console.print_table(title, ["direction", "metric", "%", "95 % interval", "chance, one right answer"], rows)
    ranks = [
        [
            label,
            report[direction]["queries"],
            report[direction]["gallery"],
            f"{report[direction]['median_rank']:g}",
            f"{report[direction]['mean_reciprocal_rank']:.3f}",
        ]
        for direction, label in (("text_to_image", "text → image"), ("image_to_text", "image → text"))
    ]
    console.print_table("Ranks", ["direction", "queries", "gallery", "median rank", "mean reciprocal rank"], ranks)
    if report["rejected_images"]:
        console.say(f"{len(report['rejected_images'])} images could not be decoded and were left out")


if __name__ == "__main__":
    console.run(main)
