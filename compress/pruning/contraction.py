"""Products of two activations: attention, einsum, bilinear forms.

What is summed against each other is united. Where several such products stand side by side (heads), removing
single positions from one of them would leave unequal heads, so a head goes as a whole or not at all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compress.pruning.labels import NONE, core, first_along, varying

if TYPE_CHECKING:
    from compress.pruning.trace import Call, Trace


def contract(trace: Trace, call: Call, left: Tensor, right: Tensor, letters: tuple[str, str, str]) -> Tensor:
    """Return the labels of einsum(left, right), and unite what the sum makes inseparable.

    `letters` names the dimensions of left, right and result, as in `torch.einsum`.
    """
    la, lb, lo = letters
    left = _drop(trace, left, la, lb + lo)
    right = _drop(trace, right, lb, la + lo)
    la, lb = "".join(c for c in la if c in lb + lo), "".join(c for c in lb if c in la + lo)
    batch = [c for c in la if c in lb and c in lo]
    inner = [c for c in la if c in lb and c not in lo]
    rows, columns = [c for c in la if c not in lb], [c for c in lb if c not in la]
    sizes = {c: max(n for n in _sizes(c, (la, left), (lb, right))) for c in la + lb}
    a = _ordered(left, la, batch + rows + inner, sizes)
    b = _ordered(right, lb, batch + columns + inner, sizes)
    trace.count_activation_macs(call, math.prod(sizes.values()), (a, b))
    in_a = {(batch + rows + inner)[dim] for dim in varying(a)}
    in_b = {(batch + columns + inner)[dim] for dim in varying(b)}
    summed = bool((in_a | in_b) & set(inner))
    wide_a, wide_b = bool(in_a & set(rows)), bool(in_b & set(columns))
    if (wide_a and wide_b) or (summed and (wide_a or wide_b)):
        reason = f"two kinds of channels multiplied in {call.where()}"
        for labels in (left, right):
            trace.store.lock(labels, reason)
        return trace.held(reason).expand([sizes[c] for c in lo])
    n, m, k = len(rows), len(columns), len(inner)
    a_inner, b_inner = range(a.dim() - k, a.dim()), range(b.dim() - k, b.dim())
    if summed and not (in_a | in_b) & set(batch):
        flat_a = first_along(a, range(a.dim() - k)).reshape(a.shape[a.dim() - k :])
        flat_b = first_along(b, range(b.dim() - k)).reshape(b.shape[b.dim() - k :])
        trace.store.unite(flat_a, flat_b)
        trace.reduced.append(call.node)
        return torch.full((), NONE).expand([sizes[c] for c in lo])
    if (in_a | in_b) & set(batch) and not wide_a and not wide_b:
        trace.heads.append((call.node, a, b))
    a = trace.unite_over(a, a_inner).reshape(a.shape[: a.dim() - k])
    b = trace.unite_over(b, b_inner).reshape(b.shape[: b.dim() - k])
    a = a.reshape(*a.shape, *[1] * m)
    b = b.reshape(*b.shape[: len(batch)], *[1] * n, *b.shape[len(batch) :])
    return (
        trace.meet(core(a), core(b))
        .expand([sizes[c] for c in batch + rows + columns])
        .permute([(batch + rows + columns).index(c) for c in lo])
    )


def _sizes(letter: str, *operands: tuple[str, Tensor]) -> list[int]:
    return [labels.shape[letters.index(letter)] for letters, labels in operands if letter in letters]


def _drop(trace: Trace, labels: Tensor, own: str, others: str) -> Tensor:
    """Sum over the letters that only this operand has."""
    alone = [dim for dim, letter in enumerate(own) if letter not in others]
    return trace.unite_over(labels, alone).squeeze(tuple(alone)) if alone else labels


def _ordered(labels: Tensor, letters: str, order: list[str], sizes: dict[str, int]) -> Tensor:
    return labels.permute([letters.index(c) for c in order]).expand([sizes[c] for c in order])


def contract_matmul(trace: Trace, call: Call, left: Any, right: Any) -> Tensor:
    """matmul, mm and bmm, with broadcast batch dimensions."""
    a, b = trace.labels(left), trace.labels(right)
    vector_a, vector_b = a.dim() == 1, b.dim() == 1
    a, b = (a.unsqueeze(0) if vector_a else a), (b.unsqueeze(-1) if vector_b else b)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*batch, *a.shape[-2:]), b.expand(*batch, *b.shape[-2:])
    names = "abcdefgh"[: len(batch)]
    result = contract(trace, call, a, b, (names + "nk", names + "km", names + "nm"))
    return result.reshape(call.shape())


def contract_einsum(trace: Trace, call: Call) -> Tensor | None:
    """einsum of two operands; None where it is of another kind."""
    equation, operands = call.arg(0).replace(" ", ""), call.arg(1)
    if "->" not in equation or "." in equation or len(operands) != 2:
        return None
    inputs, output = equation.split("->")
    la, lb = inputs.split(",")
    if len(set(la)) < len(la) or len(set(lb)) < len(lb):
        return None
    return contract(trace, call, trace.labels(operands[0]), trace.labels(operands[1]), (la, lb, output))


def attend(trace: Trace, call: Call) -> Tensor | None:
    """softmax(q·kᵀ + mask)·v; None where queries and keys have different heads."""
    q, k, v = (trace.labels(call.arg(place)) for place in range(3))
    if q.shape[:-2] != k.shape[:-2] or k.shape[:-2] != v.shape[:-2]:
        return None
    names = "abcdefgh"[: q.dim() - 2]
    separate = set(varying(q)) | set(varying(k))
    if not separate & set(range(q.dim() - 2)) and separate and call.arg("scale", None) is None:
        for labels in (q, k):  # the scale is one over the root of the width
            trace.store.lock(labels, f"width of the one attention head in {call.where()}")
    scores = contract(trace, call, q, k, (names + "nk", names + "mk", names + "nm"))
    mask = call.arg("attn_mask", None)
    if mask is not None and trace.is_labelled(mask):
        scores = trace.meet(scores, trace.labels(mask)).expand(scores.shape)
    return contract(trace, call, core(scores).expand(scores.shape), v, (names + "nm", names + "md", names + "nd"))
