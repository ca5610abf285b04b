"""Batch job: embeds every image of a source and publishes a searchable index; resumes where a killed run stopped.

Example: `python -m serving.build_index --bundle default --data folder:Pictures --out index`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.attributes import EXPECTED, is_attribute, is_unicode
from data.errors import SourceError
from data.sources import SOURCE_HELP, open_source
from data.splits import SPLITS, split_pairs

if TYPE_CHECKING:
    import numpy as np

    from data.pairs import AttributeValue, ImageTextPair, PairSource
    from dual_encoder.runtime import Runtime
    from serving.catalog import Catalog, CatalogEntry
    from serving.embedding_job import Outcome
    from serving.reembedding import Reembedding

REPORT = "report.json"
MAX_ID_CHARACTERS = 1_024


@dataclass(frozen=True)
class BuildSettings:
    """How a job runs. `splits` empty stands for every image; the sizes count images and do not change the vectors.

    `replace_online`: what the source holds takes the place of what was changed or deleted online, and not the reverse.
    `discard_vectors`: what was added online as a vector, without an image, may get lost when the model is another one.
    """

    splits: tuple[str, ...] = ()
    batch_size: int = 32
    shard_size: int = 256
    replace_online: bool = False
    discard_vectors: bool = False


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
    indexed: int = 0  # images in the snapshot: the source's, and those that were added online
    embedded: int = 0  # images of the source that could be read
    discarded: int = 0  # images that were changed online and could not follow to this model
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
    from serving.publish import WORK, only_builder, staging
    from serving.reembedding import Reembedding

    settings = settings or BuildSettings()
    out.mkdir(parents=True, exist_ok=True)
    report = BuildReport(source.name, runtime.name)
    with only_builder(out), staging(out):
        embed = Reembedding(out, lambda: runtime, settings.discard_vectors)
        sequence, former = _embed(runtime, source, out, settings, report, embed)
        if not report.embedded:
            report.write(out)
            raise SourceError(
                f"at least one readable image in {source.name}",
                f"{len(report.skipped)} unreadable ones" if report.skipped else "none",
                f"see {out / REPORT}" if report.skipped else "check the source",
            )
        _publish(runtime, source, out, settings, report, embed, sequence, former)
        report.write(out)
        shutil.rmtree(out / WORK)
    return report


def _embed(
    runtime: Runtime,
    source: PairSource,
    out: Path,
    settings: BuildSettings,
    report: BuildReport,
    embed: Reembedding,
) -> tuple[int, str | None]:
    """Stage what was changed online and the images of the source; return the number of the last change, and the name
    of the snapshot that was live."""
    from serving.carry_over import newest_readable, open_log, stage
    from serving.embedding_job import EmbeddingJob
    from serving.publish import WORK
    from serving.staged_snapshot import StagedSnapshot

    job = EmbeddingJob(runtime, out / WORK / "shards", settings.batch_size, settings.shard_size)
    pairs = pairs_of_splits(source, settings.splits)
    outcomes = job.run(checked_pairs(pairs, source.name, report))
    outcomes = console.progress(outcomes, "embedding images", total=len(pairs))
    with ExitStack() as stack:
        staged = stack.enter_context(closing(StagedSnapshot(out / WORK / "staged", runtime.embedding_dim)))
        log = stack.enter_context(closing(open_log(out)))
        former = newest_readable(out, log)
        if former is not None:
            stack.enter_context(closing(former))
        sequence = stage(staged, former, log, runtime.fingerprint, only_online=True, embed=embed)
        staged.add(catalog_entries(outcomes, source.name, report), below=not settings.replace_online)
        report.reused_shards, report.embedded_shards = job.reused_shards, job.embedded_shards
        for vectors in job.vectors():
            staged.add_vectors(vectors)
        report.indexed = staged.finish()
    return sequence, former.name if former else None


def _publish(
    runtime: Runtime,
    source: PairSource,
    out: Path,
    settings: BuildSettings,
    report: BuildReport,
    embed: Reembedding,
    sequence: int,
    former: str | None,
) -> None:
    """Build and verify the search index over the staged vectors, and publish all of it."""
    from serving.catalog import Catalog
    from serving.index_bundle import keep_bundle
    from serving.publish import WORK, index_staged, publish
    from serving.snapshot import Manifest
    from serving.staged_snapshot import CATALOG

    console.say(f"indexing {report.indexed:,} embeddings")
    staged = out / WORK / "staged"
    with closing(Catalog(staged / CATALOG)) as catalog:
        queries = caption_queries(runtime, catalog)
    report.index = index_staged(staged, queries)
    manifest = Manifest(
        image_count=report.indexed,
        dimension=runtime.embedding_dim,
        model_fingerprint=runtime.fingerprint,
        model_name=runtime.name,
        source=source.name,
        splits=list(settings.splits),
        index=report.index,
        create_time=datetime.now(UTC).isoformat(),
        sequence=sequence,
        former=former,
    )
    if runtime.bundle is not None:
        keep_bundle(out, runtime.bundle)
    report.snapshot = publish(out, staged, manifest, embed)
    report.discarded = embed.discarded


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


def catalog_entries(outcomes: Iterable[Outcome], origin: str, report: BuildReport) -> Iterator[CatalogEntry]:
    """An entry for each embedded image; the others are added to the report."""
    from data.pairs import ImageFile
    from serving.catalog import CatalogEntry

    for outcome in outcomes:
        pair = outcome.pair
        if not outcome.embedded:
            report.skipped.append(SkippedImage(pair.image_id, outcome.reason, _unicode(outcome.message)))
            continue
        location = str(pair.image.path.resolve()) if isinstance(pair.image, ImageFile) else ""
        captions = tuple(_unicode(caption) for caption in pair.captions)
        attributes = {_unicode(name): _attribute(pair, name, value) for name, value in pair.attributes.items()}
        report.embedded += 1
        location = location if is_unicode(location) else ""
        yield CatalogEntry(pair.image_id, outcome.digest, location, captions, attributes, origin=_unicode(origin))


def caption_queries(runtime: Runtime, catalog: Catalog) -> np.ndarray:
    """Embeddings (Q, D) of a caption each of a sample of images: as near as is known to what people will ask for."""
    import numpy as np

    from serving.index_recall import SAMPLE

    rows = np.unique(np.linspace(0, len(catalog) - 1, SAMPLE).astype(int))
    captions = [entry.captions[0] for entry in catalog.by_rows(rows.tolist()) if "".join(entry.captions[:1]).strip()]
    return runtime.embed_texts(captions) if captions else np.empty((0, runtime.embedding_dim), np.float32)


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
    parser.add_argument(
        "--replace-online", action="store_true",
        help="let the source's images take the place of those with the same ids that were changed or deleted online",
    )  # fmt: skip
    parser.add_argument(
        "--discard-vectors", action="store_true",
        help="when the model is another one, give up what was added online without an image that it could embed",
    )  # fmt: skip
    arguments = parser.parse_args(argv)

    from dual_encoder.runtime import Runtime

    source = open_source(arguments.data)
    runtime = Runtime.load(arguments.bundle)
    settings = BuildSettings(
        tuple(arguments.split),
        arguments.batch_size,
        arguments.shard_size,
        arguments.replace_online,
        arguments.discard_vectors,
    )
    report = build_index(runtime, source, arguments.out, settings)
    if report.reused_shards:
        console.say(f"{report.reused_shards} of {report.reused_shards + report.embedded_shards} shards were kept")
    if report.discarded:
        console.say(f"{report.discarded:,} images that were added online as vectors were given up")
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
