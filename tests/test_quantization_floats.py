"""Layers that stay in float because int8 costs too much there."""

import pytest
import torch
from torch import nn

from compress.decibels import decibels
from compress.graph.exporting import export
from compress.quantization.repairs.judge import Judge, take_samples
from compress.quantization.repairs.levels import Accuracy
from compress.quantization.static import calibrate_static

ONLY = Accuracy(("floats",), float_share=1.0)


class Outlier(nn.Module):
    """The channels between `narrow` and `wide` differ by 2,000 in size: one grid cannot hold them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.narrow, self.wide = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        with torch.no_grad():
            self.narrow.weight[0] *= 2000
            self.narrow.bias[0] *= 2000
            self.wide.weight[:, 0] /= 2000

    def forward(self, x):
        x = torch.relu(self.wide(torch.tanh(0.001 * self.narrow(torch.relu(self.first(x)))) * 1000))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def broken():
    torch.manual_seed(0)
    data = [torch.randn(16, 3, 8, 8) for _ in range(3)]
    return export(Outlier().eval(), data[0]).model, data


def noise_of(graph, data, level):
    calibrated, changes = calibrate_static(graph, data, accuracy=level, target="any", threads=1)
    judge = Judge(calibrated.graph, take_samples(data), threads=1)
    return calibrated, changes, decibels(judge.noise(calibrated.quantize().model))


def test_what_int8_breaks_stays_in_float_and_the_rest_does_not(broken):
    graph, data = broken
    _, _, before = noise_of(graph, data, Accuracy())
    calibrated, changes, after = noise_of(graph, data, ONLY)
    kept = [change.layer for change in changes if change.action == "kept in float"]
    assert before < 20 and after > before + 20
    assert 0 < len(kept) < 3 and set(kept) <= {"narrow", "wide"}
    reasons = {change.layer: change.reason for change in calibrated.quantize().changes if change.skipped}
    assert all(reasons[name] == "its error in int8 is among the largest" for name in kept)


def test_no_more_time_than_allowed(broken):
    graph, data = broken
    calibrated, changes, _ = noise_of(graph, data, Accuracy(("floats",), float_share=1e-6))
    assert calibrated.repaired == () and not any(change.action == "kept in float" for change in changes)


def test_where_nothing_is_broken_nothing_stays(broken):
    torch.manual_seed(0)
    _, data = broken
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)).eval()
    calibrated, _, found = noise_of(export(plain, data[0]).model, data, ONLY)
    assert found > 30 and calibrated.excluded == ()
