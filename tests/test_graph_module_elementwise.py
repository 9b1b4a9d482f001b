"""Every element-wise operator of GraphModule against ONNX Runtime."""

import numpy as np
import pytest
import torch
from graph_module_cases import check

from compress.graph.operators_elementwise import ELEMENTWISE

rng = np.random.default_rng(0)
X = (rng.standard_normal((3, 4, 5)) * 2).astype(np.float32)
Y = (rng.standard_normal((4, 1)) * 2).astype(np.float32)
UNIT = rng.uniform(-0.95, 0.95, (3, 7)).astype(np.float32)
POSITIVE = rng.uniform(0.1, 4, (3, 7)).astype(np.float32)
INTS, MORE = rng.integers(-9, 9, (4, 5)), rng.integers(1, 7, (5,))
BOOLS, OTHERS = X > 0, Y > 0
TIES = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997], dtype=np.float32)
STRANGE = np.array([np.nan, np.inf, -np.inf, 0, -1, 2], dtype=np.float32)

CASES = [
    *[
        (op, (X,), {})
        for op in [
            "Abs",
            "Atan",
            "Ceil",
            "Cos",
            "Cosh",
            "Erf",
            "Exp",
            "Floor",
            "Identity",
            "Neg",
            "Relu",
            "Sigmoid",
            "Sign",
            "Sin",
        ]
    ],
    *[(op, (X,), {}) for op in ["Asinh", "HardSwish", "Mish", "Sinh", "Softplus", "Softsign", "Tan", "Tanh"]],
    *[(op, (UNIT,), {}) for op in ("Acos", "Asin", "Atanh")],
    *[(op, (POSITIVE,), {}) for op in ("Log", "Sqrt", "Reciprocal")],
    ("Acosh", (POSITIVE + 1,), {}),
    *[(op, (X, Y), {}) for op in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less")],
    *[(op, (INTS, MORE), {}) for op in ("Add", "Sub", "Mul", "Div", "Mod", "LessOrEqual", "Equal")],
    *[(op, (BOOLS, OTHERS), {}) for op in ("And", "Or", "Xor", "Equal")],
    *[(op, (INTS, MORE), {}) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")],
    ("BitwiseNot", (INTS,), {}),
    ("Not", (BOOLS,), {}),
    *[(op, (X, Y, X * 0.5), {}) for op in ("Max", "Min", "Mean", "Sum")],
    ("BitShift", (MORE.astype(np.uint8), MORE.astype(np.uint8)), {"direction": "LEFT"}),
    ("BitShift", (MORE.astype(np.uint8), MORE.astype(np.uint8)), {"direction": "RIGHT"}),
    *[("Cast", (X,), {"to": code}) for code in (1, 2, 3, 6, 7, 9, 11)],
    ("Cast", (INTS,), {"to": 1}),
    ("CastLike", (INTS, X), {}),
    *[(op, (X,), {}) for op in ("Celu", "Elu", "LeakyRelu", "HardSigmoid", "Selu", "ThresholdedRelu", "Shrink")],
    *[(op, (X,), {"alpha": 0.3}) for op in ("Celu", "Elu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu")],
    ("Selu", (X,), {"alpha": 1.2, "gamma": 0.7}),
    ("HardSigmoid", (X,), {"alpha": 1 / 6, "beta": 0.5}),
    ("Shrink", (X,), {"bias": 0.25, "lambd": 1.0}),
    ("Clip", (X, np.float32(-1), np.float32(1.5)), {}),
    ("Clip", (X, np.float32(0)), {}),
    ("Clip", (X, None, np.float32(1)), {}),
    ("Clip", (X,), {}),
    ("Dropout", (X,), {}),
    ("Gelu", (X,), {}),
    ("Gelu", (X,), {"approximate": "tanh"}),
    ("IsInf", (STRANGE,), {}),
    ("IsInf", (STRANGE,), {"detect_negative": 0}),
    ("IsInf", (STRANGE,), {"detect_positive": 0}),
    ("IsNaN", (STRANGE,), {}),
    ("Mod", (X, Y), {"fmod": 1}),
    ("Mod", (INTS, MORE), {"fmod": 1}),
    ("PRelu", (X, Y), {}),
    ("PRelu", (X, np.float32(0.3)), {}),
    ("Pow", (POSITIVE, np.float32(1.7)), {}),
    ("Pow", (X, np.int64(3)), {}),
    ("Pow", (MORE, np.int64(2)), {}),
    ("Round", (TIES,), {}),
    ("Where", (BOOLS, X, Y), {}),
]


NAMES = [f"{i}-{c[0]}" for i, c in enumerate(CASES)]


@pytest.mark.parametrize(("op", "inputs", "attributes"), CASES, ids=NAMES)
def test_matches_onnx_runtime(op, inputs, attributes):
    inputs = tuple(None if array is None else np.asarray(array) for array in inputs)
    check(op, inputs, attributes)
    if len(inputs) > 1:  # the same with all but the first known beforehand
        check(op, inputs, attributes, fixed=range(1, len(inputs)))


@pytest.mark.parametrize("bounds", [{"min": -1.0, "max": 1.0}, {"min": 0.0}, {"max": 0.5}])
def test_clip_of_opset_6(bounds):
    check("Clip", (X,), bounds, opset=10)


def test_every_operator_has_a_case():
    # Swish came with opset 24, which ONNX Runtime may not have: held to its definition below.
    assert set(ELEMENTWISE) - {case[0] for case in CASES} == {"Swish"}


def test_swish_is_its_definition():
    from compress.graph.operator_node import OperatorNode

    node = OperatorNode("Swish", "s", 24, {"alpha": 1.5}, (None,), (None,), (True,), 1)
    x = torch.linspace(-4, 4, 33)
    torch.testing.assert_close(ELEMENTWISE["Swish"](node)(x), x / (1 + torch.exp(-1.5 * x)))
