"""What was published is there whole, or what was there before is; a changed byte is noticed."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import durable
from data.durable import (
    cache_directory,
    canonical_json,
    changed_files,
    digest_bytes,
    digest_file,
    digest_json,
    directory_digests,
    publish_directory,
    write_atomic,
    write_json,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_canonical_json_is_json_and_ignores_the_order_of_keys(value: object) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


def test_canonical_json_has_one_form() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "ü"}) == '{"a":"ü","b":[1,2.5]}'.encode()
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("nan"))


def test_digests_are_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert digest_bytes(data) == digest_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def tree(root: Path) -> Path:
    (root / "sub").mkdir(parents=True)
    (root / "a.bin").write_bytes(b"aaaa")
    (root / "sub" / "b.bin").write_bytes(b"bb")
    return root


def test_an_untouched_directory_has_no_changes(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    recorded = directory_digests(root)
    assert list(recorded) == ["a.bin", "sub/b.bin"]
    assert recorded["a.bin"]["bytes"] == 4
    assert changed_files(root, recorded) == []
    assert list(directory_digests(root, skip=frozenset({"a.bin"}))) == ["sub/b.bin"]


def test_every_kind_of_change_is_noticed(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    recorded = directory_digests(root)
    (root / "a.bin").write_bytes(b"aaab")
    (root / "sub" / "b.bin").write_bytes(b"bbb")
    recorded["gone.bin"] = recorded["a.bin"]
    recorded["../outside.bin"] = recorded["a.bin"]
    (tmp_path / "outside.bin").write_bytes(b"aaaa")
    assert changed_files(root, recorded) == [
        "../outside.bin lies outside the directory",
        "a.bin has another content than when it was written",
        "gone.bin is missing",
        "sub/b.bin has 3 bytes instead of 2",
    ]


def test_a_link_out_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    root = tree(tmp_path / "d")
    recorded = directory_digests(root)
    (root / "a.bin").rename(tmp_path / "elsewhere")
    (root / "a.bin").symlink_to(tmp_path / "elsewhere")
    assert changed_files(root, recorded) == ["a.bin lies outside the directory"]


def test_write_atomic_replaces_and_makes_parents(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644, "others may read it"
    assert names(path.parent) == ["file.json"]


def test_a_failed_write_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(TypeError):
        write_atomic(path, "not bytes")  # type: ignore[arg-type]
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    versions = [bytes([n]) * 200_000 for n in range(2)]
    write_atomic(path, versions[0])
    done = threading.Event()
    torn: list[int] = []

    def watch() -> None:
        while not done.is_set():
            content = path.read_bytes()
            if content not in versions:
                torn.append(len(content))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for n in range(40):
        write_atomic(path, versions[n % 2])
    done.set()
    watcher.join()
    assert torn == []


def test_write_json_is_readable_and_stable(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'


def test_publish_makes_a_directory_that_others_can_read(tmp_path: Path) -> None:
    final = tmp_path / "deep" / "final"
    with publish_directory(final) as aside:
        assert aside.parent == final.parent
        assert not final.exists()
        tree(aside / "inner")
    assert (final / "inner" / "sub" / "b.bin").read_bytes() == b"bb"
    assert stat.S_IMODE(final.stat().st_mode) == 0o755
    assert names(final.parent) == ["final"]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_publish_replaces_the_whole_directory(
    can_exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    final = tree(tmp_path / "final")
    with publish_directory(final) as aside:
        (aside / "new").write_text("new")
        assert (final / "a.bin").exists()
    assert names(final) == ["new"]
    assert names(tmp_path) == ["final"]


def publish(final: Path, work: Callable[[Path], None]) -> None:
    with publish_directory(final) as aside:
        work(aside)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_publication_keeps_what_was_there(error: type[BaseException], tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        (aside / "new").write_text("new")
        raise error

    final = tree(tmp_path / "final")
    before = directory_digests(final)
    with pytest.raises(error):
        publish(final, fail)
    assert directory_digests(final) == before
    assert names(tmp_path) == ["final"]


def test_what_was_there_comes_back_when_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish_at_the_last_moment(aside: Path) -> None:
        monkeypatch.setattr(Path, "chmod", lambda self, mode: self.rmdir())

    monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    final = tree(tmp_path / "final")
    before = directory_digests(final)
    with pytest.raises(FileNotFoundError):
        publish(final, vanish_at_the_last_moment)
    assert directory_digests(final) == before
    assert names(tmp_path) == ["final"]


def test_a_reader_finds_the_directory_at_every_moment(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    if not durable._exchange(one, other):
        pytest.skip("this file system cannot exchange two directories")
    final = tree(tmp_path / "final")
    done = threading.Event()
    missing: list[bool] = []

    def watch() -> None:
        while not done.is_set():
            missing.append(not final.exists())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(100):
        with publish_directory(final) as aside:
            (aside / "a.bin").write_bytes(b"x")
    done.set()
    watcher.join()
    assert len(missing) > 100
    assert not any(missing)


def test_a_killed_publication_leaves_the_old_content(tmp_path: Path) -> None:
    final = tree(tmp_path / "final")
    before = directory_digests(final)
    code = (
        "import os, pathlib, signal, sys; from data.durable import publish_directory\n"
        "with publish_directory(pathlib.Path(sys.argv[1])) as aside:\n"
        "    (aside / 'half').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, final], timeout=60, check=False)
    assert done.returncode == -9
    assert directory_digests(final) == before


def test_the_cache_directory_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(durable.CACHE_VARIABLE, str(tmp_path / "cache"))
    assert cache_directory("features") == tmp_path / "cache" / "features"
    assert cache_directory("features").is_dir()
    monkeypatch.delenv(durable.CACHE_VARIABLE)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory("x") == tmp_path / "home" / ".cache" / "dual-encoder" / "x"
