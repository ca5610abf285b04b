"""Makes an index of given vectors without any model, for tests of the store; knows no test."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from serving.builder_lock import only_builder
from serving.carry_over import newest_readable, open_log, stage
from serving.catalog import CatalogEntry
from serving.publish import index_staged, publish, staging
from serving.snapshot import Manifest
from serving.staged_snapshot import StagedSnapshot
from serving.vector_store import Upsert

FINGERPRINT = "f1"


def publish_batch(
    index: Path, images: Iterable[Upsert], dimension: int, replace_online: bool = False, corrected: bool = False
) -> str:
    """Publish what a batch job would of a source that holds `images`; return the snapshot's name."""
    index.mkdir(parents=True, exist_ok=True)
    with only_builder(index), staging(index) as directory, closing(open_log(index)) as log:
        staged, former = StagedSnapshot(directory, dimension + corrected), newest_readable(index, log)
        sequence = stage(staged, former, log, FINGERPRINT, only_online=True)
        images = list(images)  # after what was changed online, as a job reads its source
        entries = [
            CatalogEntry(i.image_id, i.digest, i.location, i.captions, i.attributes, origin="a source") for i in images
        ]
        staged.add(entries, below=not replace_online)
        kept = [[*image.vector, *([-image.offset] if corrected else [])] for image in images]
        staged.add_vectors(np.array(kept, np.float32).reshape(-1, dimension + corrected))
        count = staged.finish()
        certificate = index_staged(directory, np.empty((0, dimension + corrected), np.float32), dimension)
        manifest = Manifest(
            count, dimension, FINGERPRINT, "a model", "a source", [], certificate, datetime.now(UTC).isoformat(),
            sequence, former.name if former else None, corrected=corrected,
        )  # fmt: skip
        if former:
            former.close()
        return publish(index, directory, manifest)
