"""Convolution, pooling, normalization, recurrent operators of GraphModule against ONNX Runtime."""

import itertools

import numpy as np
import pytest
from graph_module_cases import check

from compress.graph.operators_convolution import CONVOLUTION
from compress.graph.operators_normalization import NORMALIZATION

rng = np.random.default_rng(2)


def normal(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


CONVOLUTIONS = [
    ((9,), (3,), {}),
    ((9,), (3,), {"pads": [2, 0], "strides": [2]}),
    ((7, 8), (3, 2), {"pads": [1, 1, 1, 1]}),
    ((7, 8), (3, 2), {"pads": [0, 1, 2, 0], "dilations": [2, 1]}),
    ((7, 8), (3, 2), {"strides": [2, 3], "group": 2}),
    ((7, 8), (3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ((7, 8), (3, 3), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ((7, 8), (3, 3), {"auto_pad": "VALID"}),
    ((5, 6, 4), (2, 3, 1), {"pads": [1, 1, 0, 1, 1, 0]}),
]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("size", "kernel", "attributes"), CONVOLUTIONS)
def test_convolution(size, kernel, attributes, bias):
    group = attributes.get("group", 1)
    x, weight = normal(2, 4, *size), normal(6, 4 // group, *kernel)
    check("Conv", (x, weight, *([normal(6)] if bias else [])), attributes, fixed=(1,))


TRANSPOSED = [
    ((5,), (3,), {"strides": [2]}),
    ((5, 4), (3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2], "output_padding": [1, 1]}),
    ((5, 4), (3, 2), {"pads": [0, 1, 2, 0], "strides": [2, 2]}),
    ((5, 4), (3, 2), {"group": 2, "dilations": [2, 1]}),
    ((5, 4), (3, 3), {"strides": [2, 2], "output_shape": [10, 8]}),
    ((5, 4), (3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ((5, 4), (3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    ((3, 4, 2), (2, 2, 2), {"strides": [2, 1, 2]}),
]


@pytest.mark.parametrize(("size", "kernel", "attributes"), TRANSPOSED)
def test_transposed_convolution(size, kernel, attributes):
    check(
        "ConvTranspose",
        (normal(2, 4, *size), normal(4, 3, *kernel), normal(3 * attributes.get("group", 1))),
        attributes,
    )


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0]])
@pytest.mark.parametrize("strides", [[1, 1], [2, 2], [3, 2]])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling(op, strides, pads, ceil):
    attributes = {"kernel_shape": [3, 2], "strides": strides, "pads": pads, "ceil_mode": ceil}
    for extra in [{}] if op == "MaxPool" else [{"count_include_pad": 0}, {"count_include_pad": 1}]:
        check(op, (normal(2, 3, 8, 9),), {**attributes, **extra})


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_auto_pad(op, auto):
    check(op, (normal(2, 3, 8, 9),), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": auto})


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
def test_pooling_of_other_ranks(op, rank):
    check(op, (normal(2, 3, *[7] * rank),), {"kernel_shape": [3] * rank, "strides": [2] * rank})


def test_dilated_max_pooling():
    check("MaxPool", (normal(2, 3, 9, 9),), {"kernel_shape": [3, 3], "dilations": [2, 1]})


@pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"])
@pytest.mark.parametrize("size", [(7,), (4, 5)])
def test_global_pooling(op, size):
    check(op, (normal(2, 3, *size),))


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pooling(p):
    check("LpPool", (normal(2, 3, 8, 9),), {"kernel_shape": [3, 2], "p": p, "pads": [1, 0, 1, 0]})
    check("GlobalLpPool", (normal(2, 3, 8, 9),), {"p": p})


@pytest.mark.parametrize(("flip_a", "flip_b"), itertools.product([0, 1], [0, 1]))
@pytest.mark.parametrize("bias", [None, (5,), (4, 1), ()])
def test_gemm(flip_a, flip_b, bias):
    a, b = normal(4, 3), normal(3, 5)
    inputs = [a.T.copy() if flip_a else a, b.T.copy() if flip_b else b]
    inputs += [] if bias is None else [np.asarray(normal(*bias))]
    check("Gemm", inputs, {"transA": flip_a, "transB": flip_b})
    check("Gemm", inputs, {"transA": flip_a, "transB": flip_b, "alpha": 0.5, "beta": 2.0})


@pytest.mark.parametrize(("a", "b"), [((4, 3), (3, 5)), ((2, 4, 3), (3, 5)), ((2, 1, 4, 3), (6, 3, 5)), ((3,), (3, 5))])
def test_matmul(a, b):
    check("MatMul", (normal(*a), normal(*b)))


@pytest.mark.parametrize("equation", ["bij,bjk->bik", "bhid,bhjd->bhij", "bij->bji", "ij,j"])
def test_einsum(equation):
    sizes = dict(zip("bhijkd", (2, 3, 4, 5, 6, 7)))
    check(
        "Einsum",
        [normal(*[sizes[c] for c in term]) for term in equation.split("->")[0].split(",")],
        {"equation": equation},
    )


@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("align", [0, 1])
def test_grid_sample(mode, padding, align):
    grid = rng.uniform(-1.3, 1.3, (2, 4, 5, 2)).astype(np.float32)
    check(
        "GridSample",
        (normal(2, 3, 6, 7), grid),
        {"mode": mode, "padding_mode": padding, "align_corners": align},
        tolerance=2e-4,
    )


def test_every_convolution_is_tested():
    tested = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "Gemm", "MatMul", "Einsum", "GridSample"}
    assert set(CONVOLUTION) == tested | {"GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"}


def test_batch_normalization():
    statistics = normal(4), np.abs(normal(4)) + 0.1
    check("BatchNormalization", (normal(2, 4, 5), normal(4), normal(4), *statistics), {"epsilon": 1e-3})
    check("BatchNormalization", (normal(2, 4, 5, 3), normal(4), normal(4), *statistics), fixed=(1, 2, 3, 4))


@pytest.mark.parametrize("axis", [-1, 1, 2])
@pytest.mark.parametrize("outputs", [1, 3])
def test_layer_normalization(axis, outputs):
    x = normal(2, 3, 4)
    shape = x.shape[axis:]
    check("LayerNormalization", (x, normal(*shape), normal(*shape)), {"axis": axis, "epsilon": 1e-3}, outputs=outputs)
    check("LayerNormalization", (x, normal(*shape)), {"axis": axis}, outputs=outputs)


def test_rms_normalization():
    check("RMSNormalization", (normal(2, 3, 4), normal(4)), {"epsilon": 1e-3}, opset=23)


def test_instance_normalization():
    check("InstanceNormalization", (normal(2, 4, 5, 6), normal(4), normal(4)), {"epsilon": 1e-3})


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset):
    count = 2 if opset == 18 else 6
    check("GroupNormalization", (normal(2, 6, 5), normal(count), normal(count)), {"num_groups": 2}, opset=opset)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalization(size):
    check("LRN", (normal(2, 7, 4, 3),), {"size": size, "alpha": 0.1, "bias": 2.0})


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p):
    check("LpNormalization", (normal(2, 7, 4),), {"p": p, "axis": 1})


def test_mean_variance_normalization():
    check("MeanVarianceNormalization", (normal(2, 3, 4, 5),))


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax(op, axis, opset):
    check(op, (normal(2, 3, 4),), {"axis": axis}, opset=opset)


REDUCTIONS = sorted(name for name in NORMALIZATION if name.startswith("Reduce"))


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axes", [None, (1,), (-1, 0)])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduction(op, axes, keep):
    x = np.abs(normal(2, 3, 4)) + 0.1
    given = [] if axes is None else [ints(*axes)]
    check(op, (x, *given), {"keepdims": keep})
    old = {} if axes is None else {"axes": list(axes)}
    check(op, (x,), {"keepdims": keep, **old}, opset=11)
    if axes is None:
        check(op, (x, ints()), {"keepdims": keep}, fixed=(1,))
        if op in ("ReduceSum", "ReduceMean", "ReduceMax"):
            check(op, (x,), {"keepdims": keep, "noop_with_empty_axes": 1})


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
def test_reduction_of_integers(op):
    check(op, (rng.integers(-5, 5, (3, 4)), ints(0)), {})


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_extreme_index(op, axis, keep, last):
    x = rng.integers(0, 3, (4, 6)).astype(np.float32)
    check(op, (x,), {"axis": axis, "keepdims": keep, "select_last_index": last})


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("states", [False, True])
@pytest.mark.parametrize(
    ("op", "extra"),
    [
        ("LSTM", {}),
        ("GRU", {"linear_before_reset": 1}),
        ("GRU", {"linear_before_reset": 0}),
        ("RNN", {}),
        ("RNN", {"activations": "Relu"}),
    ],
)
def test_recurrent(op, extra, direction, states):
    directions, hidden, gates = 2 if direction == "bidirectional" else 1, 5, GATES[op]
    if "activations" in extra:
        extra = {"activations": [extra["activations"]] * directions}
    x = normal(6, 2, 3)
    weights = [normal(directions, gates * hidden, 3), normal(directions, gates * hidden, hidden)]
    inputs = [x, *weights]
    if states:
        inputs += [normal(directions, 2 * gates * hidden), None, normal(directions, 2, hidden)]
        inputs += [normal(directions, 2, hidden)] if op == "LSTM" else []
    check(
        op,
        inputs,
        {"hidden_size": hidden, "direction": direction, **extra},
        outputs=3 if op == "LSTM" else 2,
        fixed=(1, 2, 3) if states else (1, 2),
    )
