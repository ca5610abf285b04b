"""A prepared directory holds every good pair exactly as it came, and refuses to be read when it is not intact."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from data.durable import digest_bytes
from data.errors import SourceError
from data.images import decode
from data.pairs import ImageBytes, ImageFile, ImageRange, ImageTextPair
from data.prepare import REJECTED, PrepareSettings, main, prepare
from data.shards import MANIFEST, ShardWriter, read_manifest, read_shard, write_manifest
from data.sources import open_source
from data.splits import split_pairs

ROWS = 23


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A JSONL data set of 23 images in several formats, with awkward texts."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(ROWS):
        name = f"images/{number:02d}.{('png', 'jpg', 'webp', 'gif')[number % 4]}"
        Image.new("RGB", (5 + number, 4), (number * 10, 50, 200)).save(root / name)
        captions = [f"caption {number}", "ein grüner Ölkanister 🛢", "कैप्शन"][: number % 4]
        row = {"image": name, "captions": captions, "attributes": {"n": number, "list": ["a", "ü"], "half": number / 2}}
        rows.append({**row, "group": f"g{number // 2}", "credit": "(credit: “someone”)"} if number % 3 else row)
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def described(pair: ImageTextPair, *, split: bool = True) -> tuple:
    return (pair.captions, pair.group, dict(pair.attributes), pair.split if split else None, pair.image.read())


def test_every_pair_comes_back_as_it_was(data: Path, tmp_path: Path) -> None:
    source = open_source(f"jsonl:{data}")
    manifest = prepare(source, tmp_path / "out", PrepareSettings(shard_size=4))
    prepared = open_source(str(tmp_path / "out"))
    assert prepared.name == f"prepared:{tmp_path / 'out'}"
    assert len(prepared) == ROWS
    expected = {pair.image_id: described(pair, split=False) for pair in source}
    assert {pair.image_id: described(pair, split=False) for pair in prepared} == expected
    assert {pair.split for pair in prepared} <= {"train", "validation", "test"}
    groups: dict[str, set] = {}
    for pair in prepared:
        groups.setdefault(pair.group or pair.image_id, set()).add(pair.split)
    assert all(len(splits) == 1 for splits in groups.values())
    assert all(shard["images"] <= 4 for shard in manifest["shards"])
    assert sum(shard["images"] for shard in manifest["shards"]) == ROWS
    assert [pair.image_id for pair in prepared] == [pair.image_id for pair in prepared]


def test_pairs_of_a_shard_hold_no_image_bytes(data: Path, tmp_path: Path) -> None:
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    pair = next(iter(open_source(str(tmp_path / "out"))))
    assert isinstance(pair.image, ImageRange)
    path, offset, size = pair.image.path, pair.image.offset, pair.image.size
    assert path.read_bytes()[offset : offset + size] == pair.image.read() == (data / pair.image_id).read_bytes()


def test_splitting_prepared_pairs_reads_no_image(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    pairs = list(open_source(str(tmp_path / "out")))
    assert [pair.digest for pair in pairs] == [digest_bytes(pair.image.read()) for pair in pairs]
    monkeypatch.setattr(ImageRange, "read", lambda *_: pytest.fail("an image was read"))
    splits = split_pairs(pairs)
    assert {pair.image_id: split for split in splits for pair in splits[split]} == {p.image_id: p.split for p in pairs}


def test_tensorflow_reads_the_shards_as_ordinary_examples(data: Path, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings(shard_size=7))
    prepared = {pair.image_id: pair for pair in open_source(str(tmp_path / "out"))}
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("image", "image_id", "attributes", "split")}
    features |= {name: tf.io.VarLenFeature(tf.string) for name in ("captions", "group")}
    shards = sorted(str(path) for path in (tmp_path / "out").glob("*.tfrecord"))
    found = 0
    for record in tf.data.TFRecordDataset(shards):
        example = tf.io.parse_single_example(record, features)
        pair = prepared[example["image_id"].numpy().decode()]
        assert example["image"].numpy() == pair.image.read()
        assert [text.decode() for text in example["captions"].values.numpy()] == list(pair.captions)
        assert [text.decode() for text in example["group"].values.numpy()] == ([pair.group] if pair.group else [])
        assert json.loads(example["attributes"].numpy()) == pair.attributes
        assert example["split"].numpy().decode() == pair.split
        found += 1
    assert found == ROWS


def test_a_large_and_an_empty_text_survive(tmp_path: Path) -> None:
    """Lengths beyond one byte of a varint, and fields that protobuf leaves out when empty."""
    pairs = [
        ImageTextPair("a", ImageBytes(lambda: b""), ("x" * 300, "y" * 70_000), None, {}),
        ImageTextPair("b" * 200, ImageBytes(lambda: b""), (), "", {"k": ""}),
    ]
    images = [b"1" * 300_000, b""]
    with ShardWriter(tmp_path, 10) as writer:
        for pair, image in zip(pairs, images, strict=True):
            writer.write(pair, image, "test")
    manifest = write_manifest(tmp_path, writer.shards, {})
    again = list(read_shard(tmp_path, manifest, manifest["shards"][0]))
    assert [(p.image_id, p.captions, p.group, p.attributes) for p in again] == [
        (p.image_id, p.captions, p.group, p.attributes) for p in pairs
    ]
    assert [pair.image.read() for pair in again] == images


def test_bad_images_are_skipped_and_listed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "images/00.png").write_text("not an image")
    (data / "images/01.jpg").unlink()
    whole = (data / "images/02.webp").read_bytes()
    (data / "images/02.webp").write_bytes(whole[: len(whole) // 2])
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    rows = [json.loads(line) for line in (tmp_path / "out" / REJECTED).read_text().splitlines()]
    assert [(row["image_id"], row["reason"]) for row in rows] == [
        ("images/00.png", "not_an_image"),
        ("images/01.jpg", "missing"),
        ("images/02.webp", "damaged"),
    ]
    assert len(open_source(str(tmp_path / "out"))) == ROWS - 3
    said = capsys.readouterr().err
    assert "1 not_an_image, 1 missing, 1 damaged" in said


def test_no_usable_image_is_an_error_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    for path in (data / "images").iterdir():
        path.write_text("not an image")
    with pytest.raises(SourceError, match=r"none among 23: not_an_image"):
        prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_prescribed_splits_are_kept_and_a_leak_is_refused(data: Path, tmp_path: Path) -> None:
    ids = [pair.image_id for pair in open_source(f"jsonl:{data}")]
    (data / "splits.json").write_text(json.dumps({"test": ids[:2], "train": ids[2:]}))
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    assert {pair.image_id for pair in open_source(str(tmp_path / "out")) if pair.split == "test"} == set(ids[:2])

    (data / "images/00.png").write_bytes((data / "images/08.png").read_bytes())
    with pytest.raises(SourceError, match="across prescribed splits"):
        prepare(open_source(f"jsonl:{data}"), tmp_path / "leaky", PrepareSettings())
    assert not (tmp_path / "leaky").exists()
    prepare(open_source(f"jsonl:{data}"), tmp_path / "again", PrepareSettings(resplit=True))
    splits = {pair.image_id: pair.split for pair in open_source(str(tmp_path / "again"))}
    assert splits[ids[0]] == splits[ids[8]]


def test_the_same_output_is_left_as_it_is(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", f"jsonl:{data}", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert "train" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert main(arguments) == 0
    assert "left as it is" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_two_runs_write_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        prepare(open_source(f"jsonl:{data}"), tmp_path / name, PrepareSettings(seed=3))
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("change", ["seed", "rows", "image", "damage"])
def test_another_output_is_replaced_only_when_told(change: str, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(open_source(f"jsonl:{data}"), out, PrepareSettings())
    settings = PrepareSettings(seed=1) if change == "seed" else PrepareSettings()
    if change == "rows":
        lines = (data / "captions.jsonl").read_text().splitlines(keepends=True)
        (data / "captions.jsonl").write_text("".join(lines[:-1]))
    elif change == "image":
        Image.new("RGB", (90, 90)).save(data / "images/00.png")
    elif change == "damage":
        next(out.glob("train-*.tfrecord")).write_bytes(b"damaged")
    before = (out / MANIFEST).read_bytes()
    with pytest.raises(SourceError, match="--overwrite"):
        prepare(open_source(f"jsonl:{data}"), out, settings)
    assert (out / MANIFEST).read_bytes() == before
    prepare(open_source(f"jsonl:{data}"), out, settings, overwrite=True)
    assert len(list(open_source(str(out)))) == (ROWS - 1 if change == "rows" else ROWS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_other_files_is_never_replaced(overwrite: bool, data: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "wedding.jpg").write_text("precious")
    with pytest.raises(SourceError, match="other files"):
        prepare(open_source(f"jsonl:{data}"), photos, PrepareSettings(), overwrite)
    assert (photos / "wedding.jpg").read_text() == "precious"


def test_an_empty_directory_may_be_filled(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    assert len(open_source(str(tmp_path / "out"))) == ROWS


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def delete(path: Path) -> None:
    path.unlink()


def edit_json(path: Path) -> None:
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))


@pytest.mark.parametrize(
    ("harm", "file", "words"),
    [
        (flip_a_byte, "train-00000.tfrecord", "another content"),
        (shorten, "train-00000.tfrecord", "bytes"),
        (delete, "train-00000.tfrecord", "no such file"),
        (shorten, MANIFEST, "manifest"),
        (edit_json, MANIFEST, "version 2"),
    ],
)
def test_damage_is_refused(harm: object, file: str, words: str, data: Path, tmp_path: Path) -> None:
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    path = tmp_path / "out" / file
    if harm is shorten and file == MANIFEST:
        path.write_text(path.read_text()[:-30])
    else:
        harm(path)  # type: ignore[operator]
    with pytest.raises(SourceError, match=words) as caught:
        list(open_source(f"prepared:{tmp_path / 'out'}"))
    assert "data.prepare" in caught.value.next_step


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"format": "image-text-shards", "version": 1, "shards": [{"file": 1}]}']
)
def test_a_foreign_manifest_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(SourceError, match="manifest of prepared shards"):
        read_manifest(tmp_path)


def test_a_manifest_cannot_point_outside_its_directory(data: Path, tmp_path: Path) -> None:
    prepare(open_source(f"jsonl:{data}"), tmp_path / "out", PrepareSettings())
    shard = tmp_path / "out" / "train-00000.tfrecord"
    shard.rename(tmp_path / shard.name)
    manifest = tmp_path / "out" / MANIFEST
    manifest.write_text(manifest.read_text().replace(shard.name, f"../{shard.name}"))
    with pytest.raises(SourceError, match="outside"):
        list(open_source(str(tmp_path / "out")))


def test_prepared_data_can_be_prepared_again(data: Path, tmp_path: Path) -> None:
    prepare(open_source(f"jsonl:{data}"), tmp_path / "one", PrepareSettings())
    prepare(open_source(str(tmp_path / "one")), tmp_path / "two", PrepareSettings(seed=9, shard_size=3))
    one, two = ({p.image_id: described(p) for p in open_source(str(tmp_path / name))} for name in ("one", "two"))
    assert one == two, "the splits of the first are prescribed to the second"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_refuses_with_exit_code_2_and_a_reason(tmp_path: Path) -> None:
    done = run("--data", "folder:/no/such/place", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "/no/such/place" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_prints_counts_and_nothing_of_its_libraries(data: Path, tmp_path: Path) -> None:
    done = run("--data", data, "--out", tmp_path / "out", "--shard-size", 5)
    assert done.returncode == 0
    said = [re.sub(r"\([\d,.]+ images/s\)", "(N images/s)", line) for line in done.stderr.splitlines()]
    assert said == ["checking images: 23 done (N images/s)", "writing shards: 23 done (N images/s)"]
    counts = [line.replace("│", " ").split()[:2] for line in done.stdout.splitlines() if "MB" in line]
    assert [split for split, _ in counts] == ["train", "validation", "test"]
    assert sum(int(images) for _, images in counts) == ROWS


def test_help_needs_no_tensorflow() -> None:
    code = "import sys, data.prepare, data.pipeline, data.shards, data.splits; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
    assert "karpathy:DATASET" in run("--help").stdout


def test_a_missing_image_file_does_not_stop_the_digest(tmp_path: Path) -> None:
    from data.prepare import pairs_digest

    pair = ImageTextPair("a", ImageFile(tmp_path / "a.png"))
    before = pairs_digest([pair])
    Image.new("L", (3, 3)).save(tmp_path / "a.png")
    assert decode(pair.image.read()).size == (3, 3)
    assert pairs_digest([pair]) != before
