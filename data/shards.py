"""Sharded TFRecords of image–text pairs with a JSON manifest; knows no source and decides no split.

Each record is a `tf.train.Example` of bytes features `image` (encoded, as it came), `image_id`, `captions`, `group`,
`attributes` (JSON), `split`, `sha256` (of the image) and, where captions have weights, `caption_weights` (as text), so
any TensorFlow program can read it. Reading here needs no TensorFlow: records are walked in place, and an image is read
from the middle of its shard when it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.attributes import attributes_from_json, attributes_to_json
from data.durable import canonical_json, changed_files, directory_digests, sync_path, write_json
from data.errors import SourceError
from data.pairs import ImageRange, ImageTextPair
from data.quiet_tensorflow import os_errors
from data.tf_records import parse_example, read_records

FORMAT = "image-text-shards"
VERSION = 1
MANIFEST = "manifest.json"
PART = ".part"  # at the end of the name of a shard that is being written


class ShardWriter:
    """Appends pairs to `SPLIT-NNNNN.tfrecord` files of at most `shard_size` images each; a context manager.

    A shard gets its name when it is complete and on the disk. Those that a killed run had finished are in `finished`:
    pairs that belong to them (`is_written`) are passed over by `skip`, and the same files come out.
    """

    def __init__(self, directory: Path, shard_size: int) -> None:
        if shard_size < 1:
            raise ValueError(f"expected a shard size of at least 1; received {shard_size}")
        self.directory = directory
        self.shard_size = shard_size
        self.shards: list[dict[str, Any]] = []  # {"file", "split", "images"}
        self.finished = frozenset(path.name for path in directory.glob("*.tfrecord"))
        for path in directory.glob(f"*{PART}"):
            path.unlink()
        self._open: dict[str, tuple[Any, dict[str, Any]]] = {}  # split → (writer or None, its entry of `shards`)

    def is_written(self, split: str, number: int) -> bool:
        """Whether a finished shard holds the image that is `number` (from 0) in its split."""
        return _shard_name(split, number // self.shard_size) in self.finished

    def write(self, pair: ImageTextPair, image: bytes, split: str) -> None:
        """Append one pair; `image` is its encoded image."""
        writer, entry = self._open.get(split) or self._start(split)
        with os_errors(self.directory / entry["file"]):
            writer.write(_example(pair, image, split))
        self._count(split, entry)

    def skip(self, split: str) -> None:
        """Count a pair that is in a finished shard."""
        _, entry = self._open.get(split) or self._start(split)
        self._count(split, entry)

    def _count(self, split: str, entry: dict[str, Any]) -> None:
        entry["images"] += 1
        if entry["images"] == self.shard_size:
            self._close(split)

    def _start(self, split: str) -> tuple[Any, dict[str, Any]]:
        import tensorflow as tf

        number = sum(shard["split"] == split for shard in self.shards)
        entry: dict[str, Any] = {"file": _shard_name(split, number), "split": split, "images": 0}
        self.shards.append(entry)
        writer = None
        if entry["file"] not in self.finished:
            writer = tf.io.TFRecordWriter(str(self.directory / f"{entry['file']}{PART}"))
        self._open[split] = (writer, entry)
        return self._open[split]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        for split in tuple(self._open):
            self._close(split, complete=kind is None)

    def _close(self, split: str, complete: bool = True) -> None:
        writer, entry = self._open.pop(split)
        if writer is None:
            return
        path = self.directory / entry["file"]
        with os_errors(path):
            writer.close()
        if complete:
            part = path.with_name(f"{path.name}{PART}")
            sync_path(part)
            part.replace(path)


def _shard_name(split: str, number: int) -> str:
    return f"{split}-{number:05d}.tfrecord"


def write_manifest(directory: Path, shards: list[dict[str, Any]], made_from: dict[str, Any]) -> dict[str, Any]:
    """Describe and digest every file of `directory`; `made_from` says from what and how the shards were made."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "made_from": made_from,
        "shards": shards,
        "files": directory_digests(directory, skip=frozenset({MANIFEST})),
    }
    write_json(directory / MANIFEST, manifest)
    return manifest


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, checked for format and for the presence and size of every shard (not yet their content)."""
    path = directory / MANIFEST
    next_step = "make it again with python -m data.prepare"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        kind = (manifest["format"], manifest["version"])
        shards = [(shard["file"], shard["split"], shard["images"]) for shard in manifest["shards"]]
        sizes = {file: manifest["files"][file]["bytes"] for file, _, _ in shards}
    except (OSError, ValueError, KeyError, TypeError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise SourceError(f"the manifest of prepared shards at {path}", detail, next_step) from None
    if kind != (FORMAT, VERSION):
        raise SourceError(f"{FORMAT} version {VERSION} in {path}", f"{kind[0]} version {kind[1]}", next_step)
    for file, size in sizes.items():
        shard = directory / file
        found = shard.stat().st_size if shard.is_file() else None
        if found != size:
            received = "no such file" if found is None else f"{found:,} bytes"
            raise SourceError(f"{size:,} bytes in {shard}", received, next_step)
    return manifest


def read_shard(directory: Path, manifest: dict[str, Any], shard: dict[str, Any]) -> Iterator[ImageTextPair]:
    """The pairs of one shard, after its digest is checked; `SourceError` when a byte has changed."""
    path = directory / shard["file"]
    problems = changed_files(directory, {shard["file"]: manifest["files"][shard["file"]]})
    if problems:
        raise SourceError(
            "shards as they were written", f"in {directory}: {problems[0]}", "make it again with python -m data.prepare"
        )
    count = 0
    for start, record in read_records(path):
        yield _pair(path, start, record)
        count += 1
    if count != shard["images"]:
        raise SourceError(
            f"{shard['images']:,} images in {path}", f"{count:,}", "make it again with python -m data.prepare"
        )


def _example(pair: ImageTextPair, image: bytes, split: str) -> bytes:
    import tensorflow as tf

    values = {
        "image": [image],
        "image_id": [pair.image_id.encode()],
        "captions": [caption.encode() for caption in pair.captions],
        "group": [] if pair.group is None else [pair.group.encode()],
        "attributes": [canonical_json(attributes_to_json(pair.attributes))],
        "split": [split.encode()],
        "sha256": [] if pair.digest is None else [pair.digest.encode()],
        **({"caption_weights": [repr(w).encode() for w in pair.caption_weights]} if pair.caption_weights else {}),
    }
    features = {name: tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in values.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _pair(path: Path, start: int, record: bytes) -> ImageTextPair:
    """The pair of a serialised Example that begins at byte `start` of its shard."""
    features = parse_example(record)
    texts = {
        name: [record[slice(*span)].decode() for span in feature.spans]
        for name, feature in features.items()
        if name != "image"
    }
    ((first, last),) = features["image"].spans
    return ImageTextPair(
        texts["image_id"][0],
        ImageRange(path, start + first, last - first),
        tuple(texts["captions"]),
        texts["group"][0] if texts["group"] else None,
        attributes_from_json(json.loads(texts["attributes"][0])),
        texts["split"][0],
        next(iter(texts.get("sha256", [])), None),  # absent from shards of earlier versions
        tuple(float(weight) for weight in texts.get("caption_weights", [])),
    )
