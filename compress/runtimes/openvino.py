"""OpenVINO on the CPU, the one door to it: load an ONNX file or graph, run it, time its layers, tell their precision.

Float layers run in float32 unless another precision is asked for (`INFERENCE_PRECISION_HINT`): left to itself OpenVINO takes bf16 where the processor has it,
and a comparison with another runtime would compare precisions.

Nothing heavy is imported beside OpenVINO itself: a file's first try is a process that imports this door (`first_try`).
"""

from __future__ import annotations

import functools
import re
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import openvino as ov

from compress.counting import counted
from compress.errors import InputError, ModelError, UnsupportedOperatorError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor

    from compress.batches import Batch

VERSION: str = ov.__version__.split("-")[0]

Shapes = tuple[tuple[int, ...], ...]  # of the inputs, in order
AS_WRITTEN: Shapes = ()  # free dimensions stay free
MOST_SHAPES = 3  # compiled one by one; a text model with a new length each time gets one model for all others

HINTS = {"float32": "f32", "bf16": "bf16", "fp16": "f16"}


def float_precisions() -> tuple[str, ...]:
    """In what OpenVINO computes float layers on this processor: bf16 and fp16 where it has instructions for them."""
    offered = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("float32", *(name for name in ("bf16", "fp16") if name.upper() in offered))


class Session:
    """One model loaded by OpenVINO, called with a batch (by name where it has names) or arrays in order.

    Raises:
        ModelError: OpenVINO cannot read or compile the model, with its reason.
        UnsupportedOperatorError: an operator that it lacks, named.
    """

    def __init__(
        self,
        model: Path | str | ir.Model,
        *,
        threads: int | None = None,
        profile: bool = False,
        float_precision: str = "float32",
    ) -> None:
        self._label = repr(str(model)) if isinstance(model, (str, Path)) else f"graph {model.graph.name!r}"
        self._times: dict[str, tuple[str, list[float]]] = {}
        self._profiling = profile
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "PERF_COUNT": profile}
        options["INFERENCE_PRECISION_HINT"] = HINTS[float_precision]
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self._options = options
        self._compiled: list[Any] = []  # kept as long as their requests
        self._requests: dict[Shapes, Any] = {}
        try:
            self._read = _read(model)
            self._is_free = any(port.partial_shape.is_dynamic for port in self._read.inputs)
            self._request = self._opened(self._one_sample() or AS_WRITTEN)
        except RuntimeError as error:  # all that it raises
            raise _load_error(self._label, error) from error
        self.input_names = tuple(_name(port) for port in self._read.inputs)
        self.output_names = tuple(_name(port) for port in self._read.outputs)
        self._types = tuple(np.dtype(port.element_type.to_dtype()) for port in self._read.inputs)

    def _one_sample(self) -> Shapes | None:
        """The inputs' shapes with a free batch being 1; None where other dimensions are free."""
        shapes = [port.partial_shape for port in self._read.inputs]
        if any(shape.rank.is_dynamic or any(size.is_dynamic for size in list(shape)[1:]) for shape in shapes):
            return None
        return tuple(tuple(1 if size.is_dynamic else size.get_length() for size in shape) for shape in shapes)

    def _opened(self, shapes: Shapes) -> Any:
        """A request of the model compiled for these shapes, or for any where it has none or many were asked for.

        OpenVINO 2026.4 left a free batch is slower, and was seen to answer wrongly (a MobileNetV2 whose pooling was written by
        `Gather`: 1.5 dB, 25.9 with its shapes fixed).
        """
        if not self._is_free or (shapes not in self._requests and len(self._requests) >= MOST_SHAPES):
            shapes = AS_WRITTEN
        if shapes not in self._requests:
            model = self._read
            if shapes != AS_WRITTEN:
                try:
                    model = self._read.clone()
                    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes)})
                except RuntimeError:  # inputs that do not fit each other, or the model: what runs tells
                    return self._opened(AS_WRITTEN)
            compiled = _core().compile_model(model, "CPU", self._options)
            self._compiled.append(compiled)
            self._requests[shapes] = compiled.create_infer_request()
        return self._requests[shapes]

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the first input takes; None where any will do."""
        shape = self._read.inputs[0].partial_shape if self._read.inputs else None
        if shape is None or shape.rank.is_dynamic or not len(shape) or shape[0].is_dynamic:
            return None
        return int(shape[0].get_length())

    def in_order(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of a batch in the order of `input_names`."""
        return batch.in_order_of(self.input_names, whose=self._label)

    def zeros(self) -> tuple[np.ndarray, ...] | None:
        """Inputs of zeros for a first run; None where dimensions besides the batch are free."""
        shapes = self._one_sample()
        return None if shapes is None else tuple(np.zeros(size, dtype) for size, dtype in zip(shapes, self._types))

    def run(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Run on one `Batch`, or on arrays in the order of `input_names`; numbers are cast to the model's width.

        Raises:
            InputError: wrong number, names or shapes of inputs.
        """
        one: Any = inputs[0] if len(inputs) == 1 else None
        given: tuple[Any, ...] = self.in_order(one) if hasattr(one, "bound") else inputs  # a Batch
        if len(given) != len(self.input_names):
            expected = ", ".join(self.input_names)
            raise InputError(
                f"{self._label} takes {counted(len(self.input_names), 'input')} ({expected}), got {len(given)}"
            )
        arrays = [_array(value).astype(dtype, copy=False) for value, dtype in zip(given, self._types)]
        return self._run(arrays, tuple(array.shape for array in arrays))

    def run_free(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run with all free dimensions left free, as a deployment does that fixes no shapes.

        Raises:
            InputError: the inputs do not fit.
        """
        given = self.in_order(batch)
        return self._run([_array(value).astype(dtype) for value, dtype in zip(given, self._types)], AS_WRITTEN)

    def _run(self, arrays: list[np.ndarray], shapes: Shapes) -> tuple[np.ndarray, ...]:
        try:
            self._request = self._opened(shapes)
            self._request.infer(dict(enumerate(arrays)))
        except RuntimeError as error:
            given = ", ".join(f"{name} {array.shape}" for name, array in zip(self.input_names, arrays))
            raise InputError(f"OpenVINO rejects the inputs of {self._label} ({given}): {_line(error)}") from error
        if self._profiling:
            self._record()
        # Copies: the next run writes into the same memory.
        return tuple(np.array(self._request.get_output_tensor(index).data) for index in range(len(self.output_names)))

    def _record(self) -> None:
        for row in self._request.profiling_info:
            if str(row.status).endswith("EXECUTED"):
                self._times.setdefault(row.node_name, (row.node_type, []))[1].append(
                    row.real_time.total_seconds() * 1e6
                )

    def profile(self) -> list[dict[str, Any]]:
        """Per node its name, operator and median microseconds per run, in the order of OpenVINO's report."""
        if not self._profiling:
            raise InputError("this session does not record times; open it with profile=True")
        return [
            {"node": name, "op_type": kind, "microseconds": float(statistics.median(times))}
            for name, (kind, times) in self._times.items()
        ]

    def precisions(self) -> dict[str, str]:
        """By name of the ONNX node, the precision in which OpenVINO runs the layer that it became part of."""
        found: dict[str, str] = {}
        for node in self._request.get_compiled_model().get_runtime_model().get_ordered_ops():
            info = node.get_rt_info()
            precision = str(info["runtimePrecision"].astype(str)) if "runtimePrecision" in info else ""
            names = str(info["originalLayersNames"].astype(str)) if "originalLayersNames" in info else ""
            for name in filter(None, names.split(",")):
                found[name] = precision.lower()
        return found


def precisions(model: Path | str | ir.Model) -> dict[str, str]:
    """By name of the ONNX node, the precision in which OpenVINO runs the layer that it became part of.

    Raises:
        ModelError: OpenVINO cannot read the model.
    """
    return Session(model).precisions()


def save_ir(model: Path | str | ir.Model, path: Path) -> Path:
    """Write a model as OpenVINO's own two files, `path` (.xml) and the .bin beside it, weights in their own widths.

    Raises:
        ModelError: OpenVINO cannot read the model.
    """
    try:
        ov.save_model(_read(model), path, compress_to_fp16=False)
    except RuntimeError as error:
        raise _load_error(repr(str(model)), error) from error
    return path


@functools.cache
def _core() -> Any:
    """One for the process. A CPU plugin (one for each core) puts a signal stack of its own in place of the thread's, and back
    when it goes: of two that do not go in reverse order the second leaves a stack that is freed, and the next signal ends the process
    (SIGSEGV at a SIGALRM, a SIGCHLD).
    """
    return ov.Core()


def _read(model: Path | str | ir.Model) -> Any:
    core = _core()
    if not isinstance(model, (str, Path)):
        import onnx_ir as ir

        return core.read_model(ir.to_proto(model).SerializeToString())
    if not Path(model).is_file():
        raise ModelError(f"model file {str(model)!r} does not exist")
    return core.read_model(str(model))


def _name(port: Any) -> str:
    names = sorted(port.get_names())
    return str(names[0] if names else port.get_node().get_friendly_name())


def _array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)  # a tensor


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    useful = [line for line in lines if not re.match(r"(Exception from|Check '|\[ ?[A-Z_]+ ?\]$)", line)]
    return " ".join((useful or lines)[-1:])[:300]


def _load_error(label: str, error: Exception) -> ModelError:
    missing = re.findall(r"(?:No conversion for|not supported)[^\n]*?([A-Za-z0-9_.]*[A-Z][A-Za-z0-9_]+)", str(error))
    if "OpConversionFailure" in str(error) or "not supported" in str(error).lower():
        named = f" ({', '.join(dict.fromkeys(missing))})" if missing else ""
        return UnsupportedOperatorError(f"OpenVINO {VERSION} cannot run {label}{named}: {_line(error)}")
    return ModelError(f"OpenVINO {VERSION} refuses {label}: {_line(error)}")
