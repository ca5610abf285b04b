"""Batch job: embeds every image of a source and publishes a searchable index; resumes where a killed run stopped.

Example: `python -m serving.build_index --bundle default --data folder:Pictures --out index`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.attributes import EXPECTED, is_attribute, is_unicode
from data.durable import only_process
from data.errors import SnapshotError, SourceError
from data.sources import SOURCE_HELP, open_source
from data.splits import SPLITS, split_pairs

if TYPE_CHECKING:
    import numpy as np

    from data.pairs import AttributeValue, ImageTextPair, PairSource
    from dual_encoder.runtime import Runtime
    from serving.catalog import Catalog, CatalogEntry
    from serving.embedding_job import Outcome

WORK, LOCK, REPORT = "work", "LOCK", "report.json"
MAX_ID_CHARACTERS = 1_024


@dataclass(frozen=True)
class BuildSettings:
    """How a job runs. `splits` empty stands for every image; the sizes count images and do not change the vectors."""

    splits: tuple[str, ...] = ()
    batch_size: int = 32
    shard_size: int = 256


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be indexed, with a stable reason and a message."""

    image_id: str
    reason: str
    message: str


@dataclass
class BuildReport:
    """What a job did; written to INDEX/report.json. `snapshot` is None when nothing was published."""

    source: str
    model_name: str
    snapshot: str | None = None
    indexed: int = 0
    reused_shards: int = 0
    embedded_shards: int = 0
    index: dict[str, Any] = field(default_factory=dict)
    skipped: list[SkippedImage] = field(default_factory=list)

    def write(self, out: Path) -> None:
        """Replace INDEX/report.json."""
        from data.durable import write_json

        write_json(out / REPORT, asdict(self))


def build_index(runtime: Runtime, source: PairSource, out: Path, settings: BuildSettings | None = None) -> BuildReport:
    """Embed the images of `source`, build an index over them, verify it, and publish it as the live one of `out`.

    An index that is live in `out` stays so until the new one has been verified. `SourceError` when there is no readable
    image or an id occurs twice; `SnapshotError` when another job is writing to `out`.
    """
    settings = settings or BuildSettings()
    out.mkdir(parents=True, exist_ok=True)
    report = BuildReport(source.name, runtime.name)
    with only_writer(out):
        staged = out / WORK / "staged"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        _embed(runtime, source, out, settings, report)
        if not report.indexed:
            report.write(out)
            raise SourceError(
                f"at least one readable image in {source.name}",
                f"{len(report.skipped)} unreadable ones" if report.skipped else "none",
                f"see {out / REPORT}" if report.skipped else "check the source",
            )
        _publish(runtime, source, out, settings, report)
        report.write(out)
        shutil.rmtree(out / WORK)
    return report


def _embed(runtime: Runtime, source: PairSource, out: Path, settings: BuildSettings, report: BuildReport) -> None:
    """Stage the catalog and the vectors."""
    from serving.catalog import write_catalog
    from serving.embedding_job import EmbeddingJob
    from serving.snapshot import CATALOG, VECTORS

    staged = out / WORK / "staged"
    job = EmbeddingJob(runtime, out / WORK / "shards", settings.batch_size, settings.shard_size)
    pairs = pairs_of_splits(source, settings.splits)
    outcomes = job.run(checked_pairs(pairs, source.name, report))
    outcomes = console.progress(outcomes, "embedding images", total=len(pairs))
    report.indexed = write_catalog(staged / CATALOG, catalog_entries(outcomes, report))
    report.reused_shards, report.embedded_shards = job.reused_shards, job.embedded_shards
    if report.indexed:
        job.write_vectors(staged / VECTORS)


def _publish(runtime: Runtime, source: PairSource, out: Path, settings: BuildSettings, report: BuildReport) -> None:
    """Build and verify the search index over the staged vectors, and publish all of it."""
    import numpy as np

    from serving.attribute_columns import write_columns
    from serving.catalog import Catalog
    from serving.index_recall import build_verified
    from serving.snapshot import CATALOG, COLUMNS, FAISS, VECTORS, Manifest, publish

    console.say(f"indexing {report.indexed:,} embeddings")
    staged = out / WORK / "staged"
    vectors = np.load(staged / VECTORS, mmap_mode="r", allow_pickle=False)
    catalog = Catalog(staged / CATALOG)
    queries = caption_queries(runtime, catalog)
    write_columns(staged / COLUMNS, (entry.attributes for entry in catalog))
    catalog.close()
    report.index = build_verified(vectors, queries, staged / FAISS)
    manifest = Manifest(
        image_count=report.indexed,
        dimension=runtime.embedding_dim,
        model_fingerprint=runtime.fingerprint,
        model_name=runtime.name,
        source=source.name,
        splits=list(settings.splits),
        index=report.index,
        create_time=datetime.now(UTC).isoformat(),
    )
    report.snapshot = publish(out, staged, manifest)


def pairs_of_splits(source: PairSource, splits: Sequence[str]) -> Sequence[ImageTextPair] | PairSource:
    """The pairs of `splits`, as training and evaluation divide `source`, or all; `SourceError` when there is none."""
    if not splits:
        return source
    parts = split_pairs(source)
    chosen = {pair.image_id for split in splits for pair in parts[split]}
    if not chosen:
        counts = ", ".join(f"{len(pairs):,} in {split}" for split, pairs in parts.items())
        raise SourceError(
            f"images of split {', '.join(splits)} in {source.name}",
            counts,
            "choose another split, or leave --split out",
        )
    return [pair for pairs in parts.values() for pair in pairs if pair.image_id in chosen]


def checked_pairs(pairs: Iterable[ImageTextPair], name: str, report: BuildReport) -> Iterator[ImageTextPair]:
    """`pairs` without those whose ids cannot be stored, which are reported; `SourceError` for an id met before."""
    seen: set[str] = set()
    for pair in pairs:
        if pair.image_id in seen:
            raise SourceError(f"image ids that occur once in {name}", f"{pair.image_id!r} twice", "make ids unique")
        seen.add(pair.image_id)
        if 1 <= len(pair.image_id) <= MAX_ID_CHARACTERS and is_unicode(pair.image_id):
            yield pair
        else:
            message = f"expected an id of 1 to {MAX_ID_CHARACTERS:,} characters of valid Unicode"
            report.skipped.append(SkippedImage(ascii(pair.image_id), "bad_id", message))


def catalog_entries(outcomes: Iterable[Outcome], report: BuildReport) -> Iterator[CatalogEntry]:
    """An entry for each embedded image, rows counted from 0; the others are added to the report."""
    from data.pairs import ImageFile
    from serving.catalog import CatalogEntry

    row = 0
    for outcome in outcomes:
        pair = outcome.pair
        if not outcome.embedded:
            report.skipped.append(SkippedImage(pair.image_id, outcome.reason, _unicode(outcome.message)))
            continue
        location = str(pair.image.path.resolve()) if isinstance(pair.image, ImageFile) else ""
        captions = tuple(_unicode(caption) for caption in pair.captions)
        attributes = {_unicode(name): _attribute(pair, name, value) for name, value in pair.attributes.items()}
        yield CatalogEntry(
            row, pair.image_id, outcome.digest, location if is_unicode(location) else "", captions, attributes
        )
        row += 1


def caption_queries(runtime: Runtime, catalog: Catalog) -> np.ndarray:
    """Embeddings (Q, D) of a caption each of a sample of images: as near as is known to what people will ask for."""
    import numpy as np

    from serving.index_recall import SAMPLE

    rows = np.unique(np.linspace(0, len(catalog) - 1, SAMPLE).astype(int))
    captions = [entry.captions[0] for entry in catalog.by_rows(rows.tolist()) if "".join(entry.captions[:1]).strip()]
    return runtime.embed_texts(captions) if captions else np.empty((0, runtime.embedding_dim), np.float32)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the index's lock, which ends with the process; `SnapshotError` when another process holds it."""
    (out / LOCK).touch()
    busy = SnapshotError(
        f"no other job that writes to {out}", "one that is running", "wait for it, or choose another --out"
    )
    with only_process(out / LOCK, busy):
        yield


def _attribute(pair: ImageTextPair, name: str, value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        value = _unicode(value)
    elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        value = [_unicode(item) for item in value]
    if is_attribute(value):
        return value
    raise SourceError(EXPECTED, f"{name} = {value!r} of image {pair.image_id!r}", "correct or remove the attribute")


def _unicode(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, build, and say what was done."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.build_index",
        description="Embed every image of a source and publish a searchable index. Safe to kill and run again.",
        epilog=SOURCE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", required=True, help='directory of a trained model, or "default"')
    parser.add_argument("--data", required=True, metavar="SOURCE", help="the images; see below")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="directory of the index")
    parser.add_argument("--split", action="append", default=[], choices=SPLITS, help="only this one; may be repeated")
    parser.add_argument(
        "--batch-size", type=_positive, default=BuildSettings.batch_size, help="images embedded at once"
    )
    parser.add_argument("--shard-size", type=_positive, default=BuildSettings.shard_size, help="images kept at once")
    arguments = parser.parse_args(argv)

    from dual_encoder.runtime import Runtime

    source = open_source(arguments.data)
    runtime = Runtime.load(arguments.bundle)
    settings = BuildSettings(tuple(arguments.split), arguments.batch_size, arguments.shard_size)
    report = build_index(runtime, source, arguments.out, settings)
    if report.reused_shards:
        console.say(f"{report.reused_shards} of {report.reused_shards + report.embedded_shards} shards were kept")
    if report.skipped:
        console.say(f"{len(report.skipped):,} images were skipped; see {arguments.out / REPORT}")
    console.say(
        f"{report.indexed:,} images indexed in {arguments.out} ({report.index['kind']}), snapshot {report.snapshot}"
    )
    return console.EXIT_OK


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more; received {value}")
    return value


if __name__ == "__main__":
    console.run(main)
