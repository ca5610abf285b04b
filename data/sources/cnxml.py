"""Reads OpenStax's XML: books of a repository with their licences, and figures of a module; opens no image.

Formats: `collections/*.collection.xml` (CollXML) and `modules/*/index.cnxml` (CNXML) as published in
github.com/openstax/osbooks-*. Namespaces are not compared: they changed between years, the names did not.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from data.errors import SourceError
from data.sources.rows import malformed

MAX_XML_BYTES = 16 << 20
MAX_DEPTH = 200
REPAIR = "check out the repository again"


@dataclass(frozen=True)
class Book:
    """One collection: which modules it is made of, and under which licence."""

    slug: str
    title: str
    licence: str | None  # URL
    modules: tuple[str, ...]


@dataclass(frozen=True)
class Figure:
    """One image of a module: where it stands, its alt text and the printed caption."""

    figure: str  # the id of the whole figure, "" where there is none
    images: int  # in the whole figure
    src: str
    alt: str
    caption: str


def read_book(path: Path) -> Book:
    """A `*.collection.xml`."""
    root = parse_xml(path)
    metadata = next((element for element in root if name_of(element) == "metadata"), root)
    found = {name_of(element): element for element in reversed(list(metadata))}
    licence = found.get("license")
    modules = (element.get("document", "") for element in root.iter() if name_of(element) == "module")
    return Book(
        _text(found.get("slug")) or path.name.removesuffix(".collection.xml"),
        _text(found.get("title")) or path.stem,
        licence_url(licence),
        tuple(module for module in modules if module),
    )


def licence_url(element: Element | None) -> str | None:
    """What `<md:license>` says: its `url`, else a URL in its text."""
    if element is None:
        return None
    return element.get("url") or next(iter(re.findall(r"https?://\S+", _text(element))), None)


def read_figures(path: Path) -> Iterator[Figure]:
    """Every image of a module with its alt text, in the order of the text."""
    root = parse_xml(path)
    parents = {child: parent for parent in root.iter() for child in parent}
    media = [(element, image) for element in root.iter() if name_of(element) == "media" if (image := _image(element))]
    whole = [_outermost_figure(element, parents) for element, _ in media]
    for (element, image), figure in zip(media, whole, strict=True):
        captions = [] if figure is None else _captions(element, figure, parents)
        yield Figure(
            "" if figure is None else figure.get("id", ""),
            1 if figure is None else sum(other is figure for other in whole),
            image,
            " ".join(element.get("alt", "").split()),
            " ".join(captions),
        )


def parse_xml(path: Path) -> Element:
    """The root of an XML file; `SourceError` for one that is malformed, too large, too deep or declares a DTD.

    Without a DTD there are no entities, so that nothing can expand or name another file.
    """
    try:
        size = path.stat().st_size
        if size > MAX_XML_BYTES:
            raise malformed(str(path), f"at most {MAX_XML_BYTES:,} bytes", f"{size:,}", REPAIR)
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        received = f"byte {error.object[error.start]:#04x} at {error.start:,}"
        raise malformed(str(path), "UTF-8 text", received, REPAIR) from None
    except OSError as error:
        raise SourceError("a readable file", f"{error.strerror}: {path}", REPAIR) from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise malformed(str(path), "XML without a document type or entities", "one that declares them", REPAIR)
    parser: Any = ElementTree.XMLPullParser(("start", "end"))
    root: Element | None = None
    depth = 0
    try:
        for first in range(0, len(text), 1 << 16):
            parser.feed(text[first : first + (1 << 16)])
            for event, element in parser.read_events():
                root = element if root is None else root
                depth += 1 if event == "start" else -1
                if depth > MAX_DEPTH:
                    raise malformed(str(path), f"at most {MAX_DEPTH} nested elements", "more", REPAIR)
        parser.close()
    except (ElementTree.ParseError, ValueError) as error:
        raise malformed(str(path), "well-formed XML", f"{error}", REPAIR) from None
    if root is None:
        raise malformed(str(path), "well-formed XML", "no element", REPAIR)
    return root


def name_of(element: Element) -> str:
    """The name of an element without its namespace."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _image(media: Element) -> str:
    """The image meant for the screen, "" where the medium is none."""
    images = [child for child in media if name_of(child) == "image" and child.get("src")]
    screen = [image for image in images if image.get("for") not in ("pdf", "print")]
    return (screen or images)[0].get("src", "") if images else ""


def _outermost_figure(element: Element, parents: dict[Element, Element]) -> Element | None:
    found = None
    while (parent := parents.get(element)) is not None:
        if name_of(parent) in ("figure", "subfigure"):
            found = parent
        element = parent
    return found


def _captions(element: Element, figure: Element, parents: dict[Element, Element]) -> list[str]:
    """The captions of the panel and of the whole figure, inner first."""
    captions = []
    while element is not figure:
        element = parents[element]
        captions += [text for child in element if name_of(child) == "caption" if (text := _text(child))]
    return captions


def _text(element: Element | None) -> str:
    return "" if element is None else " ".join("".join(element.itertext()).split())
