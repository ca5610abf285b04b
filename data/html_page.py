"""A report as one HTML page that needs no network and no script: its frame, tables, escaped text; knows no report.

What is shown comes from anybody: all text is escaped, and kept from turning its neighbours' direction.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

LONGEST_TEXT = 400  # characters of a caption that are shown


def page(title: str, heading: str, sections: Iterable[str]) -> str:
    """The whole page: `title` and `heading` are plain text, `sections` HTML; empty ones are left out."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Even a flaw in the escaping could then neither run a script nor call out.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{attribute(title)}</title><style>{STYLE}</style></head>\n"
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


STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1b1b; --soft: #595959; --rule: #d0d0d0; --panel: #f5f5f5;
  --s0: #0b5cad; --s1: #a83f00; --s2: #2c6e2c; --good: #2c6e2c; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --ink: #e8e8e8; --soft: #b0b0b0; --rule: #3c4048;
  --panel: #1e2127; --s0: #7db7ff; --s1: #ffad66; --s2: #8fd48f; --good: #8fd48f; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: auto; padding: 1rem; }
h1, h2, h3, dd { overflow-wrap: anywhere; } h3 { font-size: 1rem; margin: 0; } h2 { margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dd { margin: 0; }
dt { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: start;
  font-weight: 600; } th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--rule); text-align: start;
  font-variant-numeric: tabular-nums; } tbody th { font-weight: 400; }
tbody th, td:nth-child(n+3) { white-space: nowrap; }
svg { width: 100%; max-width: 44rem; height: auto; display: block; } svg text { fill: var(--ink); font-size: 13px; }
svg .tick { fill: var(--soft); font-size: 12px; } .axis { fill: none; stroke: var(--soft); }
.grid { stroke: var(--rule); } .line { fill: none; stroke-width: 2; } .area { fill-opacity: .2; stroke: none; }
.line.series-0 { stroke: var(--s0); } .line.series-1 { stroke: var(--s1); } .line.series-2 { stroke: var(--s2); }
.area.series-0, .dot.series-0 { fill: var(--s0); } .area.series-1, .dot.series-1 { fill: var(--s1); }
.dot.series-2 { fill: var(--s2); }
article { background: var(--panel); padding: .75rem; margin: .75rem 0; border-radius: .4rem; } article p { margin: 0; }
.strip { display: flex; flex-wrap: wrap; gap: .5rem; align-items: end; } .returned { border-inline-start: 2px solid
  var(--rule); padding-inline-start: .5rem; }
figure { margin: 0; padding: 3px; border: 2px solid transparent; }
figure.told { width: 112px; overflow-wrap: anywhere; } figure.right { border-color: var(--good); }
img, .missing { display: block; width: 112px; height: 112px; object-fit: contain; background: #fff; color: #1b1b1b; }
figcaption { font-size: .85rem; color: var(--soft); }
"""
