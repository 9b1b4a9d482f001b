"""Our arithmetic against ONNX's reference evaluator, torch.ao, its own algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from compress.quantization.arithmetic import (
    CODES,
    SMALLEST_SCALE,
    dequantize,
    grid_for_range,
    quantize,
    quantize_bias,
    quantize_to,
    scales_that_hold_bias,
    symmetric_scales,
)

GENERATOR = np.random.default_rng(0)


def reference(values, scale, zero, axis=None):
    """(codes, values again) as ONNX's own evaluator has them."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    kind = TensorProto.UINT8 if zero.dtype == np.uint8 else TensorProto.INT8
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)],
        [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    return ReferenceEvaluator(model).run(None, {"x": values})


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("low, high", [(0, 6), (-1, 3), (-2.5, -0.5), (0.1, 0.2), (-7, 0)])
def test_activations_as_onnx_has_them(low, high, signed):
    grid = grid_for_range(low, high, signed=signed)
    values = GENERATOR.uniform(low - 1, high + 1, 500).astype(np.float32)
    values[:4] = np.float32(grid.scale) * np.array([0.5, 1.5, 2.5, -0.5], np.float32)  # ties go to the even code
    codes = quantize_to(values, grid)
    expected, back = reference(values, np.float32(grid.scale), np.array(grid.zero_point, grid.dtype))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(dequantize(codes, grid.scale, grid.zero_point), back)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_as_onnx_and_torch_have_them(axis):
    weight = GENERATOR.standard_normal((5, 4, 3, 3)).astype(np.float32)
    scales = symmetric_scales(weight, axis, 127)
    codes = quantize(weight, scales, low=-128, high=127, dtype="int8", axis=axis)
    expected, back = reference(weight, scales, np.zeros(scales.shape, np.int8), axis)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(dequantize(codes, scales, axis=axis), back)
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    theirs = torch.quantize_per_channel(
        torch.from_numpy(weight), torch.from_numpy(scales).double(), zeros, axis, torch.qint8
    )
    np.testing.assert_array_equal(codes, theirs.int_repr().numpy())


def test_a_linear_layer_is_that_of_torch_ao():
    torch.backends.quantized.engine = "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
    generator = torch.Generator().manual_seed(0)
    layer = torch.ao.nn.quantized.Linear(8, 3)
    weight, bias = torch.randn(3, 8, generator=generator), torch.randn(3, generator=generator)
    values = torch.rand(5, 8, generator=generator) * 4 - 1
    source, result = grid_for_range(-1, 3), grid_for_range(-8, 8)
    scales = symmetric_scales(weight.numpy(), 0, 64)  # seven bits: fbgemm saturates as well
    packed = torch.quantize_per_channel(
        weight, torch.from_numpy(scales).double(), torch.zeros(3, dtype=torch.int64), 0, torch.qint8
    )
    layer.set_weight_bias(packed, bias)
    layer.scale, layer.zero_point = result.scale, result.zero_point
    theirs = layer(torch.quantize_per_tensor(values, source.scale, source.zero_point, torch.quint8)).int_repr().numpy()

    codes = quantize_to(values.numpy(), source).astype(np.int64) - source.zero_point
    weights = quantize(weight.numpy(), scales, low=-64, high=64, dtype="int8", axis=0).astype(np.int64)
    unit = np.float32(source.scale) * scales
    accumulated = codes @ weights.T + quantize_bias(bias.numpy(), unit)
    ours = quantize_to((accumulated * unit).astype(np.float32), result)
    # The two multiply by the scale ratio in different order, so a tie may fall either way.
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert (ours == theirs).mean() > 0.9


@settings(max_examples=60, deadline=None)
@given(
    values=arrays(np.float32, 20, elements=st.floats(-100, 100, width=32)),
    low=st.floats(-100, 0, width=32),
    high=st.floats(0, 100, width=32),
    signed=st.booleans(),
)
def test_error_is_half_a_step_inside_the_range(values, low, high, signed):
    grid = grid_for_range(low, high, signed=signed)
    again = dequantize(quantize_to(values, grid), grid.scale, grid.zero_point)
    inside = (values >= grid.low) & (values <= grid.high)
    assert np.all(np.abs(again - values)[inside] <= grid.scale / 2 * 1.001 + np.abs(values[inside]) * 2e-7)
    assert np.all(again[values > grid.high] == np.float32(grid.high)) or np.allclose(
        again[values > grid.high], grid.high
    )
    # Zero, which padding and ReLU write, is exact; and the range is covered to within half a step.
    assert dequantize(quantize_to(np.zeros(1, np.float32), grid), grid.scale, grid.zero_point)[0] == 0
    assert grid.low <= low + grid.scale / 2 * 1.001 and grid.high >= high - grid.scale / 2 * 1.001


@pytest.mark.parametrize("low, high", [(0, 0), (1e-45, 1e-44), (-1e-40, 0), (5, 5), (-5, -5), (0, 3e38)])
@pytest.mark.parametrize("signed", [False, True])
def test_degenerate_ranges_are_safe(low, high, signed):
    grid = grid_for_range(low, high, signed=signed)
    assert np.isfinite(grid.scale) and grid.scale >= SMALLEST_SCALE
    assert CODES[grid.dtype][0] <= grid.zero_point <= CODES[grid.dtype][1]
    again = dequantize(quantize_to(np.array([low, high], np.float32), grid), grid.scale, grid.zero_point)
    assert np.all(np.isfinite(again))
    np.testing.assert_allclose(again, np.clip([low, high], grid.low, grid.high), atol=grid.scale)


def test_a_dead_channel_has_a_scale_that_holds_its_bias():
    weight = np.zeros((2, 3), np.float32)
    weight[1] = 1
    scales = scales_that_hold_bias(symmetric_scales(weight, 0, 127), np.array([5.0, 5.0], np.float32), 0.01)
    codes = quantize_bias(np.array([5.0, 5.0]), scales * np.float32(0.01))
    assert np.all(np.abs(codes) < 2**31 - 1)
    np.testing.assert_allclose(codes * scales * 0.01, 5.0, rtol=1e-4)
    assert scales[1] == np.float32(1 / 127)  # the living channel keeps its own
