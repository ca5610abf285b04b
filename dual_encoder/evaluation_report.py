"""An evaluation as one HTML page that needs no network and no script; knows no model, only figures and thumbnails.

Captions, names and attributes come from anybody: all text is escaped, and kept from turning its neighbours' direction.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dual_encoder.evaluation_tables import (
    COMPARISON_COLUMNS,
    DIRECTIONS,
    RANK_COLUMNS,
    RECALL_COLUMNS,
    SLICE_COLUMNS,
    comparison_rows,
    comparison_title,
    rank_rows,
    recall_rows,
    slice_rows,
    slice_titles,
)
from dual_encoder.retrieval_examples import Example, Picture, Similarities
from dual_encoder.svg_plots import Axis, Line, histogram_plot, line_plot

LONGEST_TEXT = 400  # characters of a caption that are shown


@dataclass(frozen=True)
class EvaluationReport:
    """What a page shows.

    `figures` is what `evaluate --json` writes; `curves` holds recall@k for k = 1, 2, … by direction; `made` is the date
    as text; `history` has the figures of each epoch of training, where they are known.
    """

    figures: Mapping[str, Any]
    curves: Mapping[str, Sequence[float]]
    similarities: Similarities
    best: Sequence[Example]
    worst: Sequence[Example]
    made: str
    history: Sequence[Mapping[str, float]] = field(default_factory=list)


def render(report: EvaluationReport) -> str:
    """The whole page."""
    figures = dict(report.figures)
    name = f"{figures['bundle']['name']} on {figures['data']}"
    sections = [
        _about(report),
        _headline(figures),
        _section("Recall at every depth", _recall_plot(report.curves)),
        _section("Similarities", _similarity_plot(report.similarities)),
        _comparison(figures) if "against" in figures else "",
        _slices(figures["slices"]) if "slices" in figures else "",
        _examples(
            "Worst misses",
            "Captions whose image came furthest down the list, an image at most once.",
            report.worst,
            "No caption missed its image.",
            figures["text_to_image"]["gallery"],
        ),
        _examples(
            "Best hits",
            "Captions whose image came first with the widest lead over the next one.",
            report.best,
            "No caption found its image first.",
            figures["text_to_image"]["gallery"],
        ),
        _training(report.history),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        # Even a flaw in the escaping could then neither run a script nor call out.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Evaluation: {_attribute(name)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main><h1>Evaluation of {_text(figures['bundle']['name'])}</h1>\n"
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )


def _about(report: EvaluationReport) -> str:
    figures = report.figures
    facts = {
        "Bundle": figures["bundle"]["name"],
        "Fingerprint": figures["bundle"]["fingerprint"],
        "Data": figures["data"],
        "Split": figures["split"],
        "Images": f"{figures['text_to_image']['gallery']:,}",
        "Captions": f"{figures['image_to_text']['gallery']:,}",
        "Left out": f"{len(figures['rejected_images']):,} images that could not be decoded",
        "Date": report.made,
    }
    return f"<dl>{''.join(f'<dt>{_text(key)}</dt><dd>{_text(value)}</dd>' for key, value in facts.items())}</dl>"


def _headline(figures: Mapping[str, Any]) -> str:
    note = (
        "Every caption is a query for its image, and every image a query for any of its captions. Intervals come from "
        "resampling images 1,000 times; ties count against the model. An image is right only for its own captions, "
        "even where another would do as well."
    )
    recall = _table("Recall, per cent", RECALL_COLUMNS, recall_rows(dict(figures)))
    return _section("Figures", f"<p>{note}</p>{recall}{_table('Ranks', RANK_COLUMNS, rank_rows(dict(figures)))}")


def _recall_plot(curves: Mapping[str, Sequence[float]]) -> str:
    labels = dict(DIRECTIONS)
    lines: dict[str, Line] = {
        labels[direction]: [(k, 100 * value) for k, value in enumerate(curve, 1)] for direction, curve in curves.items()
    }
    longest = max(len(curve) for curve in curves.values())
    told = "; ".join(
        f"{name}: " + ", ".join(f"{points[k - 1][1]:.1f} % at {k}" for k in (1, 10, 100) if k <= len(points))
        for name, points in lines.items()
    )
    x, y = Axis("k, results looked at", 1, longest, logarithmic=True), Axis("recall@k, %", 0, 100)
    return line_plot("Recall at k", told, x, y, lines)


def _similarity_plot(found: Similarities) -> str:
    used = (found.matching + found.other).nonzero()[0]
    low, high = (used[0], used[-1] + 1) if len(used) else (0, len(found.edges) - 1)
    edges = found.edges[low : high + 1].tolist()
    counts = {"matching": found.matching[low:high].tolist(), "not matching": found.other[low:high].tolist()}
    told = "; ".join(f"{sum(values):,} {name} pairs, {_middle(edges, values)}" for name, values in counts.items())
    note = "The further apart the two shapes lie, the better a score alone says whether a caption fits an image."
    x = Axis("cosine similarity of caption and image", edges[0], edges[-1])
    return f"<p>{note}</p>{histogram_plot('Similarities of pairs', told, x, edges, counts)}<p>{_text(told)}.</p>"


def _middle(edges: Sequence[float], counts: Sequence[int]) -> str:
    total, seen = sum(counts), 0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        seen += count
        if seen and 2 * seen >= total:
            return f"median about {(low + high) / 2:.2f}"
    return "none"


def _comparison(figures: Mapping[str, Any]) -> str:
    against = figures["against"]
    note = (
        f"Positive differences favour {_text(figures['bundle']['name'])}. Both bundles answered the same queries; "
        f"images were resampled {against['resamples']:,} times for both at once. An interval that excludes 0 is "
        "unlikely to be luck. The p-values are two-sided and not corrected for being several."
    )
    other = f"Other bundle: {_text(against['bundle']['name'])}, fingerprint {_text(against['bundle']['fingerprint'])}."
    table = _table(comparison_title(dict(figures)), COMPARISON_COLUMNS, comparison_rows(against))
    return _section("Comparison", f"<p>{note}</p><p>{other}</p>{table}")


def _slices(slices: Mapping[str, Any]) -> str:
    note = (
        "Every slice is ranked against the full gallery. Values with fewer than 20 queries are one row, “(other)”; "
        "“(none)” are images without the attribute."
    )
    tables = [_table(title, SLICE_COLUMNS, slice_rows(found)) for title, found in slice_titles(dict(slices))]
    return _section("Slices", f"<p>{note}</p>{''.join(tables)}")


def _examples(title: str, note: str, examples: Sequence[Example], none: str, gallery: int) -> str:
    if not examples:
        return _section(title, f"<p>{none}</p>")
    shown = []
    for example in examples:
        returned = "".join(_picture(picture, f"{place}.") for place, picture in enumerate(example.returned, 1))
        shown.append(
            f"<article><h3>{_text(example.query)}</h3><p>Its image came {example.rank:,} of {gallery:,}.</p>"
            f'<div class="strip">{_picture(example.right, "right:")}<div class="strip returned">{returned}</div></div>'
            "</article>"
        )
    return _section(title, f"<p>{note} Beside it, the five images that came first.</p>{''.join(shown)}")


def _picture(picture: Picture, place: str) -> str:
    told = f"{picture.image_id}: {picture.caption}" if picture.caption else picture.image_id
    if picture.thumbnail is None:
        shown = f'<div class="missing" role="img" aria-label="{_attribute(told)}">no picture</div>'
    else:
        data = base64.b64encode(picture.thumbnail).decode()
        shown = f'<img alt="{_attribute(told)}" src="data:image/webp;base64,{data}">'
    right, mark = (' class="right"', " ✓") if picture.right else ("", "")
    return f"<figure{right}>{shown}<figcaption>{place} {picture.score:.3f}{mark}</figcaption></figure>"


def _training(history: Sequence[Mapping[str, float]]) -> str:
    plots = []
    for word, title, unit in (("loss", "Loss", 1), ("recall", "Recall", 100)):
        names = sorted({key for row in history for key in row if word in key})[:3]
        lines: dict[str, Line] = {
            name: [(epoch, unit * row.get(name, math.nan)) for epoch, row in enumerate(history, 1)] for name in names
        }
        values = [value for points in lines.values() for _, value in points if math.isfinite(value)]
        if values:
            x = Axis("epoch", 1, len(history), whole=True)
            y = Axis("loss", min(values), max(values)) if word == "loss" else Axis("recall, %", 0, 100)
            told = f"{len(history)} epochs, from {values[0]:.3g} to {values[len(lines[names[0]]) - 1]:.3g}"
            plots.append(line_plot(f"{title} while training", told, x, y, lines))
    return _section("Training", "".join(plots)) if plots else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def _table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    body = "".join(
        f'<tr><th scope="row">{_text(first)}</th>{"".join(f"<td>{_text(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        # Wide tables scroll, by the keyboard too.
        f'<div class="wide" tabindex="0" role="group" aria-label="{_attribute(caption)}">'
        f"<table><caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _text(value: object) -> str:
    """Any text as content: escaped, shortened, and in an isolate that ends what direction marks it holds."""
    return f'<bdi dir="auto">{html.escape(_printable(value))}</bdi>'


def _attribute(value: object) -> str:
    """Any text where no element can isolate it: escaped, without direction marks."""
    return html.escape(re.sub("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", _printable(value)))


def _printable(value: object) -> str:
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value))
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


_STYLE = """
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
figure { margin: 0; padding: 3px; border: 2px solid transparent; } figure.right { border-color: var(--good); }
img, .missing { display: block; width: 112px; height: 112px; object-fit: contain; background: #fff; color: #1b1b1b; }
figcaption { font-size: .85rem; color: var(--soft); }
"""
