"""Timing: who runs when, what is divided by what, what is given back."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compress.errors import InputError
from compress.evaluation import latency
from compress.evaluation.latency import benchmark, quantile
from compress.evaluation.memory import peak_memory_bytes
from compress.graph.exporting import export
from compress.onnx_files import save_onnx


class Clock:
    """Stands in for the machine's clock: it advances only where a model runs, so no load of the machine shows."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


def test_a_bare_tensor_is_one_input():
    found = benchmark({"net": nn.Linear(3, 2)}, torch.randn(4, 3), rounds=5)["net"]
    assert found.extra["batch_size"] == 4


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


class Takes(nn.Module):
    def __init__(self, clock, seconds, log=None):
        super().__init__()
        self.clock, self.seconds, self.log = clock, seconds, [] if log is None else log

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled()
        self.log.append(self.seconds)
        self.clock.now += self.seconds
        return x


def test_speedup_is_the_ratio_of_medians(clock):
    models = {"slow": Takes(clock, 0.03), "fast": Takes(clock, 0.012)}
    rows = benchmark(models, (torch.zeros(4, 1),), rounds=6, warmup=1)
    assert rows["slow"].speedup == 1.0 and rows["fast"].speedup == pytest.approx(2.5)
    assert rows["fast"].p50_ms == pytest.approx(12.0) and rows["fast"].throughput == pytest.approx(4000 / 12)
    assert rows["fast"].p50_ms <= rows["fast"].p90_ms <= rows["fast"].p99_ms


def test_models_take_turns_in_an_order_that_rotates(clock):
    log = []
    targets = {"a": Takes(clock, 0.011, log), "b": Takes(clock, 0.012, log)}
    benchmark(targets, (torch.zeros(1, 1),), rounds=4, warmup=1)
    rounds = log[4:]  # after two shape checks and two warm-ups: each turn is one untimed and one timed run
    a, b = [0.011] * 2, [0.012] * 2
    assert rounds == a + b + b + a + a + b + b + a


def test_named_baseline_and_unknown_baseline(clock):
    targets = {"a": Takes(clock, 0.002), "b": Takes(clock, 0.002)}
    rows = benchmark(targets, (torch.zeros(1, 1),), baseline="b", rounds=5)
    assert rows["b"].speedup == 1.0
    with pytest.raises(InputError, match="baseline 'c' is not among the models"):
        benchmark(targets, (torch.zeros(1, 1),), baseline="c")
    with pytest.raises(InputError, match="nothing to benchmark"):
        benchmark({}, (torch.zeros(1, 1),))


def test_time_budget_ends_the_rounds_but_never_below_the_fewest(monkeypatch, clock):
    monkeypatch.setattr(latency, "FEWEST_ROUNDS", 3)
    found = benchmark({"a": Takes(clock, 0.02)}, (torch.zeros(1, 1),), rounds=1000, warmup=1, max_seconds=0.0)
    assert found["a"].extra["timed_runs"] == 3


def test_state_is_given_back_also_after_an_error():
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    module, threads = Fails().train(), torch.get_num_threads()
    with pytest.raises(InputError, match="Fails rejects inputs"):
        benchmark({"a": module}, (torch.zeros(1, 1),), threads=2)
    assert module.training and torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_quantiles_against_numpy():
    values = torch.rand(101).tolist()
    for fraction in (0.0, 0.5, 0.9, 0.99, 1.0):
        assert quantile(values, fraction) == pytest.approx(torch.tensor(values).quantile(fraction).item())


@pytest.mark.slow
def test_peak_memory_of_a_file_follows_its_weights(tmp_path):
    inputs = (torch.zeros(1, 1000),)
    small = save_onnx(export(nn.Linear(1000, 10), inputs).model, tmp_path / "small.onnx")
    large = save_onnx(export(nn.Linear(1000, 20000), inputs).model, tmp_path / "large.onnx")  # 80 MB
    first, second = peak_memory_bytes(small, inputs, 1), peak_memory_bytes(large, inputs, 1)
    assert second - first > 70e6
    assert peak_memory_bytes(nn.Linear(1000, 10), inputs) is None
