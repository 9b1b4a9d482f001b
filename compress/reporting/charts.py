"""Charts of the HTML report as plain SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.escaping import html as escape
from compress.measures.figure import HIGHER, LOWER

LETTER = 0.56  # mean width of a letter, as a share of the size of the font
LEAST_POINTS = 2.0  # of percent on the axis where no interval is known: a difference of 0.1 must not fill the picture


@dataclass(frozen=True)
class Frame:
    """The size of a picture in its own units, and what its margins take; a page shows it at about that many pixels."""

    name: str
    width: float
    height: float
    font: float
    radius: float  # of the largest bubble
    left: float
    right: float = 24
    top: float = 44
    bottom: float = 54


# Two forms of one picture, of which a page shows one: scaled down to a phone, the letters of the wide form are too small.
WIDE = Frame("wide", 960, 400, 15, radius=26, left=66)
NARROW = Frame("narrow", 300, 300, 13, radius=15, left=46, right=14, top=36, bottom=46)


@dataclass(frozen=True)
class Bubble:
    """One model in the picture: latency to the right, what decides up, size as area; `low` to `high` is how sure y is."""

    name: str
    x: float
    y: float
    area: float | None = None
    low: float | None = None
    high: float | None = None
    hint: str = ""  # shown when it is hovered over


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
    better: str = HIGHER,
    percent: bool = False,
    limits: Sequence[tuple[str, float, str]] = (),
    frame: Frame = WIDE,
) -> str:
    """Draw bubbles with their Pareto front; each names itself.

    `better` says which way is good upwards ("higher", "lower", "" where it is not known: no front is drawn then); `percent`
    ends the axis at 100. `limits` are lines: the axis (x or y), the place, the words.
    """
    # The axis never zooms in below the intervals: a difference inside them must look like one.
    heights = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
    heights += [value for axis, value, _ in limits if axis == "y"]
    known = any(p.low is not None for p in points)
    x0, x1 = _span([*(p.x for p in points), *(value for axis, value, _ in limits if axis == "x")], floor=0.0)
    y0, y1 = _span(
        heights,
        floor=0.0 if min(heights) >= 0 else None,
        ceiling=100.0 if percent else None,
        least=LEAST_POINTS if percent and not known else 0.0,
    )

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            frame.left + (x - x0) / (x1 - x0) * (frame.width - frame.left - frame.right),
            frame.height - frame.bottom - (y - y0) / (y1 - y0) * (frame.height - frame.top - frame.bottom),
        )

    end, foot = frame.width - frame.right, frame.height - frame.bottom
    parts = [
        f'<svg class="chart {frame.name}" viewBox="0 0 {frame.width:g} {frame.height:g}" role="img" '
        f'aria-label="{escape(y_label)} against {escape(x_label)}" style="font-size:{frame.font:g}px">'
    ]
    for value in ticks(y0, y1):
        y = place(x0, value)[1]
        parts.append(f'<line class="axis" x1="{frame.left:g}" x2="{end:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="soft" x="{frame.left - 8:g}" y="{y + 5:.1f}" text-anchor="end">{value:g}</text>')
    for value in ticks(x0, x1, 5 if frame is WIDE else 3):
        x = place(value, y0)[0]
        parts.append(f'<text class="soft" x="{x:.1f}" y="{foot + 18:g}" text-anchor="middle">{value:g}</text>')
    if better:
        front = [place(point.x, point.y) for point in pareto(points, lower_is_better=better == LOWER)]
        if len(front) > 1:
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in front)
            parts.append(f'<polyline class="front" points="{line}"><title>Pareto front</title></polyline>')
    parts += [_limit(line, place, (x0, y0), frame) for line in limits]
    parts += [_interval(point, place) for point in points if point.low is not None and point.high is not None]
    parts += _bubbles(points, place, frame)
    parts.append(f'<text class="soft" x="{end:g}" y="{frame.height - 8:g}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text class="soft" x="6" y="20">{escape(y_label)}</text></svg>')
    return "".join(parts)


Place = Callable[[float, float], tuple[float, float]]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def _limit(line: tuple[str, float, str], place: Place, origin: tuple[float, float], frame: Frame) -> str:
    """A line across the picture, with its words."""
    axis, value, words = line
    if axis == "x":
        x = place(value, origin[1])[0]
        right = x < frame.width * 0.6
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top:g}" y2="{frame.height - frame.bottom:g}"'
        at, anchor = (x + 4 if right else x - 4, frame.top + 2), "start" if right else "end"
    else:
        y = place(origin[0], value)[1]
        ends = f'x1="{frame.left:g}" x2="{frame.width - frame.right:g}" y1="{y:.1f}" y2="{y:.1f}"'
        at, anchor = (frame.left + 4, y - 5), "start"
    text = f'<text class="soft" x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    return f'<line class="limit" {ends}><title>{escape(words)}</title></line>{text}'


def _interval(point: Bubble, place: Place) -> str:
    """A bar from the low to the high end of the interval, with its caps."""
    x, low = place(point.x, point.low or 0.0)
    high = place(point.x, point.high or 0.0)[1]
    path = f"M{x - 5:.1f},{high:.1f}H{x + 5:.1f}M{x:.1f},{high:.1f}V{low:.1f}M{x - 5:.1f},{low:.1f}H{x + 5:.1f}"
    return f'<path class="interval" d="{path}"><title>95 %: {point.low:.4g} to {point.high:.4g}</title></path>'


def _bubbles(points: Sequence[Bubble], place: Place, frame: Frame) -> list[str]:
    largest = max((p.area or 0 for p in points), default=0) or 1
    drawn = []
    for point in sorted(points, key=lambda p: -(p.area or 0)):
        x, y = place(point.x, point.y)
        drawn.append((point, x, y, 5 + (frame.radius - 5) * math.sqrt((point.area or 0) / largest)))
    parts = []
    for point, x, y, radius in drawn:
        words = f"{point.name}: {point.x:.3g}, {point.y:.4g}" + (f"; {point.hint}" if point.hint else "")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"><title>{escape(words)}</title></circle>')
    circles = [(x - radius, y - radius, x + radius, y + radius) for _, x, y, radius in drawn]
    taken: list[Box] = []
    for point, x, y, radius in drawn:  # labels last: over the bubbles of others
        name = shortened(point.name, int((frame.width - 8) / (LETTER * frame.font) * 0.6))
        box = _free(_boxes(name, x, y, radius, frame), taken, circles, frame)
        taken.append(box)
        parts.append(f'<text class="label" x="{box[0]:.1f}" y="{box[3] - 4:.1f}">{escape(name)}</text>')
    return parts


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters; its end, which tells files apart, stays.

    >>> shortened("runs/2026/model.onnx", 12)
    '…/model.onnx'
    """
    return name if len(name) <= most else "…" + name[1 - most :]


def _boxes(name: str, x: float, y: float, radius: float, frame: Frame) -> list[Box]:
    """Where the name of a bubble may stand, the best first: beside it, above, below, then further away."""
    wide, tall = LETTER * frame.font * len(name), frame.font + 4
    found = []
    for shift in range(6):
        for sign in (1, -1) if shift else (1,):
            top = y - tall / 2 + sign * shift * tall
            found += [(x + radius + 4, top), (x - radius - 4 - wide, top)]
        if not shift:
            found += [(x - wide / 2, y - radius - tall - 2), (x - wide / 2, y + radius + 2)]
    edge = frame.width - wide - 2
    found += [
        (min(max(2.0, x - wide / 2), edge), y + sign * (radius + 2 + n * tall)) for n in range(6) for sign in (1, -1)
    ]
    return [(left, top, left + wide, top + tall) for left, top in found]


def _free(boxes: Sequence[Box], taken: Sequence[Box], circles: Sequence[Box], frame: Frame) -> Box:
    """The first box inside the picture that covers no other label and, where that can be had, no bubble."""
    inside = [
        box
        for box in boxes
        if box[0] >= 2 and box[2] <= frame.width - 2 and box[1] >= 24 and box[3] <= frame.height - frame.bottom + 2
    ]
    for others in ((*taken, *circles), taken):
        for box in inside:
            if not any(_meet(box, other) for other in others):
                return box
    return (inside or boxes)[0]


def _meet(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


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


def _span(
    values: Sequence[float], floor: float | None = None, ceiling: float | None = None, least: float = 0.0
) -> tuple[float, float]:
    """The ends of an axis that holds `values` with room on both sides, at least `least` long."""
    low, high = min(values), max(values)
    room = max((high - low) * 0.18, (least - (high - low)) / 2) or abs(high) * 0.1 or 1.0
    start, end = low - room, high + room
    return (max(floor, start) if floor is not None else start), (min(ceiling, end) if ceiling is not None else end)
