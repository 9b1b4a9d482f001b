"""Adaptive rounding: outputs nearer than by rounding to the nearest, every weight one of its two neighbours."""

import pytest
import torch
from torch import nn

from compress.errors import DataError, QuantizationError
from compress.graph.exporting import export
from compress.quantization.adaround import adaround
from compress.quantization.qat import convert, prepare_qat


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    )
    # Inputs with a mean and neighbours that agree, as real images: rounding errors then add up.
    batches = [torch.randn(32, 3, 1, 1) + 0.3 * torch.randn(32, 3, 8, 8) + 0.5 for _ in range(4)]
    graph = export(layers.eval(), (torch.randn(2, 3, 8, 8),)).model
    return prepare_qat(graph, batches, scales="fixed", weight_bits=4, target="any")


def test_outputs_are_nearer_than_by_rounding_to_the_nearest(prepared):
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    step = adaround(prepared, iterations=300, samples=128)
    assert len(step.changes) == 3
    assert len(step.done) >= 2
    for change in step.done:
        assert change.values["error_adaptive"] < change.values["error_nearest"]
    best = min(change.values["error_adaptive"] / change.values["error_nearest"] for change in step.done)
    assert best < 0.8
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
    assert convert(step.model).changes[-1].values["largest_steps"] <= 2


def test_every_weight_is_one_of_its_two_neighbours(prepared):
    rounded = adaround(prepared, iterations=60, samples=64).model
    moved = 0
    for name in ("0.weight", "2.weight"):
        quantizer = prepared.quantizers[f"{name}_scale"]
        weight = prepared.get_parameter(prepared.names[name]).detach()
        ours = rounded.get_parameter(rounded.names[name]).detach()
        distance = ((ours - weight) / quantizer.scale.reshape(-1, 1, 1, 1)).abs()
        assert distance.max() < 1 + 1e-4
        moved += int((distance > 0.5 + 1e-4).sum())
    assert moved > 0


def test_what_it_refuses(prepared):
    with pytest.raises(QuantizationError, match="adaround takes what prepare_qat returned, got Linear"):
        adaround(nn.Linear(2, 2))
    with pytest.raises(DataError, match="the calibration data is empty"):
        adaround(prepared, [])
