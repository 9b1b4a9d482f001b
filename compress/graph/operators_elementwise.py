"""ONNX element-wise operators as torch functions: arithmetic, comparison, activations."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.graph.operator_node import Builder, OperatorNode, Run, plain, torch_dtype


def divide(x: Tensor, y: Tensor) -> Tensor:
    # ONNX divides integers as C does, towards zero.
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def power(node: OperatorNode) -> Run:
    exponent = node.number(1)
    if exponent is not None:
        return lambda x, y: torch.pow(x, exponent) if x.is_floating_point() else torch.pow(x, y).to(x.dtype)
    return lambda x, y: torch.pow(x, y).to(x.dtype)


def modulo(node: OperatorNode) -> Run:
    return torch.fmod if node.attribute("fmod", 0) else torch.remainder


def clip(node: OperatorNode) -> Run:
    if "min" in node.attributes or "max" in node.attributes:  # opset 6
        low, high = node.attribute("min"), node.attribute("max")
        return lambda x: torch.clamp(x, low, high)
    low, high = node.number(1), node.number(2)
    if (low is None) == node.has(1) or (high is None) == node.has(2):  # a bound that is computed
        return lambda x, lower=None, upper=None: torch.clamp(x, lower, upper)
    if low == 0 and high is None:
        return lambda x, *_: torch.relu(x)
    if low is None and high is None:
        return lambda x, *_: x
    return lambda x, *_: torch.clamp(x, low, high)


def cast(node: OperatorNode) -> Run:
    dtype = torch_dtype(node, node.attribute("to"))
    return lambda x: x.to(dtype)


def gelu(node: OperatorNode) -> Run:
    return functools.partial(F.gelu, approximate=node.attribute("approximate", "none"))


def hard_sigmoid(node: OperatorNode) -> Run:
    alpha, beta = node.attribute("alpha", 0.2), node.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid
    return lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0)


def selu(node: OperatorNode) -> Run:
    alpha, gamma = node.attribute("alpha", 1.6732632423543772), node.attribute("gamma", 1.0507009873554805)
    return lambda x: gamma * torch.where(x > 0, x, alpha * torch.expm1(x.clamp(max=0)))


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def shrink(node: OperatorNode) -> Run:
    bias, limit = node.attribute("bias", 0.0), node.attribute("lambd", 0.5)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def swish(node: OperatorNode) -> Run:
    alpha = node.attribute("alpha", 1.0)
    return lambda x: x * torch.sigmoid(alpha * x)


def is_infinite(node: OperatorNode) -> Run:
    negative, positive = node.attribute("detect_negative", 1), node.attribute("detect_positive", 1)
    return lambda x: torch.isinf(x) & (((x < 0) & bool(negative)) | ((x > 0) & bool(positive)))


def shift(node: OperatorNode) -> Run:
    return torch.bitwise_left_shift if node.attribute("direction") == "LEFT" else torch.bitwise_right_shift


def variadic(function: Run) -> Builder:
    return lambda node: lambda *inputs: functools.reduce(function, inputs)


def mean_of(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def _with(function: Run, key: str, default: float) -> Builder:
    """Build a one-parameter activation whose second argument is the attribute `key`."""
    return lambda node: lambda x: function(x, node.attribute(key, default))


def dropout(node: OperatorNode) -> Run:
    """The identity, as it is exported in eval mode; switched on in the file, it would be another number each time."""
    if node.number(2):
        raise node.refuse(
            "training_mode=1: it draws random numbers in the file as well (export the model in eval mode)"
        )
    return lambda x, *_: x


ELEMENTWISE: dict[str, Builder] = {
    "Abs": plain(torch.abs),
    "Acos": plain(torch.acos),
    "Acosh": plain(torch.acosh),
    "Add": plain(torch.add),
    "And": plain(torch.logical_and),
    "Asin": plain(torch.asin),
    "Asinh": plain(torch.asinh),
    "Atan": plain(torch.atan),
    "Atanh": plain(torch.atanh),
    "BitShift": shift,
    "BitwiseAnd": plain(torch.bitwise_and),
    "BitwiseNot": plain(torch.bitwise_not),
    "BitwiseOr": plain(torch.bitwise_or),
    "BitwiseXor": plain(torch.bitwise_xor),
    "Cast": cast,
    "CastLike": plain(lambda x, like: x.to(like.dtype)),
    "Ceil": plain(torch.ceil),
    "Celu": _with(F.celu, "alpha", 1.0),
    "Clip": clip,
    "Cos": plain(torch.cos),
    "Cosh": plain(torch.cosh),
    "Div": plain(divide),
    "Dropout": dropout,
    "Elu": _with(F.elu, "alpha", 1.0),
    "Equal": plain(torch.eq),
    "Erf": plain(torch.erf),
    "Exp": plain(torch.exp),
    "Floor": plain(torch.floor),
    "Gelu": gelu,
    "Greater": plain(torch.gt),
    "GreaterOrEqual": plain(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": plain(F.hardswish),
    "Identity": plain(lambda x: x),
    "IsInf": is_infinite,
    "IsNaN": plain(torch.isnan),
    "LeakyRelu": _with(F.leaky_relu, "alpha", 0.01),
    "Less": plain(torch.lt),
    "LessOrEqual": plain(torch.le),
    "Log": plain(torch.log),
    "Max": variadic(torch.maximum),
    "Mean": plain(mean_of),
    "Min": variadic(torch.minimum),
    "Mish": plain(F.mish),
    "Mod": modulo,
    "Mul": plain(torch.mul),
    "Neg": plain(torch.neg),
    "Not": plain(torch.logical_not),
    "Or": plain(torch.logical_or),
    "PRelu": plain(prelu),
    "Pow": power,
    "Reciprocal": plain(torch.reciprocal),
    "Relu": plain(torch.relu),
    "Round": plain(torch.round),
    "Selu": selu,
    "Shrink": shrink,
    "Sigmoid": plain(torch.sigmoid),
    "Sign": plain(torch.sign),
    "Sin": plain(torch.sin),
    "Sinh": plain(torch.sinh),
    "Softplus": plain(softplus),
    "Softsign": plain(F.softsign),
    "Sqrt": plain(torch.sqrt),
    "Sub": plain(torch.sub),
    "Sum": variadic(torch.add),
    "Swish": swish,
    "Tan": plain(torch.tan),
    "Tanh": plain(torch.tanh),
    "ThresholdedRelu": lambda node: lambda x: torch.where(x > node.attribute("alpha", 1.0), x, torch.zeros_like(x)),
    "Where": plain(torch.where),
    "Xor": plain(torch.logical_xor),
}
