"""Weights too small for a scale: right, or left in float with the reason; never zeros without a word."""

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.quantization.executed import _error_db
from compress.runtimes.onnxruntime import Session

WAYS = {
    "static": lambda graph, x: compress.quantize_static(graph, [x], accuracy="fast", target="any"),
    "dynamic": lambda graph, x: compress.quantize_dynamic(graph, target="any"),
    "weight-only": lambda graph, x: compress.quantize_weight_only(graph),
    "float16": lambda graph, x: compress.quantize_float16(graph, [x]),
    "stored in float16": lambda graph, x: compress.quantize_dynamic(graph, weight_type="float16"),
}


def network(scale):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
    with torch.no_grad():
        net[3].weight.mul_(scale)
        net[3].bias.mul_(scale)
    x = torch.randn(16, 3, 8, 8)
    return compress.export(net, x[:2]).model, x


@pytest.mark.parametrize("way", WAYS)
def test_small_weights_cost_no_accuracy(way):
    """The output layer times 1e-12 … 1e-35 was all zero in int8, and 50 dB beside the truth in blocks of four bits."""
    graph, x = network(1.0)
    usual = _error_db(Session(graph).run(x), Session(WAYS[way](graph, x).model).run(x))
    for scale in (1e-12, 1e-18, 1e-25, 1e-35):
        graph, x = network(scale)
        step = WAYS[way](graph, x)
        wanted, found = (Session(model).run(x)[0].astype(np.float64) / scale for model in (graph, step.model))
        assert _error_db((wanted,), (found,)) > usual - 1.5, scale


@pytest.mark.parametrize("way", ["static", "dynamic"])
def test_what_no_int8_scale_holds_is_named(way):
    graph, x = network(1e-25)
    reasons = [change.reason for change in WAYS[way](graph, x).changes if change.skipped]
    assert any("are too small for the scale of an int8 kernel" in reason for reason in reasons)
