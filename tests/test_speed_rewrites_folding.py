"""Additions and batch normalization behind a layer, as other frameworks leave them in ONNX files, folded exactly."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from compress.quantization.rewrites import apply_rewrites
from compress.runtimes.onnxruntime import Session

GENERATOR = np.random.default_rng(0)


def array(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


def network(op_type, channels=6, **attributes):
    """layer → Add of a number → BatchNormalization → Add per channel → Relu, bias and normalization apart."""
    x = ir.Value(
        name="x",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape(["n", 4, 5, 5] if op_type != "Gemm" else ["n", 4]),
    )
    groups = attributes.get("group", 1)
    shape = {
        "Conv": (channels, 4 // groups, 3, 3),
        "ConvTranspose": (4, channels // groups, 3, 3),
        "Gemm": (4, channels),
    }
    arrays = {
        "w": array(*shape[op_type]), "one": array(1), "gamma": array(channels), "beta": array(channels),
        "mean": array(channels), "var": np.abs(array(channels)) + 0.1,
        "per": array(*((1, channels, 1, 1) if op_type != "Gemm" else (channels,))),
    }  # fmt: skip
    values = {name: ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(a.shape), const_value=ir.Tensor(a, name=name)) for name, a in arrays.items()}  # fmt: skip
    layer = ir.node(op_type, [x, values["w"]], attributes, name="layer")
    add = ir.node("Add", [values["one"], layer.outputs[0]], name="add")
    norm = ir.node(
        "BatchNormalization", [add.outputs[0], *(values[k] for k in ("gamma", "beta", "mean", "var"))], name="norm"
    )
    last = ir.node("Add", [norm.outputs[0], values["per"]], name="last")
    relu = ir.node("Relu", [last.outputs[0]], name="relu")
    nodes = [layer, add, norm, last, relu]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
    graph = ir.Graph(
        [x], relu.outputs, nodes=nodes, initializers=list(values.values()), opset_imports={"": 18}, name="g"
    )
    return ir.Model(graph, ir_version=9)


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("Conv", {}), ("Conv", {"group": 2}), ("ConvTranspose", {}), ("ConvTranspose", {"group": 2}), ("Gemm", {})],
)
def test_all_goes_into_the_layer_and_nothing_changes(op_type, attributes):
    graph = network(op_type, **attributes)
    x = torch.from_numpy(array(3, 4, 5, 5) if op_type != "Gemm" else array(3, 4))
    before = Session(graph, threads=1).run(x)[0]
    changes = apply_rewrites(graph, ("batch_norm", "channel_bias"))
    assert [node.op_type for node in graph.graph] == [op_type, "Relu"]
    assert [change.action for change in changes] == ["batch normalization folded", "addition folded"]
    np.testing.assert_allclose(Session(graph, threads=1).run(x)[0], before, rtol=1e-4, atol=1e-5)


def test_what_another_node_reads_stays():
    graph = network("Conv")
    graph.graph.outputs.append(graph.graph[0].outputs[0])
    graph.graph[0].outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    apply_rewrites(graph, ("batch_norm", "channel_bias"))
    assert [node.op_type for node in graph.graph] == ["Conv", "Add", "BatchNormalization", "Add", "Relu"]
