"""What is reported is what runs: float layers stay float in ONNX Runtime, and the report says what does not."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import compress
import compress.quantization.finishing as finishing
from cli.printing import show
from compress.batches import Batch
from compress.errors import GateError
from compress.pipeline.cache import step_from
from compress.quantization.divergence import first_divergence
from compress.quantization.executed import _error_db, as_executed
from compress.runtimes.onnxruntime import Session, executed_operators, runs_in_integers
from compress.runtimes.runtime import find_runtime


class Uneven(nn.Module):
    """Layers whose channels differ in size by 1,000: one scale for a whole weight loses the small ones."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.second = nn.Conv2d(16, 16, 3)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 16, 3)
        self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, 4)
        with torch.no_grad():
            for layer in (self.depthwise, self.up, self.hidden):
                layer.weight[:1] *= 1000

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(self.second(x))
        x = torch.relu(self.last(torch.relu(self.up(x)))).mean((2, 3))
        return self.out(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    return compress.export(Uneven().eval(), x[:2]).model, x


@pytest.mark.parametrize("layer", ["depthwise", "up", "hidden"])
def test_a_float_layer_runs_in_float_with_its_own_weights(net, layer):
    graph, x = net
    step = compress.quantize_static(graph, [x], exclude=(f"{layer}*",), target="any")
    (node,) = {change.values["node"] for change in step.skipped if change.layer == layer}
    assert not runs_in_integers(executed_operators(step.model)[node].operator)
    optimized, written = (Session(step.model, optimize=flag).run(x)[0] for flag in (True, False))
    # Where its weights were quantized every sample would differ; rounding alone moves a code of one sample now and then.
    difference = np.sort(np.abs(written - optimized).max(1))
    assert difference[-4] < 1e-3 * np.abs(written).max(), difference


class OneChannel(nn.Module):
    """Layers that read one channel: a list of one scale is a single scale to ONNX Runtime."""

    def __init__(self):
        super().__init__()
        self.first, self.narrow = nn.Conv2d(3, 1, 3), nn.Conv2d(1, 16, 3)
        self.thin, self.up, self.last = nn.Conv2d(16, 1, 3), nn.ConvTranspose2d(1, 8, 2, stride=2), nn.Conv2d(8, 4, 3)
        with torch.no_grad():
            self.narrow.weight[:1] *= 1000
            self.up.weight[:, :1] *= 1000

    def forward(self, x):
        x = torch.relu(self.narrow(torch.relu(self.first(x))))
        return self.last(torch.relu(self.up(torch.relu(self.thin(x)))))


@pytest.mark.parametrize("layer", ["narrow", "up"])
def test_a_float_layer_that_reads_one_channel_runs_in_float(layer):
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    graph = compress.export(OneChannel().eval(), x[:2]).model
    step = compress.quantize_static(graph, [x], exclude=(f"{layer}*",), target="any")
    optimized, written = (Session(step.model, optimize=flag).run(x)[0] for flag in (True, False))
    assert not any(
        runs_in_integers(kind.operator) for name, kind in executed_operators(step.model).items() if layer in name
    )
    assert _error_db((written,), (optimized,)) > 60  # 38 dB with one scale for its weight


def test_without_that_form_the_runtime_quantizes_it_and_the_report_says_so(net, monkeypatch):
    graph, x = net
    monkeypatch.setattr(finishing, "keep_float_layers", lambda graph: 0)
    step = compress.quantize_static(graph, [x], exclude=("depthwise*",), target="any")
    found = as_executed(step, graph, [x])
    (change,) = [change for change in found.changes if change.layer == "depthwise" and "quantizes it" in change.reason]
    assert not change.skipped and change.action == "runs in int8"
    assert any("otherwise than the file says" in note and "depthwise" in note for note in found.notes)


def test_a_graph_that_runs_as_it_says_gets_no_note(net):
    graph, x = net
    step = compress.quantize_static(graph, [x], target="any")
    assert as_executed(step, graph, [x]) == step


def test_error_in_decibels():
    a = np.ones(100)
    assert _error_db((a,), (a + 0.1,)) == pytest.approx(20)
    assert _error_db((a,), (a,)) == 100


def test_weights_that_the_runtime_quantizes_behind_a_layers_name_are_told(net, monkeypatch):
    """A transposed convolution has no integer kernel: its name and operator stay, its weights do not."""
    graph, x = net
    monkeypatch.setattr(finishing, "keep_float_layers", lambda graph: 0)
    step = compress.quantize_static(graph, [x], exclude=("up*",), target="any")
    found = as_executed(step, graph, [x])
    (change,) = [
        change for change in found.changes if change.layer == "up" and "quantizes its weights" in change.reason
    ]
    assert not change.skipped and change.action == "weights in int8, computed in float"


class Small(nn.Module):
    """A depthwise layer whose first kernel is 1,000 times the others, on an input that is as much smaller."""

    def __init__(self):
        super().__init__()
        self.first, self.depthwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, groups=16)
        self.second, self.out = nn.Conv2d(16, 16, 3), nn.Linear(16, 4)
        with torch.no_grad():
            self.depthwise.weight[:1] *= 1000
            self.first.weight[:1] /= 1000
            self.first.bias[:1] /= 1000

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        return self.out(torch.relu(self.second(x)).mean((2, 3)))


@pytest.fixture
def changed_at_load(monkeypatch):
    """A network whose depthwise layer, left in float, ONNX Runtime quantizes with one scale when it loads the file."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 16, 16)
    graph = compress.export(Small().eval(), x[:2]).model
    monkeypatch.setattr(finishing, "keep_float_layers", lambda graph: 0)
    return graph, x


def test_the_node_that_the_optimizer_changes_is_named(changed_at_load):
    graph, x = changed_at_load
    step = compress.quantize_static(graph, [x], exclude=("depthwise*",), target="any")
    found = first_divergence(step.model, Batch.of(x))
    assert found is not None and found.node == "depthwise/Conv" and found.largest > 20
    (fault,) = as_executed(step, graph, [x]).faults
    assert "first at depthwise/Conv (Conv)" in fault and "not to be trusted" in fault
    whole = compress.quantize_static(graph, [x], target="any")
    assert first_divergence(whole.model, Batch.of(x)) is None and not as_executed(whole, graph, [x]).faults


def test_a_job_does_not_call_such_a_result_good(changed_at_load, tmp_path):
    graph, x = changed_at_load
    np.savez(tmp_path / "d.npz", x=x.repeat(4, 1, 1, 1).numpy(), y=np.arange(64) % 4)
    options = {"exclude": ("depthwise*",), "target": "any", "accuracy": "fast"}
    report = compress.quantize(graph, str(tmp_path / "d.npz"), output=tmp_path / "out", options=options)
    (gate,) = report.failed
    assert gate.name == "runs-as-written" and gate.row == "int8" and "depthwise/Conv" in gate.sentence
    assert "✗ int8" in report.table() and (tmp_path / "out" / "model.onnx").exists()
    data = json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["passed"] is False and "depthwise/Conv" in data["steps"][0]["faults"][0]
    assert step_from(data["steps"][0], None).faults == report.steps[0].faults  # a recipe's finished stage keeps it
    assert "depthwise/Conv" in report.html() and "depthwise/Conv" in report.markdown()
    with pytest.raises(GateError, match="depthwise/Conv") as caught:
        show(report, compress.Settings())
    assert caught.value.exit_code == 3


def test_outputs_that_are_not_finite_are_no_agreement():
    a = np.ones(4)
    assert _error_db((a,), (np.array([1, 1, 1, np.nan]),)) == -100


@pytest.mark.skipif(not find_runtime("openvino").installed(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("wrong", ["run", "run_free"])
def test_another_runtime_that_computes_something_else_is_told(net, monkeypatch, wrong):
    graph, x = net
    step = compress.quantize_static(graph, [x], target="any", runtime="openvino")
    right = as_executed(step, graph, [x], runtime="openvino")
    assert not right.faults and right.notes == step.notes
    from compress.runtimes.openvino import Session

    kept = getattr(Session, wrong)
    monkeypatch.setattr(Session, wrong, lambda self, *inputs: tuple(np.roll(y, 1, -1) for y in kept(self, *inputs)))
    found = as_executed(step, graph, [x], runtime="openvino")
    if wrong == "run":
        assert any("computes something else" in fault and "not to be trusted" in fault for fault in found.faults)
    else:  # what is reported is right, and whoever fixes no shapes is told
        assert not found.faults and any("shapes are left free" in note for note in found.notes)
