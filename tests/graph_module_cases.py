"""One-node ONNX models for the operator tests: the same node in ONNX Runtime beside GraphModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from compress.graph.module import GraphModule

Arrays = Sequence[np.ndarray | None]


def one_node(
    op: str,
    inputs: Arrays,
    attributes: dict[str, Any],
    *,
    opset: int = 20,
    fixed: Sequence[int] = (),
    outputs: int = 1,
) -> onnx.ModelProto:
    """A model of one node; inputs at positions `fixed` are initializers."""
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name=f"the_{op}", **attributes)
    given = [
        helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for i, array in enumerate(inputs)
        if array is not None and i not in fixed
    ]
    kept = [numpy_helper.from_array(inputs[i], f"x{i}") for i in fixed if inputs[i] is not None]
    values = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph([node], "case", given, values, kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    for value in model.graph.output:
        if not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return model


def runtime(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {value.name: array for value, array in zip(session.get_inputs(), inputs)})


def check(
    op: str, inputs: Arrays, attributes: dict[str, Any] | None = None, *, tolerance: float = 2e-5, **options: Any
) -> GraphModule:
    """Assert that one node gives the same in both, to float rounding; return the module."""
    model = one_node(op, inputs, attributes or {}, **options)
    fixed = options.get("fixed", ())
    given = [array for i, array in enumerate(inputs) if array is not None and i not in fixed]
    expected = runtime(model, given)
    module = GraphModule(ir.from_proto(model))
    with torch.no_grad():
        actual = module(*[torch.from_numpy(np.array(array, order="C")) for array in given])
    same(actual if isinstance(actual, tuple) else (actual,), expected, tolerance)
    return module


def same(actual: Sequence[torch.Tensor], expected: Sequence[np.ndarray], tolerance: float) -> None:
    assert len(actual) == len(expected)
    for mine, theirs in zip(actual, expected):
        assert tuple(mine.shape) == theirs.shape
        assert mine.numpy().dtype == theirs.dtype
        size = max(float(np.abs(np.where(np.isfinite(theirs), theirs, 0)).max(initial=0)), 1.0)
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=tolerance, atol=tolerance * size)
