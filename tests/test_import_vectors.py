"""Vectors from elsewhere become an index, what was exported comes back the same, what is wrong is refused by row."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import ColourRuntime, ListSource

import dual_encoder.runtime
from data.errors import FingerprintMismatch, SourceError
from serving import import_vectors
from serving.embedded_store import EmbeddedStore
from serving.export import export
from serving.faiss_index import SearchSettings
from serving.index_job import BuildSettings, build_index
from serving.snapshot import current_name, open_snapshot
from serving.sync import live_manifest
from serving.vector_store import Delete

ROWS, DIMENSION = 30, 8


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> ColourRuntime:
    """The model that the command loads, whatever bundle it is told."""
    runtime = ColourRuntime()
    monkeypatch.setattr(dual_encoder.runtime.Runtime, "load", lambda *_, **__: runtime)
    return runtime


@pytest.fixture
def vectors() -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(ROWS, DIMENSION))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def run(out: Path, *options: object) -> int:
    return import_vectors.main([*map(str, options), "--bundle", "x", "--out", str(out)])


def written(directory: Path, vectors: np.ndarray, ids: list[str] | None = None) -> tuple[object, ...]:
    np.save(directory / "x.npy", vectors)
    (directory / "ids.txt").write_text("".join(f"{text}\n" for text in ids or map(str, range(len(vectors)))))
    return "--vectors", directory / "x.npy", "--ids", directory / "ids.txt"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_array_and_its_ids_become_an_index(tmp_path: Path, vectors: np.ndarray, dtype: type):
    assert run(tmp_path / "index", *written(tmp_path, vectors.astype(dtype))) == 0
    snapshot = open_snapshot(tmp_path / "index", "c0104a")
    for row in range(ROWS):
        entry = snapshot.catalog.by_id(str(row))
        np.testing.assert_allclose(snapshot.vectors[entry.row], vectors[row], atol=1e-3)
        assert (entry.digest, entry.origin) == ("", f"vectors:{tmp_path / 'x.npy'}")
    snapshot.close()


def test_they_are_searched_as_tuning_chose(tmp_path: Path, vectors: np.ndarray):
    chosen = SearchSettings(compared=20)
    (tmp_path / "tuning.json").write_text(json.dumps({"kind": "SQ8", "search": dataclasses.asdict(chosen)}))
    given = written(tmp_path, vectors)
    assert run(tmp_path / "index", *given, "--tuning", tmp_path / "tuning.json") == 0
    snapshot = open_snapshot(tmp_path / "index", "c0104a")
    assert (snapshot.index.kind, snapshot.index.settings) == ("SQ8", chosen)
    snapshot.close()
    (tmp_path / "tuning.json").write_text("{}")
    with pytest.raises(SourceError, match=r"a file that serving\.tune_index wrote"):
        run(tmp_path / "other", *given, "--tuning", tmp_path / "tuning.json")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("out", ["exported", "exported.parquet"])
def test_what_was_exported_comes_back_the_same(tmp_path: Path, out: str, capsys: pytest.CaptureFixture):
    build_index(ColourRuntime(), ListSource(), tmp_path / "first", BuildSettings(shard_size=10))
    store = EmbeddedStore.open(tmp_path / "first")
    store.apply([Delete("red-0000")])
    store.close()
    export(tmp_path / "first", tmp_path / out)
    if out.endswith(".parquet"):
        given: tuple[object, ...] = ("--parquet", tmp_path / out)
    else:
        given = ("--vectors", tmp_path / out / "vectors.npy", "--ids", tmp_path / out / "images.jsonl")
    assert run(tmp_path / "second", *given) == 0
    assert "unit length" not in capsys.readouterr().err
    stores = [EmbeddedStore.open(tmp_path / name) for name in ("first", "second")]
    with stores[0].view() as first, stores[1].view() as second:
        assert len(second) == 39
        pages = [view.page("", 100) for view in (first, second)]
        assert pages[0] == pages[1]
        ids = [image.image_id for image in pages[0]]
        np.testing.assert_array_equal(first.vectors(ids), second.vectors(ids))
    for store in stores:
        store.close()


def test_the_next_build_knows_what_was_imported(tmp_path: Path, runtime: ColourRuntime):
    build_index(runtime, ListSource(), tmp_path / "first", BuildSettings())
    export(tmp_path / "first", tmp_path / "exported.parquet")
    run(tmp_path / "second", "--parquet", tmp_path / "exported.parquet")
    before = runtime.embedded
    assert build_index(runtime, ListSource(), tmp_path / "second", BuildSettings()).known == 40
    assert runtime.embedded == before


def test_vectors_of_another_length_are_divided_by_it_and_that_is_said(
    tmp_path: Path, vectors: np.ndarray, capsys: pytest.CaptureFixture
):
    longer = vectors.astype(np.float64) * np.where(np.arange(ROWS) % 2, 1e6, 1.0)[:, np.newaxis]
    assert run(tmp_path / "index", *written(tmp_path, longer)) == 0
    assert "15 of 30 vectors were not of unit length" in capsys.readouterr().err
    snapshot = open_snapshot(tmp_path / "index")
    rows = [int(entry.image_id) for entry in snapshot.catalog]
    np.testing.assert_allclose(snapshot.vectors, vectors[rows], atol=1e-3)
    snapshot.close()


def changed(vectors: np.ndarray, value: float) -> np.ndarray:
    vectors = vectors.copy()
    vectors[7] = value
    return vectors


@pytest.mark.parametrize(
    ("vectors_of", "ids", "message"),
    [
        (lambda v: changed(v, np.nan), None, "finite numbers for '7' in row 7"),
        (lambda v: changed(v, np.inf), None, "finite numbers for '7' in row 7"),
        (lambda v: changed(v, 0), None, "received a vector of zeros"),
        (lambda v: v[:, :5], None, r"array \(N, 8\)"),
        (lambda v: v[0], None, r"array \(N, 8\)"),
        (lambda v: (v * 100).astype(np.int32), None, "of floats"),
        (lambda v: v[:0], [], "rows in"),
        (lambda v: v, [str(n) for n in range(29)], "30 lines"),
        (lambda v: v, [str(n) for n in range(31)], "received 31"),
        (lambda v: v, [str(n % 20) for n in range(30)], "'0' again"),
        (lambda v: v, ["", *map(str, range(29))], "row 0"),
        (lambda v: v, ["x" * 1_025, *map(str, range(29))], "row 0"),
    ],
    ids=["nan", "infinite", "zero", "narrow", "flat", "integers", "none", "few", "many", "twice", "empty", "long"],
)
def test_what_cannot_be_taken_is_refused_and_the_live_index_stays(
    tmp_path: Path, vectors: np.ndarray, vectors_of, ids: list[str] | None, message: str
):
    run(tmp_path / "index", *written(tmp_path, vectors))
    live = current_name(tmp_path / "index")
    with pytest.raises(SourceError, match=message):
        run(tmp_path / "index", *written(tmp_path, vectors_of(vectors), ids))
    assert current_name(tmp_path / "index") == live


def test_nothing_is_unpickled(tmp_path: Path):
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1.0]))
    (tmp_path / "ids.txt").write_text("a\n")
    for name in ("objects.npy", "pickled.npy", "absent.npy"):
        with pytest.raises(SourceError, match=r"a \.npy file of numbers"):
            run(tmp_path / "index", "--vectors", tmp_path / name, "--ids", tmp_path / "ids.txt")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a"], "vector": [[1.0] * 8]}, ""),
        ({"id": [5], "embedding": [[1.0] * 8], "caption": ["a text"], "attributes": [{"year": 1999}]}, ""),
        ({"name": ["a"], "vector": [[1.0] * 8]}, "a column image_id or id"),
        ({"id": ["a"], "vector": [[1.0] * 7]}, "a vector of 8 numbers in row 0"),
        ({"id": ["a"], "vector": [None]}, "lists of floats"),
        ({"id": ["a", "b"], "vector": [[1.0] * 8, None]}, "a vector of 8 numbers in row 1"),
        ({"id": ["a"], "vector": [[1.0] * 7 + [None]]}, "finite numbers"),
        ({"id": ["a"], "vector": ["text"]}, "lists of floats"),
        ({"id": ["a"], "vector": [[1.0] * 8], "attributes": ["[1]"]}, "attributes as an object"),
        ({"id": ["a"], "vector": [[1.0] * 8], "digest": ["abc"]}, "a SHA-256"),
        ({"id": ["a"], "vector": [[1.0] * 8], "captions": [7]}, "captions as text"),
    ],
)
def test_columns_of_a_table_are_checked(tmp_path: Path, columns: dict, message: str):
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    if message:
        with pytest.raises(SourceError, match=message):
            run(tmp_path / "index", "--parquet", tmp_path / "x.parquet")
        return
    assert run(tmp_path / "index", "--parquet", tmp_path / "x.parquet") == 0
    assert json.loads((tmp_path / "index" / "report.json").read_text())["indexed"] == 1


def test_captions_and_attributes_stand_in_lines_of_json(tmp_path: Path, vectors: np.ndarray):
    np.save(tmp_path / "x.npy", vectors[:2])
    rows = [{"id": "a", "caption": "an apple", "attributes": {"year": 1999, "gone": None}}, {"image_id": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ("--vectors", tmp_path / "x.npy", "--ids", tmp_path / "rows.jsonl")
    assert run(tmp_path / "index", *given) == 0
    snapshot = open_snapshot(tmp_path / "index")
    entry = snapshot.catalog.by_id("a")
    assert (entry.captions, entry.attributes) == (("an apple",), {"year": 1999})
    snapshot.close()
    (tmp_path / "rows.jsonl").write_text('{"id": "a"}\n[1]\n')
    with pytest.raises(SourceError, match="objects in"):
        run(tmp_path / "index", *given)


def test_an_index_of_imported_vectors_tells_how_it_is_made_again(tmp_path: Path, vectors: np.ndarray):
    run(tmp_path / "index", *written(tmp_path, vectors))
    with pytest.raises(SourceError, match="import the vectors again"):
        live_manifest(tmp_path / "index")
    with pytest.raises(FingerprintMismatch, match="python -m serving.import_vectors --bundle b --out"):
        open_snapshot(tmp_path / "index", "another", "b")
