"""Every data-set format gives the pairs that its files describe, and says where a file is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data.errors import ImageError, SourceError
from data.images import decode
from data.pairs import ImageTextPair, PairSource
from data.sources import SCHEMES, SOURCE_HELP, open_source
from data.sources.image_folder import caption_from_name


def picture(path: Path, colour: tuple[int, int, int] = (200, 30, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path)
    return path


def by_id(source: PairSource) -> dict[str, ImageTextPair]:
    return {pair.image_id: pair for pair in source}


def refused(spec: str, *words: str) -> None:
    """Opening or reading the source is refused, and the message holds every word."""
    with pytest.raises(SourceError) as caught:
        list(open_source(spec))
    for word in words:
        assert word in str(caught.value)


# --- a source of every format, on files as they are published


def make_folder(root: Path) -> str:
    picture(root / "red-bicycle.jpg")
    picture(root / "IMG_1234.JPG")
    picture(root / "cats" / "tabby.png")
    (root / "cats" / "tabby.txt").write_text("A tabby cat\n\n  a cat on a sofa \nA tabby cat\n")
    return f"folder:{root}"


def make_csv(root: Path) -> str:
    picture(root / "img" / "a.jpg")
    picture(root / "img" / "b.jpg")
    (root / "table.csv").write_text(
        'image,caption,group,split,price,sold,code,note\nimg/a.jpg,"a cat, asleep",g1,val,3,true,007,x\n'
        "img/b.jpg,a dog,,train,2.5,false,010,\nimg/a.jpg,one cat,g1,val,3,true,007,y\n"
    )
    return f"csv:{root / 'table.csv'}"


def make_jsonl(root: Path) -> str:
    picture(root / "images" / "a.png")
    picture(root / "images" / "b.png")
    rows = [
        {
            "image": "images/a.png",
            "captions": ["A red square", "a square", "A red  square"],
            "group": "g1",
            "attributes": {"kind": "art", "multi_panel": False, "keywords": ["red", "square"], "none": None},
            "source": "A book (commit 1)",
            "credit": "(credit: somebody)",
            "context": "not visible in the picture",
        },
        {"image": "images/b.png", "captions": []},
    ]
    (root / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "splits.json").write_text(json.dumps({"train": ["images/a.png"], "test": ["images/b.png"]}))
    return f"jsonl:{root}"


def make_coco(root: Path) -> str:
    for name in ("000000000139.jpg", "000000000285.jpg"):
        picture(root / "val2017" / name)
    annotations = {
        "info": {"description": "COCO 2017 Dataset"},
        "licenses": [{"id": 1, "name": "CC BY-NC-SA"}],
        "images": [
            {
                "id": 139,
                "file_name": "000000000139.jpg",
                "width": 8,
                "height": 6,
                "license": 1,
                "coco_url": "http://x/1",
            },
            {"id": 285, "file_name": "000000000285.jpg", "width": 8, "height": 6, "license": 1},
        ],
        "annotations": [
            {"image_id": 139, "id": 1, "caption": "A room with chairs, a table, and a woman in it."},
            {"image_id": 285, "id": 2, "caption": "A big burly grizzly bear."},
            {"image_id": 139, "id": 3, "caption": "A woman stands in the dining area.\n"},
        ],
    }
    (root / "captions_val2017.json").write_text(json.dumps(annotations))
    return f"coco:{root / 'captions_val2017.json'},{root / 'val2017'}"


def make_flickr8k(root: Path) -> str:
    for name in ("1000268201_693b08cb0e.jpg", "1001773457_577c3a7d70.jpg"):
        picture(root / "Images" / name)
    (root / "Flickr8k.token.txt").write_text(
        "1000268201_693b08cb0e.jpg#0\tA child in a pink dress is climbing up a set of stairs .\n"
        "1000268201_693b08cb0e.jpg#1\tA girl going into a wooden building .\n"
        "1001773457_577c3a7d70.jpg#0\tA black dog and a spotted dog are fighting\n"
    )
    return f"flickr:{root / 'Flickr8k.token.txt'},{root / 'Images'}"


def make_flickr30k(root: Path) -> str:
    for name in ("1000092795.jpg", "2199200615.jpg"):
        picture(root / "flickr30k_images" / name)
    (root / "results.csv").write_text(
        "image_name| comment_number| comment\r\n"
        '1000092795.jpg| 0| Two young guys with shaggy hair look at their hands , "hanging out" .\r\n'
        "2199200615.jpg| 3| A dog runs | jumps .\r\n"
        # Published without its second bar.
        "2199200615.jpg| 4   A dog runs across the grass .\r\n"
    )
    return f"flickr:{root / 'results.csv'},{root / 'flickr30k_images'}"


def make_karpathy(root: Path) -> str:
    picture(root / "images" / "val2014" / "COCO_val2014_000000391895.jpg")
    picture(root / "images" / "train2014" / "COCO_train2014_000000000009.jpg")
    images = [
        {
            "filepath": "val2014",
            "filename": "COCO_val2014_000000391895.jpg",
            "sentids": [770337, 771687],
            "imgid": 0,
            "split": "test",
            "sentences": [
                {
                    "tokens": ["a", "man"],
                    "raw": "A man with a red helmet on a small moped.",
                    "imgid": 0,
                    "sentid": 770337,
                },
                {"tokens": ["man"], "raw": "Man riding a motor bike", "imgid": 0, "sentid": 771687},
            ],
            "cocoid": 391895,
        },
        {
            "filepath": "train2014",
            "filename": "COCO_train2014_000000000009.jpg",
            "split": "restval",
            "sentences": [{"raw": "Closeup of bins of food."}],
        },
    ]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return f"karpathy:{root / 'dataset_coco.json'},{root / 'images'}"


MAKERS: dict[str, Callable[[Path], str]] = {
    "folder": make_folder,
    "csv": make_csv,
    "jsonl": make_jsonl,
    "coco": make_coco,
    "flickr8k": make_flickr8k,
    "flickr30k": make_flickr30k,
    "karpathy": make_karpathy,
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


@pytest.mark.parametrize("maker", MAKERS)
def test_no_source_opens_an_image_before_it_is_asked(maker: str, tmp_path: Path) -> None:
    """A file that is no image, or is gone, is met by whoever decodes; the source still lists it."""
    spec = MAKERS[maker](tmp_path)
    expected = [pair.image_id for pair in open_source(spec)]
    for path in tmp_path.rglob("*"):
        if path.suffix.lower() in (".jpg", ".png"):
            path.write_text("not an image")
    pairs = list(open_source(spec))
    assert [pair.image_id for pair in pairs] == expected
    with pytest.raises(ImageError, match="JPEG, PNG, WebP or GIF"):
        decode(pairs[0].image.read())


# --- image folder


def test_folder_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_folder(tmp_path)))
    assert list(pairs) == ["IMG_1234.JPG", "cats/tabby.png", "red-bicycle.jpg"]
    assert pairs["cats/tabby.png"].captions == ("A tabby cat", "a cat on a sofa")
    assert pairs["cats/tabby.png"].attributes == {"folder": "cats"}
    assert pairs["red-bicycle.jpg"].captions == ("red bicycle",)
    assert pairs["IMG_1234.JPG"].captions == ()


@pytest.mark.parametrize(
    ("stem", "caption"),
    [
        ("red-bicycle_against.wall", "red bicycle against wall"),
        ("RedBicycleAtNight", "Red Bicycle At Night"),
        ("HTMLEditor", "HTML Editor"),
        ("sunset (2)", "sunset"),
        ("sunset_01", "sunset"),
        ("apollo 11", "apollo 11"),
        ("a%20red%20car", "a red car"),
        ("犬", "犬"),
        ("красный_велосипед", "красный велосипед"),
        ("été à Paris", "été à Paris"),
        ("facade", "facade"),
        ("my_photo_of_rome", "my photo of rome"),
        ("IMG_1234", ""),
        ("IMG-20190412-WA0003", ""),
        ("PXL_20230101_123456789.MP", ""),
        ("DSC0001", ""),
        ("_DSC1234", ""),
        ("DSCN0042 (1)", ""),
        ("P1010023", ""),
        ("GOPR0123", ""),
        ("20230101_120000", ""),
        ("Screenshot 2023-01-01 at 10.00.00", ""),
        ("WhatsApp Image 2021-05-04 at 10.11.12", ""),
        ("image", ""),
        ("1", ""),
        ("", ""),
        ("1000268201_693b08cb0e", ""),
        ("d41d8cd98f00b204e9800998ecf8427e", ""),
        ("abcdefabcdefabcdefabcdefabcdefab", ""),
        ("550e8400-e29b-41d4-a716-446655440000", ""),
        ("cats_d41d8cd98f", "cats d41d8cd98f"),
    ],
)
def test_file_names_that_say_something(stem: str, caption: str) -> None:
    assert caption_from_name(stem) == caption


def test_folder_skips_hidden_files_and_other_files(tmp_path: Path) -> None:
    make_folder(tmp_path)
    picture(tmp_path / ".hidden.jpg")
    picture(tmp_path / ".thumbnails" / "a.jpg")
    (tmp_path / "notes.pdf").write_text("x")
    assert len(open_source(f"folder:{tmp_path}")) == 3


def test_folder_follows_a_link_once_and_never_loops(tmp_path: Path) -> None:
    picture(tmp_path / "real" / "elsewhere" / "dog.jpg")
    album = tmp_path / "album"
    picture(album / "cat.jpg")
    (album / "linked").symlink_to(tmp_path / "real")
    (album / "self").symlink_to(album)
    (tmp_path / "real" / "back").symlink_to(album)
    assert list(by_id(open_source(f"folder:{album}"))) == ["cat.jpg", "linked/elsewhere/dog.jpg"]


def test_folder_takes_file_names_that_are_not_unicode(tmp_path: Path) -> None:
    try:
        picture(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 table.png")))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (pair,) = open_source(f"folder:{tmp_path}")
    assert pair.image_id == "caf\\xe9 table.png"
    assert decode(pair.image.read()).size == (8, 6)


def test_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    refused(f"folder:{tmp_path}", "none", ".jpg")


def test_folder_names_a_sidecar_that_is_not_utf8(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    refused(f"folder:{tmp_path}", "a.txt", "0xe9", "UTF-8")


# --- CSV and TSV


def test_csv_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_csv(tmp_path)))
    first, second = pairs["img/a.jpg"], pairs["img/b.jpg"]
    assert first.captions == ("a cat, asleep", "one cat")
    assert (first.group, first.split) == ("g1", "validation")
    assert (second.group, second.split) == (None, "train")
    assert first.attributes == {"price": 3.0, "sold": True, "code": "007", "note": ["x", "y"]}
    assert second.attributes == {"price": 2.5, "sold": False, "code": "010"}


@pytest.mark.parametrize(("name", "delimiter"), [("t.tsv", "\t"), ("t.csv", ";"), ("t.csv", "\t"), ("t.csv", "|")])
def test_csv_delimiters_and_column_names(name: str, delimiter: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    rows = [
        ["ID", " Filename ", "Caption_1", "caption_2", "Title", "size"],
        ["x1", "a.jpg", "one", "two", "three", "-4"],
    ]
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    (tmp_path / name).write_text("\ufeff" + buffer.getvalue(), "utf-8")
    (pair,) = open_source(str(tmp_path / name))
    assert pair.image_id == "x1"
    assert pair.captions == ("one", "two", "three")
    assert pair.attributes == {"size": -4}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("caption\na cat\n", ("line 1", "image")),
        ("image,caption,caption\na.jpg,x,y\n", ("line 1", "distinct")),
        ("image,caption\n", ("header only",)),
        ("", ("line 1", "empty file")),
        ("image,caption\na.jpg,x\nb.jpg\n", ("line 3", "2 cells", "1 cells")),
        ("image,caption\na.jpg,x,y\n", ("line 2", "3 cells")),
        ("image,caption\n,x\n", ("line 2", "empty cell")),
        ('image,caption\na.jpg,"never closed\nb.jpg,x\n', ("line 2", "unexpected end")),
        ("image,caption\n../a.jpg,x\n", ("line 2", "below", "..")),
        ("image,caption\n/etc/passwd,x\n", ("line 2", "/etc/passwd")),
        ("image,caption\nhttps://x.org/a.jpg,x\n", ("line 2", "download")),
        ("image,caption,split\na.jpg,x,later\n", ("line 2", "later", "train")),
        ("image,caption,split\na.jpg,x,train\na.jpg,y,test\n", ("line 3", "train and test")),
        ("image,caption,group\na.jpg,x,g\na.jpg,y,h\n", ("line 3", "g and h")),
        ("id,image,caption\n1,a.jpg,x\n1,b.jpg,y\n", ("line 3", "b.jpg")),
    ],
)
def test_csv_errors_name_the_line(table: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(table)
    refused(f"csv:{tmp_path / 't.csv'}", "t.csv", *words)


def test_csv_lines_are_counted_through_multi_line_captions(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('image,caption\na.jpg,"two\nlines"\n../b.jpg,x\n')
    refused(f"csv:{tmp_path / 't.csv'}", "line 4")


def test_csv_odd_numbers_stay_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image,a,b,c,d\nx.jpg,--5,1e5,٣,99999999999999999\n")
    (pair,) = open_source(f"csv:{tmp_path / 't.csv'}")
    assert pair.attributes == {"a": "--5", "b": "1e5", "c": "٣", "d": "99999999999999999"}


# --- JSONL


def test_jsonl_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_jsonl(tmp_path)))
    first = pairs["images/a.png"]
    assert first.captions == ("A red square", "a square")
    assert (first.group, first.split) == ("g1", "train")
    assert first.attributes == {
        "kind": "art",
        "multi_panel": False,
        "keywords": ["red", "square"],
        "source": "A book (commit 1)",
        "credit": "(credit: somebody)",
    }
    assert (pairs["images/b.png"].captions, pairs["images/b.png"].split) == ((), "test")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("{", ("line 1", "JSON object")),
        ("[1]", ("line 1", "JSON object", "[1]")),
        ("\n\n{}", ("line 3", "'image'")),
        ('{"image": 5}', ("line 1", "5")),
        ('{"image": "a.png", "captions": "a cat"}', ("line 1", "list of strings", "a cat")),
        ('{"image": "a.png", "captions": [1]}', ("line 1", "[1]")),
        ('{"image": "a.png", "group": 3}', ("line 1", "'group'", "3")),
        ('{"image": "a.png", "split": "holdout"}', ("line 1", "holdout")),
        ('{"image": "a.png", "attributes": []}', ("line 1", "attributes")),
        ('{"image": "a.png", "attributes": {"deep": {"x": 1}}}', ("line 1", "'deep'")),
        ('{"image": "a.png", "attributes": {"x": NaN}}', ("line 1", "NaN")),
        ('{"image": "a.png", "attributes": {"x": 1e999}}', ("line 1", "'x'")),
        ('{"image": "a.png", "attributes": {"x": {"$timestamp": "2024-05-17"}}}', ("line 1", "'x'", "offset")),
        ('{"image": "\\ud800.png"}', ("line 1", "valid Unicode")),
        ('{"image": "../a.png"}', ("line 1", "..")),
        ('{"image": "/a.png"}', ("line 1", "/a.png")),
        ('{"image": "a\\u0000.png"}', ("line 1", "below")),
        ('{"image": "a.png"}\n{"image": "a.png"}', ("line 2", "line 1")),
        ("[" * 100_000, ("line 1", "JSON")),
        ("", ("empty",)),
    ],
)
def test_jsonl_errors_name_the_line(lines: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text(lines)
    refused(f"jsonl:{tmp_path}", "captions.jsonl", *words)


@pytest.mark.parametrize(
    ("splits", "word"),
    [
        ({"train": ["images/a.png"], "test": ["images/a.png"]}, "images/a.png in train and test"),
        ({"extra": []}, "extra"),
        ({"train": "images/a.png"}, "list of image paths"),
        (["train"], "JSON object"),
    ],
)
def test_jsonl_refuses_contradictory_splits(splits: object, word: str, tmp_path: Path) -> None:
    spec = make_jsonl(tmp_path)
    (tmp_path / "splits.json").write_text(json.dumps(splits))
    refused(spec, "splits.json", word)


# --- COCO, Flickr, Karpathy


def test_coco_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_coco(tmp_path)))
    assert pairs["000000000139.jpg"].captions == (
        "A room with chairs, a table, and a woman in it.",
        "A woman stands in the dining area.",
    )
    assert pairs["000000000139.jpg"].attributes == {"source": "http://x/1"}
    assert pairs["000000000285.jpg"].attributes == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": None}, ("images",)),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, ("annotations[0]", "7")),
        ({"annotations": [{"image_id": 139, "category_id": 1, "bbox": []}]}, ("annotations[0]", "'caption'", "bbox")),
        ({"images": [{"id": 1, "file_name": "../x.jpg"}]}, ("images[0]", "..")),
        ({"images": [{"id": 1, "file_name": "x.jpg"}, {"id": 1, "file_name": "y.jpg"}]}, ("images[1]", "again")),
        ({"images": [3]}, ("images[0]", "object")),
        ({"images": [], "annotations": []}, ("none",)),
    ],
)
def test_coco_errors_name_the_row(change: dict, words: tuple[str, ...], tmp_path: Path) -> None:
    spec = make_coco(tmp_path)
    file = tmp_path / "captions_val2017.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    refused(spec, "captions_val2017.json", *words)


def test_flickr8k_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_flickr8k(tmp_path)))
    assert pairs["1000268201_693b08cb0e.jpg"].captions == (
        "A child in a pink dress is climbing up a set of stairs .",
        "A girl going into a wooden building .",
    )


def test_flickr30k_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_flickr30k(tmp_path)))
    assert pairs["1000092795.jpg"].captions == (
        'Two young guys with shaggy hair look at their hands , "hanging out" .',
    )
    assert pairs["2199200615.jpg"].captions == ("A dog runs | jumps .", "A dog runs across the grass .")


@pytest.mark.parametrize("row", ["no tab here", "a.jpg\tno number", "../a.jpg#0\tx"])
def test_flickr_errors_name_the_line(row: str, tmp_path: Path) -> None:
    spec = make_flickr8k(tmp_path)
    with (tmp_path / "Flickr8k.token.txt").open("a") as file:
        file.write(row + "\n")
    refused(spec, "line 4")


def test_karpathy_pairs(tmp_path: Path) -> None:
    pairs = by_id(open_source(make_karpathy(tmp_path)))
    assert {image_id: pair.split for image_id, pair in pairs.items()} == {
        "val2014/COCO_val2014_000000391895.jpg": "test",
        "train2014/COCO_train2014_000000000009.jpg": "train",
    }
    first = next(iter(pairs.values()))
    assert first.captions == ("A man with a red helmet on a small moped.", "Man riding a motor bike")


def test_karpathy_errors_name_the_row(tmp_path: Path) -> None:
    spec = make_karpathy(tmp_path)
    file = tmp_path / "dataset_coco.json"
    table = json.loads(file.read_text())
    table["images"][1]["sentences"][0] = {"tokens": []}
    file.write_text(json.dumps(table))
    refused(spec, "images[1]", "sentences[0]", "'raw'")


# --- opening by name


def test_plain_paths_are_recognised_by_what_is_there(tmp_path: Path) -> None:
    for maker in ("folder", "jsonl", "csv"):
        spec = MAKERS[maker](tmp_path / maker)
        assert open_source(spec.partition(":")[2]).name == spec


@pytest.mark.parametrize("spec", ["nothing-here", "lmdb:x", "", "folderr:/tmp", "C:\\pictures"])
def test_unknown_names_list_what_is_possible(spec: str) -> None:
    refused(spec, "folder:DIR", "karpathy:", "emoji")


@pytest.mark.parametrize(
    "spec",
    ["folder:", "folder:/no/such/dir", "csv:/no/such.csv", "coco:/no/such.json", "coco:a,b", "emoji:x", "jsonl:/etc"],
)
def test_missing_paths_are_refused(spec: str) -> None:
    refused(spec)


def test_a_file_where_a_directory_belongs_is_refused(tmp_path: Path) -> None:
    file = picture(tmp_path / "a.jpg")
    refused(f"folder:{file}", "directory")
    refused(str(file), "name its format")


def test_a_path_with_commas_opens(tmp_path: Path) -> None:
    root = tmp_path / "a, b,c"
    assert len(open_source(make_coco(root))) == 2


def test_a_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_folder(tmp_path / "Pictures")
    assert len(open_source("folder:~/Pictures")) == 3


def test_help_names_every_scheme() -> None:
    described = {line.split()[0].partition(":")[0] for line in SOURCE_HELP.splitlines() if line.startswith("  ")}
    assert described == set(SCHEMES)


def test_opening_a_source_imports_neither_tensorflow_nor_the_other_sources() -> None:
    code = "import sys; from data.sources import open_source; open_source('emoji'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert {"tensorflow", "data.sources.coco", "data.shards"}.isdisjoint(done.stdout.split())
