"""The images of a source as entries of a catalog, and which of them cannot be; knows no model and no index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from data.attributes import EXPECTED, is_attribute, is_unicode
from data.errors import SourceError
from data.pairs import AttributeValue, ImageTextPair, PairSource
from data.splits import split_pairs
from serving.catalog import CatalogEntry
from serving.change_request import MAX_ID_CHARACTERS
from serving.image_files import location_of

_CACHE_KB = 16_384


class DistinctIds:
    """Tells whether a text came before, for any number of them; a context manager.

    They stay in a file without a name: as a set, a million ids would hold a hundred megabytes of memory.
    """

    def __enter__(self) -> DistinctIds:
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self._connection.execute("CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._connection.execute("BEGIN")
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()

    def add(self, text: str) -> bool:
        """Take a text; False when it came before."""
        key = (text.encode("utf-8", "surrogatepass"),)
        return self._connection.execute("INSERT OR IGNORE INTO seen VALUES (?)", key).rowcount == 1


def pairs_of_splits(source: PairSource, splits: Sequence[str]) -> Sequence[ImageTextPair] | PairSource:
    """The pairs of `splits`, as training and evaluation divide `source`, or all; `SourceError` when there is none."""
    if not splits:
        return source
    parts = split_pairs(source)
    chosen = {pair.image_id for split in splits for pair in parts[split]}
    if not chosen:
        counts = ", ".join(f"{len(pairs):,} in {split}" for split, pairs in parts.items())
        raise SourceError(
            f"images of split {', '.join(splits)} in {source.name}",
            counts,
            "choose another split, or leave --split out",
        )
    return [pair for pairs in parts.values() for pair in pairs if pair.image_id in chosen]


def checked_pairs(
    pairs: Iterable[ImageTextPair], name: str, skip: Callable[[str, str, str, str], None]
) -> Iterator[ImageTextPair]:
    """`pairs` without those whose ids cannot be stored, which `skip` is told (`SkippedImages.add`).

    `SourceError` for an id met before.
    """
    with DistinctIds() as ids:
        for pair in pairs:
            if not ids.add(pair.image_id):
                raise SourceError(f"image ids that occur once in {name}", f"{pair.image_id!r} twice", "make ids unique")
            if is_storable_id(pair.image_id):
                yield pair
            else:
                message = f"expected an id of 1 to {MAX_ID_CHARACTERS:,} characters of valid Unicode"
                skip(ascii(pair.image_id), "", "bad_id", message)


def is_storable_id(image_id: str) -> bool:
    """Whether an index can hold an image under this id."""
    return 1 <= len(image_id) <= MAX_ID_CHARACTERS and is_unicode(image_id)


def entry_of_pair(pair: ImageTextPair, digest: str, origin: str) -> CatalogEntry:
    """What a catalog keeps of a pair; `SourceError` for an attribute that it cannot keep."""
    location = location_of(pair.image)
    return CatalogEntry(
        pair.image_id,
        digest,
        location if is_unicode(location) else "",
        tuple(as_unicode(caption) for caption in pair.captions),
        checked_attributes(pair.image_id, pair.attributes),
        origin=as_unicode(origin),
    )


def checked_attributes(image_id: str, attributes: Mapping[str, AttributeValue]) -> dict[str, AttributeValue]:
    """Attributes in valid Unicode; `SourceError` for one that cannot be kept."""
    return {as_unicode(name): _attribute(image_id, name, value) for name, value in attributes.items()}


def _attribute(image_id: str, name: str, value: AttributeValue) -> AttributeValue:
    if isinstance(value, str):
        value = as_unicode(value)
    elif isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        value = [as_unicode(item) for item in value]
    if is_attribute(value):
        return value
    raise SourceError(EXPECTED, f"{name} = {value!r} of image {image_id!r}", "correct or remove the attribute")


def as_unicode(text: str) -> str:
    """A text with what is no valid Unicode replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
