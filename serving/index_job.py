"""From a source to a published index: embeds what is new, stages, builds, verifies, publishes; knows no command line.

Example: `build_index(Runtime.load("default"), open_source("folder:Pictures"), Path("index"))`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import console
from data.errors import SourceError

if TYPE_CHECKING:
    import numpy as np

    from data.pairs import PairSource
    from dual_encoder.runtime import Runtime
    from serving.catalog import Catalog, CatalogEntry
    from serving.embedding_job import EmbeddingJob, Outcome
    from serving.index_recall import Tuning
    from serving.known_vectors import KnownVectors
    from serving.ray_embedding import RaySettings
    from serving.reembedding import Reembedding
    from serving.skipped_images import SkippedImages

REPORT = "report.json"


@dataclass(frozen=True)
class BuildSettings:
    """How a job runs. `splits` empty stands for every image; the sizes count images and do not change the vectors.

    `replace_online`: what the source holds takes the place of what was changed or deleted online, and not the reverse.
    `tuning`: the kind of index and how it is searched, instead of what its size suggests.
    `discard_vectors`: what was added online as a vector, without an image, may get lost when the model is another one.
    `ray`: embed on a Ray cluster, with the same vectors, and not in this process.
    `store`: the address of a store elsewhere (`milvus_store.MilvusAddress`) that gets what a snapshot would hold.
    """

    splits: tuple[str, ...] = ()
    batch_size: int = 32
    shard_size: int = 256
    replace_online: bool = False
    discard_vectors: bool = False
    tuning: Tuning | None = None
    ray: RaySettings | None = None
    store: str = ""


@dataclass
class BuildReport:
    """What a job did; written to INDEX/report.json. `snapshot` is None when nothing was published.

    The images of the source that have a vector were embedded by this job, are known from the index, or stand in shards
    of an earlier run of it. Those that have none are counted by reason, and listed in INDEX/skipped.jsonl.
    """

    source: str
    model_name: str
    snapshot: str | None = None
    indexed: int = 0  # images in the snapshot: the source's, and those that were added online
    readable: int = 0  # images of the source that have a vector
    embedded: int = 0
    known: int = 0
    reused: int = 0
    discarded: int = 0  # images that were changed online and could not follow to this model
    reused_shards: int = 0
    embedded_shards: int = 0
    index: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  # reason → images

    def write(self, out: Path) -> None:
        """Replace INDEX/report.json."""
        from data.durable import write_json

        write_json(out / REPORT, asdict(self))


def build_index(runtime: Runtime, source: PairSource, out: Path, settings: BuildSettings | None = None) -> BuildReport:
    """Embed the images of `source`, build an index over them, verify it, and publish it as the live one of `out`.

    An image that the index of `out` has a vector of already, by this model and by the image's digest, is not embedded
    again. An index that is live in `out` stays so until the new one has been verified. `SourceError` when there is no
    readable image or an id occurs twice; `SnapshotError` when another job is writing to `out`.
    """
    from serving.builder_lock import only_builder
    from serving.publish import WORK, staging
    from serving.reembedding import Reembedding
    from serving.skipped_images import SKIPPED, SkippedImages

    settings = settings or BuildSettings()
    if settings.store:
        from serving.milvus_connection import check_reachable

        check_reachable(settings.store)
    out.mkdir(parents=True, exist_ok=True)
    began = datetime.now(UTC)
    with only_builder(out), staging(out), closing(SkippedImages(out / WORK)) as skipped:
        report = BuildReport(source.name, runtime.name)
        embed = Reembedding(out, lambda: runtime, settings.discard_vectors)
        build = IndexBuild(runtime, out, settings, report, embed, began)
        sequence, former = _embed(build, source, skipped)
        report.skipped = dict(skipped.counts)
        if not report.readable:
            skipped.finish(out)
            report.write(out)
            raise SourceError(
                f"at least one readable image in {source.name}",
                f"{sum(report.skipped.values())} unreadable ones" if report.skipped else "none",
                f"see {out / SKIPPED}" if report.skipped else "check the source",
            )
        if settings.store:
            _publish_elsewhere(build)
        else:
            publish_staged(build, sequence, former)
        skipped.finish(out)
        report.write(out)
        if not settings.store:  # what the next job needs not embed again is in the snapshot then
            shutil.rmtree(out / WORK)
    return report


@dataclass(frozen=True)
class IndexBuild:
    """A build under way: its model, its place and settings, when it began, and the report it fills in.

    `embed` gives vectors of this model to what was changed online under another one.
    """

    runtime: Runtime
    out: Path
    settings: BuildSettings
    report: BuildReport
    embed: Reembedding
    began: datetime


def _embed(build: IndexBuild, source: PairSource, skipped: SkippedImages) -> tuple[int, str | None]:
    """Stage what was changed online and the images of the source; return the number of the last change, and the name
    of the snapshot that was live."""
    from serving.carry_over import newest_readable, open_log, stage
    from serving.known_vectors import KnownVectors
    from serving.publish import WORK
    from serving.reembedding import kept_vectors, kept_width
    from serving.source_entries import checked_pairs, pairs_of_splits
    from serving.staged_snapshot import StagedSnapshot

    runtime, out, settings, report = build.runtime, build.out, build.settings, build.report
    pairs = pairs_of_splits(source, settings.splits)
    with ExitStack() as stack:
        staged = stack.enter_context(closing(StagedSnapshot(out / WORK / "staged", kept_width(runtime))))
        log = stack.enter_context(closing(open_log(out)))
        former = newest_readable(out, log)
        if former is not None:
            stack.enter_context(closing(former))
        known = KnownVectors(former, log, runtime.fingerprint, runtime.embedding_dim)
        job = _job(runtime, out / WORK / "shards", settings, known)
        sequence = stage(staged, former, log, runtime.fingerprint, only_online=True, embed=build.embed)
        # Closed before what is known: it is asked by the job's threads.
        embedded = stack.enter_context(closing(job.run(checked_pairs(pairs, source.name, skipped.add))))
        outcomes = console.progress(embedded, "embedding images", total=len(pairs), unit="images")
        staged.add(_entries(outcomes, report, skipped), below=not settings.replace_online)
        for vectors in job.vectors():
            staged.add_vectors(kept_vectors(runtime, vectors))
        report.reused_shards, report.embedded_shards = job.reused_shards, job.embedded_shards
        report.known, report.reused = job.known_images, job.reused_images
        report.embedded = report.readable - report.known - report.reused
        report.indexed = staged.finish()
    return sequence, former.name if former else None


def _job(runtime: Runtime, directory: Path, settings: BuildSettings, known: KnownVectors) -> EmbeddingJob:
    """The engine that embeds."""
    from serving.embedding_job import EmbeddingJob

    sizes = (settings.batch_size, settings.shard_size, known)
    if settings.ray is None:
        return EmbeddingJob(runtime, directory, *sizes)
    from serving.ray_embedding import RayEmbeddingJob

    bundle = "" if runtime.bundle is None else str(runtime.bundle.path.resolve())
    return RayEmbeddingJob(runtime, directory, *sizes, bundle=bundle, ray=settings.ray)


def publish_staged(build: IndexBuild, sequence: int, former: str | None) -> None:
    """Build and verify the search index over the staged vectors, and publish all of it.

    `sequence` is the number of the last online change that was staged, `former` the name of the live snapshot.
    """
    from serving.catalog import Catalog
    from serving.index_bundle import keep_bundle
    from serving.publish import WORK, index_staged, publish
    from serving.snapshot import Manifest
    from serving.staged_snapshot import CATALOG

    runtime, out, settings, report = build.runtime, build.out, build.settings, build.report
    console.say(f"indexing {report.indexed:,} embeddings")
    staged = out / WORK / "staged"
    with closing(Catalog(staged / CATALOG)) as catalog:
        queries = caption_queries(runtime, catalog)
    report.index = index_staged(staged, queries, runtime.embedding_dim, settings.tuning)
    manifest = Manifest(
        image_count=report.indexed,
        dimension=runtime.embedding_dim,
        model_fingerprint=runtime.fingerprint,
        model_name=runtime.name,
        source=report.source,
        splits=list(settings.splits),
        index=report.index,
        create_time=datetime.now(UTC).isoformat(),
        sequence=sequence,
        former=former,
        directory=str(Path.cwd()),
        corrected=runtime.hubness is not None,
    )
    if runtime.bundle is not None:
        keep_bundle(out, runtime.bundle)
    report.snapshot = publish(out, staged, manifest, build.embed)
    report.discarded = build.embed.discarded


def _publish_elsewhere(build: IndexBuild) -> None:
    """Fill a collection of the store with what was staged and changed online, and let its name stand for it."""
    from serving.milvus_connection import MilvusAddress
    from serving.milvus_publication import OnlineChanges, publish
    from serving.publish import WORK
    from serving.staged_snapshot import staged_upserts

    runtime, settings, report = build.runtime, build.settings, build.report
    images = staged_upserts(build.out / WORK / "staged", runtime.embedding_dim)
    described = {
        "model_fingerprint": runtime.fingerprint,
        "model_name": runtime.name,
        "dimension": runtime.embedding_dim,
        "corrected": runtime.hubness is not None,
        "source": report.source,
    }
    images = console.progress(images, "filling the collection", total=report.indexed, unit="images")
    online = OnlineChanges(build.embed, build.began if settings.replace_online else None)
    published = publish(settings.store, images, described, online)
    report.snapshot, report.indexed = published.collection, published.image_count
    report.discarded = build.embed.discarded
    report.index = {"kind": f"Milvus {MilvusAddress.parse(settings.store).kind}"}


def _entries(outcomes: Iterable[Outcome], report: BuildReport, skipped: SkippedImages) -> Iterator[CatalogEntry]:
    """An entry for each image that has a vector; the others are put on the list."""
    from serving.source_entries import as_unicode, entry_of_pair

    for outcome in outcomes:
        if outcome.embedded:
            report.readable += 1
            yield entry_of_pair(outcome.pair, outcome.digest, report.source)
        else:
            skipped.add(outcome.pair.image_id, outcome.digest, outcome.reason, as_unicode(outcome.message))


def caption_queries(runtime: Runtime, catalog: Catalog) -> np.ndarray:
    """A caption each of a sample of images, (Q, W), as a search asks: as near as is known to people's."""
    import numpy as np

    from dual_encoder.hubness import asked
    from serving.faiss_build import FLAT_ROWS
    from serving.index_recall import LEARNED, SAMPLE

    wanted = SAMPLE if len(catalog) <= FLAT_ROWS else SAMPLE + LEARNED
    rows = np.unique(np.linspace(0, len(catalog) - 1, wanted).astype(int))
    captions = [entry.captions[0] for entry in catalog.by_rows(rows.tolist()) if "".join(entry.captions[:1]).strip()]
    vectors = runtime.embed_texts(captions) if captions else np.empty((0, runtime.embedding_dim), np.float32)
    return vectors if runtime.hubness is None else asked(vectors)
