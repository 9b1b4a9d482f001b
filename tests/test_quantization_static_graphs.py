"""Placement, insertion, folding on tiny graphs: structure, then numbers."""

import functools
from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

import compress
from compress.errors import DataError, InputError, QuantizationError
from compress.graph.exporting import to_graph
from compress.quantization.placement import plan_placement
from compress.quantization.ranges.percentile import Percentile
from compress.quantization.static import fold_weights, prepare, quantize_static
from compress.runtimes.onnxruntime import Session


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.deep, self.point = nn.Conv2d(16, 16, 3, groups=16, padding=1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.relu6(self.stem(x))
        x = functional.relu(self.body(x) + x)
        x = functional.pad(self.point(functional.relu(self.deep(x)))[:, :, ::2, ::2], (1, 0, 1, 0))
        return self.head(functional.max_pool2d(x, 2).mean((2, 3)))


class Branches(nn.Module):
    """Concat of clipped and unclipped branches, squeeze-and-excitation, a transposed convolution."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 8, 1) for _ in range(3))
        self.gate, self.up = nn.Conv2d(24, 24, 1), nn.ConvTranspose2d(24, 4, 2, stride=2)

    def forward(self, x):
        x = torch.cat([functional.relu(self.a(x)), self.b(x), functional.relu6(self.c(x))], 1)
        x = x * torch.sigmoid(self.gate(functional.adaptive_avg_pool2d(x, 1)))
        return self.up(x)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).reshape(x.shape[0], -1, 3, 16).unbind(2)
        y = torch.softmax(q @ k.transpose(1, 2) / 4, -1) @ v
        return x + self.out(y)


SHAPES = {Residual: (3, 16, 16), Branches: (3, 8, 8), Attention: (6, 16)}


@functools.cache
def exported(kind):
    torch.manual_seed(0)
    model = kind().eval()
    return model, to_graph(model, (torch.randn(2, *SHAPES[kind]),))


def batches(model, count=4, size=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, *SHAPES[type(model)], generator=generator) for _ in range(count)]


@pytest.fixture(params=list(SHAPES), ids=lambda kind: kind.__name__)
def model(request):
    return exported(request.param)[0]


def static(model, data, **options):
    """`quantize_static` of the module's graph, exported once."""
    return quantize_static(exported(type(model))[1], data, threads=1, **options)


def optimized(graph, tmp_path):
    """The operators that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(str(tmp_path / "optimized.onnx")).graph.node)


def signal_to_noise(expected, got):
    noise = np.square(expected - got).sum()
    return 10 * np.log10(np.square(expected).sum() / noise) if noise else np.inf


@pytest.mark.parametrize("target", ["x86-vnni", "x86-avx2", "arm64", "any"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_int8_is_near_float(model, target, per_channel):
    graph = static(model, batches(model), target=target, per_channel=per_channel).model
    inputs = torch.cat(batches(model))
    # Node by node as written: no kernel of this machine in between.
    got = Session(graph, optimize=False, threads=1).run(inputs)[0]
    assert signal_to_noise(model(inputs).detach().numpy(), got) > 20


@pytest.mark.parametrize("target", ["x86-avx2", "any"])
def test_int8_kernels_compute_what_the_graph_says(model, target):
    """On this machine's kernels: saturation of pairs would show as errors far beyond a rounding."""
    graph = static(model, batches(model), target=target).model
    inputs = torch.cat(batches(model)) * 1.5
    written, run = Session(graph, optimize=False, threads=1).run(inputs)[0], Session(graph, threads=1).run(inputs)[0]
    assert signal_to_noise(written, run) > 30


def test_a_residual_network_is_int8_from_end_to_end(tmp_path):
    model = exported(Residual)[0]
    step = static(model, batches(model))
    found = optimized(step.model, tmp_path)
    assert found["QLinearConv"] == 4 and found["QLinearAdd"] == 1 and found["QGemm"] == 1
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 0, found
    assert not {"Conv", "FusedConv", "Relu", "Clip", "Add", "Gemm", "ReduceMean"} & set(found)
    assert not step.skipped


def test_clipped_branches_keep_their_own_range(tmp_path):
    model = exported(Branches)[0]
    step = static(model, batches(model))
    found = optimized(step.model, tmp_path)
    assert found["QLinearConv"] == 4 and found["QLinearConcat"] == 1
    assert not {"Relu", "Clip"} & set(found)
    assert {change.values["op_type"]: change.reason for change in step.skipped} == {
        "Sigmoid": "its result is read in float",  # by the Mul, which `up` reads in float
        "Mul": "its result is read in float",
    }
    assert any(change.action == "weights stored in int8, computed in float" for change in step.changes)


def test_attention_runs_its_products_in_int8(tmp_path):
    model = exported(Attention)[0]
    found = optimized(static(model, batches(model), rewrites=()).model, tmp_path)
    assert found["QGemm"] + found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 4, found
    assert found["LayerNormalization"] == 1


def test_a_plan_can_be_read():
    graph, _ = prepare(exported(Residual)[1], [])
    plan = plan_placement(graph)
    assert [site.node.op_type for site in plan.sites].count("Conv") == 4
    moved = {node.op_type: node for node in plan.moving}
    assert {"MaxPool", "Pad", "Slice"} <= set(moved)
    for node in plan.moving:  # what moves values shares its input's grid, so only the source is observed
        assert plan.tensors[node.inputs[0].name] == plan.tensors[node.outputs[0].name]
        assert node.outputs[0].name not in plan.observed_tensors
    assert "output" not in plan.tensors and graph.graph.outputs[0].name not in plan.tensors


def test_a_shared_concat_shares_one_grid():
    class Dense(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = functional.relu(self.a(x))
            return self.c(torch.cat([x, functional.relu(self.b(x))], 1))

    graph, _ = prepare(Dense().eval(), [], example_inputs=(torch.randn(2, 3, 8, 8),))
    plan = plan_placement(graph)
    concat = next(site for site in plan.sites if site.node.op_type == "Concat")
    assert len({plan.tensors[value.name] for value in (*concat.node.inputs, concat.output)}) == 1


def test_weights_are_int8_and_biases_int32():
    model = exported(Residual)[0]
    graph = static(model, batches(model), target="x86-vnni", correct_bias=False).model
    seen = set()
    for node in graph.graph:
        if node.op_type != "Conv":
            continue
        weight, bias = (value.producer() for value in node.inputs[1:])
        codes, scale = (value.const_value.numpy() for value in weight.inputs[:2])
        assert codes.dtype == np.int8 and scale.shape == (codes.shape[0],)
        assert weight.attributes["axis"].as_int() == 0
        original = next(
            part.weight
            for part in model.modules()
            if getattr(part, "weight", None) is not None
            and part.weight.shape == codes.shape
            and np.allclose(part.weight.detach(), codes * scale.reshape(-1, 1, 1, 1), atol=scale.max())
        )
        seen.add(id(original))
        np.testing.assert_array_less(
            np.abs(original.detach().numpy() - codes * scale.reshape(-1, 1, 1, 1)), scale.max() * 0.5001
        )
        step = node.inputs[0].producer().inputs[1].const_value.numpy()
        assert bias.inputs[0].const_value.numpy().dtype == np.int32
        np.testing.assert_allclose(bias.inputs[1].const_value.numpy(), step * scale, rtol=1e-6)
    assert len(seen) == 4


def test_unfolded_weights_stay_float_until_folded():
    model = exported(Residual)[0]
    graph = static(model, batches(model), target="x86-avx2", fold_weights=False).model
    before = ir.to_proto(graph).SerializeToString()
    weights = [v for v in graph.graph.initializers.values() if v.shape is not None and len(v.shape) == 4]
    assert len(weights) == 4 and all(value.dtype == ir.DataType.FLOAT for value in weights)
    folded = fold_weights(graph)
    assert ir.to_proto(graph).SerializeToString() == before
    again = fold_weights(folded)
    assert ir.to_proto(again).ByteSize() == ir.to_proto(folded).ByteSize()
    inputs = torch.cat(batches(model))
    unfolded, shipped = (Session(g, optimize=False, threads=1).run(inputs)[0] for g in (graph, folded))
    assert signal_to_noise(unfolded, shipped) > 35  # only the rounding of biases lies between them


def test_bias_correction_brings_the_mean_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 4, 1)).eval()
    data = [torch.rand(4, 8, 12, 12) + 1 for _ in range(3)]
    inputs = torch.cat(data)
    expected = model(inputs).detach().numpy().mean((0, 2, 3))
    shifts = []
    for correct in (False, True):
        graph = quantize_static(model, data, target="x86-vnni", weight_bits=4, correct_bias=correct).model
        got = Session(graph, optimize=False, threads=1).run(inputs)[0].mean((0, 2, 3))
        shifts.append(np.abs(got - expected).max())
    assert shifts[1] < shifts[0] / 3


def test_the_model_and_the_graph_are_not_touched(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    graph = exported(type(model))[1]
    before = ir.to_proto(graph).SerializeToString()
    quantize_static(model, batches(model))
    quantize_static(graph, batches(model))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert ir.to_proto(graph).SerializeToString() == before


def test_exclusion_and_op_types():
    model = exported(Residual)[0]
    step = static(model, batches(model), exclude=["stem"])
    reasons = {change.values["node"]: change.reason for change in step.skipped}
    assert any("excluded by name" in reason for reason in reasons.values())
    only = static(model, batches(model), op_types=["Gemm"])
    assert [change.values["op_type"] for change in only.done if change.action == "runs in int8"] == ["Gemm"]
    assert any("not among the op types" in change.reason for change in only.skipped)
    with pytest.raises(InputError, match="exclude 'stm' matches no node of the graph; did you mean 'stem'"):
        static(model, batches(model), exclude=["stm"])
    with pytest.raises(QuantizationError, match="op type 'Covn' cannot be quantized; did you mean 'Conv'"):
        static(model, batches(model), op_types=["Covn"])


class Swishes(nn.Module):
    """Two convolutions, each with a hard swish behind it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.act, self.last = nn.Hardswish(), nn.Hardswish()

    def forward(self, x):
        return self.last(self.b(self.act(self.a(x))))


@pytest.fixture(scope="module")
def swishes():
    """Quantizes `Swishes` without the nodes named."""
    torch.manual_seed(0)
    data = [torch.randn(2, 3, 4, 4)]
    graph = to_graph(Swishes().eval(), (data[0],))
    return lambda *exclude: quantize_static(graph, data, exclude=exclude, threads=1)


def test_what_hangs_on_an_excluded_layer_keeps_its_float_form(swishes):
    def kept(*exclude):
        return [node.name for node in swishes(*exclude).model.graph if node.op_type == "HardSwish"]

    assert kept() == []
    assert kept("a") == ["act/HardSwish"]
    assert kept("last") == ["last/HardSwish"]
    assert any("the layer before it stays in float" in change.reason for change in swishes("a").skipped)


def test_names_that_only_a_rewrite_makes_may_be_excluded(swishes):
    plain = swishes()
    (name,) = (node.name for node in plain.model.graph if node.op_type == "Add" and "act" in str(node.name))
    assert "hardswish_add" in name.lower()
    (change,) = (change for change in swishes(name).skipped if change.values.get("node") == name)
    assert change.reason == "excluded by name"


def test_a_graph_output_keeps_its_name_and_type():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    graph = to_graph(model, (torch.randn(2, 3, 4, 4),))
    step = quantize_static(graph, [torch.randn(4, 3, 4, 4)])
    assert [(v.name, v.dtype) for v in step.model.graph.outputs] == [(v.name, v.dtype) for v in graph.graph.outputs]
    assert Session(step.model, threads=1).run(torch.randn(5, 3, 4, 4))[0].dtype == np.float32


def test_a_dead_channel_and_constant_activations_survive():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1)).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:] = torch.tensor([3.0, -3.0, 0.1, 0.2])
    data = [torch.zeros(2, 3, 4, 4), torch.randn(2, 3, 4, 4)]
    got = Session(quantize_static(model, data).model, threads=1).run(torch.cat(data))[0]
    np.testing.assert_allclose(got, model(torch.cat(data)).detach().numpy(), atol=0.06)
    zeros = Session(quantize_static(model, data[:1]).model, threads=1).run(data[0])[0]
    np.testing.assert_allclose(zeros, model(data[0]).detach().numpy(), atol=0.06)


def test_nothing_to_quantize():
    with pytest.raises(
        QuantizationError, match="nothing in this graph can run in int8: it has Tanh, and what is excluded"
    ):
        quantize_static(nn.Sequential(nn.Tanh()), [torch.randn(2, 3)])
    data = [torch.randn(4, 3)]
    for quantized in (
        quantize_static(nn.Linear(3, 2), data),
        compress.quantize_dynamic(to_graph(nn.Linear(64, 64), torch.randn(2, 64))),
    ):
        with pytest.raises(QuantizationError, match="it is quantized already; give the float model"):
            quantize_static(quantized.model, data)


def test_batches_of_a_generator_are_all_calibrated_on():
    model, data = (
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(),
        [9 * torch.randn(4, 4), torch.randn(4, 4)],
    )
    listed = quantize_static(model, data)
    streamed = quantize_static(model, (batch for batch in data))
    scales = [
        [value.const_value.numpy() for value in step.model.graph.initializers.values()] for step in (listed, streamed)
    ]
    assert len(scales[0]) == len(scales[1]) and all(map(np.array_equal, *scales))


def test_the_facade():
    assert compress.quantize_static is quantize_static


def test_options_of_a_range_method_are_taken():
    model = exported(Residual)[0]
    narrow, wide = (static(model, batches(model), ranges=method).model for method in (Percentile(90), "minmax"))
    scale = {
        g: next(n for n in g.graph if n.op_type == "QuantizeLinear").inputs[1].const_value.numpy()
        for g in (narrow, wide)
    }
    assert scale[narrow] < scale[wide]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad):
    model = exported(Residual)[0]
    data = batches(model)
    data[1][2, 0, 0, 0] = bad
    with pytest.raises(DataError, match="input 'x' holds NaN or infinity for calibration sample 5"):
        quantize_static(exported(Residual)[1], data)
    with pytest.raises(DataError, match="calibration data is empty"):
        quantize_static(exported(Residual)[1], [])
    broken = Residual().eval()
    with torch.no_grad():
        broken.deep.weight[0, 0, 0, 0] = bad
    with pytest.raises(DataError, match=r"tensor '.+' holds NaN or infinity for calibration sample 0"):
        graph = exported(Residual)[1].clone()
        value = next(v for v in graph.graph.initializers.values() if v.shape == (16, 1, 3, 3))
        value.const_value = ir.Tensor(broken.deep.weight.detach().numpy())
        quantize_static(graph, batches(model))
