"""Figures of layers and classes on the page, each under the name of the model that they are of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from compress.escaping import html as escape
from compress.reporting import layer_table, table
from compress.reporting.charts import histogram
from compress.reporting.html_parts import line

if TYPE_CHECKING:
    from compress.reporting.report import Report

MOST_LAYERS = 40


def _of(report: Report) -> str:
    """Whose layers: the row whose file was looked into; reports of one model, or older ones, do not name it."""
    name = report.details.get("row") or (report.deliverable.name if report.deliverable is not None else "")
    return f" of {escape(str(name))}" if name else ""


def layer_figures(report: Report) -> str:
    """The table of single layers, where the report is about them."""
    lines = [] if report.rows else layer_table.cells(report.details.get("layers") or ())
    return f"<h2>Layers, each alone in int8</h2>{plain_table(lines[0], lines[1:])}" if len(lines) > 1 else ""


def confusion(report: Report) -> str:
    """Classes that lost most between the baseline and the deliverable, and what they are taken for."""
    row = report.deliverable
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
    heading = f"<h2>Classes that lost most: {escape(row.name)} beside {escape(report.base.name)}</h2>"
    if not lines:
        return f"{heading}<p>No class has fewer right answers than with {escape(report.base.name)}.</p>"
    return heading + plain_table(["class", "right before", "right after", "change", "more often taken for"], lines)


def _class_name(names: Sequence[str], index: int) -> str:
    return str(names[index]) if index < len(names) else str(index)


def plain_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first column to the left."""
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


def _share(value: float, layer: Mapping[str, Any]) -> str:
    return f"{100 * value:.3g} %"


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
        _share,
    ),
    "weights_noise": Bars(
        "Sensitivity by layer, weights alone",
        "The same with the layer's weights alone in int8, its activations in float.",
        _share,
    ),
    "activations_noise": Bars(
        "Sensitivity by layer, activations alone",
        "The same with what the layer reads and writes in int8, its weights in float.",
        _share,
    ),
    "own_noise": Bars(
        "Error of each layer alone at its own output",
        "Noise power as a share of the signal's, in the order of the network.",
        _share,
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
        lambda value, layer: f"{layer.get('channels_before', '?')} → {value:g} channels",
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
    return f"<h2>Layers{_of(report)}</h2>{''.join(parts)}" if parts else ""


def _bar(layer: Mapping[str, Any], key: str, bars: Bars, full: float) -> str:
    name, before = str(layer["name"]), layer.get("channels_before")
    was = f'<span class="was" style="width:{100 * before / full:.1f}%"></span>' if before is not None else ""
    track = "track bare" if was else "track"
    drawn = f'<span class="{track}">{was}<span class="fill" style="width:{100 * layer[key] / full:.1f}%"></span></span>'
    return line(name, drawn, bars.value(layer[key], layer), title=f"{name} {layer.get('operator', '')}")


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
        f'<h2>Worst layers{_of(report)}</h2><div class="pair">{drawn}</div>'
        '<p class="soft">Heights are square roots of counts; dashed lines mark the range that int8 can express.</p>'
    )
