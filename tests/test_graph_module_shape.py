"""Every data-movement operator of GraphModule against ONNX Runtime, over its attributes."""

import numpy as np
import pytest
from graph_module_cases import check

from compress.graph.operators_shape import SHAPE

rng = np.random.default_rng(1)
X = rng.standard_normal((2, 3, 4)).astype(np.float32)
IMAGE = rng.standard_normal((2, 8, 4, 6)).astype(np.float32)
BLOCKS = np.random.default_rng(2).standard_normal((2, 2 * 6, 16)).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


CASES = [
    ("Concat", (X, X * 2, X[:, :, :1]), {"axis": -1}, {}),
    ("Concat", (X, X), {"axis": 0}, {}),
    ("ConstantOfShape", (ints(2, 3),), {}, {}),
    *[
        ("CumSum", (X, np.int64(axis)), {"exclusive": e, "reverse": r}, {})
        for axis in (0, -1)
        for e in (0, 1)
        for r in (0, 1)
    ],
    ("DepthToSpace", (IMAGE,), {"blocksize": 2}, {}),
    ("DepthToSpace", (IMAGE,), {"blocksize": 2, "mode": "CRD"}, {}),
    ("SpaceToDepth", (IMAGE,), {"blocksize": 2}, {}),
    ("Col2Im", (BLOCKS, ints(5, 6), ints(2, 3)), {}, {}),
    ("Col2Im", (BLOCKS, ints(4, 5), ints(2, 3)), {"pads": [1, 0, 0, 1]}, {}),
    ("Col2Im", (BLOCKS[..., :4], ints(5, 6), ints(2, 3)), {"strides": [2, 1], "dilations": [2, 2]}, {}),
    ("Expand", (X, ints(5, 1, 3, 4)), {}, {}),
    ("Expand", (X[:, :1], ints(1, 6, 1)), {}, {}),
    ("EyeLike", (X[0],), {}, {}),
    ("EyeLike", (X[0],), {"k": 1}, {}),
    *[("Flatten", (IMAGE,), {"axis": axis}, {}) for axis in (0, 1, 2, 4, -1, -3)],
    *[("Gather", (X, ints(0, 1, -1)), {"axis": axis}, {}) for axis in (0, 1, 2, -1)],
    ("Gather", (X, np.int64(-1)), {"axis": 1}, {}),
    ("Gather", (X, ints(1, 0, 1, 1).reshape(2, 2)), {"axis": 1}, {}),
    ("Gather", (X[0], ints(2, -1, 0, 1).reshape(2, 2)), {"axis": 0}, {}),
    ("Gather", (np.arange(6), ints(5, -6)), {}, {}),
    ("GatherElements", (X[0], ints(0, 2, -1, 1).reshape(1, 4)), {"axis": 0}, {}),
    ("GatherElements", (X[0], ints(0, 3, -1).reshape(3, 1)), {"axis": 1}, {}),
    ("GatherND", (X, ints(0, 1, 1, 2).reshape(2, 2)), {}, {}),
    ("GatherND", (X, ints(1, 0).reshape(2, 1)), {}, {}),
    ("GatherND", (X, ints(1, -1, 0, 2).reshape(2, 1, 2)[:, :, :1]), {"batch_dims": 1}, {}),
    ("NonZero", (X > 0,), {}, {}),
    *[
        ("OneHot", (ints(0, 3, -2, 9), np.int64(5), np.array([0.5, 2], np.float32)), {"axis": axis}, {})
        for axis in (-1, 0)
    ],
    ("Range", (np.int64(3), np.int64(17), np.int64(4)), {}, {}),
    ("Range", (np.float32(1), np.float32(-3), np.float32(-0.5)), {}, {}),
    ("Reshape", (X, ints(4, -1)), {}, {}),
    ("Reshape", (X, ints(0, 2, -1)), {}, {}),
    ("Reshape", (X[:0], ints(0, 7)), {"allowzero": 1}, {}),
    ("ReverseSequence", (X, ints(1, 2, 2)), {"time_axis": 0, "batch_axis": 1}, {}),
    ("ReverseSequence", (X, ints(3, 2)), {"time_axis": 1, "batch_axis": 0}, {}),
    *[
        ("ScatterElements", (X[0], ints(0, 2, 1, 0).reshape(1, 4), X[1][:1]), {"axis": 0, "reduction": r}, {})
        for r in ("none", "add", "mul", "max", "min")
    ],
    ("ScatterElements", (X[0], ints(-1, 1).reshape(1, 2), X[1][:1, :2]), {"axis": 1}, {}),
    *[
        ("ScatterND", (X, ints(0, 1, 1, 2).reshape(2, 2), X[0, :2]), {"reduction": r}, {})
        for r in ("none", "add", "mul", "max", "min")
    ],
    ("ScatterND", (X, ints(1).reshape(1, 1), X[:1]), {}, {}),
    ("Shape", (X,), {}, {}),
    ("Shape", (X,), {"start": 1}, {}),
    ("Shape", (X,), {"start": -2, "end": -1}, {}),
    ("Size", (X,), {}, {}),
    ("Slice", (X, ints(0, 1), ints(2, 3)), {}, {}),
    ("Slice", (X, ints(-3), ints(9999), ints(-1)), {}, {}),
    ("Slice", (X, ints(0, 3), ints(2, 0), ints(1, 2), ints(2, -1)), {}, {}),
    ("Slice", (X, ints(-1), ints(-9999), ints(2), ints(-2)), {}, {}),
    ("Slice", (X, ints(2), ints(1), ints(1)), {}, {}),
    ("Slice", (X,), {"starts": [0, 1], "ends": [1, 99], "axes": [0, 2]}, {"opset": 9}),
    ("Split", (X,), {"axis": 2, "num_outputs": 3}, {"outputs": 3}),
    ("Split", (X, ints(1, 3)), {"axis": -1}, {"outputs": 2}),
    ("Split", (X,), {"axis": 2, "split": [3, 1]}, {"outputs": 2, "opset": 11}),
    ("Split", (X,), {"axis": 2}, {"outputs": 2, "opset": 11}),
    ("Squeeze", (X[:1, :, :1],), {}, {}),
    ("Squeeze", (X[:1, :, :1], ints(-1)), {}, {}),
    ("Squeeze", (X[:1, :, :1],), {"axes": [0, 2]}, {"opset": 11}),
    ("Tile", (X, ints(2, 1, 3)), {}, {}),
    *[
        ("TopK", (X, ints(2)), {"axis": axis, "largest": largest}, {"outputs": 2})
        for axis in (-1, 1)
        for largest in (0, 1)
    ],
    ("TopK", (np.ones((2, 5), np.float32), ints(3)), {}, {"outputs": 2}),
    ("Transpose", (X,), {}, {}),
    ("Transpose", (X,), {"perm": [1, 2, 0]}, {}),
    *[("Trilu", (X, np.int64(k)), {"upper": upper}, {}) for k in (-1, 0, 1) for upper in (0, 1)],
    ("Trilu", (X,), {}, {}),
    ("Unsqueeze", (X, ints(0, -1)), {}, {}),
    ("Unsqueeze", (X,), {"axes": [1, 3]}, {"opset": 11}),
]


NAMES = [f"{i}-{c[0]}" for i, c in enumerate(CASES)]


@pytest.mark.parametrize(("op", "inputs", "attributes", "options"), CASES, ids=NAMES)
def test_matches_onnx_runtime(op, inputs, attributes, options):
    inputs = tuple(np.asarray(array) for array in inputs)
    check(op, inputs, attributes, **options)
    if len(inputs) > 1:  # the same with all but the first known beforehand
        check(op, inputs, attributes, fixed=range(1, len(inputs)), **options)


def test_every_operator_has_a_case():
    assert set(SHAPE) == {case[0] for case in CASES}
