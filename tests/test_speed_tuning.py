"""Decisions by the clock: kept only where they pay, every one on record."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.errors import GateError, InputError, QuantizationError
from compress.graph.exporting import export
from compress.quantization import tuning
from compress.quantization.tuned import quantize_tuned
from compress.quantization.tuning import Choices, Speed, require_speedup, tune_latency
from compress.steps import Change, Step

NODES = (
    Change("", "24 → 32 channels", values={"padded": 32}),
    *(Change(f"conv{i}", "runs in int8", values={"node": f"conv{i}", "op_type": "Conv"}) for i in range(12)),
    Change("fc", "runs in int8", values={"node": "fc", "op_type": "MatMul"}),
    Change("add", "runs in int8", values={"node": "add", "op_type": "Add"}),
    Change("softmax", "left in float", "not asked for", skipped=True, values={"op_type": "Softmax"}),
)


@pytest.fixture
def stopwatch(monkeypatch):
    """A tuner whose graphs are their own milliseconds: `cost(choices)` instead of a clock."""

    def run(cost, float_ms=10.0, **options):
        tried = []

        def build(choices):
            tried.append(choices)
            return SimpleNamespace(graph=[], ms=cost(choices)), NODES

        monkeypatch.setattr(tuning, "Session", lambda graph, threads: graph)
        monkeypatch.setattr(tuning, "_interleave", lambda sessions, inputs, seconds: [s.ms for s in sessions])
        return tune_latency(SimpleNamespace(graph=[], ms=float_ms), build, (torch.zeros(1),), **options), tried

    return run


def test_nothing_pays_so_nothing_changes(stopwatch):
    tuned, tried = stopwatch(lambda choices: 5.0)
    assert tuned.choices == Choices()
    assert len(tried) > 5 and tuned.changes and all(change.skipped for change in tuned.changes)
    assert tuned.speed.speedup == 2.0 and "int8 is faster" in tuned.notes[0]


def test_gains_within_the_noise_are_not_gains(stopwatch):
    tuned, _ = stopwatch(lambda choices: 5.0 - 0.005 * len(choices.exclude))
    assert tuned.choices == Choices()


def test_what_pays_is_kept_and_combined(stopwatch):
    def cost(choices):
        first = "conv0" in choices.exclude and len([n for n in choices.exclude if n.startswith("conv")]) == 1
        return 8.0 - 2.0 * first - 1.5 * ("Softmax" in choices.op_types) + 1.0 * ("padding" not in choices.rewrites)

    tuned, _ = stopwatch(cost)
    assert tuned.choices.exclude == ("conv0",)
    assert "Softmax" in tuned.choices.op_types and "padding" in tuned.choices.rewrites
    assert tuned.speed.int8_ms == 4.5
    kept = {change.layer: change for change in tuned.changes if not change.skipped}
    assert set(kept) == {"first layer", "softmax"}
    assert kept["first layer"].values == {"ms": 6.0, "before_ms": 8.0}
    assert kept["first layer"].reason == "6.00 ms against 8.00 ms"
    assert next(change for change in tuned.changes if change.layer == "channel padding").skipped


def test_int8_that_loses_is_taken_back_piece_by_piece(stopwatch):
    slow = {"conv6", "conv7", "conv8"}

    def cost(choices):
        return 9.0 + 2.0 * len(slow - set(choices.exclude)) + 0.3 * len(set(choices.exclude) - slow)

    tuned, _ = stopwatch(cost)
    assert slow <= set(tuned.choices.exclude)
    assert tuned.speed.int8_ms < 15.0


@pytest.mark.parametrize(("float_ms", "kept"), [(20.0, True), (8.0, False)])
def test_who_did_not_ask_for_speed_keeps_the_small_file_unless_float_layers_beat_float(stopwatch, float_ms, kept):
    slow = {"conv9", "conv10"}
    tuned, _ = stopwatch(
        lambda choices: 9.0 + 10.0 * len(slow - set(choices.exclude)), float_ms=float_ms, only_under_s=1000.0
    )
    assert (slow <= set(tuned.choices.exclude)) == kept and (tuned.choices == Choices()) != kept
    assert any(not change.skipped for change in tuned.changes) == kept
    assert any("not enough to beat float as a whole" in change.reason for change in tuned.changes) != kept
    assert tuned.speed.int8_ms == (9.0 if kept else 29.0)


def test_int8_that_loses_for_good_is_said_plainly(stopwatch):
    tuned, _ = stopwatch(lambda choices: 20.0)
    assert "int8 is NOT faster on this machine: 20 ms against 10 ms in float, 0.50×" in tuned.notes[0]


def test_leaving_nothing_in_int8_is_no_candidate(stopwatch):
    def cost(choices):
        if len(choices.exclude) > 3:
            raise QuantizationError("nothing in this graph can run in int8")
        return 20.0 - len(choices.exclude)

    tuned, _ = stopwatch(cost)
    assert 0 < len(tuned.choices.exclude) <= 3


def test_time_that_is_up_is_said(stopwatch):
    tuned, tried = stopwatch(lambda choices: 5.0, budget_s=0.0)
    assert len(tried) == 1
    assert "decisions were left as they stand" in tuned.notes[1]


def test_tuning_that_would_take_too_long_is_left_out_and_says_so(stopwatch):
    # 20 ms a round, 60 rounds at most: 1.2 s a comparison, one for each form and one with float.
    tuned, tried = stopwatch(lambda choices: 5.0, only_under_s=10.0)
    assert len(tried) == 1 and tuned.speed is None and tuned.choices == Choices()
    assert tuned.notes == (
        "not tuned for this machine: timing 9 int8 forms would take about 12 s; --tune-latency does it",
    )
    tuned, tried = stopwatch(lambda choices: 5.0, only_under_s=13.0)
    assert len(tried) == 10 and tuned.speed is not None


@pytest.mark.parametrize(
    ("options", "max_drop", "verb"),
    [
        ({}, None, "tuned under 60"),
        ({"tune_latency": True}, None, "tuned"),
        ({"tune_latency": False}, None, "static"),
        ({"target": "x86-avx2"}, None, "static"),
        ({"target": "x86-avx2", "tune_latency": True}, None, "tuned"),
        ({}, 1.0, "budget"),
        ({"tune_latency": True}, 1.0, "tuned"),
    ],
)
def test_what_compress_quantize_tunes(monkeypatch, options, max_drop, verb):
    from compress.pipeline import quantize as job
    from compress.pipeline import within_limits  # noqa: F401  before the stand-ins, which it would keep

    def stand_in(kind):
        def run(*args, only_under_s=None, **rest):
            return Step(f"{kind} under {only_under_s:.0f}" if only_under_s else kind, None)

        return run

    monkeypatch.setattr("compress.quantization.static.quantize_static", stand_in("static"))
    monkeypatch.setattr("compress.quantization.tuned.quantize_tuned", stand_in("tuned"))
    monkeypatch.setattr("compress.pipeline.within_limits.quantize_to_budget", stand_in("budget"))
    opened = SimpleNamespace(calibration=list, threads=1, inputs=())
    chosen = job.QuantizeOptions(**options)
    work = SimpleNamespace(opened=opened, limits=job.Gates(max_drop=max_drop))
    assert job._quantized(None, work, chosen).name == verb
    # A stage of a recipe, which must repeat its figures when resumed, tunes on request only.
    in_recipe = job.STEPS["static"](None, opened, chosen).name
    assert in_recipe == ("tuned" if chosen.tune_latency else "static")


def test_what_differs_by_noise_is_called_as_fast():
    assert Speed(0.0101, 0.01).sentence() == (
        "int8 is as fast as float on this machine: 0.01 ms against 0.0101 ms in float, 1.01×"
    )
    assert "int8 is faster" in Speed(1.1, 1.0).sentence() and "is NOT faster" in Speed(0.9, 1.0).sentence()


def test_required_speedup_is_a_gate():
    require_speedup(Speed(10.0, 5.0), 2.0)
    with pytest.raises(GateError, match=r"speed-up 2\.00× is below the 2\.5× required .*5 ms against 10 ms"):
        require_speedup(Speed(10.0, 5.0), 2.5)
    with pytest.raises(InputError, match="require_speedup takes a positive number, got 0"):
        require_speedup(Speed(10.0, 5.0), 0)


def test_the_tuned_file_is_int8_and_says_what_was_tried():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3),
        torch.nn.Flatten(),
        torch.nn.LazyLinear(4),
    )
    data = [torch.randn(4, 3, 16, 16) for _ in range(2)]
    with torch.no_grad():
        expected = model.eval()(data[0]).numpy()
    before = [value.clone() for value in model.state_dict().values()]
    step = quantize_tuned(model, data, threads=1, budget_s=2.0)
    from compress.runtimes.onnxruntime import Session

    (found,) = Session(step.model, threads=1).run(data[0])
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert any(node.op_type == "QuantizeLinear" for node in step.model.graph)
    assert any("on this machine" in note for note in step.notes)
    assert all(torch.equal(old, new) for old, new in zip(before, model.state_dict().values()))


def test_a_graph_with_a_fixed_batch_is_timed_on_its_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3)).eval()
    graph = export(model, (torch.randn(3, 3, 8, 8),), dynamic_batch=False, check=False).model
    step = quantize_tuned(graph, [torch.randn(4, 3, 8, 8)], threads=1, budget_s=0.0, only_under_s=600.0)
    assert graph.graph.inputs[0].shape[0] == 3
    assert any("on this machine" in note for note in step.notes)
