"""A zero-shot measurement as one HTML page: accuracy, classes, a picture of confusions; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.html_page import attribute, page, section, table, text
from dual_encoder.zero_shot_tables import (
    ACCURACY_COLUMNS,
    CLASS_COLUMNS,
    DIFFERENCE_COLUMNS,
    accuracy_rows,
    class_rows,
    difference_rows,
)

PICTURED = 60  # classes in the picture; more cells would be too small to see
_CELL, _LABEL = 18, 190  # pixels


def render(report: Mapping[str, Any], confusion: np.ndarray) -> str:
    """The page of what `zero_shot --json` writes, and its confusion (C, C): rows are classes, columns what was said."""
    name = f"{report['bundle']['name']} on {report['data']}"
    title = f"Zero-shot: {name}"
    sections = [
        section("Accuracy", table("All images", ACCURACY_COLUMNS, accuracy_rows(report))),
        _difference(report) if "against" in report else "",
        section("What is taken for what", _picture(confusion, [row["class"] for row in report["classes"]])),
        section("Classes", table("Each class", CLASS_COLUMNS, class_rows(report["classes"]))),
        section("Prompts", "<ul>" + "".join(f"<li>{text(t)}</li>" for t in report["templates"]) + "</ul>"),
    ]
    return page(title, title, sections)


def _difference(report: Mapping[str, Any]) -> str:
    note = f"This bundle against {text(report['against']['bundle']['name'])}, on the same images and prompts."
    shown = table("Difference", DIFFERENCE_COLUMNS, difference_rows(report))
    return section("Before and after", f"<p>{note}</p>{shown}")


def _picture(confusion: np.ndarray, names: Sequence[str]) -> str:
    """A square of cells, the darker the larger the share of a class's images; the most confused classes if many."""
    rows = list(range(len(names)))
    note = "Rows are classes, columns what their images were taken for; the stronger a cell, the larger its share."
    if len(names) > PICTURED:
        wrong = confusion.sum(axis=1) + confusion.sum(axis=0) - 2 * np.diag(confusion)
        rows = sorted(np.argsort(-wrong, kind="stable")[:PICTURED].tolist())
        note += f" Shown are the {PICTURED} classes with most mistakes of {len(names)}."
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = _CELL * len(rows)
    parts = [f'<rect class="axis" x="{_LABEL}" y="{_LABEL}" width="{side}" height="{side}"/>']
    for place, row in enumerate(rows):
        middle = _LABEL + _CELL * (place + 0.5)
        label = attribute(_short(names[row]))
        parts.append(f'<text class="tick" x="{_LABEL - 6}" y="{middle + 4:g}" text-anchor="end">{label}</text>')
        turned = f"translate({middle + 4:g},{_LABEL - 6}) rotate(-90)"
        parts.append(f'<text class="tick" transform="{turned}">{label}</text>')
        for column, other in enumerate(rows):
            if count := int(confusion[row, other]):
                told = attribute(f"{_short(names[row])} taken for {_short(names[other])}: {count}")
                series = "series-0" if row == other else "series-1"
                parts.append(
                    f'<rect class="dot {series}" x="{_LABEL + _CELL * column}" y="{_LABEL + _CELL * place}" '
                    f'width="{_CELL}" height="{_CELL}" fill-opacity="{max(0.08, shares[row, other]):.2f}">'
                    f"<title>{told}</title></rect>"
                )
    told = attribute(f"Confusion of {len(rows)} classes. {note}")
    whole = _LABEL + side + 4
    return f'<p>{note}</p><svg viewBox="0 0 {whole} {whole}" role="img" aria-label="{told}">{"".join(parts)}</svg>'


def _short(name: str) -> str:
    return name if len(name) <= 28 else name[:27] + "…"
