"""Entry point: looks a data set over before training and lists what should not be learned from; changes no file of it.

Example: `python -m data.doctor --data csv:my_pairs.csv --out build/doctor`
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from data import console
from data.caption_checks import CaptionFindings, look_at_captions
from data.doctor_report import DoctorReport, render
from data.durable import write_atomic, write_json
from data.errors import SourceError
from data.groups import write_groups
from data.image_checks import ImageEmbedder, ImageFindings, look_at_images
from data.pairs import ImageTextPair, PairSource
from data.quarantine import QuarantineEntry, write_entries
from data.sources import SOURCE_HELP, open_source

PARTS = ("images", "captions", "pairs")
LISTED_FROM = 0.1  # probability of a mismatch


def main(argv: Sequence[str] | None = None) -> int:
    """Look a data set over as the command line says; 1 with --strict where something should not be learned from."""
    parser = argparse.ArgumentParser(
        prog="python -m data.doctor",
        description="Find bad images, bad captions, leaks between splits and captions of other images.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where the lists and figures go")
    parser.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help=f"of {','.join(PARTS)} (default all)")
    parser.add_argument(
        "--bundle", metavar="BUNDLE", help="a trained model that judges the pairs, instead of frozen backbones"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 when anything is listed")
    options = parser.parse_args(argv)
    parts = options.only.split(",")
    if set(parts) - set(PARTS):
        raise SourceError(f"--only with some of {', '.join(PARTS)}", options.only, "correct it")
    report = examine(open_source(options.data), parts, options.out, options.bundle)
    rows = sorted(report.figures["listed"].items()) or [("nothing", 0)]
    title = f"{report.source.name}: what is in {options.out}/quarantine.jsonl"
    console.print_table(title, ("reason", "entries"), rows)
    console.say(f"to be looked at: {options.out}/report.html")
    return console.EXIT_FAILED if options.strict and report.entries else console.EXIT_OK


def examine(source: PairSource, parts: Sequence[str], out: Path, bundle: str | None = None) -> DoctorReport:
    """Look at the `parts` of a source, and write lists and reports to `out`."""
    listed: list[QuarantineEntry] = []
    figures: dict[str, Any] = {"source": source.name, "images": len(source)}
    images, captions = ImageFindings(), CaptionFindings()
    embed: ImageEmbedder | None = None
    if "pairs" in parts:
        from dual_encoder.pair_doctor import image_rows, mismatched_pairs, pair_encoder

        encoder = pair_encoder(bundle)
        embed = partial(image_rows, encoder)
    if "images" in parts:
        images = look_at_images(source, embed)
        listed += images.entries
        figures |= images.figures
        write_groups(out / "groups.jsonl", images.groups)
    if "captions" in parts:
        captions = look_at_captions(source)
        listed += captions.entries
        figures |= captions.figures
    if "pairs" in parts:
        judged = _Judged(source, {entry.image_id for entry in listed if entry.caption is None})
        mismatched, share = mismatched_pairs(judged, LISTED_FROM, encoder)
        figures["estimated share of mismatched pairs"] = share
        listed += mismatched
    figures["listed"] = dict(Counter(entry.reason for entry in listed))
    report = DoctorReport(source, figures, listed, images, captions)
    write_entries(out / "quarantine.jsonl", listed)
    write_json(out / "report.json", figures)
    write_atomic(out / "report.html", render(report).encode())
    return report


class _Judged:
    """The pairs that a mismatch is looked for in, as often as they are asked for: none of the test split."""

    def __init__(self, source: PairSource, bad: set[str]) -> None:
        self._source, self._bad = source, bad

    def __iter__(self) -> Iterator[ImageTextPair]:
        return (pair for pair in self._source if pair.split != "test" and pair.image_id not in self._bad)


if __name__ == "__main__":
    console.run(main)
