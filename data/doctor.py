"""Entry point: looks a data set over before training and lists what should not be learned from; changes no file of it.

Example: `python -m data.doctor --data csv:my_pairs.csv --out build/doctor`
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import console
from data.durable import digest_bytes, write_json
from data.errors import ImageError, SourceError
from data.groups import write_groups
from data.images import decode
from data.loading import map_ordered
from data.pairs import ImageTextPair
from data.quarantine import QuarantineEntry, write_entries
from data.sources import SOURCE_HELP, open_source
from data.text import clean_caption

PARTS = ("images", "captions", "pairs")
SMALLEST_SIDE = 32  # pixels
BLANK_DEVIATION = 2.0  # of pixel values, 0 to 255
FILE_NAME = re.compile(r"(?i)^(img|dscn?|image|photo|screenshot)?[\s_-]*\d[\d\s_-]*$|^\S+\.(jpe?g|png|gif|webp)$")
Member = tuple[str, str | None, str | None]  # image id, group, split of an image
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
    parser.add_argument("--strict", action="store_true", help="exit with 1 when anything is listed")
    options = parser.parse_args(argv)
    parts = options.only.split(",")
    if set(parts) - set(PARTS):
        raise SourceError(f"--only with some of {', '.join(PARTS)}", options.only, "correct it")
    source = open_source(options.data)
    listed: list[QuarantineEntry] = []
    figures: dict[str, Any] = {"source": source.name, "images": len(source)}
    if "images" in parts:
        entries, groups, figures["identical images"] = look_at_images(source)
        listed += entries
        write_groups(options.out / "groups.jsonl", groups)
    if "captions" in parts:
        listed += list(look_at_captions(source))
    if "pairs" in parts:
        from dual_encoder.pair_doctor import mismatched_pairs

        bad = {entry.image_id for entry in listed if entry.caption is None}
        found, figures["estimated share of mismatched pairs"] = mismatched_pairs(
            [pair for pair in source if pair.split != "test" and pair.image_id not in bad], LISTED_FROM
        )
        listed += found
    figures["listed"] = dict(Counter(entry.reason for entry in listed))
    write_entries(options.out / "quarantine.jsonl", listed)
    write_json(options.out / "report.json", figures)
    rows = sorted(figures["listed"].items()) or [("nothing", 0)]
    console.print_table(f"{source.name}: what is in {options.out}/quarantine.jsonl", ("reason", "entries"), rows)
    return console.EXIT_FAILED if options.strict and listed else console.EXIT_OK


def look_at_images(pairs: Any) -> tuple[list[QuarantineEntry], dict[str, str], int]:
    """Entries of unusable images and of copies of test images, groups of identical images, the number of copies."""
    identical: dict[str, list[Member]] = {}  # by digest
    listed: list[QuarantineEntry] = []
    seen = console.progress(map_ordered(_looked_at, pairs, ahead=64), "looking at images", total=len(pairs))
    for pair, digest, reason in seen:
        if reason:
            listed.append(QuarantineEntry(pair.image_id, None, reason))
        if digest is not None:
            identical.setdefault(digest, []).append((pair.image_id, pair.group, pair.split))
    for members in identical.values():
        if any(split == "test" for _, _, split in members):
            listed += [QuarantineEntry(i, None, "copy of a test image") for i, _, split in members if split != "test"]
    return listed, join_groups(identical.values()), sum(len(members) - 1 for members in identical.values())


def join_groups(identical: Iterable[list[Member]]) -> dict[str, str]:
    """The group of each image with a copy, and of its own group; groups with a copy in common are joined whole."""
    sets = [list(members) for members in identical]
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(key: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.get(key, key)) != key:
            parent[key] = key = parent.get(above, above)
        return key

    for first, *others in sets:
        for other in others:
            parent[root(_key(other))] = root(_key(first))
    joined = {root(key) for key in parent}
    groups: dict[str, str] = {}
    for members in sets:
        for member in members:
            if (top := root(_key(member))) in joined:
                groups[member[0]] = top[1] if top[0] == "group" else f"same image as {top[1]}"
    return groups


def _key(member: Member) -> tuple[str, str]:
    image_id, group, _ = member
    return ("image", image_id) if group is None else ("group", group)


def look_at_captions(pairs: Any) -> Iterator[QuarantineEntry]:
    """Entries of captions that are names of files."""
    for pair in pairs:
        for caption in pair.captions:
            if FILE_NAME.match(clean_caption(caption)):
                yield QuarantineEntry(pair.image_id, caption, "file name as caption")


def _looked_at(pair: ImageTextPair) -> tuple[ImageTextPair, str | None, str]:
    """The pair, the digest of a usable image's bytes, and what is wrong with it."""
    try:
        data = pair.image.read()
        image = decode(data)
    except ImageError as error:
        return pair, None, f"image {error.reason}".replace("_", " ")
    small = min(image.size) < SMALLEST_SIDE
    image.thumbnail((64, 64))
    blank = float(np.asarray(image, np.float32).std(axis=(0, 1)).max()) < BLANK_DEVIATION
    return pair, digest_bytes(data), "tiny image" if small else "blank image" if blank else ""


if __name__ == "__main__":
    console.run(main)
