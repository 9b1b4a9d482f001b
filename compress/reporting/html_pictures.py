"""The pictures of the page: size and latency before and after, and what decides against latency."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from compress.counting import counted
from compress.escaping import html as escape
from compress.measures import deciding
from compress.measures.figure import HIGHER, LOWER, scale_of
from compress.reporting import candidates, table
from compress.reporting.charts import NARROW, WIDE, Bubble, scatter
from compress.reporting.html_parts import bar, card
from compress.reporting.words import NOISE, from_to
from compress.steps import Measure, Measurement

if TYPE_CHECKING:
    from compress.reporting.report import Report

MOST_BARS = 6  # models in the picture of before and after; of more, only the first and the last are drawn
SAME_SIZE = 0.005  # files nearer than this share are of one size


def cards(report: Report) -> str:
    """Size and latency as bars for each model, then the few figures that the reader came for."""
    if not report.rows:
        return ""
    row, base = report.deliverable or report.base, report.base
    names = f"<p>{escape(row.name)} beside {escape(base.name)}</p>" if row is not base else ""
    small = "".join(_small(report, row))
    inner = f'<div class="cards wide">{_size(report, row)}{_latency(report, row)}</div>'
    return f'{names}{inner}{f"""<div class="cards">{small}</div>""" if small else ""}'


def _size(report: Report, row: Measurement) -> str:
    """The card with a bar for the size of each file."""
    base = report.base
    if not row.size_bytes:
        return ""
    head, good = table.size(row.size_bytes) or "", None
    if row is not base and base.size_bytes:
        factor = base.size_bytes / row.size_bytes
        if abs(factor - 1) < SAME_SIZE:
            head = "same size"
        elif factor > 1:
            head, good = f"{factor:.2f}× smaller", True
        else:
            head, good = f"{1 / factor:.2f}× larger", False
    return card(
        head, "size on disk", good, _bars(report, row, lambda item: item.size_bytes, lambda v: table.size(v) or "")
    )


def _latency(report: Report, row: Measurement) -> str:
    """The card with a bar for the median latency of each file that was timed where it belongs."""
    base = report.base
    if not row.p50_ms or "foreign" in row.extra:
        return ""
    head, good = f"{table.milliseconds(row.p50_ms)} ms", None
    if row is not base and row.speedup is not None:
        if abs(row.speedup - 1) < NOISE:
            head = "as fast"
        else:
            good = row.speedup > 1
            head = f"{row.speedup:.2f}× faster" if good else f"{1 / row.speedup:.2f}× slower"
    bars = _bars(
        report,
        row,
        lambda item: None if "foreign" in item.extra else item.p50_ms,
        lambda value: f"{table.milliseconds(value)} ms",
    )
    return card(head, "median latency", good, bars)


def _bars(
    report: Report,
    row: Measurement,
    value: Callable[[Measurement], float | None],
    words: Callable[[float], str],
) -> str:
    """A bar for each model, as long as its share of the longest; one model alone has nothing to be set beside."""
    rows = report.rows if len(report.rows) <= MOST_BARS else (report.base, row)
    if len(rows) < 2:
        return ""
    found = [(item, number) for item in rows if (number := value(item))]
    most = max((number for _, number in found), default=1.0)
    lines = "".join(bar(item.name, number / most, words(number), pale=item is not row) for item, number in found)
    return f'<div class="bars">{lines}</div>'


def _small(report: Report, row: Measurement) -> list[str]:
    base, found = report.base, []
    measure = deciding.deciding(row)
    if measure is not None:
        moved = None if row is base else deciding.change(row, base)
        text = table.heading(measure)
        if moved is not None:
            unit = " points" if measure.unit == "%" else f" {measure.unit}".rstrip()
            text += f", change {moved}{unit}"
        known = deciding.interval(row)
        text += f"; 95 %: {from_to(known, measure)}" if known else ""
        found.append(card(deciding.value(row) or "", text, None))
    if row.agreement is not None and row is not base:
        found.append(card(table.percent(row.agreement) or "", f"answers as {base.name}", None))
    if row.differences and row.agreement is None and row is not base:
        noise = table.signal_to_noise(row, base) or ""
        noise = noise if noise == "equal" else f"{noise} dB"
        found.append(card(noise, f"outputs beside {base.name}'s, signal to noise", None))
    if report.gates:
        missed, count = len(report.failed), len(report.gates)
        limits = counted(count, "limit")
        found.append(card(f"{missed} failed" if missed else "passed", f"of {limits}" if missed else limits, not missed))
    return found


def picture(report: Report) -> str:
    """What decides against latency; where nothing was measured, nothing can be weighed and nothing is drawn."""
    found = [(row, measure) for row in report.rows if (measure := deciding.deciding(row)) is not None]
    hints = candidates.hints(report)
    points = [
        replace(_bubble(row, measure), hint=hints.get(row.name, ""))
        for row, measure in found
        if row.p50_ms is not None and math.isfinite(measure.value) and measure.name == found[0][1].name
    ]
    if len(points) < 2:
        return _noise_picture(report, hints)
    first = found[0][1]
    label = first.name + (", %" if first.unit == "%" else f", {first.unit}" if first.unit else "")
    drawn = _both(report, points, label, first.better, percent=first.unit == "%")
    better = {HIGHER: "Up and to the left is better. ", LOWER: "Down and to the left is better. "}.get(first.better, "")
    front = " The dashed line joins the models that no other beats in both." if better else ""
    sure = ", a bar the 95 % interval" if any(point.low is not None for point in points) else ""
    return (
        f'<h2>{escape(first.name)} against latency</h2><div class="figure">{drawn}</div>'
        f'<p class="soft">{better}The area of a bubble is the size of the file{sure}.{front}</p>'
    )


def _both(report: Report, points: Sequence[Bubble], label: str, better: str, *, percent: bool = False) -> str:
    """The picture in its wide and its narrow form; the style of the page shows the one that fits."""
    limits = candidates.lines(report)
    return "".join(
        scatter(points, "median latency, ms", label, better=better, percent=percent, limits=limits, frame=frame)
        for frame in (WIDE, NARROW)
    )


def _noise_picture(report: Report, hints: Mapping[str, str]) -> str:
    """The files of a search without labels: how near their outputs are to the float model's, against latency."""
    points = [
        Bubble(row.name, row.p50_ms, min(noise), row.size_bytes, hint=hints[row.name])
        for row in report.rows
        if row.name in hints and row.p50_ms is not None
        if (noise := [item.snr_db for item in row.differences if item.snr_db is not None])
    ]
    if len(points) < 2:
        return ""
    return (
        f'<h2>Outputs against latency</h2><div class="figure">'
        f"{_both(report, points, 'signal to noise of the outputs, dB', HIGHER)}</div>"
        '<p class="soft">Up and to the left is better. The area of a bubble is the size of the file; the dashed line joins '
        "the files that no other beats in both.</p>"
    )


def _bubble(row: Measurement, measure: Measure) -> Bubble:
    scale = scale_of(measure.unit)
    low, high = deciding.interval(row) or (None, None)
    return Bubble(
        row.name,
        row.p50_ms or 0.0,
        scale * measure.value,
        row.size_bytes,
        None if low is None else scale * low,
        None if high is None else scale * high,
    )
