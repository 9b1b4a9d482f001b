"""Each rewrite is exact in float, does what it says, refuses with a reason."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.graph.folding import fold_constants, infer_shapes
from compress.quantization.rewrites import (
    REWRITES,
    apply_rewrites,
    gelu,
    hard_swish,
    layer_norm,
    layer_scale,
    padding,
    prelu,
    product_scale,
    scalars,
    silu,
    spatial_mean,
)
from compress.quantization.rewrites.matching import keep_float
from compress.runtimes.onnxruntime import Session

X = np.linspace(-8, 8, 2 * 4 * 6 * 6, dtype=np.float32).reshape(2, 4, 6, 6)


def graph_of(body, x=X, opset=20, constants=None):
    """A graph from the text of its nodes: input x, output y, constants by name."""
    kinds = ",".join(map(str, x.shape))
    text = f'<ir_version: 10, opset_import: ["" : {opset}]> g (float[{kinds}] x) => (float y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    del proto.graph.output[0].type.tensor_type.shape.dim[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    for name, array in (constants or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array, np.float32), name))
    graph = ir.from_proto(proto)
    for index, node in enumerate(graph.graph):
        node.name = f"{node.op_type}_{index}"
    return infer_shapes(fold_constants(graph))


def op_types(graph):
    return [node.op_type for node in graph.graph]


def rewritten(graph, apply, x=X, tolerance=1e-5, **options):
    """The rewritten clone, held to the original's output, node by node as written."""
    clone = graph.clone()
    changes = apply(clone, **options)
    onnx.checker.check_model(ir.to_proto(clone))
    (before,) = Session(graph, optimize=False, threads=1).run(x)
    (after,) = Session(clone, optimize=False, threads=1).run(x)
    np.testing.assert_allclose(after, before, rtol=tolerance, atol=tolerance * np.abs(before).max())
    return clone, changes


def test_the_comparison_notices_a_wrong_rewrite():
    def wrong(graph):
        next(node for node in graph.graph if node.op_type == "HardSwish").op_type = "HardSigmoid"
        return ()

    with pytest.raises(AssertionError):
        rewritten(graph_of("y = HardSwish(x)"), wrong)


SIX = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6}
HARD_SWISHES = {
    "operator": "y = HardSwish(x)",
    "product / 6": "a = Add(x, three) c = Clip(a, zero, six) p = Mul(x, c) y = Div(p, six)",
    "clip / 6": "a = Add(three, x) c = Clip(a, zero, six) g = Div(c, six) y = Mul(g, x)",
    "clip · 1/6": "a = Add(x, three) c = Clip(a, zero, six) g = Mul(c, sixth) y = Mul(x, g)",
    "x / 6": "a = Add(x, three) c = Clip(a, zero, six) g = Div(x, six) y = Mul(g, c)",
    "hard sigmoid": "g = HardSigmoid<alpha: float = 0.16666667, beta: float = 0.5>(x) y = Mul(x, g)",
}


@pytest.mark.parametrize("body", HARD_SWISHES.values(), ids=HARD_SWISHES)
def test_every_spelling_of_hard_swish_becomes_one_form(body):
    constants = {name: value for name, value in SIX.items() if name in body}
    graph, changes = rewritten(graph_of(body, constants=constants), hard_swish.apply)
    assert op_types(graph) == ["Add", "Clip", "Mul", "Mul"]
    assert [change.reason for change in changes if not change.skipped] == ["x · clip(x + 3, 0, 6) · 1/6"]


def test_hard_swish_rewrite_is_idempotent():
    graph = graph_of("y = HardSwish(x)")
    hard_swish.apply(graph)
    assert hard_swish.apply(graph) == ()


@settings(max_examples=15, deadline=None)
@given(alpha=st.floats(0.05, 2), beta=st.floats(-1, 1))
def test_hard_sigmoid_with_any_slope(alpha, beta):
    body = f"y = HardSigmoid<alpha: float = {alpha:.6f}, beta: float = {beta:.6f}>(x)"
    graph, _ = rewritten(graph_of(body), hard_swish.apply, tolerance=1e-4)
    assert op_types(graph) == ["Add", "Clip", "Mul"]


def test_what_hangs_on_a_float_layer_is_left_as_float_runs_it_fastest():
    graph = _inverted_residual(24)
    keep_float(node for node in graph.graph if node.name in ("Conv_0", "Conv_2"))
    changes = apply_rewrites(graph)
    assert "HardSwish" in op_types(graph)
    assert any("the layer before it stays in float" in change.reason for change in changes)
    assert not any("padded" in change.values for change in changes)


def test_falling_hard_sigmoid_is_refused():
    graph = graph_of("y = HardSigmoid<alpha: float = -0.5>(x)")
    (change,) = hard_swish.apply(graph)
    assert change.skipped and "slope alpha is -0.5" in change.reason


def test_a_clip_that_is_no_hard_swish_stays():
    body = "a = Add(x, three) c = Clip(a, zero, five) p = Mul(x, c) y = Div(p, six)"
    graph = graph_of(body, constants={"three": 3.0, "zero": 0.0, "five": 5.0, "six": 6.0})
    assert hard_swish.apply(graph) == ()


MEANS = {
    "keepdims": "axes = Constant<value: tensor = int64[2] {2, 3}>() y = ReduceMean<keepdims: int = 1>(x, axes)",
    "negative axes": "axes = Constant<value: tensor = int64[2] {-1, -2}>() y = ReduceMean<keepdims: int = 0>(x, axes)",
    "whole window": "y = AveragePool<kernel_shape: ints = [6, 6]>(x)",
}


@pytest.mark.parametrize("body", MEANS.values(), ids=MEANS)
def test_spatial_mean_becomes_a_pool(body):
    graph, (change,) = rewritten(graph_of(body), spatial_mean.apply)
    assert op_types(graph)[0] == "GlobalAveragePool" and not change.skipped


def test_spatial_mean_with_axes_attribute():
    graph, _ = rewritten(
        graph_of("y = ReduceMean<axes: ints = [2, 3], keepdims: int = 0>(x)", opset=13), spatial_mean.apply
    )
    assert op_types(graph) == ["GlobalAveragePool", "Flatten"]


def test_channels_last_mean_is_refused_and_other_means_ignored():
    last = graph_of("axes = Constant<value: tensor = int64[2] {1, 2}>() y = ReduceMean(x, axes)")
    (change,) = spatial_mean.apply(last)
    assert change.skipped and "channels-last" in change.reason
    assert spatial_mean.apply(graph_of("axes = Constant<value: tensor = int64[1] {1}>() y = ReduceMean(x, axes)")) == ()


SILUS = {
    "x / (1 + exp(-x))": "n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(x, d)",
    "exp(-1 · x)": "n = Mul(x, minus) e = Exp(n) d = Add(one, e) y = Div(x, d)",
}


@pytest.mark.parametrize("body", SILUS.values(), ids=SILUS)
def test_written_out_silu(body):
    constants = {name: value for name, value in {"one": 1.0, "minus": -1.0}.items() if name in body}
    graph, _ = rewritten(graph_of(body, constants=constants), silu.apply)
    assert op_types(graph) == ["Sigmoid", "Mul"]


def test_written_out_sigmoid():
    graph, _ = rewritten(
        graph_of("n = Neg(x) e = Exp(n) d = Add(e, one) y = Div(one, d)", constants={"one": 1.0}), silu.apply
    )
    assert op_types(graph) == ["Sigmoid"]


def test_quick_gelu_keeps_its_beta():
    graph = graph_of("y = Identity(x)")
    node = ir.node("QuickGelu", [graph.graph.inputs[0]], {"alpha": 1.702}, domain="com.microsoft", name="quick")
    graph.graph.insert_before(graph.graph[0], node)
    graph.graph[1].replace_input_with(0, node.outputs[0])
    node.outputs[0].name = "q"
    graph.opset_imports["com.microsoft"] = 1
    infer_shapes(graph)
    (before,) = Session(graph, optimize=False).run(X)
    silu.apply(graph)
    assert op_types(graph) == ["Mul", "Sigmoid", "Mul", "Identity"]
    np.testing.assert_allclose(Session(graph, optimize=False).run(X)[0], before, rtol=1e-5, atol=1e-5)


GELU_CONSTANTS = {
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "one": 1.0,
    "half": 0.5,
    "c": 0.044715,
    "k": math.sqrt(2 / math.pi),
    "three": 3.0,
}
GELUS = {
    "erf, half last": ("d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", "none"),
    "erf, half first": ("h = Mul(x, half) d = Mul(x, inverse) e = Erf(d) a = Add(one, e) y = Mul(h, a)", "none"),
    "erf, half inside": ("d = Div(x, root) e = Erf(d) b = Mul(e, half) a = Add(b, half) y = Mul(x, a)", "none"),
    "tanh, power": (
        "p = Pow(x, three) q = Mul(p, c) s = Add(x, q) z = Mul(s, k) t = Tanh(z) a = Add(t, one) m = Mul(a, half) "
        "y = Mul(x, m)",
        "tanh",
    ),
    "tanh, products": (
        "p = Mul(x, x) r = Mul(p, x) q = Mul(r, c) s = Add(x, q) z = Mul(s, k) t = Tanh(z) a = Add(t, one) "
        "h = Mul(x, half) y = Mul(h, a)",
        "tanh",
    ),
}


def _used(body, constants):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: value for name, value in constants.items() if name in words}


@pytest.mark.parametrize(("body", "form"), GELUS.values(), ids=GELUS)
def test_written_out_gelu(body, form):
    graph, (change,) = rewritten(graph_of(body, constants=_used(body, GELU_CONSTANTS)), gelu.apply)
    assert op_types(graph) == ["Gelu"]
    assert graph.graph[0].attributes.get_string("approximate") == form
    assert not change.skipped


def test_gelu_needs_its_opset():
    body = GELUS["erf, half last"][0]
    (change,) = gelu.apply(graph_of(body, opset=17, constants=_used(body, GELU_CONSTANTS)))
    assert change.skipped and "opset 17 has no Gelu" in change.reason


def test_almost_gelu_stays():
    body = GELUS["erf, half last"][0]
    constants = _used(body, GELU_CONSTANTS) | {"half": 0.7}
    assert gelu.apply(graph_of(body, constants=constants)) == ()


def test_prelu_with_one_slope():
    graph, _ = rewritten(graph_of("y = PRelu(x, s)", constants={"s": np.full((4, 1, 1), 0.25)}), prelu.apply)
    assert op_types(graph) == ["LeakyRelu"]
    graph, _ = rewritten(graph_of("y = PRelu(x, s)", constants={"s": np.zeros((1,))}), prelu.apply)
    assert op_types(graph) == ["Relu"]


def test_prelu_with_many_slopes_is_refused():
    graph = graph_of("y = PRelu(x, s)", constants={"s": np.arange(4.0).reshape(4, 1, 1)})
    (change,) = prelu.apply(graph)
    assert change.skipped and "4 slopes differ" in change.reason


RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(4, 4, 1, 1))
B = RANDOM.normal(size=(4,))
SCALARS = {  # name → (nodes, constants, operators left)
    "into the convolution behind": ("s = Mul(x, f) y = Conv(s, w, b)", {"f": 0.5, "w": W, "b": B}, ["Conv"]),
    "into the convolution before": (
        "c = Conv(x, w, b) y = Mul(c, f)",
        {"f": 0.5, "w": W, "b": B},
        ["Conv", "Identity"],
    ),
    "division": ("c = Conv(x, w, b) s = Div(c, f) y = Relu(s)", {"f": 8.0, "w": W, "b": B}, ["Conv", "Relu"]),
    "through a gate": (
        "s = Mul(x, f) p = GlobalAveragePool(s) g = Conv(p, w, b) h = Sigmoid(g) m = Mul(s, h) y = Conv(m, w, b)",
        {"f": 1 / 6, "w": W, "b": B},
        ["GlobalAveragePool", "Conv", "Sigmoid", "Mul", "Conv"],
    ),
    "past a constant": (
        "c = Conv(x, w) a = Add(c, k) s = Mul(a, f) y = Relu(s)",
        {"f": 3.0, "w": W, "k": RANDOM.normal(size=(4, 1, 1))},
        ["Conv", "Add", "Relu"],
    ),
    "through relu": ("s = Mul(x, f) r = Relu(s) y = Conv(r, w, b)", {"f": 2.0, "w": W, "b": B}, ["Relu", "Conv"]),
}


@pytest.mark.parametrize(("body", "constants", "left"), SCALARS.values(), ids=SCALARS)
def test_scalars_fold_into_weights(body, constants, left):
    graph, changes = rewritten(graph_of(body, constants=constants), scalars.apply, tolerance=1e-5)
    assert op_types(graph) == left
    assert len([change for change in changes if not change.skipped]) == 1


REFUSED = {
    "not linear in it": ("s = Mul(x, f) r = Sigmoid(s) y = Conv(r, w, b)", {"f": 2.0, "w": W, "b": B}),
    "meets the factor twice": ("s = Mul(x, f) q = Mul(s, s) y = Conv(q, w, b)", {"f": 2.0, "w": W, "b": B}),
    "(Relu) is not linear": ("s = Mul(x, f) r = Relu(s) y = Conv(r, w, b)", {"f": -2.0, "w": W, "b": B}),
    "an output of the graph": ("r = Relu(x) y = Mul(r, f)", {"f": 2.0}),
    "read elsewhere too": ("c = Conv(x, w) s = Mul(c, f) y = Add(c, s)", {"f": 2.0, "w": W}),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED)
def test_scalars_that_cannot_fold(reason, case):
    body, constants = case
    graph, changes = rewritten(graph_of(body, constants=constants), scalars.apply)
    assert [change.skipped for change in changes] == [True]
    assert reason in changes[0].reason
    assert "Mul" in op_types(graph)


TOKENS = np.linspace(-2, 2, 2 * 5 * 3, dtype=np.float32).reshape(2, 5, 3)
SWAP = "t = Transpose<perm: ints = [0, 2, 1]>(x)"


@settings(max_examples=15, deadline=None)
@given(factor=st.floats(-4, 4).filter(lambda value: abs(value) > 1e-2), divided=st.booleans())
def test_a_number_behind_a_product_goes_to_its_smaller_operand(factor, divided):
    body = (
        f"{SWAP} l = Concat<axis: int = 1>(x, x) p = MatMul(l, t) s = {'Div' if divided else 'Mul'}(p, f) y = Relu(s)"
    )
    graph, (change,) = rewritten(graph_of(body, TOKENS, constants={"f": factor}), product_scale.apply, x=TOKENS)
    assert op_types(graph) == ["Transpose", "Concat", "Mul", "MatMul", "Relu"]
    assert next(node for node in graph.graph if node.op_type == "Mul").inputs[0].producer().op_type == "Transpose"
    assert "operand 1 of MatMul" in change.reason
    assert product_scale.apply(graph) == ()


@pytest.mark.parametrize(
    ("reason", "body", "constants"),
    [
        ("the product is read elsewhere too", f"{SWAP} p = MatMul(x, t) s = Mul(p, f) y = Add(p, s)", {"f": 2.0}),
        ("the result is an output of the graph", f"{SWAP} p = MatMul(x, t) y = Mul(p, f)", {"f": 2.0}),
        ("more dimensions", f"{SWAP} p = MatMul(x, t) s = Mul(p, f) y = Relu(s)", {"f": [[[[2.0]]]]}),
    ],
)
def test_a_number_that_must_stay_behind_its_product(reason, body, constants):
    graph, (change,) = rewritten(graph_of(body, TOKENS, constants=constants), product_scale.apply, x=TOKENS)
    assert change.skipped and reason in change.reason
    assert "Mul" in op_types(graph)


def test_a_number_behind_a_product_that_stays_float_stays():
    graph = graph_of(f"{SWAP} p = MatMul(x, t) s = Mul(p, f) y = Relu(s)", TOKENS, constants={"f": 2.0})
    keep_float(node for node in graph.graph if node.op_type == "MatMul")
    (change,) = product_scale.apply(graph)
    assert change.skipped and change.reason == "the layer before it stays in float"


def test_a_product_with_weights_is_left_to_the_weights():
    weights = np.ones((3, 4), np.float32)
    graph = graph_of("p = MatMul(x, w) s = Mul(p, f) y = Relu(s)", TOKENS, constants={"f": 2.0, "w": weights})
    assert product_scale.apply(graph) == ()


def test_shared_weights_are_scaled_for_one_reader_only():
    body = "c = Conv(x, w) d = Mul(c, f) e = Conv(x, w) y = Sub(d, e)"
    graph, changes = rewritten(graph_of(body, constants={"w": W, "f": 4.0}), scalars.apply)
    assert not changes[0].skipped and op_types(graph) == ["Conv", "Conv", "Sub"]


LAYER_SCALES = {
    "convolution": (
        "c = Conv(x, w, b) s = Mul(c, g) y = Relu(s)",
        {"w": W, "b": B, "g": RANDOM.normal(size=(4, 1, 1))},
    ),
    "matmul, bias, transpose": (
        "t = Transpose<perm: ints = [0, 2, 3, 1]>(x) m = MatMul(t, v) a = Add(m, b) "
        "u = Transpose<perm: ints = [0, 3, 1, 2]>(a) s = Mul(g, u) y = Add(s, x)",
        {"v": RANDOM.normal(size=(4, 4)), "b": B, "g": RANDOM.normal(size=(4, 1, 1))},
    ),
}


@pytest.mark.parametrize(("body", "constants"), LAYER_SCALES.values(), ids=LAYER_SCALES)
def test_layer_scale_folds(body, constants):
    graph, (change,) = rewritten(graph_of(body, constants=constants), layer_scale.apply)
    assert "Mul" not in op_types(graph) and not change.skipped


def test_layer_scale_on_another_axis_is_refused():
    body, constants = "c = Conv(x, w) s = Mul(c, g) y = Relu(s)", {"w": W, "g": RANDOM.normal(size=(6,))}
    graph, (change,) = rewritten(graph_of(body, constants=constants), layer_scale.apply)
    assert change.skipped and "Conv is before it" in change.reason and "Mul" in op_types(graph)


NORM = "m = ReduceMean<keepdims: int = 1>(x, axes) d = Sub(x, m) "
NORM_CONSTANTS = {"eps": 1e-5, "two": 2.0, "gamma": RANDOM.normal(size=(6,)), "beta": RANDOM.normal(size=(6,))}
NORMS = {
    "pow, div": NORM + "s = Pow(d, two) v = ReduceMean(s, axes) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) "
    "k = Mul(n, gamma) y = Add(k, beta)",
    "product, reciprocal": NORM + "s = Mul(d, d) v = ReduceMean(s, axes) e = Add(eps, v) r = Sqrt(e) "
    "i = Reciprocal(r) n = Mul(d, i) k = Mul(gamma, n) y = Add(beta, k)",
}


@pytest.mark.parametrize("body", NORMS.values(), ids=NORMS)
def test_written_out_layer_norm(body):
    body = "axes = Constant<value: tensor = int64[1] {-1}>() " + body
    graph, (change,) = rewritten(graph_of(body, constants=_used(body, NORM_CONSTANTS)), layer_norm.apply)
    assert op_types(graph) == ["LayerNormalization"] and not change.skipped


def test_a_norm_over_channels_is_not_a_layer_norm():
    body = "axes = Constant<value: tensor = int64[1] {1}>() " + NORMS["pow, div"]
    assert layer_norm.apply(graph_of(body, constants=_used(body, NORM_CONSTANTS))) == ()


# --- padding ---


def _inverted_residual(channels, gate=True):
    """Expand, activation, depthwise, squeeze-excite, project: the block that padding is for."""
    rng = np.random.default_rng(channels)
    constants = {
        "w1": rng.normal(size=(channels, 4, 1, 1)),
        "b1": rng.normal(size=(channels,)),
        "d": rng.normal(size=(channels, 1, 3, 3)),
        "bd": rng.normal(size=(channels,)),
        "w2": rng.normal(size=(8, channels, 1, 1)),
        "s1": rng.normal(size=(8, channels, 1, 1)),
        "s2": rng.normal(size=(channels, 8, 1, 1)),
        "k": rng.normal(size=(channels, 1, 1)),
    }
    body = (
        "a = Conv(x, w1, b1) h = HardSwish(a) "
        f"p = Conv<group: int = {channels}, pads: ints = [1, 1, 1, 1], kernel_shape: ints = [3, 3]>(h, d, bd) "
        "q = Mul(p, k) r = Sigmoid(q) "
        + ("g = GlobalAveragePool(r) e = Conv(g, s1) f = Relu(e) i = Conv(f, s2) j = HardSigmoid(i) m = Mul(r, j) "
           "y = Conv(m, w2)" if gate else "y = Conv(r, w2)")
    )  # fmt: skip
    return graph_of(body, constants=_used(body, constants))


@settings(max_examples=12, deadline=None)
@given(channels=st.integers(12, 60), multiple=st.sampled_from([8, 16]), gate=st.booleans())
def test_padding_is_exact(channels, multiple, gate):
    graph, changes = rewritten(_inverted_residual(channels, gate), padding.apply, multiple=multiple)
    padded = -(-channels // multiple) * multiple
    if channels % multiple and padded <= channels * padding.MOST:
        assert changes[0].values["padded"] == padded
        shapes = {node.inputs[1].shape[0] for node in graph.graph if node.op_type == "Conv"}
        assert padded in shapes and channels not in shapes - {8}
    else:
        assert all(change.skipped for change in changes)


def test_padding_stops_at_a_concat():
    body = "p = Conv<group: int = 4, kernel_shape: ints = [1, 1]>(x, d) c = Concat<axis: int = 1>(p, p) y = Conv(c, w)"
    graph = graph_of(body, constants={"d": np.ones((4, 1, 1, 1)), "w": np.ones((2, 8, 1, 1))})
    (change,) = padding.apply(graph, multiple=5)
    assert change.skipped and ("input or output" in change.reason or "Concat" in change.reason)


def test_padding_never_divides_by_its_zeros():
    body = "a = Conv(x, w1) p = Conv<group: int = 12, kernel_shape: ints = [1, 1]>(a, d) q = Div(a, p) y = Conv(q, w2)"
    constants = {"w1": np.ones((12, 4, 1, 1)), "d": np.ones((12, 1, 1, 1)), "w2": np.ones((2, 12, 1, 1))}
    (change,) = padding.apply(graph_of(body, constants=constants))
    assert change.skipped and "would divide by the zeros" in change.reason


def test_padding_declines_to_double_the_work():
    (change,) = padding.apply(_inverted_residual(9, gate=False))
    assert change.skipped and "9 → 16" in change.reason


def test_every_rewrite_is_listed_with_its_file():
    assert list(REWRITES) == list(dict.fromkeys(REWRITES))
    assert all(entry.what.__module__.rsplit(".", 1)[1] == name and entry.help for name, entry in REWRITES.items())


def test_all_together_on_a_block():
    def everything(graph):
        return apply_rewrites(graph)

    graph, _ = rewritten(_inverted_residual(24), everything, tolerance=1e-4)
    assert "HardSwish" not in op_types(graph) and "HardSigmoid" not in op_types(graph)
    assert apply_rewrites(graph) == () or all(change.skipped for change in apply_rewrites(graph))
