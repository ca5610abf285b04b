"""How many copies of images are found, by kind of copy, and what is taken for a copy and is none.

python -m benchmarks.near_duplicates --json build/near_duplicates.json

Takes images outside the test split, makes one copy of each in memory, a kind at a time, and looks for them among all:
by hash and small copy alone, with neighbours by embedding too, and by the perceptual hash of the `imagehash` package
(written here after it) at the same radius. A copy counts as found when it is in one set with its original. Precision is
the share of those pairs of images in one set that do show the same source image; it is a lower bound, since copies that
the data set itself holds count as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.image_copies import KINDS, copy_of
from benchmarks.report import Report, argument_parser
from benchmarks.training_quality import default_data
from data import console
from data.image_likeness import Look, look_of
from data.images import decode
from data.loading import map_ordered
from data.near_duplicates import RADIUS, NearDuplicates, within_radius
from data.pairs import ImageTextPair
from data.quiet_tensorflow import load_tensorflow
from data.sources import open_source

WAYS = ("imagehash's way", "hash", "hash and embedding")
CHANGED_LITTLE = ("saved again, quality 50", "half the size", "mirrored")
Figures = dict[str, dict[str, float]]  # by way: recall and precision


def main(argv: Sequence[str] | None = None) -> int:
    """Copy, look, print a table for each data set, check the promises on the first."""
    parser = argument_parser("near_duplicates", __doc__)
    parser.add_argument(
        "--data", metavar="SOURCE", action="append", help="may be repeated (default: as training_quality)"
    )
    parser.add_argument(
        "--images", type=int, default=600, metavar="N", help="of each data set, at random (default 600)"
    )
    options = parser.parse_args(argv)
    load_tensorflow()
    report = Report("near_duplicates")
    for name in options.data or default_data():
        source = open_source(name)
        chosen = sample([pair for pair in source if pair.split != "test"], options.images)
        report.figures[source.name] = figures = {"images": len(chosen), "kinds": measure(chosen)}
        _print(source.name, figures)
    first = next(iter(report.figures.values()))["kinds"]
    ours = {kind: ways[WAYS[2]] for kind, ways in first.items()}
    report.at_least("recall, changed little", min(ours[kind]["recall"] for kind in CHANGED_LITTLE), 0.98)
    report.at_least("recall, mean of kinds", float(np.mean([f["recall"] for f in ours.values()])), 0.9)
    report.at_least("precision, least of kinds", min(f["precision"] for f in ours.values()), 0.98)
    return report.finish(options.json)


def sample(pairs: list[ImageTextPair], count: int) -> list[ImageTextPair]:
    """As many of them at random, in order."""
    rows = np.random.default_rng(0).permutation(len(pairs))[:count]
    return [pairs[row] for row in np.sort(rows)]


def measure(originals: Sequence[ImageTextPair]) -> dict[str, Figures]:
    """Recall and precision of each way for each kind of copies."""
    from dual_encoder.pair_doctor import image_rows, pair_encoder

    encoder = pair_encoder()

    def seen(pairs: Sequence[ImageTextPair]) -> tuple[list[tuple[Look, int]], np.ndarray]:
        return list(map_ordered(_look, pairs, ahead=64)), image_rows(encoder, pairs)[:]

    looks, rows = seen(originals)
    figures = {}
    for kind in KINDS:
        console.say(kind)
        more, copied = seen([copy_of(pair, kind) for pair in originals])
        embeddings = np.concatenate([rows, copied])
        with NearDuplicates() as near:
            for look, _ in looks + more:
                near.add(look)
            found = {way: near.pairs(given) for way, given in zip(WAYS[1:], (None, embeddings), strict=True)}
        hashes = np.array([published for _, published in looks + more], np.uint64)
        joined = {WAYS[0]: [pair for one, two in within_radius(hashes, hashes) for pair in zip(one, two, strict=True)]}
        joined |= {way: [(pair.one, pair.other) for pair in pairs] for way, pairs in found.items()}
        figures[kind] = {way: score(len(originals), pairs) for way, pairs in joined.items()}
    return figures


def score(originals: int, joined: Sequence[tuple[int, int]]) -> dict[str, float]:
    """Recall and precision of sets: image n and its copy, n + `originals`, belong together."""
    parent = list(range(2 * originals))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for one, other in joined:
        parent[root(int(one))] = root(int(other))
    roots = np.array([root(row) for row in range(2 * originals)])
    recall = float((roots[:originals] == roots[originals:]).mean())
    sizes = np.bincount(roots)
    pairs = int((sizes * (sizes - 1) // 2).sum())
    return {"recall": recall, "precision": recall * originals / pairs if pairs else 1.0}


def published_hash(image: Image.Image) -> int:
    """`imagehash.phash` of the package's version 4.3: 8 × 8 slowest waves of 32 × 32 pixels above their median."""
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    waves = np.cos(np.pi * (np.arange(32) + 0.5) * np.arange(8)[:, None] / 32)
    slow = waves @ pixels @ waves.T
    return int.from_bytes(np.packbits((slow > np.median(slow)).ravel()).tobytes(), "big")


def _look(pair: ImageTextPair) -> tuple[Look, int]:
    image = decode(pair.image.read())
    return look_of(image), published_hash(image)


def _print(data: str, figures: dict[str, Any]) -> None:
    for figure in ("recall", "precision"):
        rows = [[kind, *(f"{100 * ways[way][figure]:.1f}" for way in WAYS)] for kind, ways in figures["kinds"].items()]
        title = f"{figure}, %, of copies of {figures['images']:,} images of {data}, {RADIUS} of 64 bits"
        console.print_table(title, ["copy", *WAYS], rows)


if __name__ == "__main__":
    console.run(main)
