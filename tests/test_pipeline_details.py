"""Figures for each layer: int8's error against a plain computation of it, nothing where the networks differ."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.pipeline.details import layer_details
from compress.pipeline.layer_noise import layer_noise
from compress.runtimes.onnxruntime import Session


def network(width=8):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(8 * 16, 5)
    ).eval()


def files(folder, module, x, **options):
    graph = compress.export(module, (x[:2],), path=folder / "float.onnx").model
    compress.save_onnx(compress.quantize_static(graph, [x], **options).model, folder / "int8.onnx")
    return folder / "int8.onnx", folder / "float.onnx"


@pytest.fixture
def samples():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_noise_is_what_the_outputs_differ_by(tmp_path, samples):
    shipped, source = files(tmp_path, network(), samples)
    found = layer_noise(shipped, source, [samples])
    last = list(found)[-1]
    y, other = (Session(path).run(samples)[0].astype(np.float64).ravel() for path in (source, shipped))
    factor = (y @ other) / (other @ other)
    assert found[last] == pytest.approx(np.linalg.norm(y - factor * other) / np.linalg.norm(y), rel=1e-3)
    assert 1e-4 < found[last] < 0.2 and next(iter(found)).startswith("0/")


def test_a_factor_that_a_rewrite_moves_is_no_error(tmp_path, samples):
    """The hard swish is executed as x·clip(x+3, 0, 6), six times too large, with the 1/6 in the next scale."""
    shipped, source = files(tmp_path, network(), samples)
    found = layer_noise(shipped, source, [samples])
    assert len(found) >= 3 and max(found.values()) < 0.2


def test_a_bad_scale_shows_where_it_is(tmp_path, samples):
    module = network()
    with torch.no_grad():
        module[2].weight[0, 0, 0, 0] = 300 * module[2].weight.abs().max()  # one weight takes the whole range
    shipped, source = files(tmp_path, module, samples, per_channel=False)
    found = list(layer_noise(shipped, source, [samples]).items())
    (first, small), (second, large) = found[:2]
    assert first.startswith("0/") and second.startswith("2/") and large > 3 * small


def test_float_files_and_other_networks_have_none(tmp_path, samples):
    shipped, source = files(tmp_path, network(), samples)
    assert layer_noise(source, source, [samples]) == {}
    wide = tmp_path / "wide.onnx"
    compress.export(network(16), (samples[:2],), path=wide)
    assert layer_noise(shipped, wide, [samples]) == {}
    other = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(128, 5))
    )
    compress.export(other.eval(), (samples[:2],), path=tmp_path / "other.onnx")
    kinds = {key for row in layer_details(shipped, tmp_path / "other.onnx", (samples[:2],))["layers"] for key in row}
    assert "microseconds" in kinds and not kinds & {"noise", "error"}
    kinds = {key for row in layer_details(shipped, source, (samples[:2],))["layers"] for key in row}
    assert {"noise", "error", "microseconds"} <= kinds and not math.isnan(
        sum(layer_noise(shipped, source, [samples]).values())
    )
