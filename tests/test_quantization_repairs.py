"""Repairs: what each does to a network that naive int8 breaks, and that none is kept where it does not help."""

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.errors import QuantizationError
from compress.quantization.layer_errors import rank_layers
from compress.quantization.placement import plan_placement
from compress.quantization.repairs import passes
from compress.quantization.repairs.equalization import equalize, spans_of
from compress.quantization.repairs.levels import Accuracy, resolve_accuracy
from compress.quantization.repairs.rounding import feed_back
from compress.quantization.static import calibrate_static, prepare, quantize_static
from compress.runtimes.onnxruntime import Session


class Broken(nn.Module):
    """Channel ranges 1:1000 before a depthwise layer, then channels that lie far from zero before a 1×1 layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.narrow, self.expand = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 24, 1)
        self.head = nn.Linear(24, 10)
        with torch.no_grad():
            sizes = torch.logspace(-3, 0, 16).reshape(-1, 1, 1, 1)
            self.stem.weight.mul_(sizes), self.stem.bias.mul_(sizes.flatten())
            self.depthwise.weight.div_(sizes)
            self.narrow.bias[:2] += torch.tensor([30.0, -40.0])
            self.expand.bias.sub_(self.expand.weight[:, :2].sum((2, 3)) @ torch.tensor([30.0, -40.0]))

    def forward(self, x):
        x = nn.functional.relu6(self.depthwise(nn.functional.relu6(self.stem(x))))
        return self.head(torch.relu(self.expand(self.narrow(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def broken():
    torch.manual_seed(0)
    model = Broken().eval()
    with torch.no_grad():
        x = torch.randn(1800, 3, 10, 10)
        scores = model(x)
        model.head.bias.sub_(scores.mean(0)).div_(scores.std(0))
        model.head.weight.div_(scores.std(0)[:, None])
        best = model(x).topk(2).values
        x = x[best[:, 0] - best[:, 1] > 0.5][:600]  # as a trained network: sure of its answers
        y = model(x).argmax(1).numpy()
    graph = compress.export(model, (x[:2],)).model
    return graph, x, y


def points(graph, x, y):
    return 100 * float(np.mean(Session(graph, threads=1).run(x)[0].argmax(1) == y))


def test_a_network_that_breaks_int8_is_repaired_to_within_a_point(broken):
    graph, x, y = broken
    naive = quantize_static(graph, [x[:300]], threads=1)
    mended = quantize_static(graph, [x[:300]], accuracy="balanced", threads=1)
    assert points(naive.model, x[300:], y[300:]) < 70
    assert points(mended.model, x[300:], y[300:]) >= 99
    kept = {change.values["pass"]: change for change in mended.changes if "pass" in change.values}
    assert (
        not kept["equalize"].skipped and kept["equalize"].values["after_db"] > kept["equalize"].values["before_db"] + 10
    )
    # Repairs are free: the same operators run.
    kinds = [[node.op_type for node in step.model.graph] for step in (naive, mended)]
    assert kinds[0] == kinds[1]


def test_the_broken_tensors_rank_first(broken):
    graph, x, _ = broken
    calibrated, _ = calibrate_static(graph, [x[:64]], threads=1)
    ranking = rank_layers(calibrated, [x[:64]], samples=64, threads=1)
    told = compress.sensitivity(graph, [x[:64]], threads=1)
    assert [(item.node, item.error) for item in told] == [(item.node, item.error) for item in ranking]
    assert {item.layer for item in ranking[:2]} <= {"depthwise", "narrow", "expand"}


def test_equalizing_is_exact_in_float(broken):
    graph, x, _ = broken
    changed, _ = prepare(graph, [x[:8]])
    told = equalize(changed, plan_placement(changed), [x[:300]], threads=1)
    actions = {change.layer: change.action for change in told}
    assert actions["stem"] == "channels equalized" and actions["narrow"] == "channels equalized and centred"
    before, after = (Session(part, threads=1).run(x[:300])[0] for part in (graph, changed))
    np.testing.assert_allclose(after, before, atol=2e-4 * np.abs(before).max())


def test_what_is_read_by_something_else_is_left_alone():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            hidden = self.first(x)
            return self.second(torch.nn.functional.gelu(hidden)), torch.sigmoid(hidden)

    changed, _ = prepare(compress.export(Read().eval(), (torch.randn(2, 3, 6, 6),)).model, [torch.randn(2, 3, 6, 6)])
    assert spans_of(changed) == []


def test_a_residual_stream_is_one_span():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.branch, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(x + self.branch(torch.relu(x)))

    x = torch.randn(2, 3, 6, 6)
    changed, _ = prepare(compress.export(Stream().eval(), (x,)).model, [x])
    (span,) = spans_of(changed)
    assert {node.name.split("/")[0] for node in span.makers} == {"first", "branch"}
    assert {node.name.split("/")[0] for node in span.readers} == {"branch", "last"}


def test_a_pass_that_does_not_help_is_not_kept(broken, monkeypatch):
    graph, x, _ = broken

    def worse(calibrated, bench):
        from dataclasses import replace

        return replace(
            calibrated, ranges={name: (low / 9, high / 9) for name, (low, high) in calibrated.ranges.items()}
        ), []

    monkeypatch.setattr(passes, "REPAIRS", {"worse": passes.Repair("ranges spoiled", worse)})
    plain = quantize_static(graph, [x[:64]], threads=1)
    step = quantize_static(graph, [x[:64]], accuracy=Accuracy(("worse",)), threads=1)
    (told,) = [change for change in step.changes if change.action == "ranges spoiled"]
    assert told.skipped and told.values["after_db"] < told.values["before_db"]
    np.testing.assert_array_equal(*(Session(s.model, threads=1).run(x[:8])[0] for s in (plain, step)))


def test_error_feedback_beats_the_nearest_on_what_arrives():
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((32, 32)) * np.logspace(0, -2, 32)
    inputs = generator.standard_normal((500, 32)) @ mixing
    rows = generator.standard_normal((16, 32)).astype(np.float32)
    scales = (np.abs(rows).max(1) / 7).astype(np.float32)
    rounded = feed_back(rows, scales, inputs.T @ inputs / 500, 7)
    nearest = np.clip(np.rint(rows / scales[:, None]), -7, 7) * scales[:, None]
    codes = rounded / scales[:, None]
    assert np.abs(codes - np.rint(codes)).max() < 1e-4 and np.abs(codes).max() <= 7.001
    errors = [np.square((part - rows) @ inputs.T).mean() for part in (rounded, nearest)]
    assert errors[0] < 0.6 * errors[1]


def test_four_bits_gain_by_error_feedback_and_few_samples_are_told(broken):
    graph, x, _ = broken
    level = Accuracy(("equalize", "round", "bias"))
    step = quantize_static(graph, [x[:16]], weight_bits=4, accuracy=level, threads=1)
    told = {change.values["pass"]: change for change in step.changes if "pass" in change.values}
    assert not told["round"].skipped and told["round"].values["after_db"] > told["round"].values["before_db"]
    assert any("16 calibration samples" in change.reason for change in step.changes)


def test_an_unknown_level_is_answered_with_the_nearest():
    with pytest.raises(QuantizationError, match=r"unknown accuracy 'balance'; did you mean 'balanced'\?"):
        quantize_static(nn.Linear(3, 2), [torch.randn(2, 3)], accuracy="balance")


@pytest.mark.parametrize("keeps", [True, False], ids=["best", "balanced"])
def test_ctrl_c_in_best_delivers_what_was_found_until_then(broken, monkeypatch, capsys, keeps):
    graph, x, _ = broken

    def stopped(calibrated, bench):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        passes, "REPAIRS", {**passes.REPAIRS, "bias": passes.Repair("biases corrected in sequence", stopped)}
    )
    level = Accuracy(("equalize", "bias"), keeps=keeps)
    if not keeps:
        with pytest.raises(KeyboardInterrupt):
            quantize_static(graph, [x[:300]], accuracy=level, threads=1)
        return
    step = quantize_static(graph, [x[:300]], accuracy=level, threads=1)
    before = quantize_static(graph, [x[:300]], accuracy=Accuracy(("equalize",)), threads=1)
    np.testing.assert_array_equal(*(Session(s.model, threads=1).run(x[:8])[0] for s in (before, step)))
    assert "the best found until then is saved" in capsys.readouterr().err
    assert any("stopped by Ctrl-C" in note for note in step.notes)
    assert resolve_accuracy("best").keeps and not resolve_accuracy("balanced").keeps
