"""Small line plots and histograms as SVG text that follows the page's colours; knows nothing of what is plotted."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 36, 44  # margins: ticks' labels, and the legend above

# Colours are the page's (.series-0 …); the dashes tell the lines apart without them.
_DASHES = ("", "7 4", "2 3", "10 3 2 3")

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """What an axis shows and its range; equal steps may be equal factors, and the ticks whole numbers only."""

    label: str
    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False

    def place(self, value: float) -> float:
        """Where a value lies between the ends, 0 to 1."""
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[float]:
        """Round values within the range: steps of 1, 2 or 5 times a power of ten."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**e for e in decades for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high]
        rough = max((self.high - self.low) / 6, 1.0 if self.whole else 0.0)
        if self.high <= self.low or rough < sys.float_info.min:  # equal, or as good as
            return [self.low]
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [n * step for n in range(first, last + 1)]


def line_plot(title: str, description: str, x: Axis, y: Axis, lines: Mapping[str, Line]) -> str:
    """Lines by name, each a list of points; points that are no numbers interrupt a line."""
    drawn = [_line(x, y, points, number) for number, points in enumerate(lines.values())]
    return _figure(title, description, x, y, list(lines), drawn)


def histogram_plot(
    title: str, description: str, x: Axis, edges: Sequence[float], counts: Mapping[str, Sequence[int]]
) -> str:
    """Histograms by name over the same edges (B + 1), each as per cent of its own total."""
    shares = {name: [100 * n / max(1, sum(values)) for n in values] for name, values in counts.items()}
    y = Axis("% of them", 0, max((max(values, default=0) for values in shares.values()), default=0) or 1)
    drawn = []
    for number, values in enumerate(shares.values()):
        steps = [(edge, value) for i, value in enumerate(values) for edge in edges[i : i + 2]]
        outline = [(edges[0], 0.0), *steps, (edges[-1], 0.0)]
        outline = [(min(max(at, x.low), x.high), value) for at, value in outline]
        points = " ".join(_point(x, y, *point) for point in outline)
        drawn.append(f'<polygon class="area series-{number}" points="{points}"/>')
        drawn.append(_line(x, y, outline, number))
    return _figure(title, description, x, y, list(shares), drawn)


def _figure(title: str, description: str, x: Axis, y: Axis, names: Sequence[str], drawn: Sequence[str]) -> str:
    legend = "".join(
        f'<g transform="translate({_LEFT + 190 * n},16)"><line class="line series-{n}" x2="28"'
        f'{_dash(n)}/><text x="34" y="4">{escape(name)}</text></g>'
        for n, name in enumerate(names)
    )
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {description}")}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
        f"{_grid(x, y)}{''.join(drawn)}{legend}</svg>"
    )


def _grid(x: Axis, y: Axis) -> str:
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for tick in x.ticks():
        at = _across(x, tick)
        parts.append(f'<path class="grid" d="M{at} {_TOP}V{bottom}"/>')
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks():
        at = _up(y, tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{right}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{tick:g}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.label)}</text>')
    parts.append(f'<text transform="translate(14,{(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">')
    return "".join([*parts, f"{escape(y.label)}</text>"])


def _line(x: Axis, y: Axis, points: Line, number: int) -> str:
    runs: list[list[str]] = [[]]
    for across, up in points:
        if math.isfinite(across) and math.isfinite(up):
            runs[-1].append(_point(x, y, across, up))
        elif runs[-1]:
            runs.append([])
    lines = "".join(
        f'<polyline class="line series-{number}"{_dash(number)} points="{" ".join(run)}"/>'
        for run in runs
        if len(run) > 1
    )
    # A single point has no line to be seen by.
    dots = [run[0].split(",") for run in runs if len(run) == 1]
    return lines + "".join(f'<circle class="dot series-{number}" cx="{cx}" cy="{cy}" r="3"/>' for cx, cy in dots)


def _dash(number: int) -> str:
    dash = _DASHES[number % len(_DASHES)]
    return f' stroke-dasharray="{dash}"' if dash else ""


def _point(x: Axis, y: Axis, across: float, up: float) -> str:
    return f"{_across(x, across)},{_up(y, up)}"


def _across(x: Axis, value: float) -> float:
    return round(_LEFT + x.place(value) * (WIDTH - _LEFT - _RIGHT), 1)


def _up(y: Axis, value: float) -> float:
    return round(HEIGHT - _BOTTOM - y.place(value) * (HEIGHT - _TOP - _BOTTOM), 1)
