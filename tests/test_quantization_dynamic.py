"""Dynamic int8: the arithmetic of NumPy, layers really run in int8, refusals with reasons."""

import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_ir import DataType, Shape, TensorType, Value, node
from torch import nn

from compress.errors import InputError, QuantizationError
from compress.graph.editing import add_initializer
from compress.graph.exporting import export
from compress.onnx_files import save_onnx
from compress.quantization.dynamic import quantize_dynamic
from compress.runtimes.onnxruntime import Session, weight_bytes

GENERATOR = np.random.default_rng(0)


def graph_of(op_type, weights, *, shape=("n", 48), attributes=None, outputs=1):
    """One operator with constant weights, as any framework might have written it: no shapes, no types inside."""
    x = Value(name="x", shape=Shape(shape), type=TensorType(DataType.INT64 if op_type == "Gather" else DataType.FLOAT))
    model = ir.Model(ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="g"), ir_version=10)
    constants = [None if w is None else add_initializer(model, f"w{i}", w) for i, w in enumerate(weights)]
    inputs = [*constants, x] if op_type == "Gather" else [x, *constants]
    made = node(op_type, inputs, attributes or {}, num_outputs=outputs, name="layer")
    for index, value in enumerate(made.outputs):
        value.name, value.type = f"y{index}", TensorType(DataType.FLOAT)
    model.graph.append(made)
    model.graph.outputs.extend(made.outputs)
    return model


def floats(*shape, scale=1.0):
    return (GENERATOR.standard_normal(shape) * scale).astype(np.float32)


def stored(step, name):
    """(codes around zero, scales, zero point) as they stand in the graph."""
    constants = {key: value.const_value.numpy() for key, value in step.model.graph.initializers.items()}
    return constants[f"{name}_codes"].astype(np.int64) - np.int64(constants[f"{name}_zero"]), constants[f"{name}_scale"]


def reference_matmul(x, weight_codes, weight_scales):
    """DynamicQuantizeLinear over the whole tensor as ONNX defines it, then exact integer products."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((np.float32(high) - np.float32(low)) / np.float32(255))
    if scale == 0:
        return np.zeros((*x.shape[:-1], weight_codes.shape[1]), np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero, 0, 255).astype(np.int64)
    return ((codes - int(zero)) @ weight_codes).astype(np.float32) * (scale * weight_scales)


@pytest.mark.parametrize(("weight_type", "target"), [("int8", "x86-avx2"), ("uint8", "any")])
def test_matmul_is_the_reference_arithmetic(weight_type, target):
    """Weights and inputs at the ends of their ranges: a kernel that saturates would be far off."""
    weight, x = floats(48, 32), np.abs(floats(5, 48))
    weight[:, :4], x[0] = 3.0, 4.0
    step = quantize_dynamic(graph_of("MatMul", [weight]), weight_type=weight_type, target=target)
    expected = reference_matmul(x, *stored(step, "w0"))
    for optimize in (True, False):
        (result,) = Session(step.model, optimize=optimize).run(x)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4)
    assert np.abs(result - x @ weight).max() < 0.03 * np.abs(x @ weight).max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-3, 1.0, 1e3]), shift=st.sampled_from([-5.0, 0.0, 5.0]))
def test_matmul_error_is_bounded_by_the_steps(seed, spread, shift):
    """|y − ŷ| ≤ Σ |x|·s_w/2 + |w|·s_x/2 + s_x·s_w/4, over the inputs of each output."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((40, 12)).astype(np.float32)
    x = ((generator.standard_normal((3, 40)) + shift) * spread).astype(np.float32)
    (result,) = Session(
        quantize_dynamic(graph_of("MatMul", [weight], shape=("n", 40)), weight_type="uint8").model, threads=1
    ).run(x)
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    step_w = np.abs(weight).max(axis=0) / 127
    # The zero point is rounded too: up to half a step is cut off at one end.
    bound = np.abs(x).sum(1, keepdims=True) * step_w / 2 + np.abs(weight).sum(0) * step_x + 40 * step_x * step_w / 2
    assert (np.abs(result - x @ weight) <= bound * 1.01 + 1e-6).all()


@pytest.mark.parametrize(
    "attributes", [{}, {"transB": 1}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1, "alpha": 3.0}], ids=str
)
@pytest.mark.parametrize("bias", [True, False])
def test_gemm(attributes, bias):
    weight = floats(32, 48) if attributes.get("transB") else floats(48, 32)
    weights, x = [weight, floats(32)] if bias else [weight], floats(5, 48)
    original = graph_of("Gemm", weights, attributes=attributes)
    step = quantize_dynamic(original, target="x86-avx2")
    expected = reference_matmul(x, *stored(step, "w0"))
    expected = expected + weights[1] * attributes.get("beta", 1.0) if bias else expected
    (result,) = Session(step.model).run(x)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-3)
    assert [n.op_type for n in step.model.graph].count("MatMulInteger") == 1
    np.testing.assert_allclose(result, Session(original).run(x)[0], atol=0.05 * np.abs(expected).max())


def reference_lstm(x, w, r, b):
    """One direction; x and h are quantized anew at each use, as the kernel does; gates i, o, f, c as ONNX orders them."""
    length, batch, hidden = len(x), x.shape[1], len(r[0])
    gates_x = reference_matmul(x.reshape(length * batch, -1), *w).reshape(length, batch, -1)
    bias = b[: 4 * hidden] + b[4 * hidden :]
    h = c = np.zeros((batch, hidden), np.float32)
    states = []
    for step in range(length):
        i, o, f, g = np.split(gates_x[step] + reference_matmul(h, *r) + bias, 4, axis=1)
        c = 1 / (1 + np.exp(-f)) * c + 1 / (1 + np.exp(-i)) * np.tanh(g)
        h = 1 / (1 + np.exp(-o)) * np.tanh(c)
        states.append(h)
    return np.stack(states)


@pytest.mark.parametrize(("weight_type", "target"), [("int8", "x86-avx2"), ("uint8", "any")])
def test_lstm_is_the_reference_arithmetic(weight_type, target):
    hidden, inputs = 16, 24
    w, r, b = floats(1, 64, inputs, scale=0.3), floats(1, 64, hidden, scale=0.3), floats(1, 128, scale=0.1)
    graph = graph_of("LSTM", [w, r, b], shape=(7, "n", inputs), attributes={"hidden_size": hidden}, outputs=3)
    x = floats(7, 1, inputs)
    step = quantize_dynamic(graph, weight_type=weight_type, target=target)
    assert [n.op_type for n in step.model.graph] == ["DynamicQuantizeLSTM"]
    states, last, _ = Session(step.model).run(x)
    parts = [[part[0] for part in stored(step, f"layer_{role}")] for role in "WR"]
    expected = reference_lstm(x, *parts, b[0])
    np.testing.assert_allclose(states[:, 0], expected, atol=2e-3)
    np.testing.assert_array_equal(states[-1, 0], last[0])
    assert np.abs(states - Session(graph).run(x)[0]).max() < 0.05


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_modules_of_pytorch(kind):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(400, 32)
            self.rnn = kind(32, 48, batch_first=True, bidirectional=True)
            self.head = nn.Linear(96, 5)

        def forward(self, tokens):
            return self.head(self.rnn(self.embedding(tokens))[0])

    torch.manual_seed(0)
    module, tokens = Tagger().eval(), torch.randint(0, 400, (2, 9))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    floating = export(module, tokens).model
    step = quantize_dynamic(floating)
    kinds = [n.op_type for n in step.model.graph]
    assert ("DynamicQuantizeLSTM" in kinds) == (kind is nn.LSTM) and "LSTM" not in kinds
    assert {change.layer for change in step.done} == {"embedding/Gather", f"rnn/{kind.__name__}", "head/MatMul"}
    assert not step.skipped
    assert weight_bytes(step.model) < 0.31 * weight_bytes(floating)
    expected, result = Session(floating).run(tokens)[0], Session(step.model).run(tokens)[0]
    assert np.abs(expected - result).max() < 0.03 * np.abs(expected).max()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    larger = torch.randint(0, 400, (5, 9))
    assert Session(step.model).run(larger)[0].shape == (5, 9, 5)


@pytest.mark.parametrize("weight_type", ["int8", "uint8"])
@pytest.mark.parametrize("op_type", ["GRU", "RNN", "Gather", "Conv", "ConvTranspose"])
def test_stored_weights_are_within_half_a_step(op_type, weight_type):
    graph, x = stored_case(op_type)
    step = quantize_dynamic(graph, weight_type=weight_type, op_types=[op_type])
    assert f"stored in {weight_type}" in step.changes[0].action
    assert weight_bytes(step.model) < 0.35 * weight_bytes(graph)
    # What the operator is given: read back from the very graph.
    for index in (0,) if op_type == "Gather" else (1, 2) if op_type in ("GRU", "RNN") else (1,):
        weight = graph.graph[0].inputs[index].const_value.numpy()
        if op_type == "Gather":
            (given,) = Session(step.model).run(np.arange(len(weight))[:, None].repeat(3, axis=1))
            given = given[:, 0]
        else:
            reader = next(n for n in step.model.graph if n.op_type == op_type)
            (given,) = Session(step.model, outputs=[reader.inputs[index].name], optimize=False).run(x)
        rows = 2 if op_type in ("GRU", "RNN") else 1
        steps = np.abs(weight).max(axis=tuple(range(rows, weight.ndim)), keepdims=True) / 127
        assert (np.abs(given - weight) <= steps * 0.501).all()
        assert np.abs(given - weight).max() > 0
    expected, result = Session(graph).run(x)[0], Session(step.model).run(x)[0]
    assert np.abs(expected - result).max() < 0.05 * np.abs(expected).max()


def stored_case(op_type):
    if op_type == "Gather":
        return graph_of("Gather", [floats(100, 16)], shape=("n", 3)), GENERATOR.integers(0, 100, (2, 3))
    if op_type in ("GRU", "RNN"):
        gates = 3 if op_type == "GRU" else 1
        weights = [floats(2, gates * 24, 24, scale=0.2), floats(2, gates * 24, 24, scale=0.2)]
        options = {"hidden_size": 24, "direction": "bidirectional"}
        return graph_of(op_type, weights, shape=(5, "n", 24), attributes=options, outputs=2), floats(5, 2, 24)
    return graph_of(op_type, [floats(16, 16, 3, 3)], shape=("n", 16, 8, 8)), floats(2, 16, 8, 8)


@pytest.mark.parametrize("op_type", ["MatMul", "LSTM", "GRU", "Gather", "Conv"])
def test_float16_weights(op_type):
    if op_type == "MatMul":
        graph, x = graph_of("MatMul", [floats(48, 32)]), floats(2, 48)
    elif op_type == "LSTM":
        weights = [floats(1, 64, 16, scale=0.2), floats(1, 64, 16, scale=0.2), floats(1, 128)]
        graph, x = graph_of("LSTM", weights, shape=(5, "n", 16), attributes={"hidden_size": 16}), floats(5, 2, 16)
    else:
        graph, x = stored_case(op_type)
    step = quantize_dynamic(graph, weight_type="float16")
    assert step.done and weight_bytes(step.model) < 0.6 * weight_bytes(graph)
    expected = Session(graph).run(x)[0]
    np.testing.assert_allclose(Session(step.model).run(x)[0], expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_float16_refuses_what_overflows():
    weight = floats(48, 32)
    weight[0, 0] = 1e6
    step = quantize_dynamic(graph_of("MatMul", [weight]), weight_type="float16")
    assert "larger than the largest float16" in step.skipped[0].reason


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.conv, self.norm = nn.Conv1d(8, 16, 9), nn.LayerNorm(32)
        self.out = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))

    def forward(self, x):
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        x = self.norm(self.out(scores.softmax(-1) @ self.value(x)))
        return self.conv(x)


@pytest.fixture(scope="module")
def attention():
    torch.manual_seed(0)
    return export(Attention(), torch.randn(2, 8, 32)).model


def test_leftovers_have_reasons_and_inputs_are_quantized_once(attention):
    step = quantize_dynamic(attention)
    reasons = {change.layer: change.reason for change in step.skipped}
    assert (
        reasons["MatMul"] == reasons["MatMul_1"] == "both its inputs are computed while running, so it has no weights"
    )
    assert "--method static runs it in int8" in reasons["conv/Conv"]
    kinds = [n.op_type for n in step.model.graph]
    assert kinds.count("MatMulInteger") == 5 and kinds.count("DynamicQuantizeLinear") == 3
    assert not any(n.op_type in ("MatMulInteger", "DynamicQuantizeLinear") for n in attention.graph)


def test_choice_of_operators_and_names(attention):
    def done(**options):
        return {change.layer for change in quantize_dynamic(attention, **options).done}

    assert done(op_types=["Conv"]) == {"conv/Conv"}
    assert done(op_types=["Linear"], exclude=["out"]) == {"query/MatMul", "key/MatMul", "value/MatMul"}
    assert done(exclude=["out.0", "?*y"]) == {"value/MatMul", "out.2/MatMul"}
    with pytest.raises(InputError, match="exclude 'quary' matches no node of the graph; did you mean 'query"):
        done(exclude=["quary"])
    with pytest.raises(QuantizationError, match="no operator type 'Linaer'; did you mean 'Linear'"):
        done(op_types=["Linaer"])
    with pytest.raises(QuantizationError, match="unknown weight type 'int7'; did you mean 'int8'"):
        done(weight_type="int7")


def test_tied_embedding_and_output_are_both_quantized():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(600, 32), nn.Linear(32, 600, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    torch.manual_seed(0)
    module, tokens = Tied().eval(), torch.randint(0, 600, (2, 5))
    step = quantize_dynamic(module, example_inputs=tokens)
    assert len(step.done) == 2 and weight_bytes(step.model) < 2 * 600 * 32 + 8 * 600 + 100
    expected = module(tokens).detach().numpy()
    assert np.abs(Session(step.model).run(tokens)[0] - expected).max() < 0.03 * np.abs(expected).max()


def test_quantizing_twice_changes_nothing_more(attention):
    once = quantize_dynamic(attention)
    twice = quantize_dynamic(once.model)
    assert not twice.done and "nothing was quantized" in twice.notes[0]
    assert [n.op_type for n in twice.model.graph] == [n.op_type for n in once.model.graph]


def test_stored_weights_survive_a_second_pass():
    graph, _ = stored_case("GRU")
    once = quantize_dynamic(graph).model
    assert weight_bytes(quantize_dynamic(once).model) <= weight_bytes(once)


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (lambda: graph_of("MatMul", [floats(2, 48, 32)]), "its weight has 3 dimensions"),
        (lambda: graph_of("MatMul", [np.full((48, 32), np.nan, np.float32)]), "hold NaN or infinity"),
        (lambda: graph_of("Gemm", [floats(48, 32)], shape=(48, 2), attributes={"transA": 1}), "transA"),
        (
            lambda: graph_of(
                "LSTM",
                [floats(1, 64, 16), floats(1, 64, 16)],
                shape=(2, 5, 16),
                attributes={"hidden_size": 16, "layout": 1},
            ),
            "batch-first",
        ),
        (lambda: graph_of("GRU", [floats(1, 12, 4), floats(1, 12, 4)], attributes={"hidden_size": 4}), "too small"),
    ],
)
def test_refusals(graph, reason):
    original = graph()
    step = quantize_dynamic(original)
    assert reason in step.skipped[0].reason and not step.done
    assert [n.op_type for n in step.model.graph] == [n.op_type for n in original.graph]


def test_zeros_and_single_samples_run():
    weight = floats(48, 32)
    session = Session(quantize_dynamic(graph_of("MatMul", [weight])).model)
    np.testing.assert_array_equal(session.run(np.zeros((1, 48), np.float32))[0], np.zeros((1, 32)))
    dead = weight.copy()
    dead[:, 3] = 0
    (result,) = Session(quantize_dynamic(graph_of("MatMul", [dead])).model).run(floats(1, 48))
    assert result[0, 3] == 0 and np.isfinite(result).all()


def test_the_processor_decides_the_codes():
    """Without VNNI no pair of one sign exceeds 128, and the weights are still nearer than in 7 bits."""
    weight = floats(48, 32)
    graph, errors = graph_of("MatMul", [weight]), {}
    for target in ("x86-avx2", "x86-vnni", "arm64"):
        step = quantize_dynamic(graph, target=target)
        codes, scales = stored(step, "w0")
        errors[target] = float(np.square(codes * scales - weight).mean())
        pairs = codes.reshape(24, 2, 32)
        largest = max(np.maximum(pairs, 0).sum(1).max(), np.maximum(-pairs, 0).sum(1).max())
        assert (largest <= 128) == (target == "x86-avx2")
        assert any("no pair of products overflows" in note for note in step.notes) == (target == "x86-avx2")
    seven = np.abs(weight).max(0) / 63
    seven_bits = float(np.square(np.rint(weight / seven) * seven - weight).mean())
    assert errors["x86-vnni"] == errors["arm64"] < errors["x86-avx2"] < seven_bits


@pytest.mark.slow
def test_the_real_lstm(shared_data, tmp_path):
    sys.path.insert(0, str(shared_data))
    try:
        from models import polyphone_lstm
    finally:
        sys.path.remove(str(shared_data))
    module = polyphone_lstm()
    module.load_state_dict(torch.load(shared_data / "polyphones_lstm.pt", weights_only=True))
    arrays = np.load(shared_data / "polyphones.npz")
    tokens, labels = arrays["x_dev"][:2000].astype(np.int64), arrays["y_dev"][:2000]
    floating = save_onnx(export(module, torch.from_numpy(tokens[:2])).model, tmp_path / "float.onnx")
    step = quantize_dynamic(floating)
    path = save_onnx(step.model, tmp_path / "int8.onnx")
    kinds = [n.op_type for n in step.model.graph]
    assert kinds.count("DynamicQuantizeLSTM") == 1 and "LSTM" not in kinds and not step.skipped
    assert path.stat().st_size <= 0.30 * floating.stat().st_size
    top = [
        np.concatenate([session.run(tokens[i : i + 250])[0].argmax(1) for i in range(0, 2000, 250)])
        for session in (Session(floating), Session(path))
    ]
    assert (top[0] == top[1]).mean() > 0.995 and abs((top[0] == labels).mean() - (top[1] == labels).mean()) < 0.005
