"""The figures of an evaluation as rows of tables, and those tables on a terminal; measures nothing."""

from __future__ import annotations

from typing import Any

from data import console

DIRECTIONS = (("text_to_image", "text → image"), ("image_to_text", "image → text"))
RECALL_COLUMNS = ("direction", "metric", "%", "95 % interval", "chance, one right answer")
RANK_COLUMNS = ("direction", "queries", "gallery", "median rank", "mean reciprocal rank")
SLICE_COLUMNS = ("direction", "slice", "queries", "recall@1 %", "recall@5 %", "recall@10 %", "median rank")
CALIBRATION_COLUMNS = (
    "which hits",
    "probability, mean %",
    "right %",
    "calibration error %",
    "Brier",
    "Brier, base rate",
)
# The false-positive rate at a true-positive rate of 95 %, in words.
UNANSWERABLE_COLUMNS = ("told by", "AUROC", "95 % interval", "pass where 95 % of the others do, %", "from")
HUBNESS_TITLE = "The bundle's hubness correction, text → image"
HUBNESS_COLUMNS = ("metric", "with %", "without %")
COMPARISON_COLUMNS = ("direction", "metric", "this", "other", "difference", "95 % interval", "p")


def print_report(report: dict[str, Any]) -> None:
    """Recall with intervals, ranks, and where they were measured slices and the comparison with another bundle."""
    title = f"{report['bundle']['name']} on {report.get('data', 'pairs')}, split {report.get('split', '')}"
    console.print_table(title, RECALL_COLUMNS, recall_rows(report))
    console.print_table("Ranks", RANK_COLUMNS, rank_rows(report))
    if "without_hubness_correction" in report:
        console.print_table(HUBNESS_TITLE, HUBNESS_COLUMNS, hubness_rows(report))
    if "calibration" in report:
        console.print_table(
            calibration_title(report["calibration"]), CALIBRATION_COLUMNS, calibration_rows(report["calibration"])
        )
        rows = unanswerable_rows(report["calibration"])
        console.print_table("Queries without an answer", UNANSWERABLE_COLUMNS, rows)
    if "slices" in report:
        for title, by_direction in slice_titles(report["slices"]):
            console.print_table(title, SLICE_COLUMNS, slice_rows(by_direction))
    if "against" in report:
        console.print_table(comparison_title(report), COMPARISON_COLUMNS, comparison_rows(report["against"]))
    if report["rejected_images"]:
        console.say(f"{len(report['rejected_images'])} images could not be decoded and were left out")


def recall_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row a direction and metric, in the order of RECALL_COLUMNS."""
    rows = []
    for direction, label in DIRECTIONS:
        figures = report[direction]
        for name in ("recall@1", "recall@5", "recall@10", "hits@100"):
            low, high = figures["confidence_95"][name]
            chance = min(1.0, int(name.split("@")[1]) / figures["gallery"])
            interval = f"{100 * low:.1f} to {100 * high:.1f}"
            rows.append([label, name, f"{100 * figures[name]:.1f}", interval, f"{100 * chance:.1f}"])
    return rows


def hubness_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row a metric, in the order of HUBNESS_COLUMNS."""
    with_it, without = report["text_to_image"], report["without_hubness_correction"]
    names = ("recall@1", "recall@5", "recall@10", "hits@100")
    return [[name, f"{100 * with_it[name]:.1f}", f"{100 * without[name]:.1f}"] for name in names]


def rank_rows(report: dict[str, Any]) -> list[list[str]]:
    """A row a direction, in the order of RANK_COLUMNS."""
    return [
        [
            label,
            str(report[direction]["queries"]),
            str(report[direction]["gallery"]),
            f"{report[direction]['median_rank']:g}",
            f"{report[direction]['mean_reciprocal_rank']:.3f}",
        ]
        for direction, label in DIRECTIONS
    ]


def calibration_title(calibration: dict[str, Any]) -> str:
    """What was played."""
    return (
        f"Probabilities of hits, {calibration['queries']:,} captions asked of {calibration['gallery']:,} images, with "
        "and without their image"
    )


def calibration_rows(calibration: dict[str, Any]) -> list[list[str]]:
    """A row for the first hit and one for the first ten, in the order of CALIBRATION_COLUMNS."""
    return [
        [
            label,
            f"{100 * figures['mean_probability']:.1f}",
            f"{100 * figures['right']:.1f}",
            f"{100 * figures['expected_calibration_error']:.1f}",
            f"{figures['brier']:.4f}",
            f"{figures['brier_of_the_base_rate']:.4f}",
        ]
        for label, figures in (
            ("the first", calibration["first_hit"]),
            (f"the first {calibration['fitted']['depth']}", calibration["first_hits"]),
        )
    ]


def unanswerable_rows(calibration: dict[str, Any]) -> list[list[str]]:
    """A row for each way to tell queries without an answer from the others, in the order of UNANSWERABLE_COLUMNS."""
    rows = []
    for name, label in (("by_probability", "probability of an answer"), ("by_best_score", "best score alone")):
        figures = calibration["unanswerable"][name]
        low, high = figures["auroc_confidence_95"]
        passing = 100 * figures["false_positive_rate_at_95_true_positive_rate"]
        threshold = figures["threshold_at_95_true_positive_rate"]
        rows.append(
            [label, f"{figures['auroc']:.3f}", f"{low:.3f} to {high:.3f}", f"{passing:.1f}", f"{threshold:.3f}"]
        )
    return rows


def comparison_title(report: dict[str, Any]) -> str:
    """Which bundle minus which."""
    return f"{report['bundle']['name']} minus {report['against']['bundle']['name']}, the same pairs (recall in %)"


def slice_titles(slices: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each slicing with what to call it."""
    length = slices["by_caption_length"]
    by_attribute = [(f"By {name}, full gallery", figures) for name, figures in slices["by_attribute"].items()]
    return [(f"By caption length, full gallery; {length['thirds']}", length), *by_attribute]


def slice_rows(by_direction: dict[str, Any]) -> list[list[str]]:
    """A row a direction and value, in the order of SLICE_COLUMNS; percentages with their 95 % intervals."""
    return [
        [label, value, str(figures["queries"]), *map(_with_interval, _recalls(figures)), f"{figures['median_rank']:g}"]
        for direction, label in DIRECTIONS
        for value, figures in by_direction[direction].items()
    ]


def comparison_rows(against: dict[str, Any]) -> list[list[str]]:
    """A row a direction and metric, in the order of COMPARISON_COLUMNS; recall in percentage points."""
    rows = []
    for direction, label in DIRECTIONS:
        for name, figures in against[direction].items():
            scale, digits = (100, 1) if name.startswith("recall") else (1, 3)
            this, other = (f"{scale * figures[which]:.{digits}f}" for which in ("bundle", "against"))
            signed = [scale * value for value in (figures["difference"], *figures["confidence_95"])]
            difference, low, high = (f"{value:+.{digits}f}" for value in signed)
            metric, p_value = name.replace("_", " "), f"{figures['p_value']:.4f}"
            rows.append([label, metric, this, other, difference, f"{low} to {high}", p_value])
    return rows


def _recalls(figures: dict[str, Any]) -> list[tuple[float, float, float]]:
    return [(figures[name], *figures["confidence_95"][name]) for name in ("recall@1", "recall@5", "recall@10")]


def _with_interval(values: tuple[float, float, float]) -> str:
    value, low, high = (100 * x for x in values)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"
