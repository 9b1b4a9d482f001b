"""Constants fold whatever their size, values do not change, the file does not grow."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import DataType, Shape, TensorType, Value, node

from compress.errors import ModelError
from compress.graph.constants import constant_array, is_constant
from compress.graph.editing import add_initializer, consumers, naming, remove_unused, replace_node, unique_name
from compress.graph.folding import fold_constants, infer_shapes
from compress.graph.parity import compare
from compress.runtimes.onnxruntime import Session


def make(build, x_shape=("batch", 6), *, opset=20):
    """A graph with one input x; `build(graph, x)` returns its nodes, the last of which makes the output."""
    x = Value(name="x", shape=Shape(x_shape), type=TensorType(DataType.FLOAT))
    model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": opset}, name="g"), ir_version=10)
    nodes = build(model, x)
    for index, made in enumerate(nodes):
        made.name = made.name or f"n{index}"
        for position, value in enumerate(made.outputs):
            value.name = value.name or f"n{index}_{position}"
    model.graph.extend(nodes)
    model.graph.outputs.append(nodes[-1].outputs[0])
    nodes[-1].outputs[0].type = TensorType(DataType.FLOAT)
    return model


def weight(model, name, *shape, dtype=np.float32):
    return add_initializer(model, name, np.random.default_rng(0).standard_normal(shape).astype(dtype))


def check_same(build, shape=(3, 6), **options):
    before, after = make(build), make(build)
    fold_constants(after, **options)
    import torch

    x = torch.randn(*shape)
    assert compare(before, after, (x,), relative_tolerance=1e-6).agrees
    return after


def test_weights_through_slice_concat_transpose_reshape_cast():
    def build(model, x):
        w = weight(model, "w", 6, 200, 200, dtype=np.float64)  # 240,000 numbers
        starts, ends, axes = (add_initializer(model, n, np.array([v])) for n, v in (("s", 0), ("e", 100), ("a", 1)))
        cut = node("Slice", [w, starts, ends, axes])
        again = node("Slice", [w, ends, add_initializer(model, "end", np.array([200])), axes])
        both = node("Concat", [again.outputs[0], cut.outputs[0]], {"axis": 1})
        flat = node("Reshape", [both.outputs[0], add_initializer(model, "shape", np.array([6, -1]))])
        single = node("Cast", [flat.outputs[0]], {"to": DataType.FLOAT})
        return [cut, again, both, flat, single, node("MatMul", [x, single.outputs[0]])]

    after = check_same(build)
    assert [n.op_type for n in after.graph] == ["MatMul"]
    assert len(after.graph.initializers) == 1


def test_small_parts_join_into_a_large_whole():
    def build(model, x):
        parts = [weight(model, name, 3, 4000) for name in ("a", "b")]  # 12,000 numbers each, 24,000 together
        joined = node("Concat", parts, {"axis": 0})
        outer = node("Mul", [weight(model, "column", 300, 1), weight(model, "row", 1, 300)])
        total = node("ReduceSum", [outer.outputs[0]], {"keepdims": 0})
        product = node("MatMul", [x, joined.outputs[0]])
        return [joined, outer, total, product, node("Add", [product.outputs[0], total.outputs[0]])]

    # The outer product would be written down as 90,000 numbers.
    assert [n.op_type for n in check_same(build).graph] == ["Mul", "ReduceSum", "MatMul", "Add"]


def test_splits_fold_although_they_have_several_outputs():
    def build(model, x):
        w = weight(model, "w", 6, 8)
        parts = node("Split", [w], {"axis": 1, "num_outputs": 3}, num_outputs=3)
        sizes = node("Split", [w, add_initializer(model, "sizes", np.array([2, 6]))], {"axis": 1}, num_outputs=2)
        joined = node("Concat", [parts.outputs[2], sizes.outputs[1], parts.outputs[0]], {"axis": 1})
        return [parts, sizes, joined, node("MatMul", [x, joined.outputs[0]])]

    assert [n.op_type for n in check_same(build).graph] == ["MatMul"]


def test_a_tied_table_is_not_doubled_unless_allowed():
    def build(model, x):
        table = weight(model, "table", 6, 4000)
        direct = node("MatMul", [x, table])
        flipped = node("Transpose", [table], {"perm": [1, 0]})
        return [direct, flipped, node("MatMul", [direct.outputs[0], flipped.outputs[0]])]

    assert [n.op_type for n in check_same(build).graph] == ["MatMul", "Transpose", "MatMul"]
    assert [n.op_type for n in check_same(build, duplicate=True).graph] == ["MatMul", "MatMul"]


def test_what_would_make_the_file_larger_stays():
    def build(model, x):
        one = add_initializer(model, "one", np.ones((1, 6), np.float32))
        large = node("Expand", [one, add_initializer(model, "shape", np.array([30_000, 6]))])
        total = node("ReduceSum", [large.outputs[0], add_initializer(model, "axes", np.array([0]))], {"keepdims": 1})
        return [large, total, node("Add", [x, total.outputs[0]])]

    assert [n.op_type for n in check_same(build).graph] == ["Expand", "ReduceSum", "Add"]


def test_stored_int8_weights_and_quantize_nodes_stay():
    def build(model, x):
        codes = add_initializer(model, "codes", np.ones((6, 5000), np.int8))
        cast = node("Cast", [codes], {"to": DataType.FLOAT})
        scale = add_initializer(model, "scale", np.float32(0.5))
        other = node("DequantizeLinear", [add_initializer(model, "few", np.ones((6, 5000), np.int8)), scale])
        total = node("Add", [cast.outputs[0], other.outputs[0]])
        return [cast, other, total, node("MatMul", [x, total.outputs[0]])]

    assert [n.op_type for n in check_same(build).graph] == ["Cast", "DequantizeLinear", "Add", "MatMul"]


def test_constant_nodes_become_initializers_and_random_ones_stay_nodes():
    def build(model, x):
        constant = node("Constant", [], {"value": ir.tensor(np.float32(2))})
        noise = node("RandomUniform", [], {"shape": [1, 6], "low": 0.0, "high": 0.0})
        scaled = node("Mul", [x, constant.outputs[0]])
        return [constant, noise, scaled, node("Add", [scaled.outputs[0], noise.outputs[0]])]

    assert [n.op_type for n in check_same(build).graph] == ["RandomUniform", "Mul", "Add"]


def test_shapes_are_inferred_and_known_ones_kept():
    def build(model, x):
        return [node("MatMul", [x, weight(model, "w", 6, 4)]), node("Relu", [])] and [
            node("MatMul", [x, model.graph.initializers["w"]], name="product")
        ]

    model = infer_shapes(make(build))
    value = next(iter(model.graph)).outputs[0]
    assert str(value.shape[0]) == "batch" and value.shape[1] == 4 and value.dtype == DataType.FLOAT


def test_questions_about_values():
    model = make(lambda m, x: [node("Add", [x, weight(m, "w", 6)]), node("Relu", [])][:1])
    x, w, add = model.graph.inputs[0], model.graph.initializers["w"], model.graph[0]
    assert consumers(x) == [add] == consumers(w)
    assert is_constant(w) and not is_constant(x) and not is_constant(None) and constant_array(x) is None
    assert constant_array(w).shape == (6,)
    assert unique_name(model, "w") == "w_1" and unique_name(model, "fresh") == "fresh"
    with pytest.raises(ValueError), naming(model):  # remembers what it gave, up to the end
        assert [unique_name(model, "fresh") for _ in range(2)] == ["fresh", "fresh_1"]
        raise ValueError
    assert unique_name(model, "fresh") == "fresh"
    model.graph.inputs.append(w)  # an initializer that callers may override is no constant
    assert not is_constant(w)


def test_replacing_and_removing_nodes():
    model = make(lambda m, x: [node("Add", [x, weight(m, "w", 6)])])
    old = model.graph[0]
    new = node("Neg", [model.graph.inputs[0]], name="neg")
    replace_node(old, [new], [new.outputs[0]])
    remove_unused(model)
    assert not model.graph.initializers and model.graph.outputs[0].name == "n0_0"
    np.testing.assert_array_equal(Session(model).run(np.ones((2, 6), np.float32))[0], -np.ones((2, 6)))
    with pytest.raises(ModelError, match="is in no graph"):
        replace_node(old, [new], [new.outputs[0]])
