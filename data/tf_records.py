"""Walks TFRecord files and the `tf.train.Example`s in them without TensorFlow; knows no data set.

Nothing here trusts the bytes: whatever is malformed is a `ValueError`. Checksums of records are not verified.
Formats: https://www.tensorflow.org/tutorials/load_data/tfrecord, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Span = tuple[int, int]  # first byte, and the one behind the last

_VARINT, _EIGHT_BYTES, _DELIMITED, _FOUR_BYTES = 0, 1, 2, 5


@dataclass
class Feature:
    """The values of one feature of an Example; only one of the lists is filled."""

    spans: list[Span] = field(default_factory=list)  # of byte strings, in the record
    floats: list[float] = field(default_factory=list)
    ints: list[int] = field(default_factory=list)


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """`(offset, record)` of every record of a file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # A TFRecord is: length (8 bytes), its checksum (4), the data, its checksum (4).
        while head := file.read(12):
            start = file.tell()
            (length,) = struct.unpack("<Q4x", head) if len(head) == 12 else (size,)
            if start + length + 4 > size:
                raise ValueError(f"a record of {length:,} bytes at {start:,} of {size:,}: cut short, or no TFRecord")
            yield start, file.read(length)
            file.seek(4, os.SEEK_CUR)


def parse_example(record: bytes) -> dict[str, Feature]:
    """The features of a serialised Example by name."""
    found: dict[str, Feature] = {}
    # Example.features → Features.feature (a map) → key and Feature → one of three lists.
    for features in _messages(record, (0, len(record)), 1):
        for entry in _messages(record, features, 1):
            names = list(_messages(record, entry, 1))
            feature = Feature()
            for value in _messages(record, entry, 2):
                _read_feature(record, value, feature)
            found[record[slice(*names[-1])].decode() if names else ""] = feature
    return found


def _read_feature(record: bytes, span: Span, feature: Feature) -> None:
    for kind, _, values in _fields(record, span):
        for number, wire_type, (start, end) in _fields(record, values):
            if number != 1:
                continue
            if kind == 1:
                feature.spans.append((start, end))
            elif kind == 2:
                feature.floats += struct.unpack(f"<{(end - start) // 4}f", record[start:end])
            elif kind == 3:
                while start < end:
                    value, start = _varint(record, start, end)
                    feature.ints.append(value - (1 << 64) if value >> 63 else value)
            if wire_type not in ((_DELIMITED,), (_DELIMITED, _FOUR_BYTES), (_DELIMITED, _VARINT))[min(kind, 3) - 1]:
                raise ValueError(f"values of another type at byte {start:,} of a record")


def _messages(record: bytes, span: Span, wanted: int) -> Iterator[Span]:
    """Where the length-delimited fields number `wanted` of a protobuf message lie."""
    for number, wire_type, value in _fields(record, span):
        if number == wanted and wire_type == _DELIMITED:
            yield value


def _fields(record: bytes, span: Span) -> Iterator[tuple[int, int, Span]]:
    """`(number, wire type, where its value lies)` of every field of a protobuf message."""
    position, end = span
    while position < end:
        tag, position = _varint(record, position, end)
        start, wire_type = position, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(record, position, end)
        elif wire_type == _DELIMITED:
            length, start = _varint(record, position, end)
            position = start + length
        elif wire_type in (_FOUR_BYTES, _EIGHT_BYTES):
            position += 4 if wire_type == _FOUR_BYTES else 8
        else:
            raise ValueError(f"no protobuf field at byte {start:,} of a record")
        if position > end:
            raise ValueError(f"a field that leads outside its message at byte {start:,} of a record")
        yield tag >> 3, wire_type, (start, position)


def _varint(record: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = record[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number without an end at byte {position:,} of a record")
