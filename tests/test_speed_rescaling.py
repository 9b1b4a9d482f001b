"""Numbers that multiply int8 tensors vanish: into weights, or into the scale of the codes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from compress.graph.exporting import to_graph
from compress.graph.folding import infer_shapes
from compress.quantization.rescaling import carry
from compress.quantization.static import fold_weights, quantize_static
from compress.runtimes.onnxruntime import Session

TOKENS, WIDTH, HEADS = 10, 32, 2


class Attention(nn.Module):
    """Self-attention; `form` says how the scale is written."""

    def __init__(self, form):
        super().__init__()
        self.form, self.packed, self.out = form, nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def heads(self, x):
        return x.reshape(x.shape[0], TOKENS, HEADS, WIDTH // HEADS).transpose(1, 2)

    def forward(self, x):
        if self.form == "bert":
            q, k, v = self.heads(self.q(x)), self.heads(self.k(x)), self.heads(self.v(x))
            y = torch.softmax(q @ k.transpose(-1, -2) / 4.0, -1) @ v
        elif self.form == "swin":
            q, k, v = self.packed(x).reshape(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            y = torch.softmax((q * 0.25) @ k.transpose(-1, -2), -1) @ v
        else:
            q, k, v = (self.heads(part) for part in self.packed(x).chunk(3, -1))
            y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(-1, TOKENS, WIDTH))


@pytest.fixture(scope="module", params=["vit", "swin", "bert"])
def case(request):
    torch.manual_seed(0)
    model = Attention(request.param).eval()
    data = [torch.randn(2, TOKENS, WIDTH) * 2 for _ in range(4)]
    return request.param, model, to_graph(model, (data[0],)), data


def multiplications(graph):
    return [node.name for node in graph.graph if node.op_type in ("Mul", "Div")]


def test_the_scale_of_attention_costs_no_node(case):
    form, model, graph, data = case
    assert multiplications(graph)
    step = quantize_static(graph, data, threads=1)
    assert multiplications(step.model) == []
    told = {change.action for change in step.done}
    assert "carried by a scale" in told or form == "bert"  # whose three layers' weights take it all
    assert ("scalar folded" in told) == (form == "bert")
    inputs = torch.cat(data)
    expected = model(inputs).detach().numpy()
    for optimize in (False, True):  # as written, then by this machine's kernels
        (found,) = Session(step.model, optimize=optimize, threads=1).run(inputs)
        assert 10 * np.log10(np.square(expected).sum() / np.square(expected - found).sum()) > 25


def test_what_a_scale_carries_is_rounded_once_less(case):
    _, model, graph, data = case
    inputs, errors = torch.cat(data), []
    for rewrites in (("layer_norm",), None):
        int8 = quantize_static(graph, data, rewrites=rewrites, target="x86-vnni", threads=1).model
        (found,) = Session(int8, optimize=False, threads=1).run(inputs)
        errors.append(np.square(found - model(inputs).detach().numpy()).mean())
    assert errors[1] < 1.5 * errors[0]


def test_training_keeps_the_multiplication_until_the_scales_stand(case):
    form, _, graph, data = case
    trainable = quantize_static(graph, data, fold_weights=False, threads=1).model
    assert bool(multiplications(trainable)) == (form != "bert")
    assert multiplications(fold_weights(trainable)) == []


BODY = """
    q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
    m = Mul(d, c) r = QuantizeLinear(m, t, u) y = DequantizeLinear(r, t, u)
"""


def pairs(scale, factor, ratio=None, zero=7, other_zero=None):
    text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[64] x) => (float[64] y) {{ {BODY} }}'
    proto = onnx.parser.parse_model(text)
    numbers = {"s": scale, "c": factor, "t": np.float32(scale) * np.float32(factor if ratio is None else ratio)}
    zeros = {"z": zero, "u": zero if other_zero is None else other_zero}
    for name, value in numbers.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.float32), name))
    for name, value in zeros.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.uint8), name))
    return infer_shapes(ir.from_proto(proto))


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(1e-4, 10), factor=st.floats(1e-3, 100), zero=st.integers(0, 255))
def test_the_codes_stay_and_the_values_too(scale, factor, zero):
    graph = pairs(scale, factor, zero=zero)
    x = (np.linspace(-300, 300, 64) * scale).astype(np.float32)
    (before,) = Session(graph, optimize=False, threads=1).run(x)
    carry(graph)
    assert [node.op_type for node in graph.graph] == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear"]
    (after,) = Session(graph, optimize=False, threads=1).run(x)
    np.testing.assert_allclose(after, before, rtol=1e-5)


@pytest.mark.parametrize(
    "graph",
    [pairs(0.1, 0.5, ratio=0.4), pairs(0.1, 0.5, other_zero=8), pairs(0.1, -0.5, ratio=0.5)],
    ids=["another scale", "another zero", "a negative number"],
)
def test_a_multiplication_that_changes_codes_stays(graph):
    carry(graph)
    assert multiplications(graph)
