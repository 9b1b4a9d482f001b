"""Resize, Pad of GraphModule against ONNX Runtime, over every mode."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_module_cases import check, one_node, same
from onnx.reference import ReferenceEvaluator

from compress.graph.module import GraphModule

rng = np.random.default_rng(3)
IMAGE = rng.standard_normal((1, 2, 5, 7)).astype(np.float32)
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric"]
SCALES = [(1.0, 1.0, 2.0, 3.0), (1.0, 1.0, 0.7, 1.3), (1.0, 1.0, 0.5, 0.5)]


def array(*values, dtype=np.float32):
    return np.array(values, dtype=dtype)


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_nearest(coordinates, rounding, scales):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    check("Resize", (IMAGE, None, array(*scales)), attributes, fixed=(2,))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_interpolation(mode, coordinates, scales):
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
    check("Resize", (IMAGE, None, array(*scales)), attributes, fixed=(2,), tolerance=1e-4)


@pytest.mark.parametrize("sizes", [(10, 14), (3, 9), (5, 4)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_sizes(mode, sizes):
    check("Resize", (IMAGE, None, None, array(1, 2, *sizes, dtype=np.int64)), {"mode": mode}, tolerance=1e-4)


@pytest.mark.parametrize(("mode", "sizes"), itertools.product(["linear", "cubic"], [(3, 4), (9, 5)]))
def test_antialias(mode, sizes):
    attributes = {"mode": mode, "antialias": 1}
    given = array(1, 2, *sizes, dtype=np.int64)
    check("Resize", (IMAGE, None, None, given), attributes, fixed=(3,), tolerance=1e-4)


def test_cubic_coefficient_with_outside_excluded():
    attributes = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1}
    check("Resize", (IMAGE, None, array(1, 1, 1.6, 2)), attributes, fixed=(2,), tolerance=1e-4)


def test_crop_and_resize():
    attributes = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 9.0}
    roi = array(0, 0, 0.2, -0.3, 1, 1, 0.9, 1.2)
    check("Resize", (IMAGE, roi, None, array(1, 2, 4, 6, dtype=np.int64)), attributes, fixed=(1, 3), tolerance=1e-4)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_aspect_ratio_against_the_reference_evaluator(policy):
    attributes = {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy}
    model = one_node("Resize", (IMAGE, None, None, array(8, 8, dtype=np.int64)), attributes, fixed=(3,))
    expected = ReferenceEvaluator(model).run(None, {"x0": IMAGE})
    module = GraphModule(ir.from_proto(model))
    with torch.no_grad():
        same((module(torch.from_numpy(IMAGE)),), expected, 1e-4)


@pytest.mark.parametrize("fixed", [(), (1,)], ids=["inputs", "constants"])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_pad(mode, fixed):
    check("Pad", (IMAGE, array(0, 0, 1, 3, 0, 0, 2, 1, dtype=np.int64)), {"mode": mode}, fixed=fixed)


def test_pad_crops_and_fills():
    pads = array(0, 0, -1, 2, 0, 0, 0, -3, dtype=np.int64)
    check("Pad", (IMAGE, pads, np.array(7, np.float32)), {}, fixed=(1, 2))
    check("Pad", (IMAGE, pads, np.array(7, np.float32)), {})


def test_pad_with_axes():
    check("Pad", (IMAGE, array(1, 2, 3, 0, dtype=np.int64), None, array(-1, 1, dtype=np.int64)), {}, fixed=(1, 3))


def test_pad_of_opset_2():
    check("Pad", (IMAGE,), {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 3.0}, opset=10)
