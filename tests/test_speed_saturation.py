"""The emulated 16-bit pairs against a plain loop; files that do overflow."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.quantization.saturation import (
    HIGH,
    LOW,
    can_saturate,
    check_saturation,
    count_saturations,
    saturating_matmul,
)


def by_loop(codes, weights):
    """vpmaddubsw and the additions behind it, one number at a time, with the count of saturated pairs."""
    result, saturated = np.zeros((len(codes), weights.shape[1]), np.int64), 0
    for row in range(len(codes)):
        for column in range(weights.shape[1]):
            for k in range(0, codes.shape[1], 2):
                pair = int(codes[row, k]) * int(weights[k, column])
                if k + 1 < codes.shape[1]:
                    pair += int(codes[row, k + 1]) * int(weights[k + 1, column])
                kept = min(max(pair, LOW), HIGH)
                saturated += kept != pair
                result[row, column] += kept
    return result, saturated


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 9), n=st.integers(1, 4), limit=st.sampled_from([64, 90, 127]))
def test_emulation_is_the_loop(seed, k, n, limit):
    rng = np.random.default_rng(seed)
    codes = rng.choice([0, 7, 200, 255], size=(3, k)).astype(np.uint8)
    weights = rng.integers(-limit, limit + 1, size=(k, n)).astype(np.int8)
    expected, saturated = by_loop(codes, weights)
    np.testing.assert_array_equal(saturating_matmul(codes, weights), expected)
    assert count_saturations(codes, weights) == saturated
    if saturated:
        assert can_saturate(weights.T)
    if limit == 64:
        assert not saturated and not can_saturate(weights.T)


def test_the_worst_pair_is_reached():
    """`can_saturate` is exact: just inside is safe, one more is not."""
    assert not can_saturate(np.array([[64, 64]], np.int8))
    assert can_saturate(np.array([[65, 64]], np.int8))
    assert count_saturations(np.full((1, 2), 255, np.uint8), np.array([[65], [64]], np.int8)) == 1
    assert not can_saturate(np.array([[127, -127]], np.int8)), "opposite signs never add up"


def conv_graph(weights, groups=1):
    """One int8 convolution as QDQ, 3×3 with padding and stride; scales of 1 so that values are codes."""
    channels = weights.shape[1] * groups
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[2,{channels},6,6] x) => (float[2,{len(weights)},3,3] y) {{
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  v = DequantizeLinear(w, s)
            y = Conv<kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1], strides: ints = [2, 2], group: int = {groups}>(d, v)
        }}"""
    )
    for name, array in {"s": np.float32(1), "z": np.uint8(3), "w": weights.astype(np.int8)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
    graph = ir.from_proto(proto)
    for node in graph.graph:
        if node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.UINT8
    return graph


def conv_overflows(weights, x, groups):
    """The pairs of the whole convolution that overflow, by slicing patches out in a loop."""
    codes = np.clip(np.rint(x) + 3, 0, 255).astype(np.uint8)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=3)
    size_in, size_out, count = weights.shape[1], len(weights) // groups, 0
    for sample in padded:
        for row in (0, 2, 4):
            for column in (0, 2, 4):
                for group in range(groups):
                    part = sample[group * size_in : (group + 1) * size_in, row : row + 3, column : column + 3]
                    kernel = weights[group * size_out : (group + 1) * size_out]
                    count += by_loop(
                        part.transpose(1, 2, 0).reshape(1, -1), kernel.transpose(2, 3, 1, 0).reshape(-1, size_out)
                    )[1]
    return count


@pytest.mark.parametrize("groups", [1, 2])
def test_check_counts_what_a_loop_counts(groups):
    rng = np.random.default_rng(groups)
    weights = rng.choice([-127, 0, 60, 127], size=(4, 4 // groups, 3, 3))
    x = rng.choice([0, 100, 252], size=(2, 4, 6, 6)).astype(np.float32)
    expected = conv_overflows(weights, x, groups)
    assert expected > 0
    safe, layer = check_saturation(conv_graph(weights, groups), [torch.from_numpy(x)])
    assert safe.action.startswith("0 of 1 layer ")
    assert layer.skipped and layer.values["overflows"] == expected and "--target any" in layer.reason


def test_seven_bits_need_no_samples():
    graph = conv_graph(np.full((4, 4, 3, 3), 64))
    (safe,) = check_saturation(graph, [])
    assert safe.action.startswith("1 of 1 layer cannot overflow")


def test_small_activations_do_not_overflow():
    graph = conv_graph(np.full((4, 4, 3, 3), 127))
    _, layer = check_saturation(graph, [torch.ones(2, 4, 6, 6)])
    assert not layer.skipped and layer.values["overflows"] == 0 and layer.values["pairs"] > 0
