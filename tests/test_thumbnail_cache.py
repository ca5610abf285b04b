"""Thumbnails are kept up to a number of bytes, those used last, and one that was cut short counts as absent."""

from __future__ import annotations

import os

from serving.web.thumbnail_cache import ThumbnailCache


def webp(content: bytes) -> bytes:
    return b"RIFF" + (len(content) + 4).to_bytes(4, "little") + b"WEBP" + content


def test_what_was_put_is_there_also_for_another_server(tmp_path):
    ThumbnailCache(tmp_path, 1_000).put("abc", webp(b"one"))
    assert ThumbnailCache(tmp_path, 1_000).get("abc") == webp(b"one")
    assert ThumbnailCache(tmp_path, 1_000).get("abd") is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["abc"]


def test_those_used_longest_ago_make_room(tmp_path):
    cache = ThumbnailCache(tmp_path, 500)
    for name in ("a1", "b1", "c1", "d1"):
        cache.put(name, webp(bytes(100)))
    assert cache.get("a1") is not None
    cache.put("e1", webp(bytes(100)))
    assert [name for name in ("a1", "b1", "c1", "d1", "e1") if cache.get(name)] == ["a1", "c1", "d1", "e1"]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) <= 500


def test_the_order_of_use_outlives_the_server(tmp_path):
    cache = ThumbnailCache(tmp_path, 10_000)
    for age, name in enumerate(("a1", "b1", "c1")):
        cache.put(name, webp(bytes(100)))
        os.utime(tmp_path / name / name, (1_000 - age, 1_000 - age))  # a1 was used last
    ThumbnailCache(tmp_path, 350).put("d1", webp(bytes(100)))
    assert [name for name in ("a1", "b1", "c1", "d1") if cache.get(name)] == ["a1", "d1"]


def test_a_file_that_was_cut_short_or_is_something_else_is_absent(tmp_path):
    cache = ThumbnailCache(tmp_path, 1_000)
    cache.put("abc", webp(b"one"))
    (tmp_path / "ab" / "abc").write_bytes(webp(b"one")[:-1])
    assert cache.get("abc") is None
    (tmp_path / "ab" / "abc").write_bytes(b"")
    assert cache.get("abc") is None


def test_where_nothing_can_be_written_nothing_is_kept_and_nothing_fails(tmp_path):
    (tmp_path / "ab").write_text("a file where a directory should be")
    cache = ThumbnailCache(tmp_path, 1_000)
    cache.put("abc", webp(b"one"))
    assert cache.get("abc") is None
