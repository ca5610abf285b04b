"""A remembered digest is always that of the file as it is; whatever is wrong with the memo costs time only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data import digest_memo
from data.digest_memo import DigestMemo, FileStamp
from data.durable import digest_bytes
from data.images import ImageLimits
from data.loading import content_digests
from data.pairs import ImageFile


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUAL_ENCODER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digest_memo, "SETTLED_SECONDS", -1.0)  # files of a moment ago count as settled


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of files that were read."""
    names: list[str] = []
    read = ImageFile.read

    def noting(self: ImageFile, limits: ImageLimits) -> bytes:
        names.append(self.path.name)
        return read(self, limits)

    monkeypatch.setattr(ImageFile, "read", noting)
    return names


def files(directory: Path, *contents: bytes) -> list[ImageFile]:
    paths = [directory / f"{number}.jpg" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [ImageFile(path) for path in paths]


def test_an_unchanged_file_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    images = files(tmp_path, b"a", b"b", b"c")
    expected = [digest_bytes(content) for content in (b"a", b"b", b"c")]
    assert list(content_digests(images)) == expected
    assert list(content_digests(images)) == expected
    assert sorted(reads) == ["0.jpg", "1.jpg", "2.jpg"]


def test_a_changed_file_is_read_again_also_when_size_and_modification_time_are_as_before(
    tmp_path: Path, reads: list[str]
) -> None:
    images = files(tmp_path, b"a", b"b")
    list(content_digests(images))
    before = images[0].path.stat()
    images[0].path.write_bytes(b"x")
    os.utime(images[0].path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list(content_digests(images)) == [digest_bytes(b"x"), digest_bytes(b"b")]
    images[1].path.unlink()
    images[0].path.replace(images[1].path)  # another file under the name
    assert list(content_digests(images)) == ["unreadable:missing", digest_bytes(b"x")]


def test_a_file_of_a_moment_ago_is_not_remembered(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest_memo, "SETTLED_SECONDS", 3600.0)
    images = files(tmp_path, b"a")
    for _ in range(2):
        assert list(content_digests(images)) == [digest_bytes(b"a")]
    assert len(reads) == 2


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    (image,) = files(tmp_path, b"a")
    before = FileStamp.of(image.path)
    image.path.write_bytes(b"longer")
    with DigestMemo() as memo:
        memo.note([before], [digest_bytes(b"a")])
        assert memo.recall([before, FileStamp.of(image.path), None]) == [None, None, None]


def test_limits_hold_for_remembered_files_too(tmp_path: Path) -> None:
    images = files(tmp_path, b"abc")
    list(content_digests(images))
    assert list(content_digests(images, ImageLimits(max_bytes=2))) == ["unreadable:too_many_bytes"]


@pytest.mark.parametrize("damage", [b"no database at all, but longer than a page header of SQLite" * 40, b""])
def test_a_damaged_memo_is_begun_anew(tmp_path: Path, reads: list[str], damage: bytes) -> None:
    images = files(tmp_path, b"a")
    list(content_digests(images))
    (memo,) = (tmp_path / "cache" / "digests").glob("*.sqlite")
    memo.write_bytes(damage)
    for _ in range(2):
        assert list(content_digests(images)) == [digest_bytes(b"a")]
    assert len(reads) == 2


def test_a_memo_that_cannot_be_opened_is_done_without(tmp_path: Path, reads: list[str]) -> None:
    images = files(tmp_path, b"a")
    (tmp_path / "cache" / "digests" / "files.sqlite").mkdir(parents=True)
    for _ in range(2):
        assert list(content_digests(images)) == [digest_bytes(b"a")]
    assert len(reads) == 2
