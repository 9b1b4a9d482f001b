"""Which layers stay in float: those whose error falls most for each bit of time that float takes more.

    error(ℓ)    at the outputs of the float network with ℓ alone in int8 (`layer_errors.py`)
    extra(ℓ)    work(ℓ) · (1 − 1/r) + c · (elements read and written)          in multiply-accumulates of float
    by falling error(ℓ) / extra(ℓ), layers join those in float as long as all of them take at most `float_share` of the
    int8 network's time; the first set with next to the least error of the whole network, on samples held back, is kept

Errors of single layers nearly add up, not quite: a tensor between two layers is rounded until both are in float. So sets
are judged, not layers, and who is not needed in the set goes. Time is counted, not measured: the same data give the same
file on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from compress.batches import Batch
from compress.decibels import decibels
from compress.graph.constants import constant_array
from compress.graph.works import works_of
from compress.progress import track
from compress.quantization.calibrated import Calibrated
from compress.quantization.kernels import number
from compress.quantization.layer_errors import LayerError, rank_layers
from compress.quantization.repairs.judge import Samples
from compress.quantization.repairs.levels import Accuracy
from compress.steps import Change

GAIN = 0.97  # noises nearer to each other count as equal
LEAST = 0.02  # of the errors of all layers: what makes less is not looked at
TIME = 0.4  # of the time that is left, that ranking may take: other repairs come after
TRIED = 12  # layers, at most: each asks for one run of the network
# Of int8 products beside float ones, by target; other processors have kernels that add four products at once.
SPEEDUP = {"x86-avx2": 1.9, "arm64": 2.0}
FASTEST = 3.5
DEPTHWISE = 4.0  # a multiply-accumulate of a depthwise layer takes so many of a dense one
PAIR = 16.0  # multiply-accumulates that converting one element takes, there and back


@dataclass(frozen=True)
class Extra:
    """What a layer in float takes more: as a share of the int8 network's work, and in bytes of the file."""

    share: float
    bytes: int


def choose_floats(
    calibrated: Calibrated,
    samples: Samples,
    noise: Callable[[Calibrated], float],
    accuracy: Accuracy,
    *,
    end: float,
    threads: int | None = None,
) -> tuple[Calibrated, list[Change]] | None:
    """Return `calibrated` with its worst layers in float, and a change for each; None where none is needed, none pays or time is short.

    Args:
        noise: judges a candidate.
        end: of `time.monotonic`, when the time for repairs is up.
    """
    names = set(calibrated.layers) - set(calibrated.excluded)
    layers = {str(node.name): node for node in calibrated.graph.graph if node.name in names}
    start = time.monotonic()
    noises = [noise(calibrated)]  # with the first 0, 1, 2 … of `chosen` in float
    if decibels(noises[0]) >= accuracy.float_db:
        return None
    needed = len(layers) * (time.monotonic() - start) / 2  # ranking runs fewer samples than judging
    if len(layers) < 2 or needed > TIME * (end - start):
        return None
    few = samples.fitting.part(0, max(1, accuracy.samples // 8))
    ranked = rank_layers(calibrated, [few], samples=few.samples, layers=list(layers), threads=threads)
    extras = _extras(calibrated, few.part(0, 1))
    most = accuracy.float_share * sum(_weight_bytes(calibrated, node) for node in layers.values())
    chosen: list[LayerError] = []
    for item in track(_fitting(_order(ranked, extras), extras, accuracy.float_share, most), "float", unit="layer"):
        if decibels(noises[-1]) >= accuracy.float_db:
            break
        chosen.append(item)
        noises.append(noise(_in_float(calibrated, chosen)))
    count = next(i for i, found in enumerate(noises) if found <= min(noises) / GAIN)
    kept = _needed(calibrated, chosen[:count], noises[count], noise)
    return (_in_float(calibrated, kept), [_change(item, extras[item.node]) for item in kept]) if kept else None


def _in_float(calibrated: Calibrated, items: Sequence[LayerError]) -> Calibrated:
    names = tuple(item.node for item in items)
    return replace(calibrated, excluded=(*calibrated.excluded, *names), repaired=(*calibrated.repaired, *names))


def _needed(
    calibrated: Calibrated, chosen: Sequence[LayerError], reached: float, noise: Callable[[Calibrated], float]
) -> list[LayerError]:
    """Those of `chosen` without which more noise is left: some only stood in the way of others' turn."""
    kept = list(chosen)
    for item in chosen[:-1]:
        rest = [other for other in kept if other is not item]
        if noise(_in_float(calibrated, rest)) <= reached / GAIN:
            kept = rest
    return kept


def _fitting(order: Sequence[LayerError], extras: dict[str, Extra], share: float, most: float) -> list[LayerError]:
    """The layers of `order`, in turn, that fit into what may be added of time and of bytes."""
    taken: list[LayerError] = []
    for item in order:
        extra = extras[item.node]
        if extra.share <= share and extra.bytes <= most:
            taken.append(item)
            share, most = share - extra.share, most - extra.bytes
    return taken[:TRIED]


def _order(ranked: Sequence[LayerError], extras: dict[str, Extra]) -> list[LayerError]:
    least = LEAST * sum(item.error for item in ranked)
    worth = [item for item in ranked if item.error >= least and item.node in extras]
    return sorted(worth, key=lambda item: -item.error / max(extras[item.node].share, 1e-6))


def _extras(calibrated: Calibrated, sample: Batch) -> dict[str, Extra]:
    speedup = SPEEDUP.get(calibrated.weights.target.name, FASTEST)
    works = {str(work.node.name): work for work in works_of(calibrated.graph, sample)}
    weights = {name: work.macs * _slowness(work.node) for name, work in works.items()}
    whole = sum(weight / speedup if name in calibrated.layers else weight for name, weight in weights.items()) + sum(
        work.elements for work in works.values()
    )
    return {
        name: Extra(
            (weights[name] * (1 - 1 / speedup) + PAIR * work.elements) / max(whole, 1),
            _float_bytes(work.node) - _weight_bytes(calibrated, work.node),
        )
        for name, work in works.items()
        if name in calibrated.layers
    }


def _slowness(node: ir.Node) -> float:
    groups = int(number(node, "group", 1)) if node.op_type == "Conv" else 1
    weight = constant_array(node.inputs[1])
    return DEPTHWISE if groups > 1 and weight is not None and weight.shape[1] == 1 else 1.0


def _float_bytes(node: ir.Node) -> int:
    weight = constant_array(node.inputs[1])
    return 0 if weight is None else 4 * weight.size


def _weight_bytes(calibrated: Calibrated, node: ir.Node) -> int:
    return _float_bytes(node) * calibrated.weights.bits_of(node) // 32


def _change(item: LayerError, extra: Extra) -> Change:
    reason = (
        f"in int8 it alone puts the outputs at {item.sqnr_db:.1f} dB; float takes about {extra.share:.1%} more time"
    )
    values = {"node": item.node, "sensitivity": item.error, "time_share": extra.share, "bytes": extra.bytes}
    return Change(item.layer, "kept in float", reason, values=values)
