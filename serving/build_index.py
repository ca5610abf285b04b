"""Batch job: embeds every image of a source and publishes a searchable index; resumes where a killed run stopped.

Example: `python -m serving.build_index --bundle default --data folder:Pictures --out index`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from data import console
from data.sources import SOURCE_HELP, open_source
from data.splits import SPLITS
from serving.index_job import BuildReport, BuildSettings, build_index

if TYPE_CHECKING:
    from data.pairs import PairSource
    from serving.index_recall import Tuning
    from serving.ray_embedding import RaySettings

EXIT_SKIPPED = 3  # done, but images were skipped, which --strict was to tell

EXIT_CODES = """\
exit codes: 0 done, also when there was nothing to do; 1 failed: run the same command again, finished parts are kept;
            2 refused, nothing was changed; 3 done, but images were skipped (with --strict only); 130 interrupted"""

# What --sync takes from the index itself, and what it would have to compare with.
NOT_WITH_SYNC = ("bundle", "data", "split", "replace_online", "discard_vectors", "store")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, build, and say what was done."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.store and arguments.report_duplicates:
        parser.error("--report-duplicates looks at an index in a directory: leave out --store")
    if arguments.engine != "ray" and (arguments.address or arguments.workers):
        parser.error("--address and --workers are those of a Ray cluster: add --engine ray")
    if arguments.sync:
        if given := [name for name in NOT_WITH_SYNC if getattr(arguments, name)]:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            parser.error(f"--sync takes source, splits and model from the index: leave out {names}")
        return _sync(arguments)
    if not (arguments.bundle and arguments.data):
        parser.error("the following arguments are required: --bundle, --data (or --sync)")
    return _build(arguments.bundle, open_source(arguments.data), tuple(arguments.split), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serving.build_index",
        description="Embed every image of a source and publish a searchable index. Safe to kill and run again.",
        epilog=f"{SOURCE_HELP}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", help='directory of a trained model, or "default"')
    parser.add_argument("--data", metavar="SOURCE", help="the images; see below")
    parser.add_argument("--out", required=True, type=Path, metavar="INDEX", help="directory of the index")
    parser.add_argument(
        "--sync", action="store_true",
        help="bring INDEX up to date with the source and by the model that it was made of, if anything has changed",
    )  # fmt: skip
    parser.add_argument("--split", action="append", default=[], choices=SPLITS, help="only this one; may be repeated")
    parser.add_argument(
        "--batch-size", type=_positive, default=BuildSettings.batch_size, help="images embedded at once"
    )
    parser.add_argument("--shard-size", type=_positive, default=BuildSettings.shard_size, help="images kept at once")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="what embeds, default %(default)s")
    parser.add_argument("--address", default="", help="of a running Ray cluster; by default one on this machine")
    parser.add_argument("--workers", type=_positive, help="processes on the Ray cluster, default: all that fit")
    parser.add_argument(
        "--store", default="", metavar="milvus://HOST:PORT?name=NAME",
        help="publish in Milvus; INDEX then holds the shards and the report alone",
    )  # fmt: skip
    parser.add_argument(
        "--report-duplicates", action="store_true",
        help="list images of the same bytes, or of the same picture, in INDEX/duplicates.json; nothing is removed",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help="exit with 3 when images were skipped")
    parser.add_argument(
        "--replace-online", action="store_true",
        help="let the source's images take the place of those with the same ids that were changed or deleted online",
    )  # fmt: skip
    parser.add_argument(
        "--discard-vectors", action="store_true",
        help="when the model is another one, give up what was added online without an image that it could embed",
    )  # fmt: skip
    parser.add_argument("--tuning", type=Path, metavar="FILE", help="what serving.tune_index chose, tuning.json")
    return parser


def _sync(arguments: argparse.Namespace) -> int:
    """Build again from the source that the index was made of, if it differs."""
    from serving.index_bundle import bundle_of
    from serving.index_recall import Tuning
    from serving.sync import differences, live_manifest

    out = arguments.out = arguments.out.resolve()
    manifest = live_manifest(out)
    arguments.tuning = arguments.tuning and arguments.tuning.resolve()
    with chdir(manifest.directory if Path(manifest.directory).is_dir() else "."):
        source = open_source(manifest.source)
        found = differences(out, source, manifest.splits)
        console.say(f"{found} in {source.name}")
        if not found:
            console.say(f"nothing to do; {manifest.image_count:,} images in {out}")
            _report_duplicates(arguments)
            return console.EXIT_OK
        tuning = None if arguments.tuning else Tuning.of(manifest.index)
        return _build(str(bundle_of(out)), source, tuple(manifest.splits), arguments, tuning)


def _build(
    bundle: str,
    source: PairSource,
    splits: tuple[str, ...],
    arguments: argparse.Namespace,
    tuning: Tuning | None = None,
) -> int:
    from dual_encoder.runtime import Runtime

    settings = BuildSettings(
        splits,
        arguments.batch_size,
        arguments.shard_size,
        arguments.replace_online,
        arguments.discard_vectors,
        tuning or _read_tuning(arguments.tuning),
        _ray(arguments),
        arguments.store,
    )
    report = build_index(Runtime.load(bundle), source, arguments.out, settings)
    _say(report, arguments.out, arguments.store)
    _report_duplicates(arguments)
    return EXIT_SKIPPED if report.skipped and arguments.strict else console.EXIT_OK


def _report_duplicates(arguments: argparse.Namespace) -> None:
    if arguments.report_duplicates:
        from serving.duplicates import DUPLICATES, report_duplicates

        found = report_duplicates(arguments.out)
        console.say(
            f"{found.copies:,} images have the bytes of another, {found.near:,} pairs are of the same picture; see "
            f"{arguments.out / DUPLICATES}"
        )


def _ray(arguments: argparse.Namespace) -> RaySettings | None:
    if arguments.engine != "ray":
        return None
    from serving.ray_embedding import RaySettings

    return RaySettings(arguments.address, arguments.workers or 0)


def _say(report: BuildReport, out: Path, store: str) -> None:
    from serving.skipped_images import SKIPPED

    console.say(
        f"{report.embedded:,} images embedded, {report.known:,} known from the index, {report.reused:,} from "
        f"{report.reused_shards:,} shards of an earlier run"
    )
    if report.discarded:
        console.say(f"{report.discarded:,} images that were added online as vectors were given up")
    if report.skipped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.skipped.items()))
        console.say(f"{sum(report.skipped.values()):,} images were skipped ({reasons}); see {out / SKIPPED}")
    where, state = (store, "collection") if store else (out, "snapshot")
    console.say(f"{report.indexed:,} images indexed in {where} ({report.index['kind']}), {state} {report.snapshot}")


def _read_tuning(path: Path | None) -> Tuning | None:
    if path is None:
        return None
    from serving.tune_index import read_tuning

    return read_tuning(path)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more; received {value}")
    return value


if __name__ == "__main__":
    console.run(main)
