"""NumPy's files, read while other threads parse Python."""

import ast
import zipfile

import numpy as np
import pytest

from data.array_files import load_array, load_arrays


@pytest.fixture
def array(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6, dtype=np.float16).reshape(2, 3))
    return tmp_path / "x.npy"


def test_an_array_is_read_or_mapped(array):
    assert load_array(array).tolist() == [[0, 1, 2], [3, 4, 5]]
    mapped = load_array(array, mapped=True)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    assert mapped.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_an_archive_is_read_from_a_file_or_from_its_bytes(tmp_path):
    np.savez(tmp_path / "two.npz", one=np.arange(3), other=np.array("text"))
    for content in (tmp_path / "two.npz", (tmp_path / "two.npz").read_bytes()):
        found = load_arrays(content)
        assert found["one"].tolist() == [0, 1, 2]
        assert str(found["other"]) == "text"


def test_what_is_no_such_file_is_refused(tmp_path, array):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("nothing")
    for name in ("objects.npy", "text.npy", "absent.npy"):
        with pytest.raises((OSError, ValueError)):
            load_array(tmp_path / name)
    with pytest.raises(ValueError, match="instead of an archive"):
        load_arrays(array)
    with pytest.raises((ValueError, EOFError, zipfile.BadZipFile)):
        load_arrays(b"PK\x03\x04 cut")


def test_a_thread_that_parses_meanwhile_does_not_matter(array, monkeypatch):
    parsed = ast.literal_eval
    calls = iter(range(1_000))

    def disturbed(text):
        if next(calls) % 3 < 2:
            raise SystemError("AST constructor recursion depth mismatch (before=51, after=183)")
        return parsed(text)

    monkeypatch.setattr(ast, "literal_eval", disturbed)
    assert load_array(array).shape == (2, 3)
    assert next(calls) == 3


def test_other_faults_of_the_interpreter_are_told_in_the_end(array, monkeypatch):
    def broken(text):
        raise SystemError("always")

    monkeypatch.setattr(ast, "literal_eval", broken)
    with pytest.raises(SystemError, match="always"):
        load_array(array)
