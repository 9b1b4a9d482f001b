"""ONNX Runtime behind one door: named inputs, inner tensors, node times, errors in one line."""

import time

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compress.errors import InputError, ModelError, UnsupportedOperatorError
from compress.graph.exporting import export
from compress.onnx_files import save_onnx
from compress.runtimes import onnxruntime as runtime
from compress.runtimes.onnxruntime import Session, weight_bytes, with_outputs


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@pytest.fixture(scope="module")
def graph(network):
    return export(network, torch.randn(2, 4)).model


def test_a_graph_and_its_file_give_what_pytorch_gives(network, graph, tmp_path):
    x = torch.randn(5, 4)
    expected = network(x).detach().numpy()
    for model in (graph, save_onnx(graph, tmp_path / "m.onnx"), str(tmp_path / "m.onnx")):
        session = Session(model, threads=1)
        assert session.input_names == ("input",) and session.output_names == ("output",)
        assert session.input_shapes == (("batch", 4),) and session.input_dtypes == (np.dtype(np.float32),)
        np.testing.assert_allclose(session.run(x)[0], expected, atol=1e-6)
        np.testing.assert_allclose(session.run(x.numpy().astype(np.float64))[0], expected, atol=1e-6)


@pytest.mark.parametrize("optimize", [True, False])
def test_inner_tensors_by_name(network, graph, optimize):
    x = torch.randn(3, 4)
    names = [node.outputs[0].name for node in graph.graph]
    session = Session(graph, outputs=[*names, "input"], optimize=optimize)
    first, second, third, given = session.run(x)
    np.testing.assert_allclose(first, network[0](x).detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(second, np.maximum(first, 0), atol=1e-6)
    np.testing.assert_allclose(third, network(x).detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(given, x.numpy())
    assert [value.name for value in graph.graph.outputs] == ["output"]  # the graph itself is as it was


def test_threads_rest_when_a_run_is_over():
    """Spinning threads of one session would slow the next one down, in every comparison of models."""
    wide = nn.Sequential(*(nn.Linear(256, 256) for _ in range(8))).eval()
    session, x = Session(export(wide, torch.randn(2, 256)).model, threads=2), torch.randn(64, 256)
    shares = []
    for _ in range(5):
        session.run(x)
        wall, cpu = time.perf_counter(), time.process_time()
        time.sleep(0.01)
        shares.append((time.process_time() - cpu) / (time.perf_counter() - wall))
    assert min(shares) < 0.3  # a spinning thread would take all of its processor


def test_node_times(graph):
    session = Session(graph, profile=True, optimize=False)
    for _ in range(3):
        session.run(torch.randn(2, 4))
    rows = session.profile()
    assert [row["op_type"] for row in rows] == ["Gemm", "Relu", "Gemm"]
    assert [row["node"] for row in rows] == ["0/Gemm", "1/Relu", "2/Gemm"]
    assert all(row["microseconds"] >= 0 for row in rows)
    with pytest.raises(InputError, match="open it with profile=True"):
        Session(graph).profile()


def test_weights_above_the_limit_go_through_a_file(graph, network, monkeypatch):
    monkeypatch.setattr(runtime, "IN_MEMORY_LIMIT_BYTES", 10)
    assert weight_bytes(graph) == 4 * (4 * 8 + 8 + 8 * 3 + 3)
    x = torch.randn(2, 4)
    before = {name: value.const_value for name, value in graph.graph.initializers.items()}
    np.testing.assert_allclose(Session(graph).run(x)[0], network(x).detach().numpy(), atol=1e-6)
    assert {name: value.const_value for name, value in graph.graph.initializers.items()} == before


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"takes 1 input \(input\), got 0"),
        ((torch.zeros(2, 5),), r"rejects its inputs \(input \(2, 5\)\): .*Expected: 4"),
        ((torch.zeros(2, 4, dtype=torch.int64),), "input 'input' must be float32, got int64"),
    ],
)
def test_wrong_inputs(graph, inputs, message):
    with pytest.raises(InputError, match=message) as caught:
        Session(graph).run(*inputs)
    assert "\n" not in str(caught.value)


def test_unknown_inner_tensor(graph):
    with pytest.raises(InputError, match="the graph has no tensor '1/Rleu'; did you mean '1/Relu'"):
        with_outputs(graph, ["1/Rleu"])


def test_operators_that_the_runtime_lacks_are_named(graph):
    strange = graph.clone()
    node = ir.node("Frobnicate", [strange.graph.outputs[0]], domain="nowhere")
    node.outputs[0].name = "strange"
    strange.graph.append(node)
    strange.graph.outputs.append(node.outputs[0])
    strange.opset_imports["nowhere"] = 1
    with pytest.raises(UnsupportedOperatorError, match="nowhere:Frobnicate"):
        Session(strange)


def test_an_opset_from_the_future(graph):
    strange = graph.clone()
    strange.opset_imports[""] = 99
    with pytest.raises(
        UnsupportedOperatorError, match=r"cannot run .*[Oo]pset.*99.*convert the file to an older opset"
    ):
        Session(strange)


def test_files_that_are_not_onnx(graph, tmp_path):
    path = save_onnx(graph, tmp_path / "whole.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"cut\.onnx.*truncated"):
        Session(tmp_path / "cut.onnx")
    with pytest.raises(ModelError, match=r"absent\.onnx' does not exist"):
        Session(tmp_path / "absent.onnx")


def test_a_model_that_fails_while_running():
    class Select(nn.Module):
        def forward(self, x, index):
            return x[:, index]

    session = Session(export(Select(), (torch.zeros(2, 3), torch.tensor([0, 1])), dynamic_batch=False).model)
    with pytest.raises(ModelError, match=r"failed on .*with inputs.*index"):
        session.run(np.zeros((2, 3), np.float32), np.array([0, 7]))
