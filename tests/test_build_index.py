"""The batch job publishes what it read, resumes after a kill, tells what it skipped, and never harms a live index."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from fakes import COLOURS, ColourRuntime, ListSource, colour_pair, picture

from data import digest_memo
from data.errors import SnapshotError, SourceError
from data.pairs import ImageBytes, ImageFile, ImageTextPair
from data.splits import split_pairs
from dual_encoder.hubness import HubnessCorrection
from serving.builder_lock import only_builder
from serving.catalog import Catalog
from serving.embedded_store import EmbeddedStore
from serving.embedding_job import EmbeddingJob
from serving.exact_index import ExactIndex
from serving.index_job import BuildSettings, build_index
from serving.snapshot import current_name, open_snapshot
from serving.vector_store import BATCH_VERSION, Upsert

ROOT = Path(__file__).resolve().parent.parent
SMALL = BuildSettings(batch_size=4, shard_size=10)


def source(count: int, extra: list[ImageTextPair] | None = None) -> ListSource:
    return ListSource([colour_pair(number) for number in range(count)] + (extra or []), f"colours:{count}")


def bad(name: str, data: bytes) -> ImageTextPair:
    return ImageTextPair(name, ImageBytes(lambda: data))


def opened(out: Path, runtime: ColourRuntime):
    return open_snapshot(out, runtime.fingerprint)


def test_indexes_every_image_with_what_is_known_about_it(tmp_path):
    runtime = ColourRuntime()
    report = build_index(runtime, source(25), tmp_path, SMALL)
    snapshot = opened(tmp_path, runtime)
    assert (report.indexed, report.embedded_shards, report.reused_shards, report.skipped) == (25, 3, 0, {})
    assert report.snapshot == snapshot.name
    pairs = sorted((colour_pair(number) for number in range(25)), key=lambda pair: pair.image_id)
    for row, (entry, pair) in enumerate(zip(snapshot.catalog, pairs, strict=True)):
        assert (entry.row, entry.image_id, entry.captions) == (row, pair.image_id, pair.captions)
        assert (entry.version, entry.origin) == (BATCH_VERSION, "colours:25")
        assert entry.attributes == pair.attributes
        np.testing.assert_array_equal(
            snapshot.vectors[row], runtime.embed_images([pair.image.read()])[0].astype(np.float16)
        )
    snapshot.close()
    assert not (tmp_path / "work").exists()
    assert json.loads((tmp_path / "report.json").read_text())["indexed"] == 25


def test_the_published_index_gives_the_exact_answer(tmp_path):
    runtime = ColourRuntime()
    build_index(runtime, source(60), tmp_path, SMALL)
    snapshot = opened(tmp_path, runtime)
    queries = runtime.embed_texts(["red", "a green and blue thing", "nothing"])
    for found, expected in zip(
        snapshot.index.search(queries, 10), ExactIndex(snapshot.vectors).search(queries, 10), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert snapshot.manifest.index["text_queries"] == 60
    assert snapshot.manifest.index["text_index_recall_at_10"] == 1.0
    snapshot.close()


def test_unreadable_images_are_skipped_and_listed(tmp_path):
    path = tmp_path / "kept.png"
    path.write_bytes(picture("red"))
    extra = [
        bad("text.jpg", b"this is a text"),
        bad("torn.png", picture("blue")[:200]),
        ImageTextPair("absent.png", ImageFile(tmp_path / "absent.png")),
        ImageTextPair("kept.png", ImageFile(path)),
        ImageTextPair("bad\udcffname.png", ImageFile(path)),
        ImageTextPair("", ImageFile(path)),
    ]
    report = build_index(ColourRuntime(), source(7, extra), tmp_path / "index", SMALL)
    reasons = {entry["image_id"]: entry["reason"] for entry in _skipped(tmp_path / "index")}
    assert reasons == {
        "text.jpg": "not_an_image",
        "torn.png": "damaged",
        "absent.png": "missing",
        r"'bad\udcffname.png'": "bad_id",
        "''": "bad_id",
    }
    assert report.skipped == _report(tmp_path / "index")["skipped"]
    assert report.skipped == {"not_an_image": 1, "damaged": 1, "missing": 1, "bad_id": 2}
    assert (report.indexed, report.embedded) == (8, 8)
    snapshot = opened(tmp_path / "index", ColourRuntime())
    assert snapshot.catalog.by_id("kept.png").location == str(path)
    np.testing.assert_allclose(
        snapshot.vectors[snapshot.catalog.by_id("kept.png").row],
        ColourRuntime().embed_images([picture("red")])[0],
        atol=1e-3,
    )
    snapshot.close()


def test_without_a_readable_image_the_job_is_refused_and_the_live_index_stays(tmp_path):
    runtime = ColourRuntime()
    live = build_index(runtime, source(5), tmp_path, SMALL).snapshot
    with pytest.raises(SourceError, match=r"skipped\.jsonl"):
        build_index(runtime, ListSource([bad("a.jpg", b"text")], "bad:1"), tmp_path, SMALL)
    assert _skipped(tmp_path)[0]["reason"] == "not_an_image"
    with pytest.raises(SourceError, match="received none"):
        build_index(runtime, ListSource([], "empty:"), tmp_path, SMALL)
    assert current_name(tmp_path) == live
    opened(tmp_path, runtime).close()


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([colour_pair(1), colour_pair(2), colour_pair(1)], "'green-0001' twice"),
        ([dataclasses.replace(colour_pair(1), attributes={"size": float("nan")})], "size = nan"),
        ([dataclasses.replace(colour_pair(1), attributes={"size": 2**63})], "size = 9223372036854775808"),
        ([dataclasses.replace(colour_pair(1), attributes={"tags": ["a", 1]})], "tags = "),
    ],
    ids=["repeated id", "nan", "too large", "mixed list"],
)
def test_contradictory_sources_are_refused_and_the_live_index_stays(tmp_path, pairs, message):
    live = build_index(ColourRuntime(), source(5), tmp_path, SMALL).snapshot
    with pytest.raises(SourceError, match=message):
        build_index(ColourRuntime(), ListSource(pairs, "bad"), tmp_path, SMALL)
    assert current_name(tmp_path) == live


def test_splits_select_images_and_an_empty_one_is_told(tmp_path):
    report = build_index(ColourRuntime(), source(20), tmp_path, dataclasses.replace(SMALL, splits=("test",)))
    assert report.indexed == 5
    with pytest.raises(SourceError, match="received 15 in train, 0 in validation, 5 in test"):
        build_index(ColourRuntime(), source(20), tmp_path, dataclasses.replace(SMALL, splits=("validation",)))


def test_splits_are_those_of_training_where_the_data_set_prescribes_none(tmp_path):
    pairs = [dataclasses.replace(colour_pair(number), split=None) for number in range(60)]
    build_index(ColourRuntime(), ListSource(pairs, "undivided"), tmp_path, dataclasses.replace(SMALL, splits=("test",)))
    snapshot = opened(tmp_path, ColourRuntime())
    expected = sorted(pair.image_id for pair in split_pairs(pairs)["test"])
    assert 0 < len(expected) < 30
    assert [entry.image_id for entry in snapshot.catalog] == expected
    snapshot.close()


def test_shards_are_reused_only_for_the_same_model_and_images(tmp_path):
    pairs = [colour_pair(number) for number in range(30)]

    def embedded(runtime, images):
        before = runtime.embedded
        job = EmbeddingJob(runtime, tmp_path, batch_size=4, shard_size=10)
        outcomes = list(job.run(images))
        vectors = np.concatenate(list(job.vectors()))
        fresh = runtime.embed_images(
            [pair.image.read() for pair, o in zip(images, outcomes, strict=True) if o.embedded]
        )
        np.testing.assert_allclose(vectors, fresh, atol=1e-6)
        return runtime.embedded - before - len(fresh), [outcome.reason for outcome in outcomes]

    runtime = ColourRuntime()
    pairs[12] = bad("torn", picture("red")[:100])
    assert embedded(runtime, pairs)[0] == 29
    again, reasons = embedded(runtime, pairs)
    assert again == 0
    assert reasons[12] == "damaged"
    assert not any(reasons[:12] + reasons[13:])
    pairs[25] = dataclasses.replace(pairs[25], image=ImageBytes(lambda: picture("black", seed=99)))
    assert embedded(runtime, pairs)[0] == 10  # only the shard with the changed image
    assert embedded(runtime, pairs[:12] + pairs[13:])[0] == 19  # an image less moves all that follow it
    assert embedded(ColourRuntime(fingerprint="another"), pairs)[0] == 29
    (tmp_path / "000001.npz").write_bytes(b"torn")
    assert embedded(ColourRuntime(fingerprint="another"), pairs)[0] == 9


def test_images_with_a_known_vector_are_not_embedded_again_wherever_they_stand(tmp_path):
    pairs = [colour_pair(number) for number in range(30)]
    pairs[3] = bad("torn", picture("red")[:100])
    runtime = ColourRuntime()
    first = EmbeddingJob(runtime, tmp_path / "first", batch_size=4, shard_size=10)
    outcomes = list(first.run(pairs))
    vectors = np.concatenate(list(first.vectors()))
    digests = [outcome.digest for outcome in outcomes if outcome.embedded]
    known = dict(zip(digests, vectors, strict=True))
    moved = [colour_pair(77), *reversed(pairs), colour_pair(78)]
    again = EmbeddingJob(runtime, tmp_path / "again", batch_size=4, shard_size=10, known=known.get)
    before = runtime.embedded
    there = list(again.run(moved))
    assert runtime.embedded - before == 2
    assert again.known_images == 29
    assert [outcome.reason for outcome in there if not outcome.embedded] == ["damaged"]
    np.testing.assert_array_equal(np.concatenate(list(again.vectors()))[1:-1], vectors[::-1])


@pytest.mark.parametrize("how", ["full disk", "closed"])
def test_a_job_that_ends_early_leaves_no_thread_that_loads_images(tmp_path, monkeypatch, how):
    """They would go on asking for vectors of an index that its owner has closed."""
    asked: list[str] = []
    job = EmbeddingJob(ColourRuntime(), tmp_path, batch_size=2, shard_size=4, known=asked.append)
    outcomes = job.run([colour_pair(number) for number in range(60)])
    if how == "closed":
        next(outcomes)
        outcomes.close()
    else:
        full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
        monkeypatch.setattr("serving.embedding_job.write_atomic", full)
        with pytest.raises(OSError, match="No space left") as raised:
            list(outcomes)
        assert raised.tb is not None  # whoever handles it still holds all that it went through
    assert 0 < len(asked) < 60
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loading")]


def test_a_build_that_fails_closes_what_is_known_after_its_threads(tmp_path, monkeypatch):
    runtime = ColourRuntime()
    build_index(runtime, ListSource([colour_pair(number) for number in range(30)], "first"), tmp_path, SMALL)
    close, left = Catalog.close, []

    def closed(catalog):
        left.extend(thread.name for thread in threading.enumerate() if thread.name.startswith("loading"))
        close(catalog)

    monkeypatch.setattr(Catalog, "close", closed)
    monkeypatch.setattr("serving.source_entries.entry_of_pair", Mock(side_effect=ZeroDivisionError))
    later = [dataclasses.replace(colour_pair(number), image_id=f"later/{number}") for number in range(60)]
    with pytest.raises(ZeroDivisionError):
        build_index(runtime, ListSource(later, "second"), tmp_path, SMALL)
    assert left == []


def test_a_second_job_embeds_only_what_is_new_wherever_the_rest_has_moved(tmp_path):
    runtime = ColourRuntime()
    pairs = [colour_pair(number) for number in range(30)]
    build_index(runtime, ListSource(pairs, "first"), tmp_path, SMALL)
    moved = [dataclasses.replace(pair, image_id=f"moved/{pair.image_id}") for pair in reversed(pairs[5:])]
    before = runtime.embedded
    report = build_index(runtime, ListSource([colour_pair(99), *moved], "second"), tmp_path, SMALL)
    assert runtime.embedded - before == 1
    assert (report.readable, report.embedded, report.known, report.reused) == (26, 1, 25, 0)
    assert _report(tmp_path)["known"] == 25
    snapshot = opened(tmp_path, runtime)
    expected = {pair.image_id: runtime.embed_images([pair.image.read()])[0] for pair in [colour_pair(99), *moved]}
    for entry in snapshot.catalog:
        np.testing.assert_array_equal(snapshot.vectors[entry.row], expected[entry.image_id].astype(np.float16))
    snapshot.close()
    other = ColourRuntime(fingerprint="another")
    assert build_index(other, ListSource(moved, "second"), tmp_path, SMALL).known == 0
    assert other.embedded == 25


def test_an_image_has_the_same_offset_whether_it_was_embedded_or_is_known(tmp_path):
    runtime = ColourRuntime()
    runtime.hubness = HubnessCorrection(runtime.embed_texts(list(COLOURS)).astype(np.float16), 0.5, 2)
    pairs = [colour_pair(number) for number in range(30)]
    kept = []
    for count in (30, 29):  # another list of images, so that no shard is taken as it is
        report = build_index(runtime, ListSource(pairs[:count], "colours"), tmp_path, SMALL)
        snapshot = opened(tmp_path, runtime)
        kept.append({entry.image_id: np.array(snapshot.vectors[entry.row]) for entry in snapshot.catalog})
        snapshot.close()
    assert report.known == 29
    for image_id, vector in kept[1].items():
        assert vector.shape == (9,)
        np.testing.assert_array_equal(vector, kept[0][image_id])


def test_an_image_that_was_changed_online_is_not_embedded_again(tmp_path):
    runtime = ColourRuntime()
    build_index(runtime, source(5), tmp_path, SMALL)
    data = picture("purple", seed=500)
    vector = runtime.embed_images([data])[0]
    store = EmbeddedStore.open(tmp_path)
    store.apply([Upsert("uploaded", vector, digest=hashlib.sha256(data).hexdigest())])
    store.close()
    before = runtime.embedded
    copy = ImageTextPair("copy", ImageBytes(lambda: data))
    report = build_index(runtime, source(5, [copy]), tmp_path, SMALL)
    assert (runtime.embedded - before, report.known, report.indexed) == (0, 6, 7)
    snapshot = opened(tmp_path, runtime)
    np.testing.assert_array_equal(snapshot.vectors[snapshot.catalog.by_id("copy").row], vector.astype(np.float16))
    snapshot.close()


def test_a_file_is_read_once_for_its_digest_and_its_pixels_and_not_again_while_it_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_memo, "SETTLED_SECONDS", -1.0)  # files of a moment ago count as settled
    pairs = []
    for number in range(12):
        path = tmp_path / f"{number}.png"
        path.write_bytes(picture("red", seed=number))
        pairs.append(ImageTextPair(path.name, ImageFile(path)))
    reads: list[str] = []
    read = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda self, *limits: reads.append(self.path.name) or read(self, *limits))

    def run(fingerprint):
        reads.clear()
        job = EmbeddingJob(ColourRuntime(fingerprint), tmp_path / "shards", batch_size=4, shard_size=5)
        digests = [outcome.digest for outcome in job.run(pairs)]
        assert digests == [hashlib.sha256(pair.image.path.read_bytes()).hexdigest() for pair in pairs]
        return sorted(reads)

    every = sorted(pair.image_id for pair in pairs)
    assert run("a") == every
    assert run("a") == []
    assert run("b") == every, "another model needs the pixels, each file once"
    pairs[7].image.path.write_bytes(picture("blue"))
    assert set(run("b")) == {f"{number}.png" for number in range(5, 10)}, "the shard of the changed file"


def test_batches_are_filled_where_images_are_bad(tmp_path):
    class Seeing(ColourRuntime):
        def embed_pixels(self, pixels):
            sizes.append(len(pixels))
            return super().embed_pixels(pixels)

    sizes: list[int] = []
    pairs = [bad(f"bad-{n}", b"x") if n % 3 == 0 else colour_pair(n) for n in range(15)]
    outcomes = list(EmbeddingJob(Seeing(), tmp_path, batch_size=4, shard_size=100).run(pairs))
    assert [outcome.embedded for outcome in outcomes] == [n % 3 != 0 for n in range(15)]
    assert sizes == [4, 4, 2]


def test_a_job_killed_half_way_repeats_at_most_one_shard(tmp_path):
    others = ListSource([colour_pair(number) for number in range(900, 905)], "others")
    live = build_index(ColourRuntime(), others, tmp_path, SMALL).snapshot
    # 40 images, shards of 10, batches of 5: killed in the sixth batch, two shards and half of the third are done.
    with _driver(tmp_path, 40) as job:
        for batch in range(6):
            assert job.stdout.readline() == "batch\n"
            if batch < 5:
                _go_on(job)
        job.send_signal(signal.SIGKILL)
    assert job.returncode == -signal.SIGKILL
    assert current_name(tmp_path) == live
    opened(tmp_path, ColourRuntime()).close()

    with _driver(tmp_path, 40) as job:
        output, _ = job.communicate("\n" * 20, timeout=60)
    assert re.search(r"embedded 20 reused 2 snapshot", output)
    assert job.returncode == 0
    snapshot = opened(tmp_path, ColourRuntime())
    pairs = sorted((colour_pair(number) for number in range(40)), key=lambda pair: pair.image_id)
    assert [entry.image_id for entry in snapshot.catalog] == [pair.image_id for pair in pairs]
    fresh = ColourRuntime().embed_images([pair.image.read() for pair in pairs])
    np.testing.assert_allclose(snapshot.vectors, fresh, atol=1e-3)
    snapshot.close()


def test_an_interrupted_job_says_so_and_can_go_on(tmp_path):
    with _driver(tmp_path, 40) as job:
        for _ in range(3):
            assert job.stdout.readline() == "batch\n"
            _go_on(job)
        assert job.stdout.readline() == "batch\n"
        job.send_signal(signal.SIGINT)
        _, errors = job.communicate(timeout=60)
    assert job.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "CURRENT").exists()
    with _driver(tmp_path, 40) as job:
        output, _ = job.communicate("\n" * 20, timeout=60)
    assert "embedded 30 reused 1" in output


def test_one_job_writes_at_a_time(tmp_path):
    with only_builder(tmp_path), pytest.raises(SnapshotError, match="running"):
        build_index(ColourRuntime(), source(5), tmp_path, SMALL)
    build_index(ColourRuntime(), source(5), tmp_path, SMALL)


def test_decoding_errors_other_than_an_images_own_stop_the_job(tmp_path):
    def vanish() -> bytes:
        raise OSError(5, "Input/output error", "archive.tar")

    pairs = [colour_pair(1), ImageTextPair("lost", ImageBytes(vanish))]
    with pytest.raises(OSError, match="Input/output error"):
        build_index(ColourRuntime(), ListSource(pairs, "failing"), tmp_path, SMALL)
    assert not (tmp_path / "CURRENT").exists()


@pytest.mark.parametrize(
    ("bundle", "data", "message"),
    [
        ("default", "folder:/nonexistent", "/nonexistent"),
        ("/nonexistent", "folder:{tmp_path}", "a bundle directory"),
    ],
)
def test_refusals_on_the_command_line_exit_2_and_write_nothing(tmp_path, bundle, data, message):
    (tmp_path / "red.png").write_bytes(picture("red"))
    command = [
        sys.executable,
        "-m",
        "serving.build_index",
        "--bundle",
        bundle,
        "--data",
        data.format(tmp_path=tmp_path),
    ]
    result = subprocess.run(
        [*command, "--out", str(tmp_path / "index")], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "index").exists()


def test_help_is_fast_and_imports_no_tensorflow():
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "serving.build_index", "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0
    assert "--shard-size" in result.stdout
    assert not re.search(r"\b(tensorflow|keras|faiss|onnxruntime)\b", result.stderr)


def _skipped(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "skipped.jsonl").read_text("utf-8").splitlines()]


def _report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text("utf-8"))


def _driver(out: Path, count: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "build_driver.py"), str(out), str(count)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def _go_on(job: subprocess.Popen) -> None:
    job.stdin.write("\n")
    job.stdin.flush()
