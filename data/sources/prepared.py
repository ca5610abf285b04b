"""A directory that `python -m data.prepare` wrote; reads images from inside its shards on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.pairs import ImageTextPair
from data.shards import read_manifest, read_shard


class Prepared:
    """`prepared:DIR`: pairs with the splits that were assigned to them, shard by shard.

    A shard is checked against its digest whenever its pairs are read; `SourceError` when it is damaged or edited.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)

    @property
    def name(self) -> str:
        """`prepared:DIR`."""
        return f"prepared:{self.directory}"

    def __len__(self) -> int:
        """How many images there are."""
        return sum(shard["images"] for shard in self.manifest["shards"])

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the shards."""
        for shard in self.manifest["shards"]:
            yield from read_shard(self.directory, self.manifest, shard)
