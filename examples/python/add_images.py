"""Adds the images of a folder, however many: `python examples/python/add_images.py FOLDER`.

Few are under way at once, so that memory stays small. What has no receipt when the server goes away may be sent again:
an `Upload` keeps its request id, and one that had arrived changes nothing.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from serving.client import SearchClient, ServiceError, Upload


def uploads(folder: Path) -> Iterator[Upload]:
    """Each PNG and JPEG file, read when its turn comes."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
            captions = [path.stem.replace("_", " ")]
            yield Upload(path.relative_to(folder).as_posix(), path.read_bytes(), captions=captions)


with SearchClient() as client:
    for upload, receipt in client.upsert_images(uploads(Path(sys.argv[1]))):
        if isinstance(receipt, ServiceError):
            print(f"{upload.image_id}: {receipt.reason}", file=sys.stderr)
        else:
            print(f"{upload.image_id}: version {receipt.version}")
