"""Entry point: measures how well a bundle finds images by text and texts by image.

python -m dual_encoder.evaluate --bundle build/model --data emoji --json build/metrics.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.durable import write_atomic, write_json
from data.errors import BundleError, SourceError
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs
from dual_encoder.bundle import CARD, METRICS, Bundle, with_figures
from dual_encoder.evaluation_tables import print_report

if TYPE_CHECKING:
    from data.pairs import ImageTextPair
    from dual_encoder.calibration import Calibration
    from dual_encoder.embedded_pairs import EmbeddedPairs
    from dual_encoder.metrics import RankedQueries
    from dual_encoder.runtime import Runtime

__all__ = ["evaluate", "main", "pairs_of_split", "print_report"]


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
    parser.add_argument(
        "--slice",
        action="append",
        default=[],
        metavar="ATTRIBUTE",
        help="also give figures for each value of this attribute of the images; may be repeated (slices by caption "
        "length are always given)",
    )
    parser.add_argument(
        "--against", metavar="BUNDLE", help="compare with this bundle on the same pairs, by a paired bootstrap"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="also write the figures to this file")
    parser.add_argument(
        "--report", type=Path, metavar="OUT.html", help="also write a page with plots, best hits and worst misses"
    )
    parser.add_argument(
        "--card",
        action="store_true",
        help="also write the figures into the bundle's README.md and metrics.json; its fingerprint stays",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, print, write."""
    command_line = parser()
    options = command_line.parse_args(argv)
    for out in (options.json, options.report):
        if out and out.is_dir():
            command_line.error(f"expected a file to write, received the directory {out}")
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.runtime import Runtime
    from dual_encoder.slices import attribute_values, slice_figures

    source = open_source(options.data)
    runtime = Runtime.load(options.bundle)
    if options.card:
        check_trained(runtime.bundle)
    other = Runtime.load(options.against) if options.against else None
    pairs = pairs_of_split(source, options.split)
    for name in options.slice:
        attribute_values(pairs, name)  # an unknown one is refused before the work, not after
    plain = embed_pairs(runtime, pairs)
    embedded = plain.served(runtime.hubness)
    ranked = rank_pairs(embedded)
    report = figures(runtime, embedded, ranked) | {"data": source.name, "split": options.split}
    if runtime.hubness:
        report["without_hubness_correction"] = rank_pairs(plain)["text_to_image"].summary()
    if runtime.bundle.calibration:
        report["calibration"] = calibration_figures(runtime.bundle.calibration, embedded)
    report["slices"] = slice_figures(ranked, embedded.pairs, embedded.table.captions, options.slice)
    if other:
        report["against"] = compare_with(other, embedded, ranked)
    print_report(report)
    if options.card:
        add_to_card(runtime.bundle, report)
        console.say(f"written: {runtime.bundle.path / CARD}")
    if options.json:
        write_json(options.json, report)
        console.say(f"written: {options.json}")
    if options.report:
        write_atomic(options.report, page(report, embedded, ranked, training_history(options.bundle)).encode())
        console.say(f"written: {options.report}")
    return console.EXIT_OK


def pairs_of_split(source: Any, split: str) -> list[ImageTextPair]:
    """The captioned pairs of one split, or of all."""
    from dual_encoder.training_data import captioned

    splits = split_pairs(source)
    pairs = [pair for part in splits.values() for pair in part] if split == "all" else splits[split]
    return captioned(pairs, split)


def evaluate(runtime: Runtime, pairs: Sequence[ImageTextPair]) -> dict[str, Any]:
    """Embed every image and every caption of `pairs` and measure both directions."""
    from dual_encoder.embedded_pairs import embed_pairs

    embedded = embed_pairs(runtime, pairs).served(runtime.hubness)
    return figures(runtime, embedded, rank_pairs(embedded))


def rank_pairs(embedded: EmbeddedPairs) -> dict[str, RankedQueries]:
    """The ranks of both directions."""
    from dual_encoder.metrics import rank_both_directions

    return rank_both_directions(embedded.images, embedded.captions, embedded.caption_image)


def figures(runtime: Runtime, embedded: EmbeddedPairs, ranked: dict[str, RankedQueries]) -> dict[str, Any]:
    """What `evaluate` returns: the metrics of each direction, which bundle, and which images did not decode."""
    return {
        **{direction: queries.summary() for direction, queries in ranked.items()},
        "bundle": {"name": runtime.name, "fingerprint": runtime.fingerprint},
        "rejected_images": embedded.rejected,
    }


def calibration_figures(calibration: Calibration, embedded: EmbeddedPairs) -> dict[str, Any]:
    """How well the bundle's probabilities hold on these pairs, which it must not have been fitted on; see `measure`."""
    from dual_encoder.calibration_fit import measure, play
    from dual_encoder.training_data import image_groups

    groups, gallery = image_groups(embedded.pairs), len(embedded.pairs)
    played = play(embedded.images, embedded.captions, embedded.caption_image, groups, gallery)
    return {"fitted": calibration.to_config(), **measure(calibration, played)}


def compare_with(other: Runtime, embedded: EmbeddedPairs, ranked: dict[str, RankedQueries]) -> dict[str, Any]:
    """The bundle that was measured minus `other`, on the same pairs; see `paired_bootstrap.compare`."""
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.paired_bootstrap import RESAMPLES, compare

    theirs = embed_pairs(other, embedded.pairs).served(other.hubness)
    if theirs.rejected:
        raise SourceError(
            "images that both bundles can read",
            f"{len(theirs.rejected)} that changed meanwhile, such as {theirs.rejected[0]}",
            "let the data rest while it is evaluated, or prepare it with data.prepare",
        )
    return {
        **compare(ranked, rank_pairs(theirs)),
        "bundle": {"name": other.name, "fingerprint": other.fingerprint},
        "resamples": RESAMPLES,
    }


def check_trained(bundle: Bundle) -> None:
    """Refuse a bundle that no training run wrote, whose card has nothing to be added to."""
    if not bundle.manifest["trained"].get("recipe"):
        raise BundleError("a bundle that training wrote, for --card", f"{bundle.name}", "leave --card out")


def add_to_card(bundle: Bundle, report: dict[str, Any]) -> Bundle:
    """Put the figures of a split into the bundle's `metrics.json` and README.md, beside those of others."""
    from dual_encoder.model_card import model_card

    path = bundle.path / METRICS
    metrics = json.loads(path.read_bytes()) if path.is_file() else {}
    kept = ("text_to_image", "image_to_text", "without_hubness_correction", "calibration", "data")
    metrics[report["split"]] = {key: report[key] for key in kept if key in report}
    manifest = bundle.manifest
    card = model_card(bundle.name, manifest["trained"], metrics, bundle.calibration, manifest["versions"])
    return with_figures(bundle, metrics, card)


def page(
    report: dict[str, Any],
    embedded: EmbeddedPairs,
    ranked: dict[str, RankedQueries],
    history: list[dict[str, float]],
) -> str:
    """The HTML page of what `main` measured."""
    from dual_encoder.evaluation_report import EvaluationReport, render
    from dual_encoder.retrieval_examples import best_hits, similarities, worst_misses

    queries = ranked["text_to_image"]
    return render(
        EvaluationReport(
            figures=report,
            curves={direction: found.recall_curve() for direction, found in ranked.items()},
            similarities=similarities(embedded),
            best=best_hits(embedded, queries),
            worst=worst_misses(embedded, queries),
            made=datetime.now().astimezone().isoformat(" ", "minutes"),
            history=history,
        )
    )


def training_history(bundle: str) -> list[dict[str, float]]:
    """The figures of each epoch that training left in `BUNDLE.run/history.json`; empty where there is no such file."""
    if bundle == "default":  # nobody trained it, whatever lies about
        return []
    directory = Path(bundle).resolve()
    file = directory.with_name(f"{directory.name}.run") / "history.json"
    if not file.is_file():
        return []
    try:
        return [{key: float(value) for key, value in row.items()} for row in json.loads(file.read_bytes())]
    except (ValueError, TypeError, AttributeError) as error:
        console.say(f"{file} is left out of the report, it is not what training writes: {error}")
        return []


if __name__ == "__main__":
    console.run(main)
