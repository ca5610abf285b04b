"""Plots put every point where its value belongs, label round numbers, and stay well-formed whatever they are given."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.svg_plots import HEIGHT, WIDTH, Axis, histogram_plot, line_plot

numbers = st.floats(-1e6, 1e6, allow_nan=False)


def points_of(plot: str, tag: str = "polyline") -> list[list[tuple[float, float]]]:
    """The coordinates of each line; the plot must be well-formed."""
    root = ElementTree.fromstring(plot)
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in element.attrib["points"].split())]
        for element in root.iter(tag)
    ]


@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=20))
@example([(0.0, 0.0), (1.0, 5e-324)])  # the least that floats tell apart
def test_points_stay_inside_and_keep_their_order(points: list[tuple[float, float]]) -> None:
    x = Axis("x", min(p[0] for p in points), max(p[0] for p in points))
    y = Axis("y", min(p[1] for p in points), max(p[1] for p in points))
    (drawn,) = points_of(line_plot("title", "description", x, y, {"line": points}))
    assert len(drawn) == len(points)
    for across, up in drawn:
        assert 0 <= across <= WIDTH
        assert 0 <= up <= HEIGHT
    for (one, place), (other, further) in zip(
        zip(points, drawn, strict=True), zip(points[1:], drawn[1:], strict=True), strict=False
    ):
        assert (one[0] <= other[0]) <= (place[0] <= further[0])
        assert (one[1] <= other[1]) <= (place[1] >= further[1]), "up is less in SVG"


def test_equal_factors_are_equal_steps_on_a_logarithmic_axis() -> None:
    axis = Axis("k", 1, 100, logarithmic=True)
    assert [axis.place(k) for k in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert axis.ticks() == [1, 2, 5, 10, 20, 50, 100]


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4))
def test_an_axis_has_a_few_round_ticks_within_its_range(low: float, width: float) -> None:
    axis = Axis("x", low, low + width)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    slack = width * 1e-6
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)
    step = ticks[1] - ticks[0]
    assert float(f"{step:.2g}") / 10.0 ** math.floor(math.log10(step) + 1e-6) == pytest.approx(
        min((1, 2, 5, 10), key=lambda m: abs(m - step / 10.0 ** math.floor(math.log10(step) + 1e-6))), rel=1e-3
    )


@given(st.integers(1, 500))
def test_epochs_are_marked_by_whole_numbers(epochs: int) -> None:
    ticks = Axis("epoch", 1, epochs, whole=True).ticks()
    assert ticks
    assert all(tick == round(tick) and 1 <= tick <= epochs for tick in ticks)


def test_a_line_is_interrupted_where_a_value_is_missing_and_a_lone_point_is_a_dot() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, 1.0), (5, 2.0), (6, math.inf), (7, 1.0)]
    plot = line_plot("t", "d", Axis("x", 1, 7), Axis("y", 1, 2), {"line": points})
    assert [len(run) for run in points_of(plot)] == [2, 2]
    assert plot.count("<circle") == 1
    flat = line_plot("t", "d", Axis("epoch", 1, 1), Axis("loss", 3, 3), {"line": [(1, 3)]})
    assert flat.count("<circle") == 1
    ElementTree.fromstring(flat)


def test_a_histogram_shows_shares_so_that_groups_of_any_size_compare() -> None:
    edges = [0.0, 0.5, 1.0]
    plot = histogram_plot("t", "d", Axis("x", 0, 1), edges, {"few": [1, 3], "many": [1000, 3000]})
    few, many = points_of(plot, "polygon")
    assert few == many
    floor, low, high = few[0][1], few[1][1], few[3][1]
    assert (floor - high) == pytest.approx(3 * (floor - low), abs=0.3)
    ElementTree.fromstring(histogram_plot("t", "d", Axis("x", 0, 1), edges, {"none": [0, 0]}))


def test_names_are_text_never_markup() -> None:
    name = "<script>&\"'"
    plot = line_plot(name, name, Axis(name, 0, 1), Axis(name, 0, 1), {name: [(0, 0), (1, 1)]})
    root = ElementTree.fromstring(plot)
    assert not list(root.iter("script"))
    assert [element.text for element in root.iter("title")] == [name]
