"""Mixed four and eight bits: the layers that lose most for each byte keep eight, within what may be added."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

import compress
from compress.graph.constants import constant_array, stored_bytes
from compress.onnx_files import file_bytes, read_onnx, save_onnx
from compress.quantization.budget import Bounds, Budget, quantize_within
from compress.quantization.calibrated import Width
from compress.quantization.layer_errors import compare_outputs
from compress.quantization.repairs.judge import Judge, Samples, take_samples
from compress.quantization.repairs.levels import Accuracy
from compress.quantization.repairs.widths import fitting, narrow_bytes, rank_widths, widened
from compress.quantization.static import calibrate_static, quantize_static
from compress.runtimes.onnxruntime import Session

LEVEL = Accuracy(("equalize", "round", "widths", "bias"), mixed_db=60.0)


@pytest.fixture(scope="module")
def case():
    """(graph, batches): `head` is small and its error is the output's; `wide` is large and hardly matters."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.middle = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 1)
            self.wide, self.head = nn.Conv2d(32, 32, 3), nn.Linear(32, 10)
            with torch.no_grad():
                self.wide.weight.mul_(0.05), self.head.bias.zero_()

        def forward(self, x):
            x = torch.relu(self.middle(torch.relu(self.stem(x))))
            return self.head((x[:, :, 1:-1, 1:-1] + self.wide(x))[:, :, 1, 2])

    data = [torch.randn(64, 3, 8, 8)]
    return compress.export(Net().eval(), (data[0][:2],)).model, data


def stored_as(graph):
    """Width of each layer's stored weight, by layer."""
    found = {}
    for value in graph.graph.initializers.values():
        if value.dtype in (ir.DataType.INT4, ir.DataType.INT8) and value.shape is not None and len(value.shape) > 1:
            found[value.name.split(".")[0]] = 4 if value.dtype == ir.DataType.INT4 else 8
    return found


def test_the_order_is_by_noise_for_each_byte_and_the_noise_is_that_of_the_layer_alone(case):
    graph, data = case
    calibrated, _ = calibrate_static(graph, data, weight_bits=4, correct_bias=False, threads=1)
    samples = take_samples(data)
    order = rank_widths(calibrated, samples, most=16, threads=1)
    assert {item.node for item in order[:2]} == {"middle/Conv", "head/Gemm"} and order[-1].node == "wide/Conv"
    assert [item.noise / item.bytes for item in order] == sorted((i.noise / i.bytes for i in order), reverse=True)
    assert {item.node: item.bytes for item in order}["wide/Conv"] == 32 * 32 * 9 // 2
    # By hand: the float graph with the codes of the four-bit file, everything else as it was.
    int4 = calibrated.quantize().model
    floats = calibrated.graph.clone()
    node = next(item for item in floats.graph if item.name == "stem/Conv")
    reader = next(item for item in int4.graph if item.name == "stem/Conv").inputs[1].producer()
    codes, scale = constant_array(reader.inputs[0].producer().inputs[0]), constant_array(reader.inputs[1])
    weight = codes.astype(np.float32) * scale.reshape(-1, 1, 1, 1)
    node.inputs[1].const_value = ir.tensor(weight)
    few = samples.fitting.part(0, 16)
    noise = Judge(calibrated.graph, Samples(few, few), threads=1).noise(floats)
    assert next(item for item in order if item.node == "stem/Conv").noise == pytest.approx(noise, rel=1e-3)


def test_what_fits_is_taken_in_order():
    order = [Width("a", 3.0, 10), Width("b", 2.0, 100), Width("c", 1.0, 20)]
    assert fitting(order, 30) == ["a", "c"] and fitting(order, 9) == [] and fitting(order, 130) == ["a", "b", "c"]


def test_layers_that_matter_keep_eight_bits_within_the_share(case):
    graph, data = case
    plain = quantize_static(graph, data, weight_bits=4, accuracy=Accuracy(("equalize", "round", "bias")), threads=1)
    mixed = quantize_static(graph, data, weight_bits=4, accuracy=LEVEL, threads=1)
    told = {change.values["pass"]: change for change in mixed.changes if "pass" in change.values}
    assert not told["widths"].skipped and told["widths"].values["after_db"] > told["widths"].values["before_db"]
    wide = [change.layer for change in mixed.changes if change.action == "weights kept in 8 bits"]
    assert "head" in wide and "wide" not in wide
    assert stored_as(mixed.model)["head"] == 8 and stored_as(mixed.model)["wide"] == 4
    assert set(stored_as(plain.model).values()) == {4}
    calibrated, _ = calibrate_static(graph, data, weight_bits=4, threads=1)
    added = stored_bytes(mixed.model) - stored_bytes(plain.model)
    assert 0 < added <= LEVEL.wide_share * narrow_bytes(calibrated) + 64


def test_what_the_user_sets_stays(case):
    graph, data = case
    step = quantize_static(graph, data, weight_bits=4, layer_bits={"head": 4}, accuracy=LEVEL, threads=1)
    assert "head" not in [change.layer for change in step.changes if change.action == "weights kept in 8 bits"]
    assert stored_as(step.model)["head"] == 4


def test_a_widened_layer_keeps_nothing_of_its_narrow_form(case):
    graph, data = case
    calibrated, _ = calibrate_static(graph, data, weight_bits=4, accuracy=Accuracy(("round", "bias")), threads=1)
    wide = widened(calibrated, ["stem/Conv"])
    assert wide.weights.bits_of(next(n for n in wide.graph.graph if n.name == "stem/Conv")) == 8
    assert "stem/Conv" not in {*wide.rounded, *wide.shifts, *wide.weights.fixed}
    assert "wide/Conv" in wide.rounded


def fidelity(graph, data):
    """A score in (−∞, 1]: 1 less the relative error of the output."""
    expected = Session(graph, threads=1).run(data[0])
    return lambda candidate: 1 - compare_outputs(expected, Session(candidate, threads=1).run(data[0]))[0]


def test_a_drop_is_met_by_wider_weights_before_any_layer_goes_back_to_float(case):
    graph, data = case
    score = fidelity(graph, data)
    narrow, wide = (score(quantize_static(graph, data, weight_bits=bits, threads=1).model) for bits in (4, 8))
    allowed = 1 - (narrow + 3 * wide) / 4
    found = quantize_within(graph, data, Budget(score, allowed, baseline=1.0), weight_bits=4, threads=1)
    (chosen,) = [
        change for change in found.step.changes if change.action == "tried for the budget" and not change.skipped
    ]
    assert found.met and chosen.values["wide_layers"] and not chosen.values["float_layers"]
    assert found.score == score(found.step.model) >= 1 - allowed
    assert set(stored_as(found.step.model).values()) == {4, 8}
    # One layer less does not do, by hand.
    fewer = [name.split("/")[0] for name in chosen.values["wide_layers"][:-1]]
    bits = dict.fromkeys(fewer, 8)
    assert score(quantize_static(graph, data, weight_bits=4, layer_bits=bits, threads=1).model) < 1 - allowed


def test_no_trial_is_larger_than_the_file_may_be_and_a_speed_that_is_not_there_is_told(case):
    graph, data = case
    narrow, wide = (file_bytes(quantize_static(graph, data, weight_bits=bits, threads=1).model) for bits in (4, 8))
    bounds = Bounds(max_bytes=(narrow + wide) // 2)
    budget = Budget(fidelity(graph, data), 0.0, baseline=1.0, bounds=bounds)
    found = quantize_within(graph, data, budget, weight_bits=4, threads=1)
    assert not found.met and len(found.trials) > 1
    assert all(trial.bytes <= bounds.max_bytes for trial in found.trials)
    assert found.score == max(trial.score for trial in found.trials)
    slow = Bounds(min_speedup=3.0, speedup=lambda candidate: 1.5)
    found = quantize_within(graph, data, Budget(fidelity(graph, data), 0.5, baseline=1.0, bounds=slow), threads=1)
    assert not found.met and "1.50× as fast as float" in found.step.notes[-1]


@pytest.mark.parametrize("share", [0.3, -0.5])
def test_a_size_that_eight_bits_exceed_is_filled_with_four_and_eight(case, tmp_path, share):
    graph, data = case
    narrow, wide = (file_bytes(quantize_static(graph, data, weight_bits=bits, threads=1).model) for bits in (4, 8))
    limit = int(narrow + share * (wide - narrow))
    save_onnx(graph, tmp_path / "net.onnx")
    x = data[0].numpy()
    np.savez(tmp_path / "data.npz", x_calibration=x, x_test=x[:8], y_test=np.zeros(8, np.int64))
    report = compress.quantize(
        str(tmp_path / "net.onnx"),
        str(tmp_path / "data.npz"),
        output=tmp_path / "out",
        gates=compress.Gates(max_size=limit),
        options=compress.QuantizeOptions(tune_latency=False),
        settings=compress.Settings(threads=1),
    )
    model = read_onnx(tmp_path / "out" / "model.onnx")
    assert any("--max-size: with 8 bits" in note for note in report.notes)
    if share > 0:
        assert not report.failed and (tmp_path / "out" / "model.onnx").stat().st_size <= limit
        assert set(stored_as(model).values()) == {4, 8}
    else:  # not to be met: the smallest is saved, and the gate fails
        assert len(report.failed) == 1 and set(stored_as(model).values()) == {4}
