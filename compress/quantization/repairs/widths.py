"""Which layers keep eight bits where four are asked for: those that lose most for each byte that four bits save.

    noise(ℓ)   at the outputs of the float network with the weights of ℓ alone rounded to their narrow grid
    bytes(ℓ)   what eight bits take more
    by falling noise(ℓ) / bytes(ℓ), layers go back to eight bits as long as they fit into what may be added

Errors of single layers nearly add up (`layer_errors.py`), so this is the greedy answer to the knapsack that it is; what it
gives is judged on samples that no pass has seen. Early layers are small and hurt most: in MobileNetV2 a twentieth of the
weights makes nine tenths of the noise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from compress.decibels import decibels
from compress.graph.constants import constant_array
from compress.progress import track
from compress.quantization.apart import changed_by_rounding, put
from compress.quantization.calibrated import Calibrated, Width
from compress.quantization.repairs.judge import Judge, Samples
from compress.quantization.storage import NARROW, SMALLEST_CODES
from compress.steps import Change

WIDE = 8


def rank_widths(
    calibrated: Calibrated, samples: Samples, *, most: int = 32, threads: int | None = None
) -> tuple[Width, ...]:
    """The layers whose weights have four bits that no option asked for, those with most noise for each byte first.

    Args:
        most: of the fitting samples, that outputs are compared on.
    """
    few = samples.fitting.part(0, most)
    graph = calibrated.graph.clone()
    judge = Judge(graph, Samples(few, few), threads=threads)
    paired = calibrated.quantize(fold=False).model
    nodes = {str(node.name): node for node in graph.graph}
    found = []
    for name in track(_candidates(calibrated), "widths", unit="layer"):
        changed = changed_by_rounding(graph, paired, name)
        for node, position, _, after in changed:
            put(graph, node, position, after)
        weight = constant_array(nodes[name].inputs[1])
        assert weight is not None
        found.append(Width(name, judge.noise(graph) if changed else 0.0, weight.size // 2))
        for node, position, before, _ in changed:
            put(graph, node, position, before)
    return tuple(sorted(found, key=lambda item: -item.noise / max(item.bytes, 1)))


def _candidates(calibrated: Calibrated) -> list[str]:
    """Layers that four bits make smaller, each with a weight of its own, whose width the user has not set."""
    nodes = {str(node.name): node for node in calibrated.graph.graph}
    found = []
    for name in calibrated.layers:
        value = nodes[name].inputs[1] if name in nodes else None
        weight = constant_array(value)
        if value is None or weight is None or weight.size < SMALLEST_CODES or len(list(value.uses())) > 1:
            continue
        if name in calibrated.weights.layer_bits or name in calibrated.excluded:
            continue
        if calibrated.weights.bits <= NARROW:
            found.append(name)
    return found


def fitting(order: Sequence[Width], most: int) -> list[str]:
    """The layers, taken in order, whose extra bytes fit into `most` together."""
    taken, used = [], 0
    for item in order:
        if used + item.bytes <= most:
            taken.append(item.node)
            used += item.bytes
    return taken


def widened(calibrated: Calibrated, nodes: Collection[str]) -> Calibrated:
    """The same with eight bits for the weights of `nodes`; what repairs had found for their narrow form goes."""
    weights = replace(
        calibrated.weights,
        layer_bits={**calibrated.weights.layer_bits, **dict.fromkeys(nodes, WIDE)},
        fixed={name: scale for name, scale in calibrated.weights.fixed.items() if name not in nodes},
    )
    return replace(
        calibrated,
        weights=weights,
        rounded={name: weight for name, weight in calibrated.rounded.items() if name not in nodes},
        shifts={name: shift for name, shift in calibrated.shifts.items() if name not in nodes},
    )


def all_wide(calibrated: Calibrated) -> Calibrated:
    """The same with eight bits for every weight."""
    return replace(calibrated, weights=replace(calibrated.weights, bits=WIDE, layer_bits={}, fixed={}), rounded={})


def narrow_bytes(calibrated: Calibrated) -> int:
    """What the weights of all layers take in four bits."""
    weights = [constant_array(node.inputs[1]) for node in calibrated.graph.graph if node.name in calibrated.layers]
    return sum(weight.size // 2 for weight in weights if weight is not None)


def kept_wide(order: Sequence[Width], wide: Collection[str]) -> list[Change]:
    """One change for each layer that keeps eight bits, with what four would have cost."""
    return [
        Change(
            item.node.rsplit("/", 1)[0],
            "weights kept in 8 bits",
            f"in 4 bits they alone put the outputs at {decibels(item.noise):.1f} dB; {item.bytes:,} bytes more",
            values={"node": item.node, "weight_noise": item.noise, "bytes": item.bytes},
        )
        for item in order
        if item.node in wide
    ]
