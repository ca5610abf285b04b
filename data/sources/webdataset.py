"""WebDataset tar shards, indexed once; reads captions shard by shard, images on demand, and extracts nothing."""

from __future__ import annotations

import itertools
import math
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from data.console import progress, say
from data.errors import SourceError
from data.pairs import ImageRange, ImageTextPair
from data.sources.image_folder import printable
from data.sources.rows import malformed, pair_of, parse_json, splits_of_files, visible_files

# The parts of a sample that are read, by their extensions; a sample has one of each at most.
PARTS = {"jpg": 0, "jpeg": 0, "png": 0, "webp": 0, "gif": 0, "txt": 1, "json": 2}
ABSENT = (0, -1) * 3
MAX_TEXT_BYTES = 1 << 20
MAX_SHARDS = 100_000

# The key ends at the first dot of the file name: `a/b.seg.png` is the part `seg.png` of sample `a/b`.
_MEMBER = re.compile(r"(?P<key>(?:.*/)?[^./]+)\.(?P<part>[^/]+)", re.DOTALL)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"([0-9]{1,9})\.\.([0-9]{1,9})")
_BLOCK = 512  # bytes


@dataclass(frozen=True)
class _Shard:
    """Where a shard holds its samples; two arrays instead of objects, for sets of millions."""

    path: Path
    name: str
    keys: str  # joined by NUL
    places: np.ndarray  # (samples, 3 parts, 2) int64: offset, size; size -1 for a part that is absent


class WebDataset:
    """`webdataset:PATTERN`: a directory of tar shards, one shard, or `shard-{000000..000009}.tar`.

    Members `KEY.jpg` (or png, webp, gif), `KEY.txt` (one caption) and `KEY.json` (captions and attributes by name) make
    one pair; other parts are ignored, keys without an image skipped. `image_id` is the shard's name and KEY. Shards or
    folders named after splits prescribe them. Format: https://github.com/webdataset/webdataset (README, "The WebDataset
    Format").
    """

    def __init__(self, pattern: Path) -> None:
        self.pattern = pattern
        root, paths = _shard_paths(pattern)
        relative = [PurePosixPath(path.relative_to(root).as_posix()) for path in paths]
        self._splits = splits_of_files(relative)
        named = zip(paths, relative, strict=True)
        indexed = progress(named, "indexing shards", total=len(paths), quiet=True)
        self._shards = [_index(path, printable(str(name.with_suffix("")))) for path, name in indexed]
        if not len(self):
            raise SourceError(f"members KEY.jpg, .png, .webp or .gif in {pattern}", "none", "check the path")
        without = sum(len(shard.places) for shard in self._shards) - len(self)
        if without:
            say(f"{self.name}: skipped {without:,} keys without an image")

    @property
    def name(self) -> str:
        """`webdataset:PATTERN`."""
        return f"webdataset:{self.pattern}"

    def __len__(self) -> int:
        """How many images there are."""
        return sum(int((shard.places[:, 0, 1] >= 0).sum()) for shard in self._shards)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the shards."""
        for shard, split in zip(self._shards, self._splits, strict=True):
            try:
                file = shard.path.open("rb")
            except OSError as error:
                raise SourceError("the shards as they were indexed", f"{error}", "open the data set again") from error
            with file:
                for key, (image, text, fields) in zip(shard.keys.split("\0"), shard.places.tolist(), strict=True):
                    place = f"{shard.path}, member {key}"
                    if image[1] >= 0:
                        row = _fields(file, fields, f"{place}.json")
                        caption = [_text(file, text, f"{place}.txt")] if text[1] >= 0 else []
                        picture = ImageRange(shard.path, *image)
                        yield pair_of(f"{shard.name}/{key}", picture, row, place, split, caption)


def _shard_paths(pattern: Path) -> tuple[Path, list[Path]]:
    """The directory that names of shards are relative to, and the shards."""
    if pattern.is_dir():
        paths = sorted(visible_files(pattern, "*.tar"))
        if not paths:
            raise SourceError(f"tar shards (*.tar) below {pattern}", "none", "check the path")
        return pattern, paths
    if pattern.is_file():
        return pattern.parent, [pattern]
    paths = [Path(text) for text in dict.fromkeys(expand_braces(str(pattern)))]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        received = f"{len(missing):,} of {len(paths):,} missing, first {missing[0]}"
        raise SourceError(f"the shards that {pattern} names", received, "check the path and the range")
    return Path(str(pattern).partition("{")[0] + "…").parent, paths


def expand_braces(pattern: str) -> list[str]:
    """Every name of a pattern with ranges `{000..009}` and lists `{train,val}`, in order.

    Example: `expand_braces("a-{08..10}.tar")` gives `a-08.tar`, `a-09.tar`, `a-10.tar`.
    """
    choices = [_choices(text, pattern) if odd % 2 else [text] for odd, text in enumerate(_BRACES.split(pattern))]
    count = math.prod(map(len, choices))
    if count > MAX_SHARDS:
        raise SourceError(f"at most {MAX_SHARDS:,} shards", f"{count:,} in {pattern}", "name a smaller range")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(braces: str, pattern: str) -> list[str]:
    """What stands between a pair of braces; numbers keep the width of the first."""
    numbers = _RANGE.fullmatch(braces)
    if numbers is None:
        if "," in braces:
            return braces.split(",")
        raise SourceError(
            "a range {000..009} or a list {train,val}", f"{{{braces}}} in {pattern}", "correct the pattern"
        )
    first, last = int(numbers[1]), int(numbers[2])
    if not 0 <= last - first < MAX_SHARDS:
        raise SourceError(
            f"a rising range of at most {MAX_SHARDS:,}", f"{{{braces}}} in {pattern}", "correct the range"
        )
    return [f"{number:0{len(numbers[1])}}" for number in range(first, last + 1)]


def _index(path: Path, name: str) -> _Shard:
    """Where every sample's parts lie, from the headers alone."""
    rows: dict[str, int] = {}
    places = array("q")  # offset and size of each part of each sample
    for member in _members(path):
        split = _MEMBER.fullmatch(member.name.removeprefix("./"))
        number = PARTS.get(split["part"].lower()) if split else None
        if split is None or number is None:
            continue
        key = printable(split["key"])
        place = f"{path}, member {printable(member.name)}"
        row = rows.setdefault(key, len(rows))
        if len(rows) * len(ABSENT) > len(places):
            places.extend(ABSENT)
        at = row * len(ABSENT) + 2 * number
        if places[at + 1] >= 0:
            raise malformed(place, "one image, one .txt and one .json a key", "another", "give each image its own key")
        if number and member.size > MAX_TEXT_BYTES:
            raise malformed(place, f"at most {MAX_TEXT_BYTES:,} bytes of text", f"{member.size:,} bytes")
        places[at], places[at + 1] = member.offset_data, member.size
    return _Shard(path, name, "\0".join(rows), np.array(places, np.int64).reshape(-1, 3, 2))


def _members(path: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of a tar; `SourceError` for links, hostile names, and a tar that is cut short."""
    next_step = "fetch or write the shard again; one that is compressed has to be unpacked to a plain .tar first"
    try:
        size = path.stat().st_size
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
                end = member.offset_data + max(member.size, 0)
                if member.size < 0 or end > size:
                    received = f"{size:,} bytes, cut short in member {printable(member.name)}"
                    raise SourceError(f"at least {end:,} bytes in {path}", received, next_step)
                if _is_plain(member, path):
                    yield member
            file.seek(archive.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                received = f"neither at byte {archive.offset:,} of {size:,}"
                raise SourceError(f"another member or the end mark of the tar {path}", received, next_step)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise SourceError(f"an uncompressed tar in {path}", f"{error or type(error).__name__}", next_step) from None


def _is_plain(member: tarfile.TarInfo, path: Path) -> bool:
    """True for a file, False for a directory; nothing else may be in a shard."""
    place = f"{path}, member {printable(member.name)}"
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or "\0" in member.name:
        raise malformed(place, "a relative name without '..'", printable(member.name), "write the shard again")
    if member.isdir():
        return False
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "a device, a pipe or a sparse file"
        raise malformed(place, "a plain file", kind, "write the shard with copies of the files (tar --dereference)")
    return True


def _text(file: IO[bytes], place: tuple[int, int], where: str) -> str:
    offset, size = place
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise malformed(where, f"{size:,} bytes", f"{len(data):,}: the shard has changed", "open the data set again")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        received = f"byte {data[error.start]:#04x} at {error.start:,}"
        raise malformed(where, "UTF-8 text", received, "save it as UTF-8 and write the shard again") from None


def _fields(file: IO[bytes], place: tuple[int, int], where: str) -> dict[str, Any]:
    """The object in KEY.json; empty where there is none."""
    if place[1] < 0:
        return {}
    try:
        fields = parse_json(_text(file, place, where))
    except ValueError as error:
        raise malformed(where, "a JSON object", f"{error}", "correct it and write the shard again") from None
    if not isinstance(fields, dict):
        raise malformed(where, "a JSON object", fields, "correct it and write the shard again")
    return fields
