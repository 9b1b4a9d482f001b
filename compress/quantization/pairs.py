"""Weights whose u8·s8 pairs cannot overflow 16 bits, at nearly eight bits.

On x86 without VNNI the kernel adds the products of two neighbouring weights in 16 saturating bits
(`vpmaddubsw`). The worst activations are 255 where a weight is positive and 0 where it is negative, so

    255 · (max(w_2i, 0) + max(w_2i+1, 0)) ≤ 32767    and the same for the negative parts

hold for every input as soon as no pair of one sign sums to more than 128 in magnitude. Seven-bit
weights (−64 … 64) satisfy that by force. Rarely are both weights of a pair large, though: it is
enough to choose the scale so that most pairs fit, and to shrink the codes of the few that do not:

    s = s_min + t · (s_max − s_min),  s_min = max|w| / 127,  s_max = max pair / 128,   t of least squared error

Pairs are neighbours 2i, 2i+1 in the order in which the kernel reads a convolution's weights:
channels last. Depthwise convolutions have a kernel of their own that adds in 32 bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from compress.quantization.arithmetic import SMALLEST_SCALE
from compress.quantization.kernels import is_depthwise, number

LARGEST_PAIR = 128
LARGEST_CODE = 127
_TRIALS = 9


def has_pairs(node: ir.Node) -> bool:
    """Whether this node's kernel adds u8·s8 products in pairs."""
    return node.op_type in ("Gemm", "MatMul") or (node.op_type == "Conv" and not is_depthwise(node))


def as_rows(node: ir.Node, weight: np.ndarray) -> np.ndarray:
    """The weight as (outputs, K), K in the order in which the kernel adds."""
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1).reshape(weight.shape[0], -1)
    rows = weight if node.op_type == "Gemm" and number(node, "transB", 0) else np.swapaxes(weight, -1, -2)
    return rows.reshape(-1, rows.shape[-1])


def from_rows(node: ir.Node, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `as_rows` for a weight of that shape."""
    if node.op_type == "Conv":
        return np.moveaxis(rows.reshape(shape[0], *shape[2:], shape[1]), -1, 1)
    if node.op_type == "Gemm" and number(node, "transB", 0):
        return rows.reshape(shape)
    return np.swapaxes(rows.reshape(*shape[:-2], shape[-1], shape[-2]), -1, -2)


def largest_pairs(rows: np.ndarray) -> np.ndarray:
    """For each output the largest sum, in magnitude, of a pair's parts of one sign."""
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    pairs = rows.reshape(len(rows), -1, 2)
    positive, negative = np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2)
    return np.maximum(positive.max(1, initial=0), negative.max(1, initial=0))


def shrink_pairs(codes: np.ndarray) -> np.ndarray:
    """Integer codes (outputs, K) with the excess of every pair taken off its two members, half each."""
    odd = codes.shape[1] % 2
    padded = np.pad(codes, ((0, 0), (0, odd))) if odd else codes
    pairs = padded.reshape(len(codes), -1, 2).astype(np.int32)
    same_sign = (pairs[..., 0] > 0) == (pairs[..., 1] > 0)
    excess = np.where(same_sign, np.maximum(np.abs(pairs).sum(2) - LARGEST_PAIR, 0), 0)
    # With codes up to 127 an excess e leaves each member at least e, so neither changes its sign.
    taken = np.stack([(excess + 1) // 2, excess // 2], axis=-1)
    smaller = np.minimum(taken, np.abs(pairs))
    smaller[..., 0] += (taken - smaller)[..., 1]
    smaller[..., 1] += (taken - smaller)[..., 0]
    result = (pairs - np.sign(pairs) * smaller).reshape(padded.shape)
    return result[:, : codes.shape[1]].astype(codes.dtype)


def pair_scales(rows: np.ndarray, *, per_row: bool = True, exact: bool = False) -> np.ndarray:
    """Scales under which the codes of `rows` fit in pairs: (outputs,), or one number as a 0-d array.

    `exact`: no code needs shrinking (for training, which starts from these scales).
    """
    rows = (
        rows
        if per_row
        else rows.reshape(1, -1)
        if rows.shape[1] % 2 == 0
        else np.pad(rows, ((0, 0), (0, 1))).reshape(1, -1)
    )
    rows = rows.astype(np.float32)
    narrow = np.maximum(np.abs(rows).max(1, initial=0) / LARGEST_CODE, SMALLEST_SCALE)
    wide = np.maximum(narrow, largest_pairs(rows) / (LARGEST_PAIR - 1))  # − 1: rounding may add half to either
    best, least = wide, _error(rows, wide)
    for share in () if exact else np.linspace(0, 1, _TRIALS)[:-1]:
        scale = narrow + np.float32(share) * (wide - narrow)
        error = _error(rows, scale)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    best = best.astype(np.float32)
    return best if per_row else best.reshape(())


def _error(rows: np.ndarray, scale: np.ndarray) -> np.ndarray:
    codes = np.clip(np.rint(rows / scale[:, None]), -LARGEST_CODE, LARGEST_CODE).astype(np.int32)
    return np.square(shrink_pairs(codes) * scale[:, None] - rows).sum(1)
