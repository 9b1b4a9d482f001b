"""Which node a runtime's optimizer changed: the optimized graph set beside the graph as written, tensor by tensor.

Tensors are looked at where both forms hold the same thing: at the codes of every QuantizeLinear, whose extra reader
breaks no fusion, and at the graph's outputs. The graph is cut there, and each piece is executed as written from what the
*optimized* session gave at its start, so that the difference of a piece is its own, without those before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from compress.batches import Batch
from compress.graph.constants import is_constant
from compress.graph.editing import unique_name
from compress.quantization.kernels import HEAVY, STORED
from compress.runtimes.onnxruntime import Session

CODES = ("QuantizeLinear", "DynamicQuantizeLinear")
MOST_STEPS = 2.0  # integer kernels round otherwise than float ones: by one step, by two where two of them meet
MOST_RELATIVE = 1e-3  # of a float tensor's largest value, as `graph.parity` allows
SAMPLES = 2


@dataclass(frozen=True)
class Divergence:
    """A node whose optimized form computes something else from the same inputs, and by how much at most."""

    node: str
    op_type: str
    largest: float
    unit: str  # "steps" of the codes that it gives, or "of its largest value"

    @property
    def words(self) -> str:
        amount = f"{self.largest:.0f} steps" if self.unit == "steps" else f"{100 * self.largest:.3g} % {self.unit}"
        return f"{self.node} ({self.op_type}), by up to {amount} from the same inputs"


def first_divergence(graph: ir.Model, batch: Batch) -> Divergence | None:
    """The first node, in the order of the graph, whose optimized output differs more than its inputs explain.

    None where none does: then looking inside changed what the optimizer does, or the difference is of many roundings.

    Raises:
        ModelError: the graph does not run.
    """
    watched = _watched(graph)
    optimized = Session(graph, outputs=watched)
    if optimized.fixed_batch is not None and optimized.fixed_batch > batch.samples:
        return None
    few = batch.part(0, optimized.fixed_batch or SAMPLES)
    given = [value.detach().cpu().numpy() for value in optimized.in_order(few)]
    found = dict(zip(optimized.output_names, optimized.run(*given)))
    cut, fed = _cut(graph, watched)
    pieces = Session(cut, outputs=watched, optimize=False)
    feeds = dict(zip(optimized.input_names, given)) | {name: found[source] for name, source in fed.items()}
    written = dict(zip(watched, pieces.run(*(feeds[name] for name in pieces.input_names))))
    for name in watched:  # in the order of the graph
        difference = _difference(written[name], found[name])
        if difference is not None:
            node = _answering(graph, name, set(watched))
            return Divergence(node.name or name, node.op_type, *difference)
    return None


def _watched(graph: ir.Model) -> list[str]:
    names = [node.outputs[0].name for node in graph.graph if node.op_type in CODES and not is_constant(node.inputs[0])]
    made = [value.name for node in graph.graph for value in node.outputs if value.is_graph_output()]
    return list(dict.fromkeys(str(name) for name in (*names, *made) if name))


def _cut(graph: ir.Model, watched: Sequence[str]) -> tuple[ir.Model, dict[str, str]]:
    """A clone whose readers of watched tensors read new inputs instead; and the tensor that each new input stands for."""
    clone = graph.clone()
    values = {str(value.name): value for node in clone.graph for value in node.outputs if value.name}
    fed: dict[str, str] = {}
    for name in watched:
        value = values[name]
        uses = list(value.uses())
        if not uses:
            continue
        fresh = ir.Value(name=unique_name(clone, f"{name}_given"), type=value.type, shape=value.shape)
        if fresh.type is None:  # not inferred: codes are u8 unless a zero point says otherwise
            fresh.type = ir.TensorType(_code_type(value.producer()))
        for user, position in uses:
            user.replace_input_with(position, fresh)
        clone.graph.inputs.append(fresh)
        fed[str(fresh.name)] = name
    return clone, fed


def _code_type(node: ir.Node | None) -> ir.DataType:
    zero = node.inputs[2] if node is not None and len(node.inputs) > 2 else None
    return zero.dtype if zero is not None and zero.dtype is not None else ir.DataType.UINT8


def _difference(written: np.ndarray, found: np.ndarray) -> tuple[float, str] | None:
    """How far apart two forms of a tensor are, where that is beyond rounding."""
    if written.shape != found.shape:
        return float("inf"), "of its largest value"
    if not written.size:
        return None
    if written.dtype.kind in "iu":
        steps = float(np.abs(written.astype(np.int64) - found.astype(np.int64)).max())
        return (steps, "steps") if steps > MOST_STEPS else None
    if written.dtype.kind != "f":
        return None if np.array_equal(written, found) else (1.0, "of its largest value")
    same = (written == found) | (np.isnan(written) & np.isnan(found))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.where(same, 0.0, np.abs(written.astype(np.float64) - found))
    largest = float("inf") if np.isnan(apart).any() else float(apart.max())
    finite = np.abs(written[np.isfinite(written)])
    scale = float(finite.max()) if finite.size else 0.0
    relative = largest / scale if scale else (float("inf") if largest else 0.0)
    return (relative, "of its largest value") if relative > MOST_RELATIVE else None


def _answering(graph: ir.Model, name: str, watched: set[str]) -> ir.Node:
    """The node of the piece that ends in the tensor `name` which the user would look for: its layer, else its last."""
    last = next(node for node in graph.graph if any(value.name == name for value in node.outputs))
    piece = [node for node in _before(last, watched) if node.op_type not in (*CODES, "DequantizeLinear")]
    layers = [node for node in piece if node.op_type in HEAVY | STORED or "MatMul" in node.op_type]
    return next(iter(layers or piece), last)


def _before(last: ir.Node, watched: set[str]) -> Iterator[ir.Node]:
    """The nodes of a piece, from its end back to the watched tensors that it begins with."""
    waiting, seen = [last], {id(last)}
    while waiting:
        node = waiting.pop(0)
        yield node
        for value in node.inputs:
            maker = value.producer() if value is not None and value.name not in watched else None
            if maker is not None and id(maker) not in seen:
                seen.add(id(maker))
                waiting.append(maker)
