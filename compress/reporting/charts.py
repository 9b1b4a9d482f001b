"""Charts of the HTML report as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compress.escaping import html as escape

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 44, 52
LINE = 28  # height of a label on a phone, where the picture is half as wide


@dataclass(frozen=True)
class Bubble:
    """One model in the picture: latency to the right, what decides up, size as area; `low` to `high` is how sure y is."""

    name: str
    x: float
    y: float
    area: float | None = None
    low: float | None = None
    high: float | None = None
    hint: str = ""  # said when it is hovered over


def pareto(points: Sequence[Bubble], *, lower_is_better: bool = False) -> list[Bubble]:
    """Return the points that no other beats in both directions (smaller x, larger or smaller y), from left to right."""
    sign = -1 if lower_is_better else 1
    front: list[Bubble] = []
    for point in sorted(points, key=lambda p: (p.x, -sign * p.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers that cover [low, high].

    >>> ticks(0, 10)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    step = 10 ** math.floor(math.log10((high - low) / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def scatter(
    points: Sequence[Bubble],
    x_label: str,
    y_label: str,
    *,
    lower_is_better: bool = False,
    limits: Sequence[tuple[str, float, str]] = (),
) -> str:
    """Draw bubbles with their Pareto front; each names itself. `limits` are lines: the axis (x or y), the place, the words."""
    # The axis never zooms in below the intervals: a difference inside them must look like one.
    heights = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    heights += [value for axis, value, _ in limits if axis == "y"]
    x0, x1 = _span([*(p.x for p in points), *(value for axis, value, _ in limits if axis == "x")], floor=0.0)
    y0, y1 = _span(heights, floor=0.0 if min(heights) >= 0 else None)
    largest = max((p.area or 0 for p in points), default=0) or 1

    def place(point: Bubble) -> tuple[float, float]:
        return (
            LEFT + (point.x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (point.y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} against {escape(x_label)}">'
    ]
    for value in ticks(y0, y1):
        y = place(Bubble("", x0, value))[1]
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(x0, x1):
        x = place(Bubble("", value, y0))[0]
        parts.append(f'<text class="soft" x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    front = [place(point) for point in pareto(points, lower_is_better=lower_is_better)]
    if len(front) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
        parts.append(f'<polyline class="front" points="{line}"><title>Pareto front</title></polyline>')
    parts += [_limit(line, place, (x0, y0)) for line in limits]
    parts += [_interval(point, place) for point in points if point.low is not None and point.high is not None]
    parts += _bubbles(points, place, largest)
    parts.append(f'<text class="soft" x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="soft" x="8" y="24">{escape(y_label)}</text></svg>')
    return "".join(parts)


def _limit(line: tuple[str, float, str], place, origin: tuple[float, float]) -> str:  # type: ignore[no-untyped-def]
    """A line across the picture, with its words."""
    axis, value, words = line
    if axis == "x":
        x = place(Bubble("", value, origin[1]))[0]
        ends, at = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"', (x + 4, TOP + 10)
    else:
        y = place(Bubble("", origin[0], value))[1]
        ends, at = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"', (LEFT + 4, y - 5)
    said = f'<text class="soft" x="{at[0]:.1f}" y="{at[1]:.1f}">{escape(words)}</text>'
    return f'<line class="limit" {ends}><title>{escape(words)}</title></line>{said}'


def _interval(point: Bubble, place) -> str:  # type: ignore[no-untyped-def]
    """A bar from the low to the high end of the interval, with its caps."""
    x, low = place(Bubble("", point.x, point.low or 0.0))
    high = place(Bubble("", point.x, point.high or 0.0))[1]
    path = f"M{x - 5:.1f},{high:.1f}H{x + 5:.1f}M{x:.1f},{high:.1f}V{low:.1f}M{x - 5:.1f},{low:.1f}H{x + 5:.1f}"
    return f'<path class="interval" d="{path}"><title>95 %: {point.low:.4g} to {point.high:.4g}</title></path>'


def _bubbles(points: Sequence[Bubble], place, largest: float) -> list[str]:  # type: ignore[no-untyped-def]
    parts: list[str] = []
    labels: list[str] = []  # drawn last: over the bubbles of others
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: -(p.area or 0)):
        x, y = place(point)
        radius = 5 + 21 * math.sqrt((point.area or 0) / largest)
        right = x < WIDTH * 0.6
        at = y + 4
        while any(abs(at - other) < LINE and abs(x - where) < 220 for where, other in taken):  # labels must not overlap
            at += LINE
        taken.append((x, at))
        anchor = "start" if right else "end"
        label = f"{point.name}: {point.x:.3g}, {point.y:.4g}" + (f"; {point.hint}" if point.hint else "")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(label)}</title></circle>')
        text_x = x + (radius + 5 if right else -radius - 5)
        labels.append(
            f'<text class="label" x="{text_x:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(point.name if len(point.name) <= 34 else point.name[:33] + "…")}</text>'
        )
    return parts + labels


def histogram(counts: Sequence[float], low: float, high: float, label: str, marks: Sequence[float] = ()) -> str:
    """Draw a histogram over [low, high]; `marks` are vertical lines (the range that int8 can express)."""
    width, height, foot = 320, 130, 22
    most = max(counts, default=0) or 1
    # Square roots: the tails, which decide the range, would be invisible beside the peak.
    bars = [math.sqrt(count / most) * (height - foot - 6) for count in counts]
    step = width / max(1, len(bars))
    parts = [
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"><title>{escape(label)}</title>'
    ]
    for index, tall in enumerate(bars):
        if tall > 0:
            parts.append(
                f'<rect class="bar" x="{index * step:.1f}" y="{height - foot - tall:.1f}" '
                f'width="{max(step - 0.5, 0.5):.1f}" height="{tall:.1f}"/>'
            )
    for mark in marks:
        x = (mark - low) / (high - low or 1) * width
        parts.append(f'<line class="front" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - foot}"/>')
    parts.append(f'<text class="soft" x="0" y="{height - 5}">{low:.3g}</text>')
    parts.append(f'<text class="soft" x="{width}" y="{height - 5}" text-anchor="end">{high:.3g}</text></svg>')
    return "".join(parts)


def _span(values: Sequence[float], floor: float | None = None) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = (high - low) * 0.18 or abs(high) * 0.1 or 1.0
    start = low - room
    return (max(floor, start) if floor is not None else start), high + room
