"""Entry point: a data set in, checked and split TFRecord shards out; knows no model.

Example: `python -m data.prepare --data folder:~/Pictures --out prepared/pictures`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from data import console
from data.durable import canonical_json, changed_files, digest_bytes, publish_directory
from data.errors import ImageError, SourceError
from data.images import decode
from data.loading import map_ordered
from data.pairs import ImageBytes, ImageFile, ImageTextPair, PairSource
from data.quiet_tensorflow import load_tensorflow
from data.shards import MANIFEST, ShardWriter, read_manifest, write_manifest
from data.sources import SOURCE_HELP, open_source
from data.splits import SPLITS, SplitAssigner, SplitFractions

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class PrepareSettings:
    """How pairs are split and stored; `resplit` ignores the splits that a data set prescribes."""

    seed: int = 0
    shard_size: int = 1000  # images
    fractions: SplitFractions = SplitFractions()
    resplit: bool = False


@dataclass(frozen=True)
class _Stored:
    """Where the spool holds a pair: its description as JSON, then its encoded image."""

    offset: int
    description_bytes: int
    image_bytes: int


def prepare(source: PairSource, out: Path, settings: PrepareSettings, overwrite: bool = False) -> dict[str, Any]:
    """Write `source` to `out` and return the manifest; an equal existing output is left as it is.

    Every image is read and decoded once. The spool needs as much disk beside `out` as the images take. Raises
    `SourceError` for a malformed source, one without any usable image, and an `out` that holds something else.
    """
    out = out.expanduser()
    made_from = {"source": source.name, "settings": asdict(settings), "pairs_sha256": pairs_digest(source)}
    existing = _existing(out, made_from, overwrite)
    if existing is not None:
        console.say(f"{out} was made from the same source and settings: left as it is")
        return existing
    with publish_directory(out) as aside, tempfile.TemporaryFile(dir=aside) as spool:
        assigner = SplitAssigner(settings.seed, settings.fractions)
        stored = _check_images(source, settings, assigner, spool, aside / REJECTED)
        splits = assigner.assign()
        load_tensorflow()
        with ShardWriter(aside, settings.shard_size) as writer:
            for image_id, place in console.progress(stored.items(), "writing shards", total=len(stored)):
                pair, image = _from_spool(spool, place)
                writer.write(pair, image, splits[image_id])
        return write_manifest(aside, sorted(writer.shards, key=_reading_order), made_from)


def pairs_digest(pairs: Iterable[ImageTextPair]) -> str:
    """Digest of everything a source says about its pairs, and the sizes of images, without reading any image."""
    digest = hashlib.sha256()
    for pair in pairs:
        if isinstance(pair.image, ImageFile):
            size = pair.image.path.stat().st_size if pair.image.path.is_file() else -1
        else:
            size = -1 if pair.image.size is None else pair.image.size
        digest.update(_description(pair) + f"\n{size}\n".encode())
    return digest.hexdigest()


def _existing(out: Path, made_from: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The manifest of an intact output made the same way, None where `out` is free to be written."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        # Never with --overwrite either: it may be anything, such as somebody's photos.
        raise SourceError("a new or empty directory for --out", f"{out}, which holds other files", "name another")
    try:
        manifest = read_manifest(out)
        problems = changed_files(out, manifest["files"])
        same = manifest["made_from"] == json.loads(canonical_json(made_from))
    except SourceError as error:
        problems, same, manifest = [error.received], False, {}
    if same and not problems:
        return manifest
    if overwrite:
        return None
    received = f"a damaged output in {out}: {problems[0]}" if problems else f"{out}, made from other data or settings"
    raise SourceError(
        "an output of the same source and settings, or none", received, "name another, or add --overwrite"
    )


def _check_images(
    source: PairSource, settings: PrepareSettings, assigner: SplitAssigner, spool: IO[bytes], rejected: Path
) -> dict[str, _Stored]:
    """Decode every image in threads; spool the good pairs, report the others, and feed the split assigner."""
    stored: dict[str, _Stored] = {}
    reasons: Counter[str] = Counter()
    checked = console.progress(map_ordered(_checked, source, ahead=64), "checking images", total=len(source))
    with rejected.open("wb") as report:
        for pair, image in checked:
            if isinstance(image, ImageError):
                reasons[image.reason] += 1
                row = {"image_id": pair.image_id, "reason": image.reason, "received": image.received}
                report.write(canonical_json(row) + b"\n")
                continue
            prescribed = None if settings.resplit else pair.split
            assigner.add(pair.image_id, pair.group, digest_bytes(image), prescribed)
            description = _description(pair)
            stored[pair.image_id] = _Stored(spool.tell(), len(description), len(image))
            spool.write(description)
            spool.write(image)
    if reasons:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        console.say(f"skipped images that cannot be used: {listed} (listed in {REJECTED})")
    if not stored:
        received = f"none among {reasons.total():,}: {', '.join(reasons) or 'no images'}"
        raise SourceError(
            f"at least one usable image in {source.name}", received, "check that this is the right source"
        )
    return stored


def _checked(pair: ImageTextPair) -> tuple[ImageTextPair, bytes | ImageError]:
    try:
        image = pair.image.read()
        decode(image)
    except ImageError as error:
        return pair, error
    return pair, image


def _description(pair: ImageTextPair) -> bytes:
    """Everything but the image, as JSON."""
    return canonical_json([pair.image_id, list(pair.captions), pair.group, dict(pair.attributes), pair.split])


def _from_spool(spool: IO[bytes], place: _Stored) -> tuple[ImageTextPair, bytes]:
    spool.seek(place.offset)
    image_id, captions, group, attributes, split = json.loads(spool.read(place.description_bytes))
    image = spool.read(place.image_bytes)
    return ImageTextPair(image_id, ImageBytes(lambda: image), tuple(captions), group, attributes, split), image


def _reading_order(shard: dict[str, Any]) -> tuple[int, str]:
    return SPLITS.index(shard["split"]), shard["file"]


def _counts(manifest: dict[str, Any]) -> Iterator[tuple[str, int, int, str]]:
    for split in SPLITS:
        shards = [shard for shard in manifest["shards"] if shard["split"] == split]
        size = sum(manifest["files"][shard["file"]]["bytes"] for shard in shards)
        yield split, sum(shard["images"] for shard in shards), len(shards), f"{size / 1e6:.1f} MB"


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare a data set as the command line says and print a table of counts."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description="Check, split and shard a data set of images and captions.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--data", required=True, metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the directory to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other splits (default 0)")
    parser.add_argument("--shard-size", type=_positive, default=1000, metavar="N", help="images a shard (default 1000)")
    parser.add_argument("--resplit", action="store_true", help="ignore the splits that the data set prescribes")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output that differs")
    arguments = parser.parse_args(argv)

    settings = replace(
        PrepareSettings(), seed=arguments.seed, shard_size=arguments.shard_size, resplit=arguments.resplit
    )
    manifest = prepare(open_source(arguments.data), arguments.out, settings, arguments.overwrite)
    console.print_table(str(arguments.out), ("split", "images", "shards", "size"), _counts(manifest))
    return console.EXIT_OK


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; received {number}")
    return number


if __name__ == "__main__":
    console.run(main)
