"""Quarantine of a batch job: which images were skipped and why, in a file beside the index; knows no image.

INDEX/skipped.jsonl holds a line for each: `image_id`, `digest` ("" where it was not read), `reason`, a stable word, and
`message`. Memory holds the counts alone.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from data.durable import naming_file, sync_path

SKIPPED = "skipped.jsonl"


class SkippedImages:
    """Written to `work` while a job runs; takes the place of the former list at its end.

    Example: `skipped.add("a.jpg", digest, "damaged", "expected …")`, `skipped.finish(index)`.
    """

    def __init__(self, work: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._path = work / SKIPPED
        work.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("w", encoding="utf-8")

    def add(self, image_id: str, digest: str, reason: str, message: str) -> None:
        """Note an image."""
        row = {"image_id": image_id, "digest": digest, "reason": reason, "message": message}
        with naming_file(self._path):
            self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.counts[reason] += 1

    def finish(self, index: Path) -> None:
        """Put the list into `index`."""
        with naming_file(self._path):
            self._file.close()
        sync_path(self._path)
        self._path.replace(index / SKIPPED)
        sync_path(index)

    def close(self) -> None:
        """Give up, or nothing after `finish`."""
        self._file.close()


def skipped_before(index: Path) -> set[tuple[str, str]]:
    """The ids and digests of the images that the last job skipped; a list that cannot be read counts as empty."""
    try:
        with (index / SKIPPED).open(encoding="utf-8") as file:
            return {(row["image_id"], row["digest"]) for row in map(json.loads, file)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
