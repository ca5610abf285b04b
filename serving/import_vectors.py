"""Makes an index of vectors that were computed elsewhere by the model of a bundle; embeds no image.

Example: `python -m serving.import_vectors --vectors x.npy --ids ids.txt --bundle default --out index`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from data import console

if TYPE_CHECKING:
    from dual_encoder.runtime import Runtime
    from serving.catalog import CatalogEntry
    from serving.index_job import BuildReport
    from serving.index_recall import Tuning
    from serving.staged_snapshot import StagedSnapshot
    from serving.vector_files import VectorFile


def import_vectors(
    runtime: Runtime, given: VectorFile, out: Path, *, discard_vectors: bool = False, tuning: Tuning | None = None
) -> BuildReport:
    """Publish the rows of `given` as the live index of `out`, in the place of what batch jobs brought before.

    What was changed or deleted online stays above them, as in any build; see `BuildSettings` for the options.
    `SourceError` for a row that cannot be taken; the live index then stays.
    """
    from data.errors import SourceError
    from serving.builder_lock import only_builder
    from serving.carry_over import newest_readable, open_log, stage
    from serving.index_job import BuildReport, BuildSettings, IndexBuild, publish_staged
    from serving.publish import WORK, staging
    from serving.reembedding import Reembedding, kept_width
    from serving.staged_snapshot import StagedSnapshot

    if not given.count:
        raise SourceError(f"rows in {given.name}", "none", "check the file")
    out.mkdir(parents=True, exist_ok=True)
    report = BuildReport(given.name, runtime.name)
    embed = Reembedding(out, lambda: runtime, discard_vectors)
    build = IndexBuild(runtime, out, BuildSettings(tuning=tuning), report, embed, datetime.now(UTC))
    with only_builder(out), staging(out) as directory:
        with ExitStack() as stack:
            staged = stack.enter_context(closing(StagedSnapshot(directory, kept_width(runtime))))
            log = stack.enter_context(closing(open_log(out)))
            former = newest_readable(out, log)
            if former is not None:
                stack.enter_context(closing(former))
            sequence = stage(staged, former, log, runtime.fingerprint, only_online=True, embed=embed)
            rows = console.progress(
                _staged(runtime, given, staged, report), "reading vectors", given.count, unit="rows"
            )
            staged.add(rows, below=True)
            report.indexed = staged.finish()
        publish_staged(build, sequence, former.name if former else None)
        report.write(out)
        shutil.rmtree(out / WORK)
    return report


def _staged(runtime: Runtime, given: VectorFile, staged: StagedSnapshot, report: BuildReport) -> Iterator[CatalogEntry]:
    """Stage the vectors; their entries one by one."""
    from serving.reembedding import kept_vectors

    for entries, vectors in given:
        staged.add_vectors(kept_vectors(runtime, vectors))
        report.readable += len(entries)
        yield from entries


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, import, and say what was done."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.import_vectors",
        description="Make a searchable index of vectors that the model of a bundle gave elsewhere, or that "
        "`serving.manage export` wrote.",
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--vectors", type=Path, metavar="FILE.npy", help="an array (N, D) of floats; needs --ids")
    place.add_argument(
        "--parquet", type=Path, metavar="FILE",
        help="columns image_id (or id), vector (or embedding); if wanted captions, attributes, digest, location",
    )  # fmt: skip
    parser.add_argument(
        "--ids", type=Path, metavar="FILE",
        help="a line for each vector: its id, or in a .jsonl file an object with image_id, captions, attributes, …",
    )  # fmt: skip
    parser.add_argument("--bundle", required=True, help='the model that gave them: a directory, or "default"')
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--discard-vectors", action="store_true",
        help="when the model is another one, give up what was added online without an image that it could embed",
    )  # fmt: skip
    parser.add_argument("--tuning", type=Path, metavar="FILE", help="what serving.tune_index chose, tuning.json")
    arguments = parser.parse_args(argv)
    if (arguments.vectors is None) != (arguments.ids is None):
        parser.error("--vectors and --ids go together")

    from dual_encoder.runtime import Runtime
    from serving.tune_index import read_tuning
    from serving.vector_files import VectorFile

    tuning = read_tuning(arguments.tuning) if arguments.tuning else None
    runtime = Runtime.load(arguments.bundle)
    if arguments.parquet:
        given = VectorFile.parquet(arguments.parquet, runtime.embedding_dim)
    else:
        given = VectorFile.numpy(arguments.vectors, arguments.ids, runtime.embedding_dim)
    report = import_vectors(runtime, given, arguments.out, discard_vectors=arguments.discard_vectors, tuning=tuning)
    if given.normalised:
        console.say(f"{given.normalised:,} of {given.count:,} vectors were not of unit length and were made so")
    console.say(f"{report.indexed:,} images indexed in {arguments.out}, snapshot {report.snapshot}")
    return console.EXIT_OK


if __name__ == "__main__":
    console.run(main)
