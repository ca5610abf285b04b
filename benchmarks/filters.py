"""How fast filters are over a million images, and what filtered searches find, against SQLite, Arrow and exact search.

python -m benchmarks.filters --json build/filters.json

Attributes and vectors are drawn at random with a fixed seed. Each contestant turns a filter into a mask of rows, in
turn on one thread, no answer kept; figures are medians. SQLite has a table with an index on every column, in memory;
Arrow's columns are in memory too. Searches take one query at a time; index recall@10 is the overlap with exact search
among the same rows.
"""

from __future__ import annotations

import argparse
import resource
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Report, argument_parser
from data import console
from serving.attribute_columns import AttributeColumns, write_columns
from serving.exact_index import ExactIndex
from serving.faiss_index import EXACT_SUBSET, FaissIndex
from serving.filter_syntax import MAX_TERMS, parse
from serving.row_subset import RowSubset

KINDS, BUCKETS, TAGS, CLUSTERS, QUERIES = ("chart", "drawing", "map", "photo"), 10_000, 5_000, 200, 40
START = datetime(2000, 1, 1, tzinfo=UTC)
SELECTIVITIES = (0.0001, 0.001, 0.01, 0.1, 0.5, 1.0)
FAR_CLUSTERS = (1, 10, 50)  # of CLUSTERS: matches that all lie far from the queries
MIDDLE = datetime(2010, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Operator:
    """A filter, and the same for the peers; Arrow has no vectorised look-up in lists."""

    name: str
    text: str
    sql: str
    arrow: Callable[[Mapping[str, Any], Any], Any] | None


def operators() -> list[Operator]:
    """One for each operator, and some combinations."""
    import pyarrow as pa

    buckets = list(range(0, BUCKETS, 100))
    listed = ", ".join(map(str, buckets))
    micros = (MIDDLE - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    return [
        Operator("= text, 25 %", 'kind = "photo"', "kind = 'photo'", lambda t, c: c.equal(t["kind"], "photo")),
        Operator(
            "= text, one row", 'credit = "name 7"', "credit = 'name 7'", lambda t, c: c.equal(t["credit"], "name 7")
        ),
        Operator("= number, 0.01 %", "bucket = 7", "bucket = 7", lambda t, c: c.equal(t["bucket"], 7)),
        Operator("= true", "sold = true", "sold = 1", lambda t, c: c.equal(t["sold"], True)),
        Operator(">= number, 20 %", "year >= 2010", "year >= 2010", lambda t, c: c.greater_equal(t["year"], 2010)),
        Operator("> fraction, 98 %", "iso > 100", "iso > 100", lambda t, c: c.greater(t["iso"], 100.0)),
        Operator("< text, half", 'credit < "name 5"', "credit < 'name 5'", lambda t, c: c.less(t["credit"], "name 5")),
        Operator(
            "< time, half",
            'taken < timestamp("2010-01-01T00:00:00Z")',
            f"taken < {micros}",
            lambda t, c: c.less(t["taken"], MIDDLE),
        ),
        Operator(
            "IN 100 numbers",
            f"bucket IN ({listed})",
            f"bucket IN ({listed})",
            lambda t, c: c.is_in(t["bucket"], value_set=pa.array(buckets)),
        ),
        Operator(": tag, common", 'tags:"t1"', "id IN (SELECT id FROM tags WHERE tag = 't1')", None),
        Operator(": tag, rare", 'tags:"t999"', "id IN (SELECT id FROM tags WHERE tag = 't999')", None),
        Operator(":* 90 %", "note:*", "note IS NOT NULL", lambda t, c: c.is_valid(t["note"])),
        Operator("NOT", 'NOT kind = "photo"', "kind != 'photo'", lambda t, c: c.not_equal(t["kind"], "photo")),
        Operator(
            "AND of three",
            'kind = "photo" AND year >= 2010 AND NOT sold = true',
            "kind = 'photo' AND year >= 2010 AND sold != 1",
            lambda t, c: c.and_(
                c.and_(c.equal(t["kind"], "photo"), c.greater_equal(t["year"], 2010)), c.invert(t["sold"])
            ),
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, check."""
    options = _options(argv)
    report = Report("filters", {"rows": options.rows, "dimension": options.dimension})
    columns = _columns(options.rows)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "columns.arrow"
        _write(path, columns, report)
        opened = AttributeColumns(path, options.rows, lambda ids: map(int, ids), cache_bytes=0)
        _evaluate(opened, columns, options.turns, report)
        _evaluate_large(opened, options.turns, report)
        _search(opened, columns["cluster"], options, report)
    return report.finish(options.json)


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argument_parser("filters", __doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="images, default %(default)s")
    parser.add_argument("--dimension", type=int, default=96, help="of the vectors, default %(default)s")
    parser.add_argument("--turns", type=int, default=9, help="of each contestant, default %(default)s")
    return parser.parse_args(argv)


def _columns(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "kind": rng.integers(0, len(KINDS), rows),
        "year": rng.integers(1950, 2025, rows),
        "iso": rng.uniform(0, 6_400, rows),
        "sold": rng.random(rows) < 0.3,
        "taken": rng.integers(0, 20 * 365 * 86_400, rows),
        "credit": rng.permutation(rows),
        "bucket": rng.integers(0, BUCKETS, rows),
        "cluster": rng.integers(0, CLUSTERS, rows),
        "note": rng.random(rows) < 0.9,
        "tags": np.minimum(rng.zipf(1.6, (rows, 3)), TAGS),
    }


def _attributes(columns: Mapping[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """What each image has, a piece of the columns at a time."""
    rows = len(columns["kind"])
    for start in range(0, rows, 10_000):
        piece = {name: column[start : start + 10_000].tolist() for name, column in columns.items()}
        for values in zip(*piece.values(), strict=True):
            held = dict(zip(piece, values, strict=True))
            held["kind"] = KINDS[held["kind"]]
            held["credit"] = f"name {held['credit']}"
            held["taken"] = START + timedelta(seconds=held["taken"])
            held["tags"] = [f"t{tag}" for tag in held["tags"]]
            held["note"] = "seen" if held["note"] else None
            yield {name: value for name, value in held.items() if value is not None}


def _write(path: Path, columns: Mapping[str, np.ndarray], report: Report) -> None:
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    import pyarrow as pa  # noqa: F401 - not part of what writing needs

    before, began = peak(), time.perf_counter()
    write_columns(path, _attributes(columns))
    figures = {
        "seconds": time.perf_counter() - began,
        "megabytes": path.stat().st_size / 1e6,
        "memory": peak() - before,
    }
    report.figures["write"] = figures
    began = time.perf_counter()
    AttributeColumns(path, len(columns["kind"]), lambda ids: ())
    figures["open_seconds"] = time.perf_counter() - began
    table = [[f"{figures[name]:.3g}" for name in figures]]
    console.print_table("columns", ["write s", "file MB", "memory MB", "open s"], table)
    report.at_most("writing columns: growth of memory, MB", figures["memory"], 300)


def _evaluate(opened: AttributeColumns, columns: Mapping[str, np.ndarray], turns: int, report: Report) -> None:
    import pyarrow.compute as pc

    count = len(columns["kind"])
    database, table = _database(columns), _table(columns)
    rows, different, figures = [], 0, {}
    for operator in operators():
        where = parse(operator.text)
        contestants: dict[str, Callable[[], np.ndarray]] = {
            "ours": lambda where=where: opened.rows_matching(where),
            "sqlite": lambda sql=operator.sql: _selected(database, sql, count),
        }
        if operator.arrow:
            contestants["arrow"] = lambda ask=operator.arrow: ask(table, pc).to_numpy(zero_copy_only=False)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(turns):
            masks = {}
            for name, contestant in contestants.items():
                began = time.perf_counter()
                masks[name] = contestant()
                times[name].append(1_000 * (time.perf_counter() - began))
        different += sum(not np.array_equal(masks["ours"], mask.astype(bool)) for mask in masks.values())
        medians = {name: statistics.median(found) for name, found in times.items()}
        figures[operator.name] = {"share": float(masks["ours"].mean()), **medians}
        shown = [f"{medians[name]:.2f}" if name in medians else "" for name in ("ours", "sqlite", "arrow")]
        rows.append([operator.name, f"{masks['ours'].mean():.4f}", *shown])
    console.print_table("filters", ["operator", "share of rows", "ours ms", "SQLite ms", "Arrow ms"], rows)
    report.figures["operators"] = figures
    report.at_most("filters whose rows are not the peers'", different, 0)
    report.at_most("slowest filter, ms", max(found["ours"] for found in figures.values()), 10)
    ratios = [found["sqlite"] / found["ours"] for found in figures.values() if found["share"] > 0.01]
    report.at_least("SQLite / ours, smallest ratio where more than 1 % match", min(ratios), 3)


def large_filters() -> dict[str, str]:
    """Filters of about as many terms as the syntax allows: alternatives for one attribute, and what nothing joins."""
    many = range(MAX_TERMS - 1)
    pairs = [f"(iso >= {6 * n} AND year < {1_960 + n % 60})" for n in many[: len(many) // 2]]
    texts = [f'(credit < "name {n}" AND year < {1_960 + n % 60})' for n in many[: len(many) // 2]]
    return {
        "texts, one of": " OR ".join(f'credit = "name {n}"' for n in many),
        "numbers, none of": " AND ".join(f"NOT bucket = {n}" for n in many),
        "tags, one of": " OR ".join(f'tags:"t{n}"' for n in many),
        "ranges of one attribute": " OR ".join(
            f"(iso >= {6 * n} AND iso < {6 * n + 3})" for n in many[: len(many) // 2]
        ),
        "pairs of two attributes": " OR ".join(pairs),
        "pairs with texts": " OR ".join(texts),
    }


def _evaluate_large(opened: AttributeColumns, turns: int, report: Report) -> None:
    rows, figures = [], {}
    for name, text in large_filters().items():
        where, times = parse(text), []
        for _ in range(min(turns, 3)):
            began = time.perf_counter()
            mask = opened.rows_matching(where)
            times.append(1_000 * (time.perf_counter() - began))
        figures[name] = {"share": float(mask.mean()), "ours": statistics.median(times)}
        rows.append([name, f"{mask.mean():.4f}", f"{statistics.median(times):.0f}"])
    console.print_table(f"filters of {MAX_TERMS:,} terms", ["terms", "share of rows", "ms"], rows)
    report.figures["large"] = figures
    report.at_most("slowest filter of a thousand terms, ms", max(found["ours"] for found in figures.values()), 1_000)


def _database(columns: Mapping[str, np.ndarray]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    names = ("kind", "year", "iso", "sold", "taken", "credit", "bucket", "note")
    database.execute(f"CREATE TABLE images (id INTEGER PRIMARY KEY, {', '.join(names)})")
    database.execute("CREATE TABLE tags (tag, id)")
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def values() -> Iterator[tuple]:
        for row, held in enumerate(_attributes(columns)):
            moment = (held["taken"] - epoch) // timedelta(microseconds=1)
            yield row, *(moment if name == "taken" else held.get(name) for name in names)

    database.executemany(f"INSERT INTO images VALUES (?{', ?' * len(names)})", values())
    tags = ((f"t{tag}", row) for row, held in enumerate(columns["tags"].tolist()) for tag in set(held))
    database.executemany("INSERT INTO tags VALUES (?, ?)", tags)
    for name in names:
        database.execute(f"CREATE INDEX by_{name} ON images ({name})")
    database.execute("CREATE INDEX by_tag ON tags (tag, id)")
    database.execute("ANALYZE")
    return database


def _selected(database: sqlite3.Connection, where: str, count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[np.fromiter((row for (row,) in database.execute(f"SELECT id FROM images WHERE {where}")), np.int64)] = True
    return mask


def _table(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import pyarrow as pa

    pa.set_cpu_count(1)
    start = int(START.timestamp()) * 1_000_000
    table = {name: pa.array(columns[name]) for name in ("year", "iso", "sold", "bucket")}
    table["kind"] = pa.DictionaryArray.from_arrays(pa.array(columns["kind"].astype(np.int32)), pa.array(KINDS))
    table["credit"] = pa.array([f"name {number}" for number in columns["credit"].tolist()])
    table["taken"] = pa.array(start + columns["taken"] * 1_000_000).cast(pa.timestamp("us", "UTC"))
    table["note"] = pa.array(["seen" if note else None for note in columns["note"].tolist()])
    return table


def _search(opened: AttributeColumns, cluster: np.ndarray, options: argparse.Namespace, report: Report) -> None:
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(CLUSTERS, options.dimension)).astype(np.float32)
    vectors = np.empty((options.rows, options.dimension), np.float16)
    for start in range(0, options.rows, 50_000):
        own = cluster[start : start + 50_000]
        noise = rng.standard_normal((len(own), options.dimension), np.float32)
        vectors[start : start + 50_000] = _unit(centres[own] + 0.7 * noise)
    asked = np.arange(QUERIES) % 5  # queries are near five of the clusters
    queries = _unit(centres[asked] + 0.9 * rng.standard_normal((QUERIES, options.dimension), np.float32))
    console.say("building the index")
    index, exact = FaissIndex.build(vectors), ExactIndex(vectors)
    far = np.argsort(centres @ queries.mean(0)).tolist()
    filters = {f"{share:.2%} at random": f"bucket < {round(share * BUCKETS)}" for share in SELECTIVITIES}
    for count in FAR_CLUSTERS:
        filters[f"{count} of {CLUSTERS} clusters, the farthest"] = f"cluster IN ({', '.join(map(str, far[:count]))})"
    rows, figures = [], {}
    for name, text in filters.items():
        where = parse(text)
        found, times = [], []
        for query in queries:
            began = time.perf_counter()
            allowed = RowSubset.from_mask(opened.rows_matching(where))
            found.append(index.search(query[np.newaxis], 10, allowed)[1][0])
            times.append(1_000 * (time.perf_counter() - began))
        expected = exact.search(queries, 10, allowed)[1]
        recall = np.mean([len(set(a) & set(b)) / max(1, len(b)) for a, b in zip(found, expected, strict=True)])
        p50, matching = statistics.median(times), len(allowed)
        figures[name] = {"matching": matching, "index_recall_at_10": float(recall), "p50_ms": p50}
        rows.append([name, f"{matching:,}", f"{recall:.3f}", f"{p50:.1f}"])
        if matching <= EXACT_SUBSET:
            same = sum(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
            report.at_least(f"{name}: answers that are the exact reference's", same, QUERIES)
        else:
            report.at_least(f"{name}: index recall@10", float(recall), 0.95)
    report.figures["search"] = {"kind": index.kind, "filters": figures}
    headings = ["filter", "images that match", "index recall@10", "p50 ms, filter and search"]
    console.print_table(f"filtered search, {index.kind}", headings, rows)


def _unit(array: np.ndarray) -> np.ndarray:
    return (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    console.run(main)
