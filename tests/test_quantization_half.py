"""Float16: what half precision holds computes in it, the rest stays in float32 with the reason, outputs stay close."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from cli.main import main
from compress.errors import CompressError
from compress.onnx_files import save_onnx
from compress.runtimes.onnxruntime import Session


class Encoder(nn.Module):
    """A convolution, a normalization, attention's softmax, two outputs of which one is read on."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.LayerNorm(8)
        self.q, self.k, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        h = self.norm(self.first(x).transpose(1, 2))
        weights = (self.q(h) @ self.k(h).transpose(1, 2)).softmax(-1)
        pooled = (weights @ h).mean(1)
        return self.head(pooled), pooled


@pytest.fixture
def data():
    return torch.randn(16, 4, 10, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder().eval()


def decibels(wanted, got):
    wanted = wanted.astype(np.float64)
    return 10 * np.log10((wanted**2).sum() / max(((wanted - got) ** 2).sum(), 1e-30))


def by_layer(step):
    return {(change.values["op_type"], change.layer): change for change in step.changes}


def test_computes_in_half_and_keeps_its_outputs(encoder, data):
    step = compress.quantize_float16(encoder, [data])
    onnx.checker.check_model(ir.to_proto(step.model), full_check=True)
    wanted = [value.detach().numpy() for value in encoder(data)]
    for expected, got in zip(wanted, Session(step.model, threads=1).run(data)):
        assert got.dtype == np.float32 and decibels(expected, got) > 50
    kinds = {node.op_type: node.outputs[0].dtype for node in step.model.graph}
    assert kinds["Conv"] == kinds["Gemm"] == ir.DataType.FLOAT16
    assert kinds["LayerNormalization"] == kinds["Softmax"] == kinds["ReduceMean"] == ir.DataType.FLOAT
    weights = [value.const_value for value in step.model.graph.initializers.values() if value.const_value.size > 16]
    assert weights and all(tensor.dtype == ir.DataType.FLOAT16 for tensor in weights)
    assert all(change.reason for change in step.changes if change.skipped)


class Scaled(nn.Module):
    def __init__(self, up):
        super().__init__()
        self.a, self.b, self.c, self.up = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), up

    def forward(self, x):
        return self.c(self.b(self.a(x) * self.up) / self.up)


@pytest.mark.parametrize("up", [1e5, 1e-8], ids=["over", "under"])
def test_what_half_cannot_hold_stays_in_float(up):
    torch.manual_seed(0)
    module, x = Scaled(up).eval(), torch.randn(32, 4)
    with torch.no_grad():
        module.b.bias.zero_()
    step = compress.quantize_float16(module, [x])
    found = by_layer(step)
    assert found["Gemm", "b"].skipped and "reaches" in found["Gemm", "b"].reason
    assert not found["Gemm", "a"].skipped and not found["Gemm", "c"].skipped
    assert decibels(module(x).detach().numpy(), Session(step.model, threads=1).run(x)[0]) > 50


def test_constants_that_half_would_lose_stay_in_float():
    class Epsilon(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            return y / (y.abs() + 2e-8)

    torch.manual_seed(0)
    x = torch.randn(8, 4)
    step = compress.quantize_float16(Epsilon().eval(), example_inputs=x)
    (added,) = [change for change in step.changes if change.values["op_type"] == "Add"]
    assert added.skipped and "half cannot hold its constant" in added.reason
    assert "not tried for overflow" in step.notes[1]


def test_excluded_layers_and_refusals(encoder, data, tmp_path):
    step = compress.quantize_float16(encoder, [data], exclude=["head"])
    assert by_layer(step)["Gemm", "head"].reason == "excluded by name"
    with pytest.raises(CompressError, match="is quantized already"):
        compress.quantize_float16(compress.quantize_static(encoder, [data]).model)
    with pytest.raises(CompressError, match="no layer of this graph can compute in float16"):
        compress.quantize_float16(nn.Sequential(nn.Softmax(-1)), [data])
    with pytest.raises(CompressError, match="matches no"):
        compress.quantize_float16(encoder, [data], exclude=["nothing"])
    with pytest.raises(CompressError, match="needs example_inputs"):
        compress.quantize_float16(encoder)


def test_the_command(encoder, data, tmp_path):
    save_onnx(compress.export(encoder, data[:2]).model, tmp_path / "float.onnx")
    np.savez(tmp_path / "data.npz", x=data.repeat(4, 1, 1).numpy())
    arguments = ["quantize", tmp_path / "float.onnx", "--method", "float16", "--data", tmp_path / "data.npz"]
    result = CliRunner().invoke(main, [str(a) for a in (*arguments, "-o", tmp_path / "half", "--json")])
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and report["rows"][1]["name"] == "float16"
    assert any("compute in float16" in note for step in report["steps"] for note in step["notes"])
    result = CliRunner().invoke(main, [str(a) for a in (*arguments, "--weight-bits", "4", "-o", tmp_path / "no")])
    assert result.exit_code == 2 and "weight_bits changes nothing" in result.stderr and not (tmp_path / "no").exists()
