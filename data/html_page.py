"""A report as one HTML page that needs no network and no script: its frame, tables, escaped text; knows no report.

What is shown comes from anybody: all text is escaped, and kept from turning its neighbours' direction.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

STYLE_SHEET = Path(__file__).parent / "style.css"  # which the page to search with shares

LONGEST_TEXT = 400  # characters of a caption that are shown


def page(title: str, heading: str, sections: Iterable[str]) -> str:
    """The whole page: `title` and `heading` are plain text, `sections` HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Even a flaw in the escaping could then neither run a script nor call out.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{attribute(title)}</title><style>{_style()}</style></head>\n"
        f"<body><main><h1>{text(heading)}</h1>\n" + "\n".join(filter(None, sections)) + "\n</main></body></html>\n"
    )


def section(title: str, content: str) -> str:
    """A heading, plain text, and the HTML below it."""
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain text; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>{"".join(f"<td>{text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        # Wide tables scroll, by the keyboard too.
        f'<div class="wide" tabindex="0" role="group" aria-label="{attribute(caption)}">'
        f"<table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(thumbnail: bytes | None, told: str) -> str:
    """A WebP image of `data.thumbnails`, or a frame where there is none; `told` is read out instead of it."""
    if thumbnail is None:
        return f'<div class="missing" role="img" aria-label="{attribute(told)}">no picture</div>'
    return f'<img alt="{attribute(told)}" src="data:image/webp;base64,{base64.b64encode(thumbnail).decode()}">'


def text(value: object) -> str:
    """Any text as content: escaped, shortened, and in an isolate that ends what direction marks it holds."""
    return f'<bdi dir="auto">{html.escape(_printable(value))}</bdi>'


def attribute(value: object) -> str:
    """Any text where no element can isolate it: escaped, without direction marks."""
    return html.escape(re.sub("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", _printable(value)))


def _printable(value: object) -> str:
    shown = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value))
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 1] + "…"


@cache
def _style() -> str:
    return STYLE_SHEET.read_text("utf-8")
