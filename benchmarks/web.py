"""How quick and how light the page is, by the browser's own performance API.

python -m benchmarks.web --json build/web.json

Types queries into headless Chromium over the demonstration's index and scrolls through 1,000 results. Takes 30 s.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selenium import webdriver

from benchmarks.report import Report
from data import console
from data.errors import UserError
from serving.snapshot import SNAPSHOTS, current_name, read_manifest
from tools.chromium import chromium, resize, until
from tools.screenshots import page

QUERIES = (
    "a juicy apple", "somebody riding a bike", "a birthday cake with candles", "someone playing the violin",
    "fireworks in the night sky", "a sleepy cat", "heavy rain", "a red heart", "people dancing", "a green vegetable",
)  # fmt: skip
SCREEN = (1280, 860)
MOST_TRANSFERRED = 60_000  # bytes of the page itself, without thumbnails
MOST_UNTIL_SHOWN = 100.0  # ms from the answer to the first results on the screen
MOST_NODES = 1.2  # times as many elements after 1,000 results as after the first
MOST_HEAP_A_HIT = 6_000  # bytes of JavaScript's heap: what is known about a hit, and where it stands
HITS = 1_000

# The search whose results were painted last, when that is later than `arguments[0]`; null before.
_SHOWN = """
const painted = performance.getEntriesByName("painted")[0];
if (!painted || painted.startTime <= arguments[0]) return null;
const search = performance.getEntriesByType("resource")
  .filter((entry) => entry.name.includes("/v1/search") && entry.responseEnd <= painted.startTime).pop();
return {painted: painted.startTime, server: search.responseEnd - search.requestStart,
        shown: painted.startTime - search.responseEnd};
"""
_TRANSFER = """
const entries = [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")];
return entries.map((entry) => [new URL(entry.name).pathname, entry.transferSize]);
"""
_TILES = """
const tiles = [...document.querySelectorAll(".tile")];
return Math.max(0, ...tiles.map((tile) => +tile.getAttribute("aria-posinset")));
"""


def check_size(index: Path) -> None:
    """`UserError` unless the index has as many images as are scrolled through."""
    name = current_name(index)
    images = read_manifest(index / SNAPSHOTS / name)[0].image_count if name else 0
    if images < HITS:
        raise UserError(f"an index of {HITS:,} images or more", f"{images:,} in {index}", "make demo, or name one")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.web", description=__doc__)
    parser.add_argument("--index", type=Path, default=Path("build/demo/index"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    check_size(options.index)

    report = Report("web")
    # With its garbage collected on demand, the heap is what is held.
    flags = ("--enable-precise-memory-info", "--js-flags=--expose-gc")
    with (
        page(options.index) as address,
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile), *flags) as window,
    ):
        resize(window, *SCREEN)
        window.execute_cdp_cmd("Performance.enable", {})
        window.get(address)
        window.execute_script("performance.setResourceTimingBufferSize(100000)")
        _transfer(window, report)
        _typed(window, report)
        _scrolled(window, report)
    return report.finish(options.json)


def _transfer(window: webdriver.Chrome, report: Report) -> None:
    until(window, lambda: window.find_element("id", "about").text, "the footer")
    sizes = window.execute_script(_TRANSFER)
    total = sum(size for _, size in sizes)
    console.print_table("transfer of the page", ["file", "bytes"], [[name, f"{size:,}"] for name, size in sizes])
    report.figures["transfer"] = dict(sizes)
    report.at_most("bytes of the page itself", total, MOST_TRANSFERRED)


def _typed(window: webdriver.Chrome, report: Report) -> None:
    """Every query twice, so that the server's caches are warm and cold once each."""
    painted, times = 0.0, []
    text = window.find_element("id", "text")
    for query in (*QUERIES, *QUERIES):
        text.clear()
        text.send_keys(query)
        found: dict[str, Any] = until(window, lambda last=painted: window.execute_script(_SHOWN, last), "results")
        painted = found["painted"]
        times.append(found)
    shown = sorted(found["shown"] for found in times)
    server = sorted(found["server"] for found in times)
    report.figures["from the answer to results, ms"] = {"median": statistics.median(shown), "worst": shown[-1]}
    report.figures["from the request to the answer, ms"] = {"median": statistics.median(server), "worst": server[-1]}
    rows = [
        ["from the request to the answer", f"{statistics.median(server):.1f}", f"{server[-1]:.1f}"],
        ["from the answer to results", f"{statistics.median(shown):.1f}", f"{shown[-1]:.1f}"],
    ]
    console.print_table(f"{len(times)} typed queries", ["", "median, ms", "worst, ms"], rows)
    report.at_most("ms from the answer to results, median", statistics.median(shown), MOST_UNTIL_SHOWN)


def _scrolled(window: webdriver.Chrome, report: Report) -> None:
    """Down through all results, up, and down again; from a place with elements above the screen and below it."""
    window.execute_script("scrollTo(0, 2 * innerHeight)")
    until(window, lambda: window.execute_script(_TILES) > 60, "the second page")
    first = _held(window)
    _scroll(window)
    after = _held(window)
    for _ in range(2):
        window.execute_script("scrollTo(0, 0)")
        _scroll(window)
    again = _held(window)
    rows = [
        [name, f"{held['nodes']:,}", f"{held['heap'] / 1e6:.1f}"]
        for name, held in (("the second page", first), (f"{HITS:,} results", after), ("after two more times", again))
    ]
    console.print_table("held by the page", ["after", "DOM nodes", "heap, MB"], rows)
    report.figures["held"] = {"first": first, "all": after, "again": again}
    report.at_most("DOM nodes after all results, times the first", after["nodes"] / first["nodes"], MOST_NODES)
    report.at_most("bytes of heap a hit", (after["heap"] - first["heap"]) / HITS, MOST_HEAP_A_HIT)
    report.at_most("heap after scrolling twice more, times the first time", again["heap"] / after["heap"], 1.1)


def _scroll(window: webdriver.Chrome) -> None:
    def one_screen() -> bool:
        window.execute_script("scrollBy(0, innerHeight * 0.9)")
        return window.execute_script(_TILES) >= HITS

    until(window, one_screen, f"{HITS:,} results", seconds=120)


def _held(window: webdriver.Chrome) -> dict[str, int]:
    window.execute_script("gc(); gc();")
    metrics = {m["name"]: m["value"] for m in window.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]}
    elements = window.execute_script("return document.querySelectorAll('*').length")
    return {"nodes": elements, "all nodes": int(metrics["Nodes"]), "heap": int(metrics["JSHeapUsedSize"])}


if __name__ == "__main__":
    console.run(main)
