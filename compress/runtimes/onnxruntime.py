"""ONNX Runtime, the one door to it: load a graph, run it, look inside it, time its nodes."""

from __future__ import annotations

import functools
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort
from torch import Tensor

from compress.batches import Batch
from compress.counting import counted
from compress.errors import InputError, ModelError, UnsupportedOperatorError, nearest
from compress.scratch import scratch_folder

VERSION: str = ort.__version__
# Past this the weights go to a file of their own, which ONNX Runtime maps: as one message they would be in memory three
# times (the message, its bytes, what was read from them), and protobuf refuses messages of 2 GiB.
IN_MEMORY_LIMIT_BYTES = 250_000_000

_DTYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(np.object_),
}


class Session:
    """One model loaded by ONNX Runtime on the CPU, called with a batch (by name where it has names) or arrays in order.

    Args:
        model: an `.onnx` file or a graph; a graph is neither kept nor changed.
        threads: threads inside one operator (None: as many as ONNX Runtime likes).
        outputs: names of tensors to return instead of the model's outputs; any tensor of the
            main graph, so that calibration can look inside. They are never optimized away.
        optimize: let ONNX Runtime fuse and reorder; False runs the graph node by node as written.
        profile: record the time of every node; read it with `.profile()`.
        arena: keep freed memory for the next run; False gives it back, for runs whose sizes vary.

    Raises:
        ModelError: ONNX Runtime cannot read the model, with its reason.
        UnsupportedOperatorError: an operator or opset that this ONNX Runtime lacks, named.
    """

    def __init__(
        self,
        model: Path | str | ir.Model,
        *,
        threads: int | None = None,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        profile: bool = False,
        arena: bool = True,
    ) -> None:
        self._folder = scratch_folder()  # large weights, profiles
        self._label = repr(str(model)) if isinstance(model, (str, Path)) else f"graph {model.graph.name!r}"
        options = _session_options(threads, optimize=optimize, arena=arena)
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        self._profiling = profile
        if outputs is not None:
            model = with_outputs(_as_graph(model), outputs)
        source = _source(model, Path(self._folder.name))
        try:
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's classes share no base but Exception
            raise _load_error(self._label, error) from error
        inputs, results = self._session.get_inputs(), self._session.get_outputs()
        self.input_names: tuple[str, ...] = tuple(value.name for value in inputs)
        self.input_shapes: tuple[tuple[int | str | None, ...], ...] = tuple(tuple(value.shape) for value in inputs)
        self.input_dtypes: tuple[np.dtype, ...] = tuple(_dtype(value) for value in inputs)
        self.output_names: tuple[str, ...] = (
            tuple(value.name for value in results) if outputs is None else tuple(outputs)
        )

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the first input takes; None where any will do."""
        first = self.input_shapes[0][:1] if self.input_shapes else ()
        return first[0] if first and isinstance(first[0], int) else None

    def run(self, *inputs: np.ndarray | Tensor | Batch) -> tuple[np.ndarray, ...]:
        """Run on one `Batch`, or on inputs in the order of `input_names`; numbers are cast to the graph's width.

        Raises:
            InputError: wrong number, kind or shape of inputs.
            ModelError: the model failed while running, with the node that did.
        """
        one = inputs[0] if len(inputs) == 1 else None
        given: tuple[Any, ...] = self.in_order(one) if isinstance(one, Batch) else inputs
        if len(given) != len(self.input_names):
            expected = ", ".join(self.input_names)
            raise InputError(
                f"{self._label} takes {counted(len(self.input_names), 'input')} ({expected}), got {len(given)}"
            )
        feeds = {
            name: _as_array(name, value, dtype)
            for name, value, dtype in zip(self.input_names, given, self.input_dtypes)
        }
        try:
            return tuple(self._session.run(list(self.output_names), feeds))
        except Exception as error:
            raise _run_error(self._label, error, feeds) from error

    def in_order(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of a batch in the order of `input_names`.

        Raises:
            InputError: names that do not fit, or a wrong number of inputs.
        """
        return batch.in_order_of(self.input_names, whose=self._label)

    def profile(self) -> list[dict[str, Any]]:
        """Stop recording; return per node its name, operator and median microseconds per run, in running order."""
        if not self._profiling:
            raise InputError("this session does not record times; open it with profile=True")
        self._profiling = False
        events = json.loads(Path(self._session.end_profiling()).read_text())
        return _node_times(events)


def _source(model: Path | str | ir.Model, folder: Path) -> str | bytes:
    """What ONNX Runtime loads: a path, or bytes; a graph too large for those is written to `folder`."""
    if not isinstance(model, ir.Model):
        if not Path(model).is_file():
            raise ModelError(f"ONNX file {str(model)!r} does not exist")
        return str(model)
    if weight_bytes(model) > IN_MEMORY_LIMIT_BYTES or _has_external(model):
        path = folder / "model.onnx"
        ir.save(model.clone(), path, external_data="model.onnx.data")
        return str(path)
    return bytes(ir.to_proto(model).SerializeToString())


_INTEGER = frozenset(
    {"QGemm", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
    | {"QAttention", "MatMulNBits"}
)


def runs_in_integers(operator: str) -> bool:
    """Whether this operator of ONNX Runtime computes in integers."""
    return operator.startswith("QLinear") or operator in _INTEGER


def precisions(model: Path | str | ir.Model) -> dict[str, str]:
    """By name of the node, i8 where ONNX Runtime runs an integer kernel for it, else f32; nodes fused away are not there.

    Raises:
        ModelError: ONNX Runtime cannot read the model.
    """
    return {
        name: "i8" if runs_in_integers(found.operator) else "f32" for name, found in executed_operators(model).items()
    }


@dataclass(frozen=True)
class Executed:
    """What ONNX Runtime runs for a node: its own operator, and whether the weights that it reads were quantized."""

    operator: str
    narrow_weights: bool


def executed_operators(model: Path | str | ir.Model) -> dict[str, Executed]:
    """Return, by node name, what ONNX Runtime runs for it: its own graph, after fusion, read back.

    The level of optimization is the one at which quantize/dequantize pairs fuse into integer kernels and nodes keep
    their names; layouts of the processor at hand, which come after, change neither.

    Raises:
        ModelError: ONNX Runtime cannot read the model.
    """
    with scratch_folder() as name:
        folder = Path(name)
        path = folder / "optimized.onnx"
        options = _session_options(1, optimize=True, arena=False)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(path)
        if weight_bytes(_as_graph(model)) > IN_MEMORY_LIMIT_BYTES:
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        try:
            ort.InferenceSession(_source(model, folder), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _load_error(str(model)[:80], error) from error
        try:
            graph = ir.load(path).graph
        except Exception as error:  # protobuf's own classes share no base
            raise ModelError(f"its optimized graph could not be written to {name!r} and read back") from error
        return {node.name or "": Executed(node.op_type, _narrow_weights(node)) for node in graph}


def _narrow_weights(node: ir.Node) -> bool:
    """Whether a layer's weights come out of a DequantizeLinear, which reads a constant or what was made of one."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type != "DequantizeLinear" or maker.inputs[0] is None:
        return False
    before = maker.inputs[0].producer()
    codes = maker.inputs[0] if before is None or before.op_type != "QuantizeLinear" else before.inputs[0]
    return codes is not None and codes.is_initializer()


@functools.cache
def default_threads() -> int | None:
    """Threads that ONNX Runtime takes inside one operator where no number is set; None where they cannot be counted.

    It goes by the machine's cores, not by those that this process may use, so they are counted: of a session that
    does nothing.
    """
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        return None
    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.Node("", "Identity", [value])
    node.outputs[0].name = "y"
    graph = ir.Graph([value], node.outputs, nodes=[node], opset_imports={"": 17}, name="nothing")
    before = len(list(tasks.iterdir()))
    session = Session(ir.Model(graph, ir_version=8))
    own = len(list(tasks.iterdir())) - before
    del session  # its threads end with it
    return 1 + max(own, 0)  # the caller's thread works too


def with_outputs(graph: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a clone of `graph` whose outputs are the tensors `names` (of the main graph).

    Raises:
        InputError: a name that is no tensor of the graph; the nearest one is suggested.
    """
    clone = graph.clone()
    values = {value.name: value for value in (*clone.graph.inputs, *clone.graph.initializers.values())}
    values |= {value.name: value for node in clone.graph for value in node.outputs if value.name}
    for name in names:
        if name not in values:
            raise InputError(f"the graph has no tensor {name!r}; {nearest(name, [key for key in values if key])}")
    del clone.graph.outputs[:]
    clone.graph.outputs.extend(values[name] for name in dict.fromkeys(names))
    passes.RemoveUnusedNodesPass()(clone)
    return clone


def weight_bytes(graph: ir.Model) -> int:
    """Bytes of all initializers, those of subgraphs included."""
    return sum(
        value.const_value.nbytes
        for part in graph.graphs()
        for value in part.initializers.values()
        if value.const_value is not None
    )


def _as_graph(model: Path | str | ir.Model) -> ir.Model:
    if isinstance(model, ir.Model):
        return model
    from compress.onnx_files import read_onnx

    return read_onnx(Path(model))


def _has_external(graph: ir.Model) -> bool:
    return any(
        isinstance(value.const_value, ir.ExternalTensor)
        for part in graph.graphs()
        for value in part.initializers.values()
    )


def _session_options(threads: int | None, *, optimize: bool, arena: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions; ONNX Runtime would print them as well
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    options.enable_mem_pattern = arena
    # Else the threads of a session that has just run keep spinning, and models timed in turns slow each other down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _dtype(value: Any) -> np.dtype:
    if value.type not in _DTYPES:
        raise UnsupportedOperatorError(f"input {value.name!r} has type {value.type}; only tensors can be fed")
    return _DTYPES[value.type]


def _as_array(name: str, value: np.ndarray | Tensor, dtype: np.dtype) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.dtype == dtype:
        return array
    same_kind = array.dtype.kind == dtype.kind or {array.dtype.kind, dtype.kind} <= {"i", "u"}
    if not same_kind:
        raise InputError(f"input {name!r} must be {dtype}, got {array.dtype}; convert the data first")
    return array.astype(dtype)


def _node_times(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith("_kernel_time"):
            continue
        name = event["name"].removesuffix("_kernel_time")
        row = found.setdefault(name, {"node": name, "op_type": event["args"].get("op_name", ""), "times": []})
        row["times"].append(event["dur"])
    return [
        {"node": row["node"], "op_type": row["op_type"], "microseconds": float(statistics.median(row["times"]))}
        for row in found.values()
    ]


def _one_line(error: Exception) -> str:
    """ONNX Runtime's own words without its prefix, source paths and line breaks."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/\S+\.(cc|h):\d+ \S*( \[with [^\]]*\])?( ?\([^)]*\))?", "", text)
    return re.sub(r"\s+", " ", text).strip(" :")


def _load_error(label: str, error: Exception) -> ModelError:
    text = str(error)
    reason = _one_line(error)
    if "NOT_IMPLEMENTED" in text or "not a registered function/op" in text or "No Op registered for" in text:
        return UnsupportedOperatorError(f"ONNX Runtime {VERSION} cannot run {label}: {reason}")
    if "opset" in text.lower() or "Unsupported model IR version" in text:
        return UnsupportedOperatorError(
            f"ONNX Runtime {VERSION} cannot run {label}: {reason}; convert the file to an older opset"
        )
    if "INVALID_PROTOBUF" in text:
        return ModelError(f"{label} is not a whole ONNX file (truncated, or another format); export it again")
    return ModelError(f"ONNX Runtime {VERSION} refuses {label}: {reason}")


def _run_error(label: str, error: Exception, feeds: dict[str, np.ndarray]) -> ModelError | InputError:
    reason = _one_line(error)
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items())
    if "INVALID_ARGUMENT" in str(error) and "while running" not in reason:
        return InputError(f"{label} rejects its inputs ({shapes}): {reason}")
    return ModelError(f"ONNX Runtime failed on {label} with inputs {shapes}: {reason}")
