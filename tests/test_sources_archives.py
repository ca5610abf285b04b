"""Hugging Face folders, tar shards and Parquet give their pairs, hold no images, and refuse hostile files."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.errors import ImageError, SourceError
from data.images import ImageLimits, decode
from data.pairs import ImageTextPair, PairSource
from data.prepare import PrepareSettings, pairs_digest, prepare
from data.sources import open_source
from data.sources.webdataset import expand_braces


def encoded(number: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number * 40 % 256, 200 - number % 200, 40)).save(buffer, kind)
    return buffer.getvalue()


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(number))
    return path


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_parquet(path: Path, columns: dict[str, list], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def by_id(spec: str) -> dict[str, ImageTextPair]:
    return {pair.image_id: pair for pair in open_source(spec)}


def refused(spec: str, *words: str) -> None:
    """Opening or reading the source is refused, and the message holds every word."""
    with pytest.raises(SourceError) as caught:
        list(open_source(spec))
    for word in words:
        assert word in str(caught.value)


# --- a data set of every format, as they are published


def make_metadata_folder(root: Path) -> str:
    for split, numbers in {"train": (0, 1), "test": (2,)}.items():
        rows = []
        for number in numbers:
            picture(root / split / "img" / f"{number:04}.png", number)
            row = {"file_name": f"img/{number:04}.png", "text": f"square {number}", "year": 1990 + number}
            rows.append({**row, "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}, "credit": None})
        (root / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"imagefolder:{root}"


def make_class_folder(root: Path) -> str:
    picture(root / "train" / "golden_retriever" / "a.png", 0)
    picture(root / "train" / "n01440764" / "b.png", 1)
    picture(root / "val" / "golden_retriever" / "a.png", 2)
    picture(root / "val" / "c.png", 3)
    return f"imagefolder:{root}"


def make_shards(root: Path) -> str:
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in (2 * shard, 2 * shard + 1):
            row = {"caption": [f"square {number}", "a flat square"], "width": 8, "nsfw": None, "exif": {"make": "x"}}
            members[f"{number:06}.jpg"] = encoded(number, "JPEG")
            members[f"{number:06}.txt"] = f"square\n{number}\n".encode()
            members[f"{number:06}.json"] = json.dumps(row).encode()
            members[f"{number:06}.cls"] = b"7"
        write_tar(root / f"shard-{shard:06}.tar", members)
    return f"webdataset:{root}/shard-{{000000..000001}}.tar"


def make_parquet(root: Path) -> str:
    """Columns and file names as `Dataset.push_to_hub` writes them."""
    for split, numbers in {"train": (0, 1, 2), "validation": (3, 4)}.items():
        columns = {
            "image": [{"bytes": encoded(number), "path": f"{number}.png"} for number in numbers],
            "caption": [[f"square {number}", "a flat square", f"square  {number}"] for number in numbers],
            "title": [f"No. {number}" for number in numbers],
            "year": [1990 + number for number in numbers],
            "score": [0.5, float("nan"), None][: len(numbers)],
            "embedding": [[0.1, 0.2] for _ in numbers],
        }
        write_parquet(root / "data" / f"{split}-00000-of-00001.parquet", columns, row_group_size=2)
    return f"parquet:{root}"


MAKERS: dict[str, Callable[[Path], str]] = {
    "metadata folder": make_metadata_folder,
    "class folder": make_class_folder,
    "shards": make_shards,
    "parquet": make_parquet,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_every_source_keeps_the_contract(maker: str, tmp_path: Path) -> None:
    spec = MAKERS[maker](tmp_path)
    source = open_source(spec)
    pairs = list(source)
    assert isinstance(source, PairSource)
    assert source.name == spec
    assert len(source) == len(pairs) > 1
    assert list(source) == pairs, "the same pairs in the same order every time"
    assert list(open_source(source.name)) == pairs, "its name opens it again"
    assert len({pair.image_id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert decode(pair.image.read()).size == (8, 6)
        json.dumps([pair.image_id, pair.captions, pair.group, dict(pair.attributes), pair.split], allow_nan=False)


# --- imagefolder


def test_imagefolder_reads_metadata_and_splits(tmp_path: Path) -> None:
    pairs = by_id(make_metadata_folder(tmp_path))
    assert {image_id: pair.split for image_id, pair in pairs.items()} == {
        "test/img/0002.png": "test",
        "train/img/0000.png": "train",
        "train/img/0001.png": "train",
    }
    assert pairs["train/img/0001.png"].captions == ("square 1",)
    assert pairs["train/img/0001.png"].attributes == {"year": 1991}
    assert pairs["train/img/0001.png"].image.read() == encoded(1)


def test_imagefolder_reads_a_csv(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text(
        '\ufefffile_name,caption_1,caption_2,group,kind\na.png,"one, two",three,g,art\n\nb.png,four,,,\n', "utf-8"
    )
    pairs = by_id(f"imagefolder:{tmp_path}")
    assert pairs["a.png"].captions == ("one, two", "three")
    assert (pairs["a.png"].group, pairs["a.png"].attributes) == ("g", {"kind": "art"})
    assert (pairs["b.png"].captions, pairs["b.png"].group, pairs["b.png"].attributes) == (("four",), None, {})


def test_imagefolder_without_metadata_takes_class_folders_as_captions(tmp_path: Path) -> None:
    pairs = by_id(make_class_folder(tmp_path))
    assert {image_id: (pair.captions, pair.split) for image_id, pair in pairs.items()} == {
        "train/golden_retriever/a.png": (("golden retriever",), "train"),
        "train/n01440764/b.png": ((), "train"),
        "val/c.png": ((), "validation"),
        "val/golden_retriever/a.png": (("golden retriever",), "validation"),
    }
    assert pairs["train/golden_retriever/a.png"].attributes == {"label": "golden_retriever"}


@pytest.mark.parametrize("short", ["val", "valid", "dev", "validation"])
def test_imagefolder_knows_the_short_names_of_splits_below_a_data_folder(short: str, tmp_path: Path) -> None:
    picture(tmp_path / "data" / "train" / "cat" / "a.png")
    picture(tmp_path / "data" / short / "cat" / "b.png")
    pairs = by_id(f"imagefolder:{tmp_path}")
    assert [pair.split for pair in pairs.values()].count("validation") == 1
    assert all(pair.captions == ("cat",) for pair in pairs.values())


def test_one_split_alone_is_not_prescribed(tmp_path: Path) -> None:
    """All images of a data set in `train` would leave none to validate on."""
    picture(tmp_path / "folder" / "train" / "cat" / "a.png")
    write_tar(tmp_path / "shards" / "train-0000.tar", {"a.png": encoded()})
    write_parquet(tmp_path / "tables" / "train-0000.parquet", {"image": [encoded()]})
    specs = [f"imagefolder:{tmp_path}/folder", f"webdataset:{tmp_path}/shards", f"parquet:{tmp_path}/tables"]
    assert [pair.split for spec in specs for pair in open_source(spec)] == [None] * 3


@pytest.mark.parametrize(
    ("name", "table", "words"),
    [
        ("metadata.jsonl", "{", ("line 1", "JSON object")),
        ("metadata.jsonl", "[1]", ("line 1", "JSON object")),
        ("metadata.jsonl", "\n{}", ("line 2", "'file_name'")),
        ("metadata.jsonl", '{"file_name": "../a.png"}', ("line 1", "..")),
        ("metadata.jsonl", '{"file_name": "/etc/passwd"}', ("line 1", "/etc/passwd")),
        ("metadata.jsonl", '{"file_name": "https://x.org/a.png"}', ("line 1", "download")),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 5}', ("line 1", "'text'", "5")),
        ("metadata.jsonl", '{"file_name": "a.png", "split": "later"}', ("line 1", "later")),
        ("metadata.jsonl", '{"file_name": "a.png", "group": [1]}', ("line 1", "'group'")),
        ("metadata.jsonl", '{"file_name": "a.png"}\n{"file_name": "./a.png"}', ("line 2", "again")),
        ("metadata.jsonl", "", ("none",)),
        ("metadata.csv", "image,text\na.png,x\n", ("line 1", "file_name")),
        ("metadata.csv", "file_name,text\na.png\n", ("line 2", "1 cells")),
        ("metadata.csv", 'file_name,text\na.png,"open\n', ("line 2", "unexpected end")),
        ("metadata.csv", "", ("none",)),
    ],
)
def test_imagefolder_errors_name_the_line(name: str, table: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(table)
    refused(f"imagefolder:{tmp_path}", name, *words)


def test_imagefolder_refuses_what_it_cannot_tell_apart_or_read(tmp_path: Path) -> None:
    refused(f"imagefolder:{tmp_path}", "metadata.jsonl", "neither")
    refused(f"imagefolder:{picture(tmp_path / 'a.png')}", "directory")
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\na.png,caf\xe9\n")
    refused(f"imagefolder:{tmp_path}", "UTF-8", "0xe9")
    (tmp_path / "metadata.jsonl").write_text("{}")
    refused(f"imagefolder:{tmp_path}", "one metadata file")


def test_fields_that_no_attribute_can_hold_are_left_out(tmp_path: Path) -> None:
    row = '{"file_name": "a.png", "text": null, "half": "\\ud800", "far": 1e999, "tags": ["x", "y"], "mixed": ["x", 1]}'
    (tmp_path / "metadata.jsonl").write_text(row)
    (pair,) = open_source(f"imagefolder:{tmp_path}")
    assert (pair.captions, pair.attributes) == ((), {"tags": ["x", "y"]})


# --- WebDataset


def test_webdataset_joins_the_members_of_a_key(tmp_path: Path) -> None:
    pairs = by_id(make_shards(tmp_path))
    assert list(pairs) == [f"shard-00000{n // 2}/{n:06}" for n in range(4)]
    third = pairs["shard-000001/000002"]
    assert third.captions == ("square 2", "a flat square")
    assert third.attributes == {"width": 8}
    assert third.image.read() == encoded(2, "JPEG")


def test_webdataset_takes_a_directory_or_one_file(tmp_path: Path) -> None:
    make_shards(tmp_path)
    assert len(open_source(f"webdataset:{tmp_path}")) == 4
    assert list(by_id(f"webdataset:{tmp_path / 'shard-000001.tar'}"))[0] == "shard-000001/000002"


def test_webdataset_names_follow_its_rule_of_the_first_dot(tmp_path: Path) -> None:
    members = {
        "./a.b/x.JPG": encoded(),
        "./a.b/x.seg.png": b"a mask, another part",
        "./a.b/._x.jpg": b"hidden",
        "./a.b/README": b"no part",
        "./a.b/only.txt": b"no image",
    }
    (pair,) = open_source(f"webdataset:{write_tar(tmp_path / 's.tar', members)}")
    assert pair.image_id == "s/a.b/x"
    assert pair.captions == ()
    assert pair.image.read() == encoded()


def test_webdataset_prescribes_splits_by_folder_or_name_of_the_shard(tmp_path: Path) -> None:
    for name in ("train/0.tar", "val/0.tar", "set-test-000.tar", "other.tar"):
        write_tar(tmp_path / name, {"a.png": encoded()})
    splits = {image_id: pair.split for image_id, pair in by_id(f"webdataset:{tmp_path}").items()}
    assert splits == {"other/a": None, "set-test-000/a": "test", "train/0/a": "train", "val/0/a": "validation"}
    assert list(by_id(f"webdataset:{tmp_path}/{{train,val}}/0.tar")) == ["train/0/a", "val/0/a"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..10}.tar", ["a-08.tar", "a-09.tar", "a-10.tar"]),
        ("a-{9..10}.tar", ["a-9.tar", "a-10.tar"]),
        ("{b,c}-{0..1}", ["b-0", "b-1", "c-0", "c-1"]),
    ],
)
def test_braces_expand_as_in_a_shell(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{3..1}", "{x}", "{}", "{0..999999999}", "{0..9999}{0..9999}"])
def test_senseless_and_endless_patterns_are_refused(pattern: str, tmp_path: Path) -> None:
    refused(f"webdataset:{tmp_path}/{pattern}", pattern)


def test_webdataset_names_the_first_missing_shard(tmp_path: Path) -> None:
    make_shards(tmp_path)
    refused(f"webdataset:{tmp_path}/shard-{{000000..000004}}.tar", "3 of 5 missing", "shard-000002.tar")
    refused(f"webdataset:{tmp_path}/none.tar", "1 of 1 missing")
    (tmp_path / "empty").mkdir()
    refused(f"webdataset:{tmp_path}/empty", "*.tar")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"../../etc/a.jpg": b"x"}, ("..", "relative")),
        ({"/etc/a.jpg": b"x"}, ("/etc/a.jpg", "relative")),
        ({"a.jpg": b"x", "a.png": b"x"}, ("member a.png", "one image")),
        ({"a.jpg": b"x", "a.json": b"{"}, ("a.json", "JSON object")),
        ({"a.jpg": b"x", "a.json": b"[]"}, ("a.json", "JSON object")),
        ({"a.jpg": b"x", "a.json": b'{"caption": 3}'}, ("member a", "'caption'", "3")),
        ({"a.jpg": b"x", "a.txt": b"caf\xe9"}, ("a.txt", "0xe9")),
        ({"a.jpg": b"x", "a.txt": bytes(2_000_000)}, ("a.txt", "2,000,000")),
        ({"a.txt": b"x"}, ("none", "KEY.jpg")),
        ({}, ("none",)),
    ],
)
def test_webdataset_refuses_hostile_and_malformed_members(
    members: dict[str, bytes], words: tuple[str, ...], tmp_path: Path
) -> None:
    refused(f"webdataset:{write_tar(tmp_path / 's.tar', members)}", "s.tar", *words)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_webdataset_refuses_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        member = tarfile.TarInfo("a.jpg")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    refused(f"webdataset:{tmp_path}/s.tar", "member a.jpg", "plain file")


def test_webdataset_refuses_a_tar_cut_at_any_block(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "s.tar", {"a.jpg": encoded(), "b.jpg": bytes(1500), "c.jpg": encoded()}).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # the data ends here, and two blocks of zeros must follow
    for length in [*range(0, end + 1, 512), *range(300, end, 512)]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        refused(f"webdataset:{tmp_path}/cut.tar", "cut.tar")
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])
    assert len(open_source(f"webdataset:{tmp_path}/cut.tar")) == 3


def test_webdataset_refuses_a_damaged_header_in_the_middle(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": encoded(), "b.jpg": encoded()})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"b.jpg") + 100] ^= 0xFF
    path.write_bytes(damaged)
    refused(f"webdataset:{path}", "s.tar", "end mark")


def test_webdataset_says_how_to_treat_a_compressed_shard(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w:gz") as archive:
        archive.add(picture(tmp_path / "a.jpg"), "a.jpg")
    refused(f"webdataset:{tmp_path}/s.tar", "uncompressed tar", "unpacked")


def test_a_shard_that_changes_after_indexing_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", {"a.jpg": encoded(), "a.txt": b"a square"})
    source = open_source(f"webdataset:{path}")
    (pair,) = source
    os.truncate(path, 520)
    with pytest.raises(ImageError, match="the end of"):
        pair.image.read()
    with pytest.raises(SourceError, match="has changed"):
        list(source)


def test_webdataset_refuses_a_huge_member_before_it_takes_memory(tmp_path: Path) -> None:
    (pair,) = open_source(f"webdataset:{write_tar(tmp_path / 's.tar', {'a.jpg': bytes(3_000_000)})}")
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="3,000,000 bytes"):
            pair.image.read(ImageLimits(max_bytes=1_000_000))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_digest_of_pairs_sees_another_image_behind_the_same_caption(tmp_path: Path) -> None:
    spec = f"webdataset:{tmp_path}/s.tar"
    write_tar(tmp_path / "s.tar", {"a.jpg": bytes(1000), "a.txt": b"a square"})
    before = pairs_digest(open_source(spec))
    write_tar(tmp_path / "s.tar", {"a.jpg": bytes(1001), "a.txt": b"a square"})
    assert pairs_digest(open_source(spec)) != before


def test_listing_shards_does_not_hold_their_images(tmp_path: Path) -> None:
    members = {f"{number:04}.{part}": os.urandom(size) for number in range(200) for part, size in [("jpg", 100_000)]}
    source_file = write_tar(tmp_path / "s.tar", members)
    members.clear()
    tracemalloc.start()
    try:
        pairs = list(open_source(f"webdataset:{source_file}"))
        assert len(pairs) == 200
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "of 20 MB of images"
    finally:
        tracemalloc.stop()


# --- Parquet


def test_parquet_pairs_as_hugging_face_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = by_id(make_parquet(tmp_path))
    assert {image_id: pair.split for image_id, pair in pairs.items()} == {
        **{f"data/train-00000-of-00001/{row}": "train" for row in range(3)},
        **{f"data/validation-00000-of-00001/{row}": "validation" for row in range(2)},
    }
    last = pairs["data/train-00000-of-00001/2"]
    assert last.captions == ("square 2", "a flat square", "No. 2")
    assert last.attributes == {"year": 1992, "path": "2.png"}
    assert pairs["data/train-00000-of-00001/0"].attributes["score"] == 0.5
    assert last.image.read() == encoded(2)
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_parquet_of_plain_bytes(kind: pa.DataType, tmp_path: Path) -> None:
    columns = {"id": [7, 8], "Image": pa.array([encoded(0), encoded(1)], kind), "text": ["one", None]}
    pairs = by_id(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}")
    assert {image_id: pair.captions for image_id, pair in pairs.items()} == {"7": ("one",), "8": ()}
    assert pairs["8"].image.read() == encoded(1)


def test_parquet_of_bytes_alone(tmp_path: Path) -> None:
    pairs = by_id(f"parquet:{write_parquet(tmp_path / 't.parquet', {'image': [encoded(n) for n in range(3)]})}")
    assert [pair.image.read() for pair in pairs.values()] == [encoded(n) for n in range(3)]
    assert list(pairs) == ["t/0", "t/1", "t/2"]


def test_parquet_of_paths_beside_the_table(tmp_path: Path) -> None:
    picture(tmp_path / "img" / "a.png", 5)
    dictionary = pa.array(["art"]).dictionary_encode()
    columns = {"image_path": ["img/a.png"], "caption": ["a square"], "group": [3], "kind": dictionary}
    (pair,) = open_source(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}")
    assert (pair.image_id, pair.captions, pair.group) == ("img/a.png", ("a square",), "3")
    assert pair.attributes == {"kind": "art"}
    assert pair.image.read() == encoded(5)


def test_parquet_times_are_attributes_in_utc(tmp_path: Path) -> None:
    noon = datetime(2024, 5, 17, 12, tzinfo=UTC)
    columns = {
        "image": [encoded(0)],
        "zoned": pa.array([noon], pa.timestamp("ms", "America/New_York")),
        "local": pa.array([noon.replace(tzinfo=None)], pa.timestamp("s")),
        "fine": pa.array([1_715_947_200_000_000_999], pa.timestamp("ns", "UTC")),
        "day": pa.array([noon.date()]),
        "none": pa.array([None], pa.timestamp("us")),
    }
    (pair,) = open_source(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}")
    midnight = noon.replace(hour=0)
    assert pair.attributes == {"zoned": noon, "local": noon, "fine": noon, "day": midnight}


def test_a_parquet_time_beyond_the_calendar_is_refused(tmp_path: Path) -> None:
    columns = {"image": [encoded(0)], "far": pa.array([10**12], pa.timestamp("s"))}
    with pytest.raises(SourceError):
        list(open_source(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}"))


def test_parquet_structs_without_bytes_point_to_files_beside_the_table(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 6)
    images = [{"bytes": None, "path": path} for path in ("a.png", None, "../secret.png", "gone.png")]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    picture(tmp_path.parent / "secret.png")
    columns = {"image": pa.array(images, kind)}
    good, null, escaping, gone = open_source(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}")
    assert good.image.read() == encoded(6)
    for pair in (null, escaping, gone):
        with pytest.raises(ImageError) as caught:
            pair.image.read()
        assert caught.value.reason == "missing"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"caption": ["x"]}, ("a column of images", "caption")),
        ({"image": [3]}, ("'image'", "int64")),
        ({"image": [{"path": "a.png"}]}, ("'image'", "bytes")),
        ({"image": [b"x", b"y"], "id": ["a", "a"]}, ("row 1", "a again")),
        ({"image": [b"x"], "id": [0.5]}, ("row 0", "'id'")),
        ({"image": ["a.png", "../b.png"]}, ("row 1", "..")),
        ({"image": ["a.png", None]}, ("row 1", "'image'")),
        ({"image": [b"x"], "text": [3]}, ("row 0", "'text'", "3")),
        ({"image": [b"x"], "split": ["later"]}, ("row 0", "later")),
        ({"image": pa.array([], pa.binary())}, ("rows in", "none")),
    ],
)
def test_parquet_errors_name_the_row(columns: dict[str, list], words: tuple[str, ...], tmp_path: Path) -> None:
    refused(f"parquet:{write_parquet(tmp_path / 't.parquet', columns)}", "t.parquet", *words)


def test_parquet_refuses_what_is_none_and_what_is_cut_short(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": [encoded(n) for n in range(20)], "text": ["x"] * 20})
    whole = path.read_bytes()
    for data in (b"", b"PAR1", b"not a table at all", whole[: len(whole) // 2], whole[200:]):
        path.write_bytes(data)
        refused(f"parquet:{path}", "t.parquet")
    refused(f"parquet:{tmp_path.parent / 'none.parquet'}", "nothing at")


def test_a_damaged_page_of_images_costs_the_images_and_not_the_listing(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": [encoded(n) for n in range(3)], "text": ["x"] * 3})
    damaged = bytearray(path.read_bytes())
    damaged[4:24] = b"\xff" * 20  # the first page's header
    path.write_bytes(damaged)
    pairs = list(open_source(f"parquet:{path}"))
    assert [pair.captions for pair in pairs] == [("x",)] * 3
    for pair in pairs:
        with pytest.raises(ImageError):
            pair.image.read()


def test_parquet_images_come_right_in_any_order_and_from_threads(tmp_path: Path) -> None:
    images = [f"image {number}".encode() for number in range(600)]
    for file, start in (("a", 0), ("b", 300)):
        columns = {"image": images[start : start + 300]}
        write_parquet(tmp_path / f"{file}.parquet", columns, row_group_size=100)
    pairs = list(open_source(f"parquet:{tmp_path}"))
    scattered = [number * 211 % 600 for number in range(600)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: pair.image.read(), pairs)) == images
    assert [pairs[number].image.read() for number in scattered] == [images[number] for number in scattered]


def test_parquet_never_holds_a_row_group_of_images(tmp_path: Path) -> None:
    """Every row in one group, as pandas writes them; its pages are what cannot be divided."""
    count, size = 600, 100_000
    columns = {"image": [os.urandom(size) for _ in range(count)], "text": ["a caption"] * count}
    path = write_parquet(tmp_path / "t.parquet", columns, compression="none", write_batch_size=16)
    columns.clear()
    assert pq.read_metadata(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    pairs, held = [], 0
    for pair in open_source(f"parquet:{path}"):
        pairs.append(pair)
        held = max(held, pa.total_allocated_bytes() - before)
    assert held < 3_000_000, "listing reads no image"
    for pair in pairs:
        assert len(pair.image.read()) == size
        held = max(held, pa.total_allocated_bytes() - before)
    assert 0 < held < count * size // 2


# --- through the whole of preparation


@pytest.mark.parametrize("maker", ["parquet", "shards"])
def test_prepared_pairs_are_those_of_the_archive(maker: str, tmp_path: Path) -> None:
    source = open_source(MAKERS[maker](tmp_path / "source"))
    prepare(source, tmp_path / "out", PrepareSettings())
    expected = {pair.image_id: pair for pair in source}
    prepared = by_id(f"prepared:{tmp_path}/out")
    assert set(prepared) == set(expected)
    for image_id, pair in prepared.items():
        wanted = expected[image_id]
        assert (pair.captions, pair.attributes, pair.group) == (wanted.captions, wanted.attributes, wanted.group)
        assert pair.image.read() == wanted.image.read()
        assert wanted.split in (None, pair.split)


def test_other_formats_do_not_import_pyarrow(tmp_path: Path) -> None:
    spec = make_shards(tmp_path)
    code = "import sys; from data.sources import open_source; list(open_source(sys.argv[1])); print(*sys.modules)"
    command = [sys.executable, "-c", code, spec]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert {"pyarrow", "tensorflow", "data.sources.parquet"}.isdisjoint(done.stdout.split())
