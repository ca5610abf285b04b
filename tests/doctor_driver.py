"""A process that looks a small data set over and dies, or waits, at the scoring of a part; prints how many it scored.

python doctor_driver.py OUT KILLED_AT WAITS_AT    (0: never)
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fakes import ListSource, colour_pair

from data import console
from data.doctor import examine
from data.pairs import ImageTextPair
from dual_encoder import pair_doctor, pair_scores


class Meanings:
    """Puts an image and its captions near each other, as their numbers say; an encoder without a model."""

    def images(self, pairs: Sequence[ImageTextPair]) -> tuple[np.ndarray, list[int]]:
        return np.stack([_meaning(pair.image_id.split("-")[1], 1) for pair in pairs]), []

    def captions(self, captions: Sequence[str]) -> np.ndarray:
        return np.stack([_meaning(caption.split()[-1], 2) for caption in captions])

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts)

    def named(self, images: np.ndarray) -> None:
        return None


def _meaning(number: str, seed: int) -> np.ndarray:
    known = int(number) if number.isdigit() else 0
    random = np.random.default_rng([known, seed])
    return (np.random.default_rng(known).normal(size=12) + 0.3 * random.normal(size=12)).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    out, killed_at, waits_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    score, scored = pair_scores.score_part, [0]

    def counted(part: pair_scores.Part) -> pair_scores.Scores:
        scored[0] += 1
        if scored[0] == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if scored[0] == waits_at:
            print("scoring", flush=True)
            sys.stdin.readline()
        return score(part)

    pair_scores.score_part, pair_scores.PART = counted, 60
    pair_doctor.pair_encoder = lambda bundle=None: Meanings()
    examine(ListSource([colour_pair(number) for number in range(160)], "colours:160"), ("pairs",), out)
    print(scored[0])
    return 0


if __name__ == "__main__":
    console.run(main)
