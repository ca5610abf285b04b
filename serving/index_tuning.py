"""Finds the fastest index, and the narrowest search of it, that reaches an index recall; knows no model, no files."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.exact_index import ROUNDING
from serving.faiss_index import FaissIndex, SearchSettings

# What a grid of settings is made from: shares of the lists, and rows.
PROBED = (1 / 64, 1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 1 / 2)
PROPOSED = (200, 400, 700, 1_000, 2_000)
COMPARED = (50, 100, 200, 400, 800, 1_600)
EF_SEARCH = (64, 128, 256, 512, 1_024, 2_048)

# Settings are chosen by what they reach on other queries too, in 19 of 20 such samples: so many standard errors less.
SURE = 1.645


@dataclass(frozen=True)
class Trial:
    """One way to search one index: index recall@10 over the queries, and milliseconds for one query on one thread.

    `surely` is the recall that other queries of the kind reach too, as far as a sample can tell.
    """

    kind: str
    settings: SearchSettings
    recall: float
    surely: float
    p50: float
    p99: float


def try_settings(index: FaissIndex, settings: SearchSettings, queries: np.ndarray, tenth: np.ndarray) -> Trial:
    """Search `queries` (Q, D) one by one; `tenth` (Q,) are the scores of the exact tenth hits, ties count as found."""
    narrowed = FaissIndex(index.index, index.kind, index.vectors, settings)
    seconds, found = [], []
    for query, bound in zip(queries[:, np.newaxis], tenth, strict=True):
        start = time.perf_counter()
        scores, _ = narrowed.search(query, 10)
        seconds.append(time.perf_counter() - start)
        found.append((scores >= bound - ROUNDING).mean())
    p50, p99 = 1_000 * np.quantile(seconds, [0.5, 0.99])
    recall = float(np.mean(found))
    surely = recall - SURE * float(np.std(found)) / math.sqrt(len(found))
    return Trial(index.kind, settings, recall, surely, float(p50), float(p99))


def grid(index: FaissIndex) -> Iterator[list[SearchSettings]]:
    """Settings to try, in lines of which each goes from narrow to wide."""
    start = index.settings
    if start == SearchSettings():
        yield [start]
    elif index.lists is None:
        widths = EF_SEARCH if index.kind.startswith("HNSW") else (0,)
        for compared in COMPARED[:3]:
            yield [replace(start, ef_search=width, compared=compared) for width in widths]
    else:
        nlist = index.lists.nlist
        probes = sorted({max(1, round(share * nlist)) for share in PROBED})
        for proposed, compared in itertools.product(PROPOSED if start.proposed else (0,), _compared(start)):
            yield [replace(start, nprobe=n, proposed=proposed, compared=compared) for n in probes]


def _compared(start: SearchSettings) -> Sequence[int]:
    return (30, 50) if start.proposed else COMPARED


def tune(
    index: FaissIndex,
    queries: np.ndarray,
    tenth: np.ndarray,
    recall: float,
    each: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Trials over the grid; a line ends when it surely reaches `recall`, or is slower than a trial that does."""
    trials: list[Trial] = []
    best = np.inf
    for line in grid(index):
        for settings in line:
            trial = try_settings(index, settings, queries, tenth)
            trials.append(trial)
            each(trial)
            if trial.surely >= recall:
                best = min(best, trial.p50)
            if trial.surely >= recall or trial.p50 > best:
                break
    return trials


def fastest(trials: Sequence[Trial], recall: float) -> Trial:
    """The fastest trial that surely reaches `recall`; where none does, the one that comes nearest."""
    reached = [trial for trial in trials if trial.surely >= recall]
    return min(reached, key=lambda trial: trial.p50) if reached else max(trials, key=lambda trial: trial.recall)
