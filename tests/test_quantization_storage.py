"""Four bits that are four bits in the file, int8 to the runtime; tables of encoders in int8."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import compress
from compress.errors import QuantizationError, UnsupportedOperatorError
from compress.evaluation.size import count_parameters, sparsity
from compress.graph.constants import constant_array
from compress.graph.module import GraphModule
from compress.pipeline.details import quantized_weights
from compress.quantization import finishing, storage
from compress.quantization.dynamic import quantize_dynamic
from compress.quantization.static import quantize_static
from compress.runtimes.onnxruntime import Session


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 32, 3, groups=32)
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(200, 32), nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, ids):
        return self.last(torch.relu(self.first(self.table(ids)))).mean(1)


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return compress.export(Net().eval(), (torch.randn(2, 3, 12, 12),)).model


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return compress.export(Encoder().eval(), (torch.randint(0, 200, (2, 6)),)).model


X = torch.randn(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(0, 200, (8, 6), generator=torch.Generator().manual_seed(1))


def stored_as(model):
    return {value.dtype.name for value in model.graph.initializers.values() if len(value.shape) >= 2}


def test_the_file_is_half_and_the_outputs_are_equal_to_the_bit(graph, tmp_path, monkeypatch):
    packed = quantize_static(graph, [X], weight_bits=4, threads=1).model
    monkeypatch.setattr(finishing, "store_in_four_bits", lambda *_: ())
    wide = quantize_static(graph, [X], weight_bits=4, threads=1).model
    assert stored_as(packed) == {"INT4"} and stored_as(wide) == {"INT8"}
    for optimize in (True, False):
        (first,), (second,) = (Session(model, threads=1, optimize=optimize).run(X) for model in (packed, wide))
        np.testing.assert_array_equal(first, second)
    codes = sum(value.const_value.nbytes for value in packed.graph.initializers.values() if len(value.shape) >= 2)
    whole = sum(value.const_value.nbytes for value in wide.graph.initializers.values() if len(value.shape) >= 2)
    assert codes * 2 == whole
    compress.save_onnx(packed, tmp_path / "four.onnx")
    expected = Session(wide, threads=1).run(X)[0]
    np.testing.assert_array_equal(Session(tmp_path / "four.onnx", threads=1).run(X)[0], expected)
    onnx.checker.check_model(str(tmp_path / "four.onnx"), full_check=True)


def test_bits_by_layer(graph):
    step = quantize_static(graph, [X], weight_bits=4, layer_bits={"head*": 8}, threads=1)
    assert stored_as(step.model) == {"INT4", "INT8"}
    bits = {change.layer: change.values["weight_bits"] for change in step.changes if "weight_bits" in change.values}
    assert bits == {"first": 4, "second": 4, "head": 8}
    assert stored_as(quantize_static(graph, [X], weight_bits=5, threads=1).model) == {"INT8"}


def test_openvino_runs_the_same_file(graph, tmp_path):
    openvino = pytest.importorskip("openvino")
    packed = quantize_static(graph, [X], weight_bits=4, threads=1).model
    compress.save_onnx(packed, tmp_path / "four.onnx")
    compiled = openvino.Core().compile_model(str(tmp_path / "four.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    got, expected = compiled(X.numpy())[0], Session(packed, threads=1).run(X)[0]
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()


def test_what_reads_files_sees_the_codes(graph):
    packed = quantize_static(graph, [X], weight_bits=4, threads=1).model
    wide = quantize_static(graph, [X], weight_bits=8, threads=1).model
    assert count_parameters(packed) == count_parameters(wide)
    assert len(list(quantized_weights(packed))) == len(list(quantized_weights(wide))) == 3
    assert 0 < sparsity(packed) < 0.5
    expected = Session(packed, threads=1).run(X)[0]
    with torch.no_grad():
        np.testing.assert_allclose(GraphModule(packed)(X).numpy(), expected, atol=0.02 * np.abs(expected).max())


def test_older_opsets_are_raised_or_refused_in_one_line(graph, monkeypatch):
    old = graph.clone()
    old.opset_imports[""] = 18
    packed = quantize_static(old, [X], weight_bits=4, threads=1).model
    assert packed.opset_imports[""] >= 21 and stored_as(packed) == {"INT4"}
    for fails in (lambda model, *_, **__: 1 / 0, lambda *_, **__: None):
        monkeypatch.setattr("onnxscript.version_converter.convert_version", fails)
        with pytest.raises(
            UnsupportedOperatorError, match=r"opset is 18, and codes of four bits need 21: .*take 8 bits"
        ):
            storage.raise_for_four_bits(old.clone())


def test_static_quantization_stores_tables(encoder):
    eight = quantize_static(encoder, [IDS], threads=1)
    expected, got = Session(encoder, threads=1).run(IDS)[0], Session(eight.model, threads=1).run(IDS)[0]
    assert stored_as(eight.model) - {"FLOAT"} == {"INT8"}
    assert not any(
        v.dtype.name == "FLOAT" and v.const_value.size >= 6400 for v in eight.model.graph.initializers.values()
    )
    assert any(change.action.startswith("table stored in 8 bits") for change in eight.changes)
    assert np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    kept = quantize_static(encoder, [IDS], exclude=["table"], threads=1).model
    assert any(v.dtype.name == "FLOAT" and v.const_value.size == 6400 for v in kept.graph.initializers.values())


def test_dynamic_quantization_in_four_bits(encoder):
    four = quantize_dynamic(encoder, weight_bits=4).model
    assert stored_as(four) - {"FLOAT"} == {"INT4"}
    codes = [constant_array(node.inputs[1]) for node in four.graph if node.op_type == "MatMulInteger"]
    assert all(array.dtype == np.int8 and np.abs(array).max() <= 7 for array in codes) and len(codes) == 2
    expected, got = Session(encoder, threads=1).run(IDS)[0], Session(four, threads=1).run(IDS)[0]
    assert np.abs(got - expected).max() < 0.35 * np.abs(expected).max()
    with pytest.raises(QuantizationError, match="weight_bits 4 goes with weight_type int8, not uint8"):
        quantize_dynamic(encoder, weight_type="uint8", weight_bits=4)


def test_tiny_weights_do_not_vanish():
    """A model in small units (weights around 1e-12) gives small numbers in int8, not zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1e-6 if value.dim() > 1 else 1e-7)
    tiny = compress.export(model, (X[:2],), check=False).model
    expected = Session(tiny, threads=1).run(X)[0]
    got = Session(quantize_static(tiny, [X], threads=1).model, threads=1).run(X)[0]
    assert np.square(got - expected).sum() < 1e-2 * np.square(expected).sum()
