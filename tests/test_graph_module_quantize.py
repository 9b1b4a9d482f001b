"""Quantize, dequantize, integer products of GraphModule against ONNX Runtime; straight-through gradients."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from graph_module_cases import check, one_node

from compress.graph.module import GraphModule
from compress.graph.operators_quantize import QUANTIZE

rng = np.random.default_rng(4)
X = (rng.standard_normal((2, 3, 4)) * 3).astype(np.float32)
TIES = np.array([-0.75, -0.25, 0.25, 0.75, 1.25, 99, -99], dtype=np.float32)


@pytest.mark.parametrize(("dtype", "zero"), [("uint8", 0), ("uint8", 131), ("int8", 0), ("int8", -128), ("uint16", 7)])
def test_quantize_linear(dtype, zero):
    for x in (X, TIES):
        inputs = (x, np.array(0.5, np.float32), np.array(zero, dtype))
        check("QuantizeLinear", inputs, opset=21, fixed=(1, 2))
        check("QuantizeLinear", inputs, opset=21)


def test_quantize_linear_without_zero_point():
    check("QuantizeLinear", (X, np.array(0.02, np.float32)))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_along_an_axis(axis):
    size = X.shape[axis]
    scale = rng.uniform(0.01, 0.1, size).astype(np.float32)
    check("QuantizeLinear", (X, scale, np.arange(size, dtype=np.int8)), {"axis": axis})
    codes = rng.integers(-128, 128, X.shape).astype(np.int8)
    check("DequantizeLinear", (codes, scale, np.arange(size, dtype=np.int8)), {"axis": axis})


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32"])
def test_dequantize_linear(dtype):
    codes = rng.integers(0, 100, (3, 4)).astype(dtype)
    zero = [] if dtype == "int32" else [np.array(3, dtype)]
    check("DequantizeLinear", (codes, np.array(0.3, np.float32), *zero))


def test_dequantize_blocks():
    codes, scale = rng.integers(-9, 9, (4, 6)).astype(np.int8), rng.uniform(0.1, 1, (2, 6)).astype(np.float32)
    check("DequantizeLinear", (codes, scale), {"axis": 0, "block_size": 2}, opset=21)


@pytest.mark.parametrize("shift", [0, 5, -5])
def test_dynamic_quantize_linear(shift):
    check("DynamicQuantizeLinear", (X + np.float32(shift),), outputs=3)


def test_integer_products():
    # Seven bits: two products of 255 × 127 overflow the sixteen that an x86 processor without VNNI adds them in.
    a, b = rng.integers(0, 255, (2, 4, 3)).astype(np.uint8), rng.integers(-64, 64, (3, 5)).astype(np.int8)
    check("MatMulInteger", (a, b))
    check("MatMulInteger", (a, b, np.array(7, np.uint8), np.array(0, np.int8)))
    image, weight = rng.integers(0, 255, (1, 2, 5, 5)).astype(np.uint8), rng.integers(0, 255, (3, 2, 3, 3))
    inputs = (image, weight.astype(np.uint8), np.array(9, np.uint8))
    check("ConvInteger", inputs, {"pads": [1, 1, 1, 1]})


def test_every_operator_is_tested():
    tested = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}
    assert set(QUANTIZE) == tested


def test_gradient_is_straight_through():
    model = one_node("QuantizeLinear", (TIES, np.array(0.5, np.float32), np.array(10, np.uint8)), {}, fixed=(1, 2))
    model.graph.output[0].type.tensor_type.elem_type = 1  # keep it float, so that it has a gradient
    x = torch.from_numpy(TIES).requires_grad_()
    GraphModule(ir.from_proto(model))(x).sum().backward()
    # 1 / scale inside the range, nothing where it saturates.
    assert x.grad.tolist() == [2, 2, 2, 2, 2, 2, 0]
