"""Sizes and counts against what can be worked out on paper."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compress.errors import ModelError
from compress.evaluation.size import count_macs, count_parameters, size_bytes, sparsity
from compress.graph.exporting import export
from compress.onnx_files import save_onnx

CASES = [
    # module, input, multiply-accumulates for one sample
    (nn.Linear(5, 7), (3, 5), 5 * 7),
    (nn.Linear(5, 7), (3, 4, 5), 4 * 5 * 7),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 8, 8), 6 * 4 * 9 * 16),
    (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 5, 5), 8 * 1 * 9 * 9),
    (nn.Conv1d(2, 3, 5), (2, 2, 9), 3 * 2 * 5 * 5),
    (nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5), 4 * 25 * 6 * 9),
    (nn.LSTM(3, 5, batch_first=True), (2, 7, 3), 7 * 4 * (5 * 3 + 5 * 5)),
    (nn.GRU(3, 5, bidirectional=True, batch_first=True), (2, 7, 3), 2 * 7 * 3 * (5 * 3 + 5 * 5)),
]


@pytest.mark.parametrize(("module", "shape", "expected"), CASES, ids=lambda v: type(v).__name__)
def test_macs_on_paper_for_modules_and_graphs(module, shape, expected):
    inputs = (torch.randn(*shape),)
    assert count_macs(module, inputs) == expected
    assert count_macs(export(module, inputs).model, inputs) == expected


def test_macs_of_attention():
    layer, inputs = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (torch.randn(2, 5, 16),)
    expected = 5 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 5 * 5 * 16
    assert count_macs(layer, inputs) == expected
    assert count_macs(export(layer, inputs).model, inputs) == expected


def test_parameters_of_module_and_graph():
    module, inputs = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 4)),
        torch.zeros(2, 3, 5, 5),
    )
    expected = 8 * 3 * 9 + 8 + 8 * 9 * 4 + 4
    assert count_parameters(module) == expected
    assert count_parameters(export(module, (inputs,)).model) == expected


def quantized_graph(weight, scale, zero):
    """A MatMul whose int8 weight passes through DequantizeLinear."""
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], axis=1),
        helper.make_node("MatMul", ["x", "wf"], ["y"]),
    ]
    arrays = {"w": weight, "s": scale, "z": zero}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


def test_a_quantized_weight_is_zero_where_it_equals_its_zero_point():
    weight = np.arange(12, dtype=np.uint8).reshape(4, 3)
    graph = quantized_graph(weight, np.ones(3, np.float32), np.array([0, 4, 99], np.uint8))
    assert count_parameters(graph) == 12  # scales and zero points describe, they do not compute
    assert sparsity(graph) == pytest.approx(2 / 12)  # the 0 in column 0 and the 4 in column 1
    assert count_macs(graph, (torch.zeros(2, 4),)) == 12


def test_sparsity_counts_weights_not_biases():
    module = nn.Linear(4, 5)
    with torch.no_grad():
        module.weight[:, :2] = 0
        module.bias.zero_()
    assert sparsity(module) == 0.5
    assert sparsity(export(module, (torch.zeros(2, 4),)).model) == 0.5


def test_size_includes_external_data(tmp_path):
    graph = export(nn.Linear(64, 64), (torch.zeros(2, 64),)).model
    path = save_onnx(graph, tmp_path / "m.onnx", external_above_bytes=100)
    beside = tmp_path / "m.onnx.data"
    assert beside.stat().st_size >= 64 * 64 * 4
    assert size_bytes(path) == path.stat().st_size + beside.stat().st_size
    onnx.checker.check_model(str(path))


def test_size_of_nothing(tmp_path):
    with pytest.raises(ModelError, match="is not a file"):
        size_bytes(tmp_path / "none.onnx")
