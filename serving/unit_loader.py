"""Loads what a server serves: a model and the index that it made, as one unit; knows no call.

Example: `with unit_loader(settings) as loader: engine = loader.load()`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data.errors import SnapshotError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from dual_encoder.runtime import Runtime
    from serving.isolated_decoding import IsolatedDecoder
    from serving.query_encoder import Decode
    from serving.search_engine import SearchEngine
    from serving.server_settings import ServerSettings
    from serving.vector_store import VectorStore


class UnitLoader:
    """See `unit_loader`."""

    def __init__(self, settings: ServerSettings, decoder: IsolatedDecoder | None) -> None:
        self._settings, self.decoder = settings, decoder

    def load(self) -> SearchEngine:
        """Open the index with the bundle in it, or with another copy of that, and run the model as queries will.

        Without an index, the one in Milvus. `BundleError`, `SnapshotError`, `FingerprintMismatch` or
        `vector_store.StoreUnreachable`.
        """
        from dual_encoder.runtime import Runtime
        from serving.embedded_store import EmbeddedStore

        settings = self._settings
        store: VectorStore
        if settings.index is None:
            from serving.milvus_store import MilvusStore

            runtime = Runtime.load(settings.bundle or "default", shared=True)
            store = MilvusStore.open(settings.store, runtime.fingerprint, writable=settings.writable)
        else:
            runtime = Runtime.load(settings.bundle, shared=True) if settings.bundle else self.runtime(settings.index)
            store = EmbeddedStore.open(
                settings.index,
                runtime.fingerprint,
                bundle=settings.bundle or "BUNDLE",
                writable=settings.writable,
                compact_after=settings.compact_after,
            )
        return self._engine(runtime, store)

    def load_next(self, former: SearchEngine) -> SearchEngine:
        """The unit that is live in the index of `former` now, with the bundle in it; it writes in the place of that.

        Both are in memory until `former` is closed.
        """
        from serving.embedded_store import EmbeddedStore

        assert isinstance(former.store, EmbeddedStore)
        index = former.store.index
        runtime = self.runtime(index)
        store = EmbeddedStore.open(index, runtime.fingerprint, writable=False)
        try:
            engine = self._engine(runtime, store)
            if former.store.writable:
                store.take_over(former.store)
        except BaseException:
            store.close()
            raise
        return engine

    def runtime(self, index: Path) -> Runtime:
        """The model that is live in `index`, from the bundle in it."""
        from dual_encoder.runtime import Runtime
        from serving.index_bundle import bundle_of

        return Runtime.load(bundle_of(index), shared=True)

    def _engine(self, runtime: Runtime, store: VectorStore) -> SearchEngine:
        from serving.query_encoder import IMAGE_BATCH, TEXT_BATCH
        from serving.search_engine import SearchEngine

        check_unit(runtime, store)
        runtime.warm_up(TEXT_BATCH, IMAGE_BATCH)
        if self.decoder is not None:
            self.decoder.check()
        return SearchEngine(runtime, store, isolated(self.decoder, runtime) if self.decoder else None)


@contextmanager
def unit_loader(settings: ServerSettings) -> Iterator[UnitLoader]:
    """Something that loads units as `settings` say. Processes that decode images start at once, beside the loading."""
    from serving.isolated_decoding import IsolatedDecoder

    decoder = IsolatedDecoder() if settings.isolated_decoding else None
    try:
        yield UnitLoader(settings, decoder)
    finally:
        if decoder is not None:
            decoder.close()


def isolated(decoder: IsolatedDecoder, runtime: Runtime) -> Decode:
    """What decodes for a model, in processes of their own."""

    async def decode(data: bytes) -> np.ndarray:
        return await decoder.pixels(data, runtime.preprocessing)

    return decode


def check_unit(runtime: Runtime, store: VectorStore) -> None:
    """`SnapshotError` for an index that this model cannot answer from, whatever its fingerprint says."""
    if store.dimension != runtime.embedding_dim:
        expected, received = f"{runtime.embedding_dim} components", f"an index of {store.dimension}"
        raise SnapshotError(f"vectors of {expected}", received, "build the index again with this bundle")
    if store.corrected and runtime.hubness is None:
        raise SnapshotError(
            "a bundle with the hubness correction that the index was built with",
            "one without",
            "serve the copy in the index, or build the index again",
        )
