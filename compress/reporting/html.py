"""The report as one self-contained HTML page: cards, sortable table, picture, layers, decisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compress.escaping import html as escape
from compress.measures import deciding
from compress.measures.figure import LOWER, scale_of
from compress.reporting import candidates, layer_table, table
from compress.reporting.charts import Bubble, histogram, scatter
from compress.reporting.page import CSS, SCRIPT
from compress.reporting.words import interval
from compress.steps import Change, Measure, Measurement, Step

if TYPE_CHECKING:
    from compress.reporting.report import Report

MOST_LAYERS = 40
LISTED = 200  # decisions of one step beyond this are summed up by reason


def render(report: Report) -> str:
    """Render the whole page."""
    title = escape(report.title)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f'<style>{CSS}</style></head><body class="cr"><main>{body(report)}</main><script>{SCRIPT}</script></body></html>\n'
    )


def notebook(report: Report) -> str:
    """Render cards, table and picture for a notebook cell, whose page must keep its own look."""
    inner = "".join([_heading(report), cards(report), figures(report), picture(report), notes(report)])
    return f'<style>{CSS}</style><div class="cr"><main>{inner}</main></div>'


def body(report: Report) -> str:
    parts = [_heading(report), cards(report), notes(report), figures(report), layer_figures(report)]
    parts += [picture(report), candidates.as_html(report), confusion(report)]
    decided = "".join(decisions(step) for step in report.steps)
    parts += [layers(report), histograms(report), f"<h2>Decisions</h2>{decided}" if decided else "", where(report)]
    return "".join(parts)


def _heading(report: Report) -> str:
    return f'<h1>{escape(report.title)}</h1><p class="soft">{escape(report.environment.sentence)}</p>'


def deliverable(report: Report) -> Measurement | None:
    """The row of the file that ships: the one named in `files`, else the last that is not the baseline."""
    others = [row for row in report.rows if row.name != report.base.name] if report.rows else []
    named = [row for row in others if row.path is not None and row.path == report.files.get("model")]
    found = named or others
    return found[-1] if found else None


def cards(report: Report) -> str:
    """The few figures that the reader came for."""
    row = deliverable(report)
    if row is None:
        return ""
    base = report.base
    found: list[tuple[str, str, bool | None]] = []
    if row.size_bytes and base.size_bytes:
        text = f"{table.size(base.size_bytes)} → {table.size(row.size_bytes)}"
        found.append((f"{base.size_bytes / row.size_bytes:.2f}× smaller", text, row.size_bytes < base.size_bytes))
    if row.speedup is not None and "foreign" not in row.extra:
        text = f"{table.milliseconds(base.p50_ms)} → {table.milliseconds(row.p50_ms)} ms, median"
        word = "faster" if row.speedup >= 1 else "the speed"
        found.append((f"{row.speedup:.2f}× {word}", text, row.speedup >= 1))
    measure = deciding.deciding(row)
    if measure is not None:
        moved, unit = deciding.change(row, base), " points" if measure.unit == "%" else ""
        text = table.heading(measure) + (f", change {moved}{unit}" if moved is not None else "")
        found.append((deciding.value(row) or "", text, None))
    if row.agreement is not None:
        found.append((table.percent(row.agreement) or "", f"answers as {base.name}", None))
    if row.differences and row.agreement is None:
        noise = table.signal_to_noise(row, base) or ""
        found.append(
            (noise if noise == "equal" else f"{noise} dB", f"outputs beside {base.name}'s, signal to noise", None)
        )
    if report.gates:
        missed = len(report.failed)
        budgets = f"{len(report.gates)} budget" + "s" * (len(report.gates) > 1)
        found.append(("passed" if not missed else f"{missed} failed", budgets, not missed))
    colour = {True: ' class="good"', False: ' class="bad"', None: ""}
    inner = "".join(
        f'<div class="card"><b{colour[good]}>{escape(head)}</b><span>{escape(text)}</span></div>'
        for head, text, good in found
    )
    return f'<p>{escape(row.name)} beside {escape(base.name)}</p><div class="cards">{inner}</div>'


def notes(report: Report) -> str:
    lines = [f"<li>{escape(note)}</li>" for note in report.notes]
    for gate in report.gates:
        colour = {True: ' class="good"', False: ' class="bad"', None: ""}[gate.passed]
        lines.append(f"<li{colour}>{gate.mark} {escape(gate.sentence)}</li>")
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def figures(report: Report) -> str:
    """The table of the terminal with all its columns; a click on a heading sorts."""
    if not report.rows:
        return ""
    base, failed = report.base, {gate.row for gate in report.failed}
    columns = table.shown(report.rows, base, (*table.columns(report.rows), *table.more_columns(report.rows)))
    head = "".join(f'<th><button type="button">{escape(column.heading)}</button></th>' for column in columns)
    lines = []
    for row in report.rows:
        kind = "failed" if row.name in failed else "base" if row is base else ""
        cells = [column.cell(row, base) for column in columns]
        inner = "".join(
            f'<td data-v="{escape(_sort_key(column.heading, row, cell))}">{escape(cell if cell is not None else "–")}</td>'
            for column, cell in zip(columns, cells)
        )
        lines.append(f'<tr class="{kind}">{inner}</tr>')
    return (
        f'<h2>Figures</h2><div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_meanings(columns)}{_intervals(report)}"
    )


SORT_BY = {
    "size": "size_bytes",
    "p50 ms": "p50_ms",
    "p90 ms": "p90_ms",
    "p99 ms": "p99_ms",
    "samples/s": "throughput",
    "memory": "peak_memory_bytes",
    "parameters": "parameters",
    "MACs": "macs",
}


def _sort_key(heading: str, row: Measurement, cell: str | None) -> str:
    if heading in SORT_BY:
        value = getattr(row, SORT_BY[heading])
        return "" if value is None else f"{value!r}"
    return "" if cell is None else cell.replace("−", "-").rstrip(" %×")


MEANINGS = {
    "ratio": "ratio: size beside the baseline's",
    "p50 ms": "p50, p90, p99: half, nine in ten, 99 in 100 of the runs took no longer",
    "agreement": "agreement: share of samples with the same answer as the baseline",
    "SNR dB": "SNR: power of the baseline's outputs over that of the difference from them, of the worst output",
    "max diff": "max diff: largest difference of one element of an output from the baseline's",
    "MACs": "MACs: multiply-accumulates for one sample",
}


def _meanings(columns: Sequence[table.Column]) -> str:
    words = [MEANINGS[column.heading] for column in columns if column.heading in MEANINGS]
    return f'<p class="soft">{escape("; ".join(words))}.</p>' if words else ""


def _intervals(report: Report) -> str:
    found = [sentence for row in report.rows if (sentence := interval(row))]
    return f'<p class="soft">{escape("; ".join(found))}.</p>' if found else ""


def picture(report: Report) -> str:
    """What decides against latency; where nothing was measured, nothing can be weighed and nothing is drawn."""
    found = [(row, measure) for row in report.rows if (measure := deciding.deciding(row)) is not None]
    hints = candidates.hints(report)
    points = [
        replace(_bubble(row, measure), hint=hints.get(row.name, ""))
        for row, measure in found
        if row.p50_ms is not None and math.isfinite(measure.value)
    ]
    if len(points) < 2:
        return _noise_picture(report, hints)
    first = found[0][1]
    label = first.name + (", %" if first.unit == "%" else f", {first.unit}" if first.unit else "")
    limits = candidates.lines(report)
    drawn = scatter(points, "median latency, ms", label, lower_is_better=first.better == LOWER, limits=limits)
    way = "Down" if first.better == LOWER else "Up"
    return (
        f'<h2>{escape(first.name)} against latency</h2><div class="figure">{drawn}</div>'
        f'<p class="soft">{way} and to the left is better. The area of a bubble is the size of the file, a bar the 95 % interval; '
        "the dashed line joins the models that no other beats in both.</p>"
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
    drawn = scatter(points, "median latency, ms", "signal to noise of the outputs, dB", limits=candidates.lines(report))
    return (
        f'<h2>Outputs against latency</h2><div class="figure">{drawn}</div><p class="soft">Up and to the left is better. '
        "The area of a bubble is the size of the file; the dashed line joins the files that no other beats in both.</p>"
    )


def _bubble(row: Measurement, measure: Measure) -> Bubble:
    scale = scale_of(measure.unit)
    low, high = measure.interval or (None, None)
    return Bubble(
        row.name,
        row.p50_ms or 0.0,
        scale * measure.value,
        row.size_bytes,
        None if low is None else scale * low,
        None if high is None else scale * high,
    )


def layer_figures(report: Report) -> str:
    """The table of single layers, where the report is about them."""
    lines = [] if report.rows else layer_table.cells(report.details.get("layers") or ())
    return f"<h2>Layers, each alone in int8</h2>{_plain_table(lines[0], lines[1:])}" if len(lines) > 1 else ""


def confusion(report: Report) -> str:
    """Classes that lost most between the baseline and the deliverable, and what they are taken for."""
    row = deliverable(report)
    if row is None or "class_right" not in row.extra or "class_right" not in report.base.extra:
        return ""
    names = report.details.get("classes") or ()
    before, after, total = report.base.extra["class_right"], row.extra["class_right"], row.extra["class_total"]
    lost = sorted(((after[key] - before.get(key, 0), key) for key in after), key=lambda item: (item[0], int(item[1])))
    taken = {(a, b): n for a, b, n in report.base.extra.get("confusions", ())}
    lines = []
    for difference, key in [item for item in lost if item[0] < 0][:10]:
        mistaken = [(n - taken.get((a, b), 0), b) for a, b, n in row.extra.get("confusions", ()) if str(a) == key]
        most = max(mistaken, default=(0, None))
        lines.append(
            [
                _class_name(names, int(key)),
                f"{before.get(key, 0)} of {total[key]}",
                f"{after[key]} of {total[key]}",
                str(difference).replace("-", "−"),
                _class_name(names, most[1]) if most[1] is not None and most[0] > 0 else "–",
            ]
        )
    heading = "<h2>Classes that lost most</h2>"
    if not lines:
        return f"{heading}<p>No class has fewer right answers than with {escape(report.base.name)}.</p>"
    return heading + _plain_table(["class", "right before", "right after", "change", "more often taken for"], lines)


def _class_name(names: Sequence[str], index: int) -> str:
    return str(names[index]) if index < len(names) else str(index)


def _plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


@dataclass(frozen=True)
class Bars:
    """One figure that layers have, drawn as a bar for each."""

    heading: str
    words: str  # what the figure means
    value: Callable[[float, Mapping[str, Any]], str]
    in_order: bool = False  # of the network, not of size
    full: float | None = None  # what fills the track; None: the largest value
    least: float = 0.0  # largest value below which nothing is drawn


BARS = {  # key of a layer's figures
    "microseconds": Bars(
        "Time by layer",
        "What the runtime executes for one sample, the median of some runs; several layers may be fused into one.",
        lambda value, layer: f"{value:,.0f} µs",
    ),
    "noise": Bars(
        "Error of int8 at each layer's output",
        "int8 beside float on a few samples, noise as a share of the signal, layers in their order. It holds what all "
        "layers before have added: where it jumps, int8 hurts.",
        lambda value, layer: f"{100 * value:.2f} %",
        in_order=True,
    ),
    "sensitivity": Bars(
        "Sensitivity by layer",
        "Noise power at the network's output, as a share of the signal's, with this layer alone in int8.",
        lambda value, layer: f"{value:.3g}",
    ),
    "weights_noise": Bars(
        "Sensitivity by layer, weights alone",
        "The same with the layer's weights alone in int8, its activations in float.",
        lambda value, layer: f"{value:.3g}",
    ),
    "activations_noise": Bars(
        "Sensitivity by layer, activations alone",
        "The same with what the layer reads and writes in int8, its weights in float.",
        lambda value, layer: f"{value:.3g}",
    ),
    "own_noise": Bars(
        "Error of each layer alone at its own output",
        "Noise power as a share of the signal's, in the order of the network.",
        lambda value, layer: f"{value:.3g}",
        in_order=True,
    ),
    "bytes_saved": Bars(
        "Bytes saved by layer",
        "What the weights take less.",
        lambda value, layer: table.size(value) or "",
    ),
    "error": Bars(
        "Rounding error of the weights by layer",
        "How far the int8 weights are from the float ones, as a share of their size.",
        lambda value, layer: f"{100 * value:.2f} %",
    ),
    "channels_after": Bars(
        "Channels by layer, before → after",
        "The pale part was removed.",
        lambda value, layer: f"{layer.get('channels_before', '?')} → {value:g}",
        in_order=True,
    ),
    "sparsity": Bars(
        "Zeros by layer",
        "Share of the weights that are zero; it saves time only where whole channels are removed.",
        lambda value, layer: f"{100 * value:.1f} %",
        full=1.0,
        least=0.05,
    ),
}


def layers(report: Report) -> str:
    """Bars for each figure that layers have."""
    found: Sequence[Mapping[str, Any]] = report.details.get("layers") or ()
    parts: list[str] = []
    for key, bars in BARS.items():
        having = [layer for layer in found if isinstance(layer.get(key), (int, float))]
        most = max((float(layer.get("channels_before", layer[key])) for layer in having), default=0.0)
        if not having or most < bars.least:
            continue
        kept = having if bars.in_order else sorted(having, key=lambda layer: -layer[key])
        if len(kept) > MOST_LAYERS:  # the largest, where the order is the network's too
            kept = [layer for layer in kept if layer[key] >= sorted(item[key] for item in kept)[-MOST_LAYERS]]
        drawn = "".join(_bar(layer, key, bars, bars.full or most or 1.0) for layer in kept[:MOST_LAYERS])
        more = f" (the largest {MOST_LAYERS} of {len(having)})" if len(having) > MOST_LAYERS else ""
        parts.append(f"<details{' open' if not parts else ''}><summary>{bars.heading}{more}</summary>")
        parts.append(f'<p class="soft">{escape(bars.words)}</p><div class="bars">{drawn}</div></details>')
    return f"<h2>Layers</h2>{''.join(parts)}" if parts else ""


def _bar(layer: Mapping[str, Any], key: str, bars: Bars, full: float) -> str:
    name, before = escape(str(layer["name"])), layer.get("channels_before")
    was = f'<span class="was" style="width:{100 * before / full:.1f}%"></span>' if before is not None else ""
    track = "track bare" if was else "track"
    return (
        f'<span class="name" title="{name} {escape(str(layer.get("operator", "")))}"><bdi>{name}</bdi></span>'
        f'<span class="{track}">{was}<span class="fill" style="width:{100 * layer[key] / full:.1f}%"></span></span>'
        f'<span class="value">{escape(bars.value(layer[key], layer))}</span>'
    )


def histograms(report: Report) -> str:
    """Weights, and activations where they were recorded, of the layers that quantization hurts most."""
    found: Sequence[Mapping[str, Any]] = report.details.get("histograms") or ()
    if not found:
        return ""
    drawn = "".join(
        f'<div class="figure"><h3>{escape(str(item["name"]))}</h3><p class="soft">{escape(str(item.get("what", "")))}</p>'
        f"{histogram(item['counts'], item['low'], item['high'], str(item['name']), item.get('marks', ()))}</div>"
        for item in found
    )
    return (
        f'<h2>Worst layers</h2><div class="pair">{drawn}</div>'
        '<p class="soft">Heights are square roots of counts; dashed lines mark the range that int8 can express.</p>'
    )


def decisions(step: Step) -> str:
    """What a step did, counted, and what it refused, with reasons."""
    if not step.changes:
        return ""
    counted = Counter(change.action for change in step.done)
    single = {change.action: change for change in step.done}
    done = "".join(
        f"<li>{count} × {escape(action)}</li>" if count > 1 else f"<li>{_alone(single[action])}</li>"
        for action, count in counted.items()
    )
    refused = [(change.layer, change.action, change.reason) for change in step.skipped]
    if len(refused) > LISTED:
        counts = Counter((action, reason) for _, action, reason in refused)
        refused = [(f"{number} layers", action, reason) for (action, reason), number in counts.most_common()]
    lines = "".join(
        f'<tr><td class="text"><code>{escape(layer)}</code></td><td class="text">{escape(action)}</td>'
        f'<td class="text">{escape(reason)}</td></tr>'
        for layer, action, reason in refused
    )
    listed = (
        '<p>Left as they were:</p><div class="scroll"><table><thead><tr><th>layer</th><th class="text">what</th>'
        f'<th class="text">reason</th></tr></thead><tbody>{lines}</tbody></table></div>'
        if lines
        else ""
    )
    summary = f"{escape(step.name)}: {len(step.done)} done, {len(step.skipped)} left alone"
    return f"<details><summary>{summary}</summary><ul>{done}</ul>{listed}</details>"


def _alone(change: Change) -> str:
    reason = f", {escape(change.reason)}" if change.reason else ""
    return f"<code>{escape(change.layer)}</code>: {escape(change.action)}{reason}"


def where(report: Report) -> str:
    """Machine, versions, the command that makes it again."""
    environment = report.environment
    rows = [
        ("CPU", f"{environment.cpu}, {environment.cores} cores ({' '.join(environment.features)})"),
        ("threads", environment.counted_threads),
        ("seed", str(environment.seed)),
        ("system", f"{environment.system}, Python {environment.python}, compress {environment.compress}"),
        ("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())),
        ("when", environment.when),
        *((name, path) for name, path in report.files.items()),
    ]
    lines = "".join(f'<tr><td>{escape(name)}</td><td class="text">{escape(value)}</td></tr>' for name, value in rows)
    return (
        f'<h2>Machine, versions, command</h2><div class="scroll"><table><tbody>{lines}</tbody></table></div>'
        f"<pre>{escape(environment.command)}</pre>"
    )
