"""An evaluation as one HTML page that needs no network and no script; knows no model, only figures and thumbnails."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data import html_page
from data.html_page import section, table, text
from data.svg_plots import Axis, Line, histogram_plot, line_plot
from dual_encoder.evaluation_tables import (
    CALIBRATION_COLUMNS,
    COMPARISON_COLUMNS,
    DIRECTIONS,
    HUBNESS_COLUMNS,
    HUBNESS_TITLE,
    RANK_COLUMNS,
    RECALL_COLUMNS,
    SLICE_COLUMNS,
    UNANSWERABLE_COLUMNS,
    calibration_rows,
    calibration_title,
    comparison_rows,
    comparison_title,
    hubness_rows,
    rank_rows,
    recall_rows,
    slice_rows,
    slice_titles,
    unanswerable_rows,
)
from dual_encoder.retrieval_examples import Example, Picture, Similarities


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
        section("Recall at every depth", _recall_plot(report.curves)),
        section("Similarities", _similarity_plot(report.similarities)),
        _calibration(figures["calibration"]) if "calibration" in figures else "",
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
    return html_page.page(f"Evaluation: {name}", f"Evaluation of {figures['bundle']['name']}", sections)


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
    return f"<dl>{''.join(f'<dt>{text(key)}</dt><dd>{text(value)}</dd>' for key, value in facts.items())}</dl>"


def _headline(figures: Mapping[str, Any]) -> str:
    note = (
        "Every caption is a query for its image, and every image a query for any of its captions. Intervals come from "
        "resampling images 1,000 times; ties count against the model. An image is right only for its own captions, "
        "even where another would do as well."
    )
    recall = table("Recall, per cent", RECALL_COLUMNS, recall_rows(dict(figures)))
    ranks = table("Ranks", RANK_COLUMNS, rank_rows(dict(figures)))
    hubness = ""
    if "without_hubness_correction" in figures:
        hubness = table(HUBNESS_TITLE, HUBNESS_COLUMNS, hubness_rows(dict(figures)))
    return section("Figures", f"<p>{note}</p>{recall}{ranks}{hubness}")


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
    return f"<p>{note}</p>{histogram_plot('Similarities of pairs', told, x, edges, counts)}<p>{text(told)}.</p>"


def _middle(edges: Sequence[float], counts: Sequence[int]) -> str:
    total, seen = sum(counts), 0
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        seen += count
        if seen and 2 * seen >= total:
            return f"median about {(low + high) / 2:.2f}"
    return "none"


def _calibration(calibration: Mapping[str, Any]) -> str:
    note = (
        "A hit's probability comes from its score, the scores beside it and the number of images searched, by a map "
        "fitted on the validation split. Every caption was asked twice, with its image in the gallery and without it: "
        "half of the queries have no answer. Where fewer have none, hits are right more often than stated."
    )
    fitted = calibration["fitted"]
    if not fitted["smallest"] <= calibration["gallery"] <= fitted["largest"]:
        note += (
            f" This gallery of {calibration['gallery']:,} images lies outside of the {fitted['smallest']:,} to "
            f"{fitted['largest']:,} that the map was fitted on."
        )
    tables = table(calibration_title(dict(calibration)), CALIBRATION_COLUMNS, calibration_rows(dict(calibration)))
    apart = "Queries without an answer"
    told = table(apart, UNANSWERABLE_COLUMNS, unanswerable_rows(dict(calibration)))
    shown = _reliability_plot(calibration) + told + _answer_plot(calibration["unanswerable"])
    return section("Probabilities", f"<p>{note}</p>{tables}{shown}")


def _reliability_plot(calibration: Mapping[str, Any]) -> str:
    lines: dict[str, Line] = {
        label: [(100 * b["probability"], 100 * b["right"]) for b in calibration[name]["bins"]]
        for name, label in (("first_hit", "first hits"), ("first_hits", "all hits"))
    }
    lines["as stated"] = [(0, 0), (100, 100)]
    gap = 100 * calibration["first_hit"]["expected_calibration_error"]
    told = f"Bins of equally many hits; first hits are off by {gap:.1f} percentage points on average"
    return line_plot("Reliability", told, Axis("stated probability, %", 0, 100), Axis("right, %", 0, 100), lines)


def _answer_plot(found: Mapping[str, Any]) -> str:
    counts = {"with an answer": found["with_answer"], "without": found["without_answer"]}
    x = Axis("stated probability that one of the first hits is right", 0, 1)
    told = f"AUROC {found['by_probability']['auroc']:.3f}"
    return histogram_plot("Queries with and without an answer", told, x, found["edges"], counts)


def _comparison(figures: Mapping[str, Any]) -> str:
    against = figures["against"]
    note = (
        f"Positive differences favour {text(figures['bundle']['name'])}. Both bundles answered the same queries; "
        f"images were resampled {against['resamples']:,} times for both at once. An interval that excludes 0 is "
        "unlikely to be luck. The p-values are two-sided and not corrected for being several."
    )
    other = f"Other bundle: {text(against['bundle']['name'])}, fingerprint {text(against['bundle']['fingerprint'])}."
    shown = table(comparison_title(dict(figures)), COMPARISON_COLUMNS, comparison_rows(against))
    return section("Comparison", f"<p>{note}</p><p>{other}</p>{shown}")


def _slices(slices: Mapping[str, Any]) -> str:
    note = (
        "Every slice is ranked against the full gallery. Values with fewer than 20 queries are one row, “(other)”; "
        "“(none)” are images without the attribute."
    )
    tables = [table(title, SLICE_COLUMNS, slice_rows(found)) for title, found in slice_titles(dict(slices))]
    return section("Slices", f"<p>{note}</p>{''.join(tables)}")


def _examples(title: str, note: str, examples: Sequence[Example], none: str, gallery: int) -> str:
    if not examples:
        return section(title, f"<p>{none}</p>")
    shown = []
    for example in examples:
        returned = "".join(_picture(picture, f"{place}.") for place, picture in enumerate(example.returned, 1))
        shown.append(
            f"<article><h3>{text(example.query)}</h3><p>Its image came {example.rank:,} of {gallery:,}.</p>"
            f'<div class="strip">{_picture(example.right, "right:")}<div class="strip returned">{returned}</div></div>'
            "</article>"
        )
    return section(title, f"<p>{note} Beside it, the five images that came first.</p>{''.join(shown)}")


def _picture(picture: Picture, place: str) -> str:
    told = f"{picture.image_id}: {picture.caption}" if picture.caption else picture.image_id
    shown = html_page.picture(picture.thumbnail, told)
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
    return section("Training", "".join(plots)) if plots else ""
