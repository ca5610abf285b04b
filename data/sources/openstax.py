"""Cloned OpenStax textbooks: figures with the alt text that was written for blind readers; opens no image."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data.console import say
from data.errors import SourceError
from data.pairs import AttributeValue, ImageFile, ImageTextPair
from data.sources.cnxml import Book, Figure, read_book, read_figures
from data.sources.image_folder import EXTENSIONS, printable
from data.sources.rows import distinct
from data.splits import UnionFind

SHORT_WORDS = 30
COLLECTIONS = "collections"

_LICENCE = re.compile(r"https?://creativecommons\.org/(?:licenses|publicdomain)/([a-z-]+)/([0-9.]+)/?.*", re.IGNORECASE)
# Creative Commons licences under which a picture's description may be used, changed and shared by anyone.
OPEN_LICENCES = frozenset({"by", "by-sa", "zero", "mark"})

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’)]*\s+(?=[\"“(]?[A-Z0-9])")
# "A photo of a dog" → "a dog"; "This image shows a dog" → "a dog".
_LEAD_IN = re.compile(
    r"(?:this|the|an?)?\s*(?:(?:close-?up|aerial|old|colou?r)\s+)?(?:photo|photograph|picture|image|figure)\s+"
    r"(?:of|shows|showing|depicts|depicting|is of|contains)\s+(?=\S)",
    re.IGNORECASE,
)
_CREDIT = re.compile(r"\((?:credit|attribution)s?\b", re.IGNORECASE)
_PANEL_B = re.compile(
    r"\(b\)|(?<!\w)b\)|\b(?:figure|image|part|photo|photograph|panel|micrograph|illustration|picture|cartoon|painting)s?"
    r"\s+\(?b\b|\bcredit b\b",
    re.IGNORECASE,
)
_ART = re.compile(
    r"\b(?:painting|painted|drawing|drawn|illustration|engraving|cartoon|caricature|woodcut|woodblock|lithograph|etching|"
    r"poster|mural|sketch|fresco|mosaic|tapestry|manuscript|broadside|watercolou?r|comic|(?:book|magazine) cover)s?\b",
    re.IGNORECASE,
)
_DIAGRAM = re.compile(
    r"\b(?:diagram|graph|chart|flow\s?chart|schematic|map|plot|timeline|screenshot|histogram|[xy]-axis|axis|axes|equation)s?\b",
    re.IGNORECASE,
)


@dataclass
class _Picture:
    """One image file and everything that is said about it."""

    repository: _Repository
    book: Book
    path: PurePosixPath  # in the repository
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class _Repository:
    """A clone: where it is, how its images are called, and what is checked out."""

    root: Path
    prefix: str  # of image ids
    name: str  # such as github.com/openstax/osbooks-us-history@046331cfce


class OpenStax:
    """`openstax:DIR`: a clone of a textbook (`collections/`, `modules/`, `media/`), or a directory of such clones.

    A pair for every image with alt text. Captions: the alt text's first sentences without "A photo of", up to about 30
    words, then the whole alt text, then alt texts of the same picture elsewhere. Attributes: `book`, `licence`,
    `source` (repository, commit and path), `credit` and `context` (the printed caption), `kind` (photo, art or diagram,
    guessed from the words) and `multi_panel`. Images of one figure and images of the same alt text make a group.
    Books under other than CC BY, CC BY-SA or the public domain are left out, and said.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        roots = list(_clones(directory))
        if not roots:
            received = f"no {COLLECTIONS}/ in {directory}, nor in a directory below it"
            raise SourceError("a clone of an OpenStax textbook, or a directory of clones", received, "check the path")
        self._left_out: Counter[str] = Counter()
        pictures: dict[tuple[Path, PurePosixPath], _Picture] = {}
        for root in roots:
            repository = _Repository(root, "" if root == directory else f"{printable(root.name)}/", _checked_out(root))
            self._read(repository, pictures)
        self._pictures = list(pictures.values())
        self._groups = _groups(self._pictures)
        if self._left_out:
            say(f"{self.name}: left out " + ", ".join(f"{n:,} {what}" for what, n in self._left_out.most_common()))
        if not self._pictures:
            left_out = ", ".join(self._left_out) or "no figures"
            next_step = "where the licence is the reason, check out a commit from before it changed"
            raise SourceError(f"figures with alt text and an open licence in {directory}", left_out, next_step)

    @property
    def name(self) -> str:
        """`openstax:DIR`."""
        return f"openstax:{self.directory}"

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._pictures)

    def __iter__(self) -> Iterator[ImageTextPair]:
        """Pairs in the order of the books."""
        for picture in self._pictures:
            image_id = _image_id(picture)
            path = picture.repository.root / picture.path
            yield ImageTextPair(
                image_id,
                ImageFile(path),
                distinct(_captions(picture)),
                self._groups.get(image_id),
                _attributes(picture),
            )

    def _read(self, repository: _Repository, pictures: dict[tuple[Path, PurePosixPath], _Picture]) -> None:
        """Add every picture of a repository's books."""
        root = repository.root.resolve()
        for module, book in self._modules(repository.root).items():
            path = repository.root / "modules" / module / "index.cnxml"
            if not _is_inside(path, root) or not path.is_file():
                self._left_out["modules that are not in the repository"] += 1
                continue
            for figure in read_figures(path):
                image = _media_path(PurePosixPath("modules", module), figure.src)
                if image is None or not _is_inside(repository.root / image, root):
                    self._left_out["images outside their repository"] += 1
                elif image.suffix.lower() not in EXTENSIONS:
                    self._left_out["media of other formats"] += 1
                elif not figure.alt:
                    self._left_out["images without alt text"] += 1
                else:
                    picture = _Picture(repository, book, image)
                    pictures.setdefault((repository.root, image), picture).figures.append(figure)

    def _modules(self, root: Path) -> dict[str, Book]:
        """Every module of the books with an open licence, and the first such book that holds it."""
        books = [read_book(path) for path in sorted((root / COLLECTIONS).glob("*.collection.xml"))]
        modules: dict[str, Book] = {}
        for book in books:
            if is_open(book.licence):
                for module in book.modules:
                    modules.setdefault(module, book)
            else:
                reason = f"under {licence_name(book.licence)}" if book.licence else "without a licence"
                self._left_out[f"book {book.slug} in {root.name} {reason}"] += 1
        return modules


def _clones(directory: Path) -> Iterator[Path]:
    if (directory / COLLECTIONS).is_dir():
        yield directory
    elif directory.is_dir():
        yield from sorted(path for path in directory.iterdir() if (path / COLLECTIONS).is_dir())


def is_open(licence: str | None) -> bool:
    """Whether a licence URL is CC BY, CC BY-SA, CC0 or the public domain mark."""
    parts = _LICENCE.fullmatch(licence.strip()) if licence else None
    return parts is not None and parts[1].lower() in OPEN_LICENCES


def licence_name(url: str | None) -> str:
    """A licence URL in words.

    Example: `http://creativecommons.org/licenses/by-nc-sa/4.0/` → `CC BY-NC-SA 4.0`.
    """
    parts = _LICENCE.fullmatch(url.strip()) if url else None
    if parts is None:
        return url or "no licence"
    kind = {"zero": "0", "mark": "public domain mark"}.get(parts[1].lower(), f" {parts[1].upper()}")
    return f"CC{kind} {parts[2]}"


def short_form(text: str) -> str:
    """The first sentences of an alt text up to about 30 words, at least one, without "A photo of".

    Example: `A photo of a dog. It runs.` → `A dog. It runs.`
    """
    bare = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
    sentences = _SENTENCE_END.split(bare)
    words = itertools.accumulate(len(sentence.split()) for sentence in sentences)
    count = max(1, sum(total <= SHORT_WORDS for total in words))
    short = " ".join(sentences[:count])
    return short[:1].upper() + short[1:]


def split_credit(caption: str) -> tuple[str, str]:
    """`(context, credit)`: a printed caption without and with only its "(credit: …)"."""
    context, credits = caption, []
    while (start := _CREDIT.search(context)) is not None:
        depth = 0
        for end in range(start.start(), len(context)):
            depth += {"(": 1, ")": -1}.get(context[end], 0)
            if depth == 0:
                break
        credits.append(context[start.start() : end + 1])
        context = context[: start.start()] + context[end + 1 :]
    return " ".join(context.split()), " ".join(credits)


def _captions(picture: _Picture) -> Iterator[str]:
    first, *others = dict.fromkeys(figure.alt for figure in picture.figures)
    yield short_form(first)
    yield from (first, *others)


def _attributes(picture: _Picture) -> dict[str, AttributeValue]:
    figure = picture.figures[0]
    context, credit = split_credit(next((each.caption for each in picture.figures if each.caption), ""))
    first = _SENTENCE_END.split(figure.alt)[0]
    attributes: dict[str, AttributeValue] = {
        "book": picture.book.slug,
        "kind": "art" if _ART.search(first) else "diagram" if _DIAGRAM.search(first) else "photo",
        # An image of a figure with several is one panel.
        "multi_panel": figure.images == 1 and bool(_PANEL_B.search(f"{figure.alt} {figure.caption}")),
        "licence": licence_name(picture.book.licence),
        "source": f"OpenStax {picture.book.title} ({picture.repository.name} {printable(str(picture.path))})",
    }
    return attributes | ({"credit": credit} if credit else {}) | ({"context": context} if context else {})


def _image_id(picture: _Picture) -> str:
    return picture.repository.prefix + printable(str(picture.path))


def _groups(pictures: list[_Picture]) -> dict[str, str]:
    """`{image_id: group}` of images that stand in one figure or share an alt text."""
    sets = UnionFind()
    for picture in pictures:
        for figure in picture.figures:
            sets.join(("image", _image_id(picture)), ("alt", figure.alt))
            if figure.images > 1 and figure.figure:
                sets.join(("image", _image_id(picture)), ("figure", picture.repository.prefix, figure.figure))
    members: dict[object, list[str]] = {}
    for picture in pictures:
        members.setdefault(sets.find(("image", _image_id(picture))), []).append(_image_id(picture))
    return {image: min(images) for images in members.values() if len(images) > 1 for image in images}


def _media_path(module: PurePosixPath, src: str) -> PurePosixPath | None:
    """Where `src`, relative to its module, lies in the repository; None outside of it."""
    if src.startswith("/") or "://" in src or "\0" in src:
        return None
    parts: list[str] = []
    for part in (module / src).parts:
        if part == "..":
            if not parts:
                return None
            parts.pop()
        else:
            parts.append(part)
    return PurePosixPath(*parts) if parts else None


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a path, links followed, stays in the repository."""
    try:
        return path.resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):
        return False


def _checked_out(root: Path) -> str:
    """The repository's address and commit as Git's files say, as far as they do."""
    git = root / ".git"
    remote = re.search(r"url\s*=\s*\S*?(github\.com)[:/](\S+?)(?:\.git)?\s", _small_file(git / "config"))
    name = f"{remote[1]}/{remote[2]}" if remote else printable(root.resolve().name)
    head = _small_file(git / "HEAD").strip()
    if head.startswith("ref: refs/"):
        reference = head.removeprefix("ref: ")
        packed = re.search(
            rf"^([0-9a-f]{{40}}) {re.escape(reference)}$", _small_file(git / "packed-refs"), re.MULTILINE
        )
        loose = "" if ".." in reference else _small_file(git / reference).strip()
        head = loose or (packed[1] if packed else "")
    return f"{name}@{head[:10]}" if re.fullmatch("[0-9a-f]{40}", head) else name


def _small_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except (OSError, ValueError):
        return ""
