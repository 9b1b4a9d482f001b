"""Layers inside `If`, `Loop`, `Scan` run in int8 too; what a branch that is never taken read does not stay behind."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.graph.folding import fold_constants
from compress.quantization.dynamic import quantize_dynamic
from compress.runtimes.onnxruntime import Session, weight_bytes

RANDOM = np.random.default_rng(0)
W = (RANDOM.normal(size=(48, 48)) / 7).astype(np.float32)
V = (RANDOM.normal(size=(48, 48)) / 7).astype(np.float32)
X = RANDOM.normal(size=(4, 48)).astype(np.float32)


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, initializers):
    graph = helper.make_graph(nodes, "g", inputs, [value("y", None)], initializers)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def branches():
    """x·W where the condition holds, else x·V (V inside the branch)."""
    then = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["a"])], "then", [], [value("a", None)])
    other = helper.make_graph(
        [helper.make_node("MatMul", ["x", "v"], ["b"])], "else", [], [value("b", None)], [constant("v", V)]
    )
    choose = helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model([choose], [value("c", [], TensorProto.BOOL), value("x", ["N", 48])], [constant("w", W)])


def loop():
    """x·W·W·W."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["h", "w"], ["o"]), helper.make_node("Identity", ["c"], ["d"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("h", ["N", 48])],
        [value("d", [], TensorProto.BOOL), value("o", ["N", 48])],
    )
    node = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    return model([node], [value("x", ["N", 48])], [constant("w", W), constant("times", np.int64(3))])


def scan():
    """Each row of x, times V, added up from row to row."""
    body = helper.make_graph(
        [helper.make_node("MatMul", ["r", "v"], ["p"]), helper.make_node("Add", ["p", "s"], ["t"])],
        "body",
        [value("s", [1, 48]), value("r", [1, 48])],
        [value("t", [1, 48])],
    )
    rows = helper.make_node("Unsqueeze", ["x", "one"], ["rows"])
    node = helper.make_node("Scan", ["zero", "rows"], ["y"], body=body, num_scan_inputs=1)
    initializers = [constant("v", V), constant("one", np.array([1])), constant("zero", np.zeros((1, 48), np.float32))]
    return model([rows, node], [value("x", [4, 48])], initializers)


CASES = {
    "If, first": (branches, (np.array(True), X), X @ W),
    "If, other": (branches, (np.array(False), X), X @ V),
    "Loop": (loop, (X,), X @ W @ W @ W),
    "Scan": (scan, (X,), (X @ V).sum(0, keepdims=True)),
}


@pytest.mark.parametrize("weight_type", ["int8", "uint8", "float16"])
@pytest.mark.parametrize("name", CASES)
def test_layers_inside_are_compressed(name, weight_type):
    make, feeds, expected = CASES[name]
    graph = make()
    before = ir.to_proto(graph).SerializeToString()
    step = quantize_dynamic(graph, weight_type=weight_type, target="any")  # right on whatever runs this
    assert ir.to_proto(graph).SerializeToString() == before
    assert len(step.done) == (2 if make is branches else 1) and not step.changes[len(step.done) :]
    got = Session(step.model).run(*feeds)[0]
    limit = {"int8": 0.03, "uint8": 0.03, "float16": 1e-3}[weight_type]
    assert 0 < np.abs(got - expected).max() < limit * np.abs(expected).max()
    assert weight_bytes(step.model) < weight_bytes(graph) * (0.55 if weight_type == "float16" else 0.35)


def test_branches_that_are_never_taken_leave_nothing_behind():
    graph = branches()
    condition, _ = graph.graph.inputs
    graph.graph.inputs.remove(condition)
    condition.const_value = ir.tensor(np.array(False), name="c")
    graph.graph.register_initializer(condition)
    fold_constants(graph)
    assert {node.op_type for node in graph.graph} == {"MatMul"}
    assert weight_bytes(graph) == V.nbytes  # W was only read where c holds
    np.testing.assert_allclose(Session(graph).run(X)[0], X @ V, rtol=1e-5)
