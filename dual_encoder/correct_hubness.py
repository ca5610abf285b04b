"""Entry point: takes images that stand near every query down in a bundle's rankings, where that helps on your captions.

python -m dual_encoder.correct_hubness --bundle build/model --data build/pairs
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data import console
from data.errors import SourceError
from data.sources import SOURCE_HELP, open_source
from data.splits import split_pairs

if TYPE_CHECKING:
    from dual_encoder.calibration import Calibration
    from dual_encoder.embedded_pairs import EmbeddedPairs

FEWEST = 50  # queries in a bank: with fewer, an offset is what one of them happens to say


def main(argv: Sequence[str] | None = None) -> int:
    """Choose the weight, print what it changes, publish."""
    parser = argparse.ArgumentParser(
        prog="python -m dual_encoder.correct_hubness",
        description="Give a bundle a bank of queries, and a weight chosen on the validation split, by which images "
        "that are near every query are taken down. Training does so with a sample of its captions; here the bank can "
        "be queries that people asked. Nothing is trained, but the bundle gets another fingerprint: an index holds "
        "offsets that belong to the correction, and is built again.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=SOURCE_HELP,
    )
    parser.add_argument("--bundle", required=True, type=Path, help="a trained or imported model")
    parser.add_argument("--data", required=True, metavar="SOURCE", help="image–caption pairs, see below")
    parser.add_argument("--queries", type=Path, metavar="FILE", help="a query a line (default: the training captions)")
    options = parser.parse_args(argv)
    from dual_encoder.bundle import open_bundle, with_correction
    from dual_encoder.embedded_pairs import embed_pairs
    from dual_encoder.hubness import choose_correction, sample_bank
    from dual_encoder.runtime import Runtime
    from dual_encoder.training_data import captioned

    bundle = open_bundle(options.bundle)
    splits = split_pairs(open_source(options.data))
    captions = (caption for pair in splits["train"] for caption in pair.captions)
    queries = sample_bank(checked(read_lines(options.queries) if options.queries else captions))
    held_out = captioned(splits["validation"], "validation")
    runtime = Runtime.load(options.bundle)
    bank, embedded = runtime.embed_texts(queries), embed_pairs(runtime, held_out)
    correction = choose_correction(bank, embedded.images, embedded.captions, embedded.caption_image)
    served = embedded.served(correction)
    with_correction(bundle, correction, fitted_calibration(served))
    if correction is None:
        console.say("no correction: none surely helps on the validation split; one that was there is gone")
    else:
        _print(embedded, served)
        console.say(f"published in {bundle.path}: weight {correction.weight:g}, {len(queries):,} queries")
    return console.EXIT_OK


def read_lines(path: Path) -> list[str]:
    """The lines of a text file; `SourceError` when it is none."""
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError("a text file in UTF-8, a query a line", f"{path}: {error}", "check --queries") from None


def checked(texts: Iterable[str]) -> list[str]:
    """The texts that say something; `SourceError` for fewer than FEWEST."""
    kept = [text for text in texts if text.strip()]
    if len(kept) < FEWEST:
        raise SourceError(f"at least {FEWEST} queries", f"{len(kept)}", "collect more, or leave --queries out")
    return kept


def fitted_calibration(served: EmbeddedPairs) -> Calibration | None:
    """How the scores as they are now become probabilities; None, said, where there is too little to fit that on."""
    from dual_encoder.calibration_fit import fit_calibration
    from dual_encoder.training_data import image_groups

    try:
        return fit_calibration(served.images, served.captions, served.caption_image, image_groups(served.pairs))
    except SourceError as error:
        console.say(f"scores are not calibrated: that takes {error.expected}, and there are {error.received}")
        return None


def _print(plain: EmbeddedPairs, served: EmbeddedPairs) -> None:
    from dual_encoder.evaluate import rank_pairs
    from dual_encoder.evaluation_tables import HUBNESS_COLUMNS, hubness_rows

    report = {
        "text_to_image": rank_pairs(served)["text_to_image"].summary(),
        "without_hubness_correction": rank_pairs(plain)["text_to_image"].summary(),
    }
    console.print_table("Text → image on the validation split", HUBNESS_COLUMNS, hubness_rows(report))


if __name__ == "__main__":
    console.run(main)
