"""The table of ONNX operators that `GraphModule` executes: operator type → builder of its torch function.

A builder reads the node once (attributes, constant inputs) and returns the function that runs each time.
The functions themselves stand by family in `operators_*.py`.
"""

from __future__ import annotations

from compress.graph.operator_node import Builder
from compress.graph.operators_convolution import CONVOLUTION
from compress.graph.operators_elementwise import ELEMENTWISE
from compress.graph.operators_normalization import NORMALIZATION
from compress.graph.operators_quantize import QUANTIZE
from compress.graph.operators_recurrent import RECURRENT
from compress.graph.operators_resize import RESIZE
from compress.graph.operators_shape import SHAPE

OPERATORS: dict[str, Builder] = {
    **CONVOLUTION,
    **ELEMENTWISE,
    **NORMALIZATION,
    **QUANTIZE,
    **RECURRENT,
    **RESIZE,
    **SHAPE,
}

# Inputs that say *how* (a shape, axes, bounds): read as Python numbers, so they stay in host memory on CUDA.
HOST_INPUTS: dict[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "ConstantOfShape": frozenset({0}),
    "CumSum": frozenset({1}),
    "Dropout": frozenset({1, 2}),
    "Expand": frozenset({1}),
    "OneHot": frozenset({1}),
    "Pad": frozenset({1, 2, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({1, 2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "TopK": frozenset({1}),
    "Trilu": frozenset({1}),
    "Unsqueeze": frozenset({1}),
    **{name: frozenset({1}) for name in NORMALIZATION if name.startswith("Reduce")},
}

# Float inputs that are no weights: never trained.
FIXED_INPUTS: dict[str, frozenset[int]] = {
    **HOST_INPUTS,
    "BatchNormalization": frozenset({3, 4}),
    "DequantizeLinear": frozenset({1, 2}),
    "OneHot": frozenset({1, 2}),
    "Pow": frozenset({1}),
    "QuantizeLinear": frozenset({1, 2}),
}
