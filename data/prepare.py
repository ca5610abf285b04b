"""Entry point: a data set in, checked and split TFRecord shards out; knows no model.

Example: `python -m data.prepare --data folder:~/Pictures --out prepared/pictures`
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data import console
from data.attributes import attributes_to_json
from data.checked_images import AHEAD, ImageStore, Verdict, check_images, read_verdicts
from data.curated import Curated
from data.durable import (
    canonical_json,
    changed_files,
    digest_bytes,
    move_directory,
    only_process,
    write_atomic,
    write_json,
)
from data.errors import ImageError, SourceError
from data.groups import add_groups_option, chosen_groups
from data.loading import map_ordered
from data.pairs import ImageFile, ImageTextPair, PairSource
from data.quarantine import Quarantine, add_quarantine_options, chosen_quarantine
from data.quiet_tensorflow import load_tensorflow
from data.selection import Selection
from data.shards import MANIFEST, ShardWriter, read_manifest, write_manifest
from data.sources import SOURCE_HELP, open_source
from data.splits import SPLITS, SplitAssigner, SplitFractions

REJECTED = "rejected.jsonl"

# What `OUT.preparing` holds while the work is unfinished.
MADE_FROM = "made_from.json"
JOURNAL = "checked.jsonl"
SHARDS = "shards"
WORK_VERSION = 1  # another one cannot be taken up


@dataclass(frozen=True)
class PrepareSettings:
    """How pairs are split and stored; `resplit` ignores the splits that a data set prescribes."""

    seed: int = 0
    shard_size: int = 1000  # images
    fractions: SplitFractions = SplitFractions()
    resplit: bool = False


def prepare(
    source: PairSource,
    out: Path,
    settings: PrepareSettings,
    overwrite: bool = False,
    groups: Mapping[str, str] | None = None,
    quarantine: Quarantine | None = None,
) -> dict[str, Any]:
    """Write `source` to `out` and return the manifest; an equal existing output is left as it is.

    `groups` (image id → group) replace those of the source; `quarantine` changes the train and validation splits.

    Every image is read and decoded once, and read again when it is written, unless the first reading is still in
    memory; there is never a second copy on the disk. Work that was interrupted lies in `OUT.preparing` and is taken up
    by the next call for the same data. Raises `SourceError` for a malformed source, one without any usable image or
    whose images change meanwhile, and an `out` that holds something else.
    """
    out = out.expanduser().resolve()
    source = Curated(source, groups, quarantine)
    made_from = {"source": source.name, "settings": asdict(settings), "pairs_sha256": pairs_digest(source)}
    if quarantine is not None:
        made_from["quarantine"] = quarantine.to_config()
    existing = _existing(out, made_from, overwrite)
    if existing is not None:
        console.say(f"{out} was made from the same source and settings: left as it is")
        return existing
    with _work_directory(out, made_from) as work:
        images = check_images(source, work / JOURNAL)
        splits, rejected = _judge(source, work / JOURNAL, settings)
        shards = work / SHARDS
        write_atomic(shards / REJECTED, b"".join(canonical_json(row) + b"\n" for row in rejected))
        load_tensorflow()
        with ShardWriter(shards, settings.shard_size) as writer:
            _write_shards(source, read_verdicts(work / JOURNAL), splits, images, writer, quarantine)
        manifest = write_manifest(shards, sorted(writer.shards, key=_reading_order), made_from)
        move_directory(shards, out)
    return manifest


class _WorthNothing(SourceError):
    """A refusal after which nothing of the work can be used again."""


@contextmanager
def _work_directory(out: Path, made_from: dict[str, Any]) -> Iterator[Path]:
    """The directory of unfinished work on `out`, without work of other data or settings; removed at the end.

    It is kept when the process is killed or interrupted, the disk is full, or other settings would help.
    """
    work = out.with_name(f"{out.name}.preparing")
    if work.exists() and any(work.iterdir()) and not (work / MADE_FROM).is_file():
        raise SourceError(f"no other files in {work}", "some", "move them away, or choose another --out")
    (work / SHARDS).mkdir(parents=True, exist_ok=True)
    busy = SourceError(
        f"no other job that writes to {out}", "one that is running", "wait for it, or choose another --out"
    )
    with only_process(work, busy):
        _discard_stale(work, made_from)
        try:
            yield work
        except _WorthNothing:
            shutil.rmtree(work)
            raise
        shutil.rmtree(work)


def _discard_stale(work: Path, made_from: dict[str, Any]) -> None:
    """Remove verdicts of another source, and shards of another source or other settings."""
    made_from = {"version": WORK_VERSION, **made_from}
    try:
        before = json.loads((work / MADE_FROM).read_text("utf-8"))
    except FileNotFoundError:
        before = made_from
    except ValueError:
        before = {}
    same_images = all(before.get(key) == made_from[key] for key in ("version", "source", "pairs_sha256"))
    if json.loads(canonical_json(made_from)) != json.loads(canonical_json(before)):
        kept = "kept what it knows of the images" if same_images else "started anew"
        console.say(f"{work} is unfinished work of other data or settings: {kept}")
        shutil.rmtree(work / SHARDS)
        (work / SHARDS).mkdir()
    elif (work / JOURNAL).exists():
        console.say(f"going on with the unfinished work in {work}")
    if not same_images:
        (work / JOURNAL).unlink(missing_ok=True)
    write_json(work / MADE_FROM, made_from)


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


def _judge(source: PairSource, journal: Path, settings: PrepareSettings) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The split of every usable image, and a row for each of the others."""
    assigner = SplitAssigner(settings.seed, settings.fractions)
    rejected = []
    for verdict in read_verdicts(journal):
        if verdict.sha256 is None:
            row = {"image_id": verdict.image_id, "reason": verdict.reason, "received": verdict.received}
            rejected.append(row)
        else:
            prescribed = None if settings.resplit else verdict.split
            assigner.add(verdict.image_id, verdict.group, verdict.sha256, prescribed)
    reasons = Counter(row["reason"] for row in rejected)
    if reasons:
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
        console.say(f"skipped images that cannot be used: {listed} (listed in {REJECTED})")
    splits = assigner.assign()
    if not splits:
        received = f"none among {reasons.total():,}: {', '.join(reasons) or 'no images'}"
        raise _WorthNothing(
            f"at least one usable image in {source.name}", received, "check that this is the right source"
        )
    return splits, rejected


def _write_shards(
    source: PairSource,
    verdicts: Iterable[Verdict],
    splits: dict[str, str],
    images: ImageStore,
    writer: ShardWriter,
    quarantine: Quarantine | None,
) -> None:
    """Write every usable image that no finished shard holds; images are read ahead in threads."""

    def planned() -> Iterator[tuple[int, ImageTextPair, Verdict, bool]]:
        counts: Counter[str] = Counter()
        for position, (pair, verdict) in enumerate(zip(source, verdicts, strict=True)):
            if verdict.sha256 is not None:
                split = splits[pair.image_id]
                left = pair if quarantine is None else quarantine.of_split(pair, split)
                if left is None:
                    continue
                yield position, left, verdict, writer.is_written(split, counts[split])
                counts[split] += 1

    def load(plan: tuple[int, ImageTextPair, Verdict, bool]) -> tuple[ImageTextPair, bytes | None]:
        position, pair, verdict, written = plan
        pair = replace(pair, digest=verdict.sha256)
        return pair, None if written else images.take(position) or _read_again(pair, verdict)

    loaded = map_ordered(load, planned(), ahead=AHEAD)
    for pair, image in console.progress(loaded, "writing shards", total=len(splits), unit="images"):
        if image is None:
            writer.skip(splits[pair.image_id])
        else:
            writer.write(pair, image, splits[pair.image_id])


def _read_again(pair: ImageTextPair, verdict: Verdict) -> bytes:
    try:
        image = pair.image.read()
    except ImageError as error:
        received = error.received
    else:
        if digest_bytes(image) == verdict.sha256:
            return image
        received = "another content than when it was checked"
    raise _WorthNothing(f"the image {pair.image_id} as it was checked", received, "start again, without changing files")


def _description(pair: ImageTextPair) -> bytes:
    """Everything but the image, as JSON."""
    weights = [list(pair.caption_weights)] if pair.caption_weights else []
    return canonical_json(
        [pair.image_id, list(pair.captions), pair.group, attributes_to_json(pair.attributes), pair.split, *weights]
    )


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
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="ATTRIBUTE=VALUE",
        help="take only images with this attribute, or one of VALUE,VALUE; may be repeated",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the directory to write")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other splits (default 0)")
    parser.add_argument("--shard-size", type=_positive, default=1000, metavar="N", help="images a shard (default 1000)")
    parser.add_argument("--resplit", action="store_true", help="ignore the splits that the data set prescribes")
    add_groups_option(parser)
    add_quarantine_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier output that differs")
    arguments = parser.parse_args(argv)

    settings = replace(
        PrepareSettings(), seed=arguments.seed, shard_size=arguments.shard_size, resplit=arguments.resplit
    )
    source = open_source(arguments.data)
    if arguments.only:
        source = Selection(source, arguments.only)
    manifest = prepare(
        source,
        arguments.out,
        settings,
        arguments.overwrite,
        groups=chosen_groups(arguments),
        quarantine=chosen_quarantine(arguments),
    )
    console.print_table(str(arguments.out), ("split", "images", "shards", "size"), _counts(manifest))
    return console.EXIT_OK


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1; received {number}")
    return number


if __name__ == "__main__":
    console.run(main)
