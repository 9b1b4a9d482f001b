"""Weights in blocks of four and eight bits: standard ONNX that ONNX Runtime fuses, round-to-nearest or error feedback."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from cli.main import main
from compress.errors import QuantizationError
from compress.graph.module import GraphModule
from compress.quantization.weight_only import block_codes, block_scales, quantize_weight_only
from compress.runtimes.onnxruntime import Session


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.first = nn.Embedding(120, 64), nn.Linear(64, 96)
        self.second, self.odd = nn.Linear(96, 40, bias=False), nn.Linear(40, 64)

    def forward(self, ids):
        return self.odd(self.second(torch.relu(self.first(self.table(ids)))).mean(1))


IDS = torch.randint(0, 120, (64, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return compress.export(Encoder().eval(), (IDS[:2],)).model


def noise(graph, made):
    expected, got = (Session(part, threads=1).run(IDS)[0] for part in (graph, made))
    return float(np.square(got - expected).sum() / np.square(expected).sum())


@pytest.mark.parametrize(("bits", "most"), [(4, 2e-2), (8, 1e-4)])
def test_blocks_are_standard_and_fused(graph, tmp_path, bits, most):
    made = quantize_weight_only(graph, bits=bits).model
    path = compress.save_onnx(made, tmp_path / "blocks.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    assert {node.domain for node in made.graph} == {""}
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("MatMulNBits") == 2  # first, second; 40 inputs are no multiple of 32
    assert noise(graph, made) < most
    with torch.no_grad():
        expected = Session(made, threads=1, optimize=False).run(IDS)[0]
        np.testing.assert_allclose(GraphModule(made)(IDS).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_error_feedback_is_nearer_and_what_stays_float_is_told(graph):
    nearest, fed = quantize_weight_only(graph), quantize_weight_only(graph, [IDS])
    assert noise(graph, fed.model) < noise(graph, nearest.model)
    told = {change.layer: change for change in nearest.changes}
    assert told["odd"].skipped and told["odd"].reason == "its 40 inputs are no multiple of the block of 32"
    assert not told["first"].skipped and told["first"].values["block"] == 32
    assert "rounded to the nearest" in nearest.notes[0] and "rounded with error feedback" in fed.notes[0]


def test_a_transposed_gemm_is_turned():
    torch.manual_seed(0)
    model = nn.Linear(64, 32).eval()
    x = torch.randn(5, 64)
    graph = compress.export(model, (x,)).model
    assert any(node.op_type == "Gemm" and node.attributes.get_int("transB", 0) for node in graph.graph)
    made = quantize_weight_only(graph, bits=8, tables=False).model
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(Session(made, threads=1).run(x)[0], expected, atol=2e-2 * np.abs(expected).max())


def test_block_codes_are_the_best_of_their_grid():
    matrix = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    scales = block_scales(matrix, 16, 4)
    codes = block_codes(matrix, scales, 16, 4)
    assert scales.shape == (4, 5) and codes.min() == -8 and codes.max() <= 7
    steps = np.repeat(np.abs(scales), 16, 0)
    inside = (codes > -8) & (codes < 7)
    assert (np.abs(codes * np.repeat(scales, 16, 0) - matrix)[inside] <= steps[inside] / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"bits": 3}, "bits must be 4 or 8, not 3"),
        ({"block": 24}, "block must be a power of two from 16, not 24"),
    ],
)
def test_what_cannot_be_is_refused(graph, options, text):
    with pytest.raises(QuantizationError, match=text):
        quantize_weight_only(graph, **options)


def test_nothing_to_quantize_says_why(graph):
    with pytest.raises(
        QuantizationError, match=r"can be stored in blocks: it has .*; odd: its 40 inputs are no multiple"
    ):
        quantize_weight_only(graph, exclude=["first", "second"], tables=False)


def test_the_command(graph, tmp_path):
    compress.save_onnx(graph, tmp_path / "net.onnx")
    spoken = [
        "quantize",
        str(tmp_path / "net.onnx"),
        "--method",
        "weight-only",
        "--block",
        "16",
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(main, [*spoken, "--threads", "1", "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert any("a scale for each block of 16" in note for note in report["notes"])
    assert (tmp_path / "out" / "model.onnx").stat().st_size < 0.4 * (tmp_path / "net.onnx").stat().st_size
