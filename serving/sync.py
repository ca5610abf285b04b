"""What became of a source since an index was made of it: images that were added, changed or removed; embeds nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data import console
from data.errors import SnapshotError, SourceError
from data.loading import content_digests
from serving.carry_over import newest_readable, open_log
from serving.catalog import ONLINE, entry_columns
from serving.skipped_images import skipped_before
from serving.snapshot import IMPORTED
from serving.source_entries import checked_pairs, entry_of_pair, pairs_of_splits

if TYPE_CHECKING:
    from data.pairs import ImageTextPair, PairSource
    from serving.change_log import ChangeLog
    from serving.snapshot import Manifest, Snapshot

_AT_ONCE = 1_000


@dataclass
class Differences:
    """Images of the source that the index lacks, holds otherwise, or holds although they are gone or unreadable."""

    added: int = 0
    changed: int = 0
    removed: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def __str__(self) -> str:
        return f"{self.added:,} images added, {self.changed:,} changed, {self.removed:,} removed"


def live_manifest(index: Path) -> Manifest:
    """What the live snapshot says of itself, its source above all; `SnapshotError` when there is none.

    `SourceError` when no images can be compared with it, for its vectors were imported.
    """
    with _opened(index) as (snapshot, _):
        if snapshot.manifest.source.startswith(IMPORTED):
            raise SourceError(
                "an index that was built from images",
                snapshot.manifest.source,
                "import the vectors again, see docs/indexing.md",
            )
        return snapshot.manifest


def differences(index: Path, source: PairSource, splits: Sequence[str]) -> Differences:
    """Compare the live state of `index` with `source`, image by image, by digest, place, captions and attributes.

    A file that did not change is not read. What was changed or deleted online stands above the source and is no
    difference, and neither is an image that the last job skipped and that has the same bytes still.
    """
    found = Differences()
    with _opened(index) as (snapshot, log):
        comparison = _Comparison(snapshot, log, skipped_before(index), source.name, found)
        pairs = pairs_of_splits(source, splits)
        checked = checked_pairs(pairs, source.name, lambda *_: None)
        stream = console.progress(checked, "comparing images", total=len(pairs), unit="images")
        while chunk := list(itertools.islice(stream, _AT_ONCE)):
            comparison.take(chunk)
        found.removed += comparison.not_met()
    return found


class _Comparison:
    """Compares pairs with a snapshot and counts what differs."""

    def __init__(
        self, snapshot: Snapshot, log: ChangeLog, skipped: set[tuple[str, str]], origin: str, found: Differences
    ) -> None:
        self._catalog, self._skipped, self._origin, self._found = snapshot.catalog, skipped, origin, found
        self._online = {change.image_id for change in log.after(snapshot.manifest.sequence)}
        self._online.update(image_id for image_id, _ in self._catalog.deletions())
        self._met = 0

    def take(self, pairs: Sequence[ImageTextPair]) -> None:
        """Compare images that were not given before."""
        pairs = [pair for pair in pairs if pair.image_id not in self._online]
        stored = self._catalog.by_ids([pair.image_id for pair in pairs])
        for pair, digest in zip(pairs, content_digests(pair.image for pair in pairs), strict=True):
            before = stored.get(pair.image_id)
            readable = not digest.startswith("unreadable:")
            if before is None:
                self._found.added += readable and (pair.image_id, digest) not in self._skipped
            elif before.origin != ONLINE:
                self._met += 1
                self._found.removed += not readable
                same = entry_columns(entry_of_pair(pair, digest, before.origin))[:5] == entry_columns(before)[:5]
                self._found.changed += readable and not same

    def not_met(self) -> int:
        """How many images of sources the snapshot holds that were not among the pairs."""
        hidden = self._catalog.by_ids(list(self._online)).values()
        return self._catalog.count_of_sources() - sum(entry.origin != ONLINE for entry in hidden) - self._met


@contextmanager
def _opened(index: Path) -> Iterator[tuple[Snapshot, ChangeLog]]:
    missing = SnapshotError(f"an index in {index}", "none", "build it with --data and --bundle first")
    if not index.is_dir():
        raise missing
    with closing(open_log(index)) as log:
        snapshot = newest_readable(index, log)
        if snapshot is None:
            raise missing
        with closing(snapshot):
            yield snapshot, log
