"""What a store of image vectors must offer, whoever keeps it; knows no file, no engine and no network.

A store is one published snapshot and the changes acknowledged since. Every answer comes from a `StoreView`: a state
that does not move while it is held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from data.errors import UserError

if TYPE_CHECKING:
    from datetime import datetime

    import numpy as np

    from data.pairs import AttributeValue
    from serving.filters import Filter


# The version of every image that a batch job brought. The sequence numbers of changes begin above it, so that 0 can
# stand for "no such image" in a conditional change.
BATCH_VERSION = 1


class VersionConflict(UserError):
    """A change asked for a version of an image that is not the current one; nothing of the change was applied."""

    def __init__(self, image_id: str, expected: int, current: int) -> None:
        super().__init__(
            f"version {expected} of image {image_id!r}",
            f"version {current}" if current else "no such image",
            "read the image again and repeat the change on what it holds now",
        )
        self.image_id, self.current = image_id, current


class KeyReused(UserError):
    """An idempotency key came with another request than the one it belongs to."""

    def __init__(self, key: str) -> None:
        super().__init__(
            "one request for each idempotency key", f"another request with key {key!r}", "make a new key for it"
        )
        self.key = key


class StoreReadOnly(UserError):
    """A change came to a store that was opened to read, or that another process writes to."""


class StoreSuperseded(StoreReadOnly):
    """A change came to a store of one model after an index of another one was published in its place."""


class StoreUnreachable(UserError):
    """A vector database does not answer, or refuses what it is asked."""


@dataclass(frozen=True)
class Upsert:
    """Put an image in the place of what its id held.

    `vector` is the image's embedding, (D,) of unit length, which the store keeps as float16. `digest` is the SHA-256 of
    the encoded image, empty for a vector alone; `location` where it can be read (see `image_files`), or empty. With
    `if_version` the change applies only when that is the current version, 0 standing for "not there".
    """

    image_id: str
    vector: np.ndarray = field(repr=False, compare=False)
    digest: str = ""
    location: str = ""
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    if_version: int | None = None
    offset: float = 0.0  # what queries by text take off the image's score (`HubnessCorrection.offsets`)


@dataclass(frozen=True)
class Delete:
    """Remove an image; one that is not there counts as removed."""

    image_id: str
    if_version: int | None = None


Change = Upsert | Delete


@dataclass(frozen=True)
class Receipt:
    """Proof that changes are on the disk: the place of the last in the store's sequence, and each image's version.

    A version is the sequence number of the change that made it, so it only grows; so is that of a deletion.
    """

    sequence: int
    versions: tuple[int, ...]


@dataclass(frozen=True)
class StoredImage:
    """What a store knows about an image. `version` is `BATCH_VERSION` when a batch job brought it and nothing since."""

    image_id: str
    digest: str = ""
    location: str = ""
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    version: int = BATCH_VERSION


@dataclass(frozen=True)
class Found:
    """One image and its score, the inner product of the query with the stored vector; higher is better."""

    image_id: str
    score: float


@dataclass(frozen=True)
class StoreDescription:
    """What operators are told of a state of a store; `kind` is how it searches, in the engine's own words."""

    snapshot: str
    image_count: int
    dimension: int
    kind: str
    model_name: str
    model_fingerprint: str
    source: str
    create_time: datetime  # of the snapshot
    certificate: Mapping[str, Any] = field(default_factory=dict)  # `index_recall.Certificate` as JSON
    changes: int = 0  # above the snapshot


@dataclass(frozen=True)
class AttributeSummary:
    """What the images of a snapshot have of one attribute, by the kind of its values.

    `kind` is "string", "number", "bool", "timestamp" or "strings" for lists; `frequent_values` are the most frequent
    texts, of it or in its lists.
    """

    name: str
    kind: str
    image_count: int
    frequent_values: tuple[str, ...] = ()


class StoreView(Protocol):
    """A state of a store that does not move; safe to share between threads. Close it by leaving its `with` block."""

    @property
    def revision(self) -> str:
        """Names the state: equal revisions give equal answers."""

    @property
    def snapshot(self) -> str:
        """The name of the snapshot under it."""

    def __len__(self) -> int:
        """How many images there are."""

    def describe(self) -> StoreDescription:
        """Where it came from and how it searches."""

    def attributes(self) -> Sequence[AttributeSummary]:
        """The attributes of the snapshot's images in the order of their names, where the store can tell."""

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: Filter | None = None,
        *,
        exact: bool = False,
        by_text: float = 0.0,
        oversampling: float = 1.0,
    ) -> list[list[Found]]:
        """The `k` best images for each of `queries` (Q, D) float32 among those that `where` matches, best first.

        Fewer when fewer match. Equal scores stand in the order of their ids. `exact` compares with every vector.
        `by_text` is how much of the queries is text: so many times each image's offset is taken off its score, where
        the model has a hubness correction. An approximate index looks at `oversampling` times as many candidates as
        usual.
        """

    def get(self, image_ids: Sequence[str]) -> list[StoredImage | None]:
        """What is known about each, in order; None for one that is not there."""

    def vectors(self, image_ids: Sequence[str]) -> np.ndarray:
        """The stored vectors, (B, D) float32, in order; `ImageNotFound` for an id that is not there."""

    def page(self, after: str, limit: int, where: Filter | None = None) -> list[StoredImage]:
        """At most `limit` images in the order of their ids, from the first id greater than `after`."""


class VectorStore(Protocol):
    """One index of one model, with changes. Methods may be called from any thread."""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model whose vectors it holds."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def corrected(self) -> bool:
        """Whether images have offsets."""

    @property
    def writable(self) -> bool:
        """Whether it was opened to be changed."""

    @property
    def at_hand(self) -> bool:
        """Whether searches need nothing but this machine."""

    @property
    def known_revision(self) -> str | None:
        """The revision of a view taken now, where that is known at once; None where the disk or a service has to say.

        Takes a moment at most, so that an event loop may ask.
        """

    def keep_image(self, data: bytes) -> str:
        """Put an encoded image where the next model will find it, durably, if there is such a place; its SHA-256."""

    def apply(self, changes: Sequence[Change], key: str = "") -> Receipt:
        """Apply `changes` in their order, all or none; they are durable and visible to the next view on return.

        A repeated idempotency `key` with the same changes returns the first receipt and changes nothing; where an
        upsert names the digest of its image, that stands for the vector, which a model may make a little differently.
        `VersionConflict`, `KeyReused`, `StoreReadOnly`; an `OSError` of the disk means that nothing was applied.
        """

    def submit(self, changes: Sequence[Change], key: str = "") -> Future[Receipt]:
        """As `apply`, without waiting for the disk. A future that is cancelled in time was not applied."""

    def view(self) -> AbstractContextManager[StoreView]:
        """The state now, with every acknowledged change in it."""

    def close(self) -> None:
        """Release files and threads. Nothing acknowledged depends on it being called."""
