"""Every image below a directory, with captions from sidecar texts or file names; does not open the images."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from data.console import say
from data.errors import SourceError
from data.pairs import AttributeValue, ImageFile, ImageTextPair
from data.sources.rows import distinct, read_text

EXTENSIONS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif"})

# Words that cameras, phones and programs put into file names, which say nothing of the picture.
CAMERA_WORD = re.compile(
    "images?|imgp?|imag|pics?|pict|pictures?|photos?|foto|dsc[nfx]?|sdc|sam|cimg|mvi|mov|vid|video|pxl|pano|dji|gopr|gp|"
    "hpim|kif|wp|scan|scanned|screen|screenshot|shot|capture|whatsapp|whats|app|telegram|instagram|snapchat|signal|"
    "fb|received|untitled|unnamed|download|file|edit|edited|copy|final|burst|mp|hdr|at|am|pm|thumbnail|bild|immagine|imagen"
)

_HASH = re.compile(r"[0-9a-f]{8,}", re.IGNORECASE)
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)
_CAMEL = re.compile(r"(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-Þ])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[a-z]{2})(?=\d)")
# A copy's number at the end of a name, such as "(2)" or "_01".
_COUNTER = re.compile(r"(?:\s*\(\d+\)|[\s_.-]+0\d*)$")


class ImageFolder:
    """`folder:DIR`: `image_id` is the path below DIR, attribute `folder` the folder that holds the image.

    A text `NAME.txt` beside `NAME.jpg` gives its captions, one a line; otherwise the file name does, if it is made of
    words. Hidden files are skipped, symbolic links are followed once.
    """

    def __init__(self, directory: Path) -> None:
        if not directory.is_dir():
            raise SourceError("a directory of images", f"{directory}", "check the path")
        self.directory = directory
        self._names = sorted(image_names(directory))
        if not self._names:
            kinds = ", ".join(sorted(EXTENSIONS))
            raise SourceError(f"images ({kinds}) below {directory}", "none", "check the path, or convert the images")

    @property
    def name(self) -> str:
        """`folder:DIR`."""
        return f"folder:{self.directory}"

    def __len__(self) -> int:
        """How many files have the extension of an image."""
        return len(self._names)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of their paths."""
        for relative in self._names:
            path = self.directory / relative
            image_id = printable(relative)
            sidecar = path.with_suffix(".txt")
            if sidecar.is_file():
                captions = distinct(read_text(sidecar).splitlines())
            else:
                captions = distinct([caption_from_name(printable(path.stem))])
            folder = image_id.rpartition("/")[0]
            attributes: dict[str, AttributeValue] = {"folder": folder} if folder else {}
            yield ImageTextPair(image_id, ImageFile(path), captions, attributes=attributes)


def caption_from_name(stem: str) -> str:
    """What a file name says in words, or "" for the names that cameras, phones and databases give.

    Example: `red-bicycle_01` → `red bicycle`, `IMG_1234` → ``.
    """
    if _UUID.fullmatch(stem):
        return ""
    words = re.sub(r"[\s_.+,~()\[\]-]+|%20", " ", _COUNTER.sub("", stem)).split()
    parts = [part for word in words for part in ([word] if _is_hash(word) else _CAMEL.sub(" ", word).split())]
    return " ".join(parts) if any(map(_says_something, parts)) else ""


def _is_hash(word: str) -> bool:
    return bool(_HASH.fullmatch(word)) and (any(map(str.isdigit, word)) or len(word) >= 32)


def _says_something(word: str) -> bool:
    if _is_hash(word):
        return False
    letters = re.sub(r"[\W\d_]+", "", word)
    # "DSC0001", "WA0003" and "P1010023" are a camera's prefix and a number.
    numbered = any(map(str.isdigit, word)) and (len(letters) <= 2 or letters.isupper())
    return len(letters) > 1 - (not letters.isascii()) and not numbered and not CAMERA_WORD.fullmatch(letters.lower())


def image_names(directory: Path) -> Iterator[str]:
    """Relative POSIX paths of the image files; every real directory is entered once, so that links cannot loop."""
    seen: set[tuple[int, int]] = set()

    def report(error: OSError) -> None:
        say(f"skipped {error.filename}: {error.strerror}")

    for parent, folders, files in os.walk(directory, followlinks=True, onerror=report):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in EXTENSIONS:
                yield (Path(parent) / file).relative_to(directory).as_posix()


def printable(name: str) -> str:
    """A file name as valid Unicode: bytes that are not UTF-8 are written as `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
