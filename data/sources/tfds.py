"""Data sets that TensorFlow Datasets prepared on disk, read without it: the features' description, then TFRecords."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.console import say
from data.errors import SourceError
from data.pairs import ImageRange, ImageTextPair
from data.sources.image_folder import caption_from_name
from data.sources.rows import SPLIT_NAMES, holds_captions, malformed, pair_of, read_json, read_text
from data.tf_records import Feature, parse_example, read_records

INFO, FEATURES = "dataset_info.json", "features.json"
PREPARE_AGAIN = "prepare it again with TensorFlow Datasets"
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"

_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[^:@/]+))?(?::(?P<version>[\d.]+))?(?:@(?P<directory>.+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_MAX_DEPTH = 20


@dataclass(frozen=True)
class _Column:
    """One value of the examples: its name with slashes, what it is, and whether an example has a list of them."""

    name: str
    kind: str  # "image", "text", "label", "number" or "truth"
    many: bool
    labels: tuple[str, ...] = ()


class Tfds:
    """`tfds:NAME[/CONFIG][:VERSION][@DATA_DIR]`, or the directory of one version: what `tfds build` has written.

    DATA_DIR is TFDS's own by default (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`), VERSION the newest there. The image
    is the feature `image`, else the first one. Text features called `caption`, `captions`, `text` or `title`, also as
    lists and in nested ones such as `captions/text`, are captions; where there is none, the name of the class is.
    Other texts, numbers and class names are attributes. Splits called train, validation and test prescribe them, unless
    there is one only. `image_id` is the split and the number of the example. Nothing is downloaded.
    Format: https://www.tensorflow.org/datasets/external_tfrecord
    """

    def __init__(self, spec: Path) -> None:
        self.directory = _find(str(spec))
        self._spec = spec
        info = read_json(self.directory / INFO)
        file_format = info.get("fileFormat") or "tfrecord"
        if file_format != "tfrecord":
            next_step = 'prepare it again with file_format="tfrecord"'
            raise SourceError(f"TFRecord files in {self.directory}", f"{file_format!r} files", next_step)
        self._splits = [_Split(self.directory, info, split) for split in _dicts(info.get("splits"))]
        self._columns = list(_columns(read_json(self.directory / FEATURES), self.directory))
        self._image = _image_column(self._columns, self.directory)
        named = {SPLIT_NAMES[split.name] for split in self._splits if split.name in SPLIT_NAMES}
        self._prescribes = len(named) > 1
        if not len(self):
            raise SourceError(f"examples in {self.directory}", "none", PREPARE_AGAIN)

    @property
    def name(self) -> str:
        """`tfds:NAME…` as it was given."""
        return f"tfds:{self._spec}"

    def __len__(self) -> int:
        """How many images there are."""
        return sum(split.examples for split in self._splits)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the files."""
        for split in self._splits:
            prescribed = SPLIT_NAMES.get(split.name) if self._prescribes else None
            number = 0
            for path, length in split.files:
                first = number
                for start, record in _records(path):
                    place = f"{path}, record {number - first}"
                    yield self._pair(f"{split.name}/{number}", path, start, record, place, prescribed)
                    number += 1
                if number - first != length:
                    raise malformed(str(path), f"{length:,} records", f"{number - first:,}", PREPARE_AGAIN)

    def _pair(
        self, image_id: str, path: Path, start: int, record: bytes, place: str, split: str | None
    ) -> ImageTextPair:
        try:
            example = parse_example(record)
            values = {column: _value(record, example.get(column.name), column) for column in self._columns}
        except ValueError as error:
            raise malformed(place, "a tf.train.Example", f"{error}", PREPARE_AGAIN) from None
        spans = example[self._image.name].spans if self._image.name in example else []
        if len(spans) != 1:
            raise malformed(place, f"one image {self._image.name!r}", f"{len(spans)}", PREPARE_AGAIN)
        captions: list[str] = []
        row: dict[str, Any] = {}
        for column, value in values.items():
            if value is None:
                continue
            if column.kind == "text" and holds_captions(column.name.rpartition("/")[2].lower()):
                captions += value if isinstance(value, list) else [value]
            else:
                row[column.name] = value
        if not captions:
            captions = [caption_from_name(label) for label in _class_names(values)]
        (first, last) = spans[0]
        image = ImageRange(path, start + first, last - first)
        return pair_of(image_id, image, row, place, split, captions)


def _class_names(values: dict[_Column, Any]) -> Iterator[str]:
    """The names of an example's own classes; those in lists are of its parts."""
    for column, value in values.items():
        if column.kind == "label" and isinstance(value, str):
            yield value


class _Split:
    """The files of one split and how many examples each has."""

    def __init__(self, directory: Path, info: dict[str, Any], split: dict[str, Any]) -> None:
        place = f"{directory / INFO}"
        self.name = str(split.get("name", ""))
        try:
            lengths = [int(length) for length in split.get("shardLengths", [])]
        except (TypeError, ValueError):
            raise malformed(place, "numbers in shardLengths", split.get("shardLengths"), PREPARE_AGAIN) from None
        if not self.name or min(lengths, default=0) < 0:
            raise malformed(place, "splits with a name and lengths of shards", split, PREPARE_AGAIN)
        self.examples = sum(lengths)
        self.files = []
        for number, length in enumerate(lengths):
            parts = {
                "DATASET": str(info.get("name", "")),
                "SPLIT": self.name,
                "FILEFORMAT": "tfrecord",
                "SHARD_INDEX": f"{number:05d}",
                "NUM_SHARDS": f"{len(lengths):05d}",
                "SHARD_X_OF_Y": f"{number:05d}-of-{len(lengths):05d}",
            }
            template = split.get("filepathTemplate") or TEMPLATE
            file = re.sub(r"\{([A-Z_]+)\}", lambda found: parts.get(found[1], found[0]), str(template))  # noqa: B023
            if Path(file).name != file or "\0" in file:
                raise malformed(place, "names of files beside it", file, PREPARE_AGAIN)
            if not (directory / file).is_file():
                raise SourceError(f"the file {directory / file}", "none", PREPARE_AGAIN)
            self.files.append((directory / file, length))


def _find(spec: str) -> Path:
    """The directory of one version."""
    path = Path(spec).expanduser()
    if (path / FEATURES).is_file():
        return path
    parts = _NAME.fullmatch(spec)
    if parts is None:
        raise SourceError("tfds:NAME, NAME/CONFIG:VERSION or NAME@DATA_DIR", f"tfds:{spec}", "correct the name")
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = Path(parts["directory"] or default).expanduser()
    wanted = f"{parts['name']}" + (f"/{parts['config']}" if parts["config"] else "")
    found = [path for path in _versions(root / parts["name"]) if parts["config"] in (None, path.parent.name)]
    found = [path for path in found if parts["version"] in (None, path.name)]
    if not found:
        wanted += f":{parts['version']}" if parts["version"] else ""
        next_step = (
            f"prepare it first, in an environment with tensorflow-datasets: tfds build {wanted} --data_dir {root} "
            "(nothing is downloaded here)"
        )
        raise SourceError(f"{wanted} as TensorFlow Datasets prepared it in {root}", "nothing of that name", next_step)
    configs = sorted({path.parent.name for path in found})
    if len(configs) > 1:
        raise SourceError(f"tfds:{parts['name']}/CONFIG", f"the configs {', '.join(configs)}", "name one of them")
    return max(found, key=lambda path: tuple(map(int, path.name.split("."))))


def _versions(directory: Path) -> list[Path]:
    """Directories of versions, directly below or in one for each config."""
    below = [path for pattern in ("*", "*/*") for path in sorted(directory.glob(pattern))]
    return [path for path in below if _VERSION.fullmatch(path.name) and (path / FEATURES).is_file()]


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _columns(feature: dict[str, Any], directory: Path, name: str = "", many: bool = False) -> Iterator[_Column]:
    """What can be read of a feature and those in it; arrays, boxes and lists of lists cannot."""
    if name.count("/") > _MAX_DEPTH:
        raise malformed(str(directory / FEATURES), f"at most {_MAX_DEPTH} nested features", "more", PREPARE_AGAIN)
    inner = _dict(feature.get("featuresDict")).get("features")
    if isinstance(inner, dict):
        for key, each in inner.items():
            yield from _columns(_dict(each), directory, f"{name}/{key}" if name else key, many)
    elif "sequence" in feature:
        if not many:
            yield from _columns(_dict(_dict(feature["sequence"]).get("feature")), directory, name, True)
    elif "image" in feature and not many:
        yield _Column(name, "image", many)
    elif "text" in feature:
        yield _Column(name, "text", many)
    elif "classLabel" in feature:
        path = directory / f"{name.replace('/', '-')}.labels.txt"
        yield _Column(name, "label", many, tuple(read_text(path).splitlines()) if path.is_file() else ())
    elif "tensor" in feature and not _dict(_dict(feature["tensor"]).get("shape")).get("dimensions"):
        kind = str(_dict(feature["tensor"]).get("dtype"))
        yield _Column(name, {"string": "text", "bool": "truth"}.get(kind, "number"), many)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _image_column(columns: list[_Column], directory: Path) -> _Column:
    images = [column for column in columns if column.kind == "image"]
    if not images:
        names = ", ".join(column.name for column in columns) or "none"
        raise SourceError(f"an image feature in {directory / FEATURES}", f"features {names}", "choose another data set")
    chosen = next((column for column in images if column.name.rpartition("/")[2] == "image"), images[0])
    if len(images) > 1:
        say(f"{directory}: the image is {chosen.name!r}; left out {', '.join(c.name for c in images if c != chosen)}")
    return chosen


def _value(record: bytes, feature: Feature | None, column: _Column) -> Any:
    """A feature as Python values; None where there is none, or for an image."""
    if feature is None or column.kind == "image":
        return None
    values: list[Any] = [record[slice(*span)].decode() for span in feature.spans] or feature.floats or feature.ints
    if column.kind == "truth":
        values = [bool(value) for value in values]
    elif column.kind == "label":
        # -1 stands for an example whose class is not told.
        values = [column.labels[value] if value < len(column.labels) else value for value in values if value >= 0]
    if column.many:
        return values
    return values[0] if values else None


def _records(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        yield from read_records(path)
    except (OSError, ValueError) as error:
        raise malformed(str(path), "a TFRecord file", f"{error}", PREPARE_AGAIN) from None
