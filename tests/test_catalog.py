"""The catalog gives back what was stored, by row and by id, from any thread, and never changes under a reader."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import SnapshotError
from serving.catalog import FORMAT_VERSION, Catalog, CatalogEntry, ImageNotFound, write_catalog
from serving.vector_store import BATCH_VERSION

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
VALUE = st.one_of(
    TEXT,
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),
    st.lists(TEXT),
)


def entries(count: int) -> list[CatalogEntry]:
    return [
        CatalogEntry(f"id-{row:04}", f"{row:064x}", f"/pictures/{row}.png", (f"picture {row}",), row=row)
        for row in range(count)
    ]


@pytest.fixture
def catalog(tmp_path):
    assert write_catalog(tmp_path / "catalog.sqlite", entries(2_500)) == 2_500
    opened = Catalog(tmp_path / "catalog.sqlite")
    yield opened
    opened.close()


@settings(max_examples=30, deadline=None)
@given(
    captions=st.lists(TEXT, max_size=3),
    attributes=st.dictionaries(TEXT, VALUE, max_size=4),
    image_id=TEXT,
    version=st.integers(1, 2**63 - 1),
    origin=TEXT,
)
def test_gives_back_what_was_stored(tmp_path_factory, captions, attributes, image_id, version, origin):
    path = tmp_path_factory.mktemp("catalog") / "catalog ?#%.sqlite"  # characters that mean something in a URI
    stored = CatalogEntry(image_id, "0" * 64, "", tuple(captions), attributes, version, 0, origin)
    write_catalog(path, [stored])
    with closing(Catalog(path)) as catalog:
        found = catalog.by_id(image_id)
        assert catalog.rows_of([image_id, image_id + "?"]) == {image_id: (0, version)}
    assert found == stored
    assert {name: type(value) for name, value in found.attributes.items()} == {
        n: type(v) for n, v in attributes.items()
    }


def test_rows_come_in_the_order_asked_for_and_may_repeat(catalog):
    assert [entry.row for entry in catalog.by_rows([2_400, 0, 7, 0])] == [2_400, 0, 7, 0]
    assert catalog.by_rows([]) == []


def test_a_row_that_is_not_there_is_an_error(catalog):
    with pytest.raises(KeyError):
        catalog.by_rows([0, 2_500])


def test_finds_the_first_row_of_a_digest_by_an_index(catalog):
    assert catalog.row_of_digest(f"{7:064x}") == 7
    assert catalog.row_of_digest("f" * 64) is None
    assert catalog.row_of_digest("") is None
    (plan,) = catalog._fetch("EXPLAIN QUERY PLAN SELECT min(\"row\") FROM images WHERE digest = 'x'")
    assert "images_by_digest" in plan[-1]


def test_iterates_every_entry_by_row(catalog):
    assert len(catalog) == 2_500
    assert list(catalog) == entries(2_500)


def test_rows_of_many_ids_at_once(catalog):
    wanted = [f"id-{number:04}" for number in range(0, 5_000, 2)]
    assert catalog.rows_of(wanted) == {f"id-{row:04}": (row, BATCH_VERSION) for row in range(0, 2_500, 2)}


def test_pages_follow_the_order_of_ids(catalog):
    assert catalog.after("", 3) == entries(3)
    assert [entry.row for entry in catalog.after("id-2497", 10)] == [2_498, 2_499]
    assert catalog.after("id-2499", 10) == []


def test_deletions_are_kept(tmp_path):
    write_catalog(tmp_path / "catalog.sqlite", entries(2), [("gone", 7), ("a", 3)])
    with closing(Catalog(tmp_path / "catalog.sqlite")) as catalog:
        assert catalog.deletions() == [("a", 3), ("gone", 7)]


def test_an_unknown_id_is_named(catalog):
    with pytest.raises(ImageNotFound, match="nobody") as refusal:
        catalog.by_id("nobody")
    assert refusal.value.field == "image_id"
    assert refusal.value.image_id == "nobody"


def test_threads_share_a_catalog(catalog):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda row: catalog.by_rows([row])[0].image_id, range(400)))
    assert found == [f"id-{row:04}" for row in range(400)]


def test_closing_waits_for_readers_and_refuses_later_ones(catalog):
    """Without the wait, a statement that runs on a closed connection ends the process, though not each time."""

    def read(shared: Catalog, begun: threading.Event) -> None:
        while True:
            shared.row_of_digest(f"{7:064x}")
            begun.set()

    for _ in range(20):
        shared, begun = Catalog(catalog.path), [threading.Event() for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(read, shared, event) for event in begun]
            assert all(event.wait(60) for event in begun)
            shared.close()
            for reader in readers:
                with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                    reader.result(timeout=60)


def test_readers_cannot_write(catalog):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        catalog._fetch("DELETE FROM images")


def test_the_same_id_is_not_stored_twice(tmp_path):
    with pytest.raises(sqlite3.IntegrityError):
        write_catalog(tmp_path / "catalog.sqlite", [entries(1)[0], CatalogEntry("id-0000", "0" * 64, row=1)])


def test_an_absent_foreign_or_newer_file_is_refused(tmp_path):
    with pytest.raises(SnapshotError):
        Catalog(tmp_path / "absent.sqlite")
    (tmp_path / "text.sqlite").write_text("not a database, but long enough to have been one " * 20)
    with pytest.raises(SnapshotError):
        Catalog(tmp_path / "text.sqlite")
    write_catalog(tmp_path / "newer.sqlite", entries(1))
    with closing(sqlite3.connect(tmp_path / "newer.sqlite")) as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION + 1}")
    with pytest.raises(SnapshotError, match="format"):
        Catalog(tmp_path / "newer.sqlite")


def test_an_entry_found_by_its_row_is_not_read_again(catalog, monkeypatch):
    assert catalog.ids([7, 3, 7]) == ["id-0007", "id-0003", "id-0007"]
    read = []
    monkeypatch.setattr(catalog, "_fetch", lambda *asked: read.append(asked) or [])
    assert catalog.ids([3, 7]) == ["id-0003", "id-0007"]
    assert list(catalog.by_ids(["id-0007", "id-0003"]).values()) == [entries(8)[7], entries(8)[3]]
    assert not read
    assert catalog.by_ids(["id-0007", "id-0004"]) == {"id-0007": entries(8)[7]}
    assert len(read) == 1, "what was not found before is read"


def test_entries_found_of_late_take_bounded_memory_and_stay_right(catalog, monkeypatch):
    monkeypatch.setattr("serving.catalog._KEPT_BYTES", 100_000)
    for start in [*range(0, 2_500, 100), 0]:
        rows = range(start, start + 100)
        assert catalog.ids(rows) == [f"id-{row:04}" for row in rows]
        assert catalog.by_ids([f"id-{row:04}" for row in rows]) == {e.image_id: e for e in entries(2_500)[start:][:100]}
    held = catalog._recent._newer.rows.keys() | catalog._recent._older.rows.keys()
    assert 40 < len(held) < 110, "about 100,000 bytes of them"


@pytest.mark.parametrize("count", [1, 300])
def test_a_row_that_is_not_there_is_a_key_error(catalog, count):
    with pytest.raises(KeyError):
        catalog.ids([*range(count), 2_500])
