"""The figures of a zero-shot measurement as rows of tables; measures nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ACCURACY_COLUMNS = ("prompts", "top-1 %", "95 % interval", "top-5 %", "95 % interval", "mean of classes, top-1 %")
DIFFERENCE_COLUMNS = ("figure", "this %", "other %", "difference", "95 % interval", "p")
CLASS_COLUMNS = ("class", "images", "top-1 %", "top-5 %", "precision %", "most often taken for")


def accuracy_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The ensemble of prompts, the bare names, and chance."""
    rows = [_accuracy(f"{len(report['templates'])} templates", report["accuracy"])]
    if "bare_names" in report:
        rows.append(_accuracy("the bare name", report["bare_names"]))
    chance = report["chance"]
    return [*rows, ["chance", percent(chance["top_1"]), "", percent(chance["top_5"]), "", percent(chance["top_1"])]]


def difference_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """This bundle and the other on the same images."""
    against = report["against"]
    return [
        [
            key.replace("_", "-"),
            percent(report["accuracy"][key]["value"]),
            percent(against["accuracy"][key]["value"]),
            f"{100 * found['difference']:+.1f}",
            interval(found["confidence_95"], sign="+"),
            f"{found['p_value']:.3g}",
        ]
        for key, found in against["difference"].items()
    ]


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row a class, the worst first, those without images last."""
    order = sorted(classes, key=lambda row: (row["top_1"] is None, row["top_1"] or 0.0, row["class"]))
    return [
        [
            row["class"],
            f"{row['images']:,}",
            percent(row["top_1"]),
            percent(row["top_5"]),
            percent(row["precision"]),
            row["most_often_taken_for"] or "",
        ]
        for row in order
    ]


def percent(share: float | None) -> str:
    """A share as per cent, nothing for none."""
    return "" if share is None else f"{100 * share:.1f}"


def interval(bounds: Sequence[float], sign: str = "") -> str:
    """Two shares as per cent."""
    return " to ".join(f"{100 * bound:{sign}.1f}" for bound in bounds)


def _accuracy(name: str, figures: Mapping[str, Any]) -> list[str]:
    cells = []
    for key in ("top_1", "top_5"):
        cells += [percent(figures[key]["value"]), interval(figures[key]["confidence_95"])]
    return [name, *cells, percent(figures["top_1_class_mean"])]
