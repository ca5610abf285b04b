"""Columns leave exactly the rows that `filters.matches` takes, in a snapshot's file and while rows are added."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import QueryError, SnapshotError
from serving import attribute_columns, attribute_postings, posting_blocks
from serving.attribute_columns import AttributeColumns, write_columns
from serving.filters import And, Compare, Contains, Exists, Ids, In, Not, Or, matches
from serving.growing_columns import GrowingColumns

NOON = datetime(2024, 5, 17, 12, tzinfo=UTC)
# Values that are easily confused: big integers and the doubles beside them, truth values and numbers, equal moments,
# texts that only look alike, signed zeros.
VALUE = st.sampled_from(
    [
        0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), 0.0, -0.0, 1.0, 0.5, float(2**53), float(2**63), -1e300,
        True, False, "", "a", "A", "ä", "a\u0308", "a\0", "\uffff", "🚀", "1", "true", NOON,
        NOON.astimezone(timezone(timedelta(hours=9))), NOON + timedelta(microseconds=1), datetime(1, 1, 2, tzinfo=UTC),
    ]
)  # fmt: skip
TEXT = st.sampled_from(["", "a", "A", "ä", "🚀", "1", "a\0"])
HELD = st.one_of(VALUE, st.lists(TEXT, max_size=3))
NAME = st.sampled_from(["a", "b", "ä", ""])
BEYOND = [float("inf"), -float("inf"), 2**70, "\ud800", datetime(9999, 12, 31, tzinfo=UTC)]
ASKED = st.one_of(VALUE, st.sampled_from(BEYOND))
ID = st.sampled_from(["0", "1", "2", "29", "x"])
TERM = st.one_of(
    st.builds(Compare, NAME, st.sampled_from(["=", "<", "<=", ">", ">="]), ASKED),
    st.builds(In, NAME, st.lists(ASKED, max_size=4).map(tuple)),
    st.builds(Contains, NAME, TEXT),
    st.builds(Exists, NAME),
    st.builds(Ids, st.frozensets(ID, max_size=3)),
)
WHERE = st.recursive(
    TERM,
    lambda terms: st.one_of(
        st.builds(And, st.lists(terms, max_size=3).map(tuple)),
        st.builds(Or, st.lists(terms, max_size=3).map(tuple)),
        st.builds(Not, terms),
    ),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(NAME, HELD, max_size=4), max_size=30)


def rows_of(image_ids):
    return [int(image_id) for image_id in image_ids if image_id.isdecimal() and int(image_id) < 30]


def expected(where, rows) -> list[bool]:
    return [matches(where, str(row), attributes) for row, attributes in enumerate(rows)]


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, filters=st.lists(WHERE, min_size=1, max_size=5))
def test_a_file_leaves_the_rows_that_match(tmp_path_factory, rows, filters):
    path = tmp_path_factory.mktemp("columns") / "columns.arrow"
    with pytest.MonkeyPatch.context() as patch:
        for module in (attribute_columns, attribute_postings):
            patch.setattr(module, "BLOCK_ROWS", 7)  # so that 30 rows cross several
        assert write_columns(path, rows) == len(rows)
        columns = AttributeColumns(path, len(rows), lambda ids: [row for row in rows_of(ids) if row < len(rows)])
        for where in filters + filters:  # the second time from the cache
            assert columns.rows_matching(where).tolist() == expected(where, rows)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, where=WHERE, sealed=st.integers(1, 12), share=st.floats(0, 1))
def test_rows_that_are_added_match_at_every_count(rows, where, sealed, share):
    columns = GrowingColumns(sealed_rows=sealed)
    for row, attributes in enumerate(rows):
        columns.append(str(row), attributes)
    count = int(share * len(rows))
    assert columns.rows_matching(where, count).tolist() == expected(where, rows)[:count]


def test_long_lists_find_what_short_ones_find(tmp_path):
    rows = [{"n": row, "name": f"n{row}"} for row in range(400)]
    write_columns(tmp_path / "c", rows)
    columns = AttributeColumns(tmp_path / "c", len(rows), rows_of)
    for values in ([5, 399.0, -1], list(range(0, 400, 2))):
        for where in (In("n", tuple(values)), In("name", tuple(f"n{value}" for value in values))):
            assert columns.rows_matching(where).tolist() == expected(where, rows)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, terms=st.lists(WHERE, min_size=1, max_size=6), kind=st.sampled_from([And, Or]), negated=st.booleans())
def test_terms_that_are_looked_up_together_mean_what_they_mean_alone(rows, terms, kind, negated):
    where = kind((*terms, *(Not(term) if negated else term for term in terms[::-1])))
    columns = GrowingColumns(sealed_rows=9)
    for row, attributes in enumerate(rows):
        columns.append(str(row), attributes)
    assert columns.rows_matching(where, len(rows)).tolist() == expected(where, rows)


@pytest.mark.parametrize("sealed", [70, 2_000], ids=["in postings", "one by one"])
def test_filters_of_a_thousand_terms_find_what_they_say(sealed):
    rows = [{"n": row % 97, "x": row / 7, "name": f"n{row % 50}", "tags": [f"t{row % 30}", "t1"]} for row in range(150)]
    columns = GrowingColumns(sealed)
    for row, attributes in enumerate(rows):
        columns.append(str(row), attributes)
    for where in (
        Or(tuple(Compare("n", "=", number) for number in range(0, 1_000, 3))),
        And(tuple(Not(Compare("name", "=", f"n{number}")) for number in range(30))),
        Or(tuple(And((Compare("x", ">=", n / 4), Compare("n", "<", n % 60))) for n in range(200))),
        Or(tuple(And((Compare("x", ">=", float(n)), Compare("x", "<", n + 0.5))) for n in range(80))),
        And(tuple(Or((Compare("x", ">", float(n)), Contains("tags", f"t{n % 31}"))) for n in range(50))),
        Or(tuple(Contains("tags", f"t{n}") for n in range(2, 900))),
    ):
        assert columns.rows_matching(where, len(rows)).tolist() == expected(where, rows)


@pytest.mark.parametrize("before", [0, 65_536])
def test_rows_of_blocks_without_attributes_match_what_asks_for_none(tmp_path, before):
    rows = [*({} for _ in range(before)), *({"a": row} for row in range(65_536)), *({} for _ in range(10))]
    write_columns(tmp_path / "c", rows)
    columns = AttributeColumns(tmp_path / "c", len(rows), rows_of)
    every = And(tuple(Or((Compare("a", ">=", 0), Compare("b", "=", n))) for n in range(5)))
    mask = columns.rows_matching(every)
    assert np.flatnonzero(mask).tolist() == list(range(before, before + 65_536))
    assert (columns.rows_matching(Not(every)) == ~mask).all()


def test_a_filter_that_would_take_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(posting_blocks, "MAX_COST", 10_000_000)
    write_columns(tmp_path / "c", [{"a": row, "b": -row} for row in range(100_000)])
    columns = AttributeColumns(tmp_path / "c", 100_000, rows_of)
    pairs = [And((Compare("a", ">", n), Compare("b", ">", -50_000 - n))) for n in range(500)]
    assert columns.rows_matching(Or(tuple(pairs[:20]))).any()
    with pytest.raises(QueryError, match="broad comparisons of different attributes"):
        columns.rows_matching(Or(tuple(pairs)))
    joined = And(tuple(Compare("a", ">", n) for n in range(1_000)))
    assert columns.rows_matching(joined).sum() == 99_000


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 2**63, "\ud800", [1], NOON.replace(tzinfo=None)], ids=repr
)
def test_what_has_no_place_in_an_order_is_refused(value, tmp_path):
    with pytest.raises(ValueError, match="size"):
        write_columns(tmp_path / "c", [{"size": value}])


def test_filters_of_equal_values_and_other_kinds_do_not_share_an_answer(tmp_path):
    write_columns(tmp_path / "c", [{"a": 1}, {"a": True}, {"a": 1.0}])
    columns = AttributeColumns(tmp_path / "c", 3, rows_of)
    assert columns.rows_matching(Compare("a", "=", 1)).tolist() == [True, False, True]
    assert columns.rows_matching(Compare("a", "=", True)).tolist() == [False, True, False]


def test_the_cache_is_bounded_and_answers_may_be_changed(tmp_path):
    write_columns(tmp_path / "c", [{"a": row} for row in range(8_000)])
    columns = AttributeColumns(tmp_path / "c", 8_000, rows_of, cache_bytes=5_000)
    for value in [*range(50), 7, 7]:
        mask = columns.rows_matching(Compare("a", "=", value))
        assert np.flatnonzero(mask).tolist() == [value]
        mask[:] = True
        assert columns._cached_bytes <= 5_000
    assert 1 <= len(columns._cache) <= 5


def test_threads_share_columns(tmp_path):
    write_columns(tmp_path / "c", [{"a": row % 10} for row in range(5_000)])
    columns = AttributeColumns(tmp_path / "c", 5_000, rows_of, cache_bytes=4_000)
    with ThreadPoolExecutor(8) as pool:
        counts = list(pool.map(lambda n: int(columns.rows_matching(Compare("a", "<", n % 11)).sum()), range(300)))
    assert counts == [n % 11 * 500 for n in range(300)]


def test_readers_keep_their_count_while_rows_are_added():
    columns = GrowingColumns(sealed_rows=10)

    def read(_):
        count = len(columns)
        return columns.rows_matching(Exists("a"), count).tolist() == [row % 2 == 0 for row in range(count)]

    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(read, range(400))
        for row in range(2_000):
            columns.append(str(row), {"a": row} if row % 2 == 0 else {})
        assert all(answers)


def test_an_absent_foreign_or_torn_file_is_refused(tmp_path):
    import pyarrow as pa

    write_columns(tmp_path / "good", [{"a": 1}])
    (tmp_path / "torn").write_bytes((tmp_path / "good").read_bytes()[:-30])
    (tmp_path / "text").write_text("no Arrow file, but long enough to have been one " * 20)
    with pa.OSFile(str(tmp_path / "other"), "wb") as file, pa.ipc.new_file(file, pa.schema({"x": pa.int8()})):
        pass
    for name in ("absent", "torn", "text", "other"):
        with pytest.raises(SnapshotError, match=name):
            AttributeColumns(tmp_path / name, 1, rows_of)


def test_arrow_is_imported_only_when_a_file_is_opened():
    code = "import serving.attribute_columns, serving.filter_syntax, sys; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
