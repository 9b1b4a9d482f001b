"""Ridge regression of what a layer misses on what it sees, its weight chosen by the error on rows held back.

With the layer's inputs in the rows of X, what is missing of its outputs in E, and means taken off where there is a place to
add them back:

    ΔW = Ẽᵀ X̃ (X̃ᵀ X̃ + λ I)⁻¹        λ = ρ · mean of the diagonal of X̃ᵀ X̃

ρ is the one of `RIDGES` whose step, made from most of the samples, leaves the least error on the rest; the step that is
taken is then made from all of them. With too few samples to hold any back ρ is `RIDGE`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
RIDGE = 0.1


@dataclass(frozen=True)
class Rows:
    """What one layer sees and misses, row by row; the first `learn` rows choose the weights, the others the ridge.

    `x` is (groups, rows, columns), `error` (groups, rows, outputs). `intercept`: whether a constant may be added to each output.
    """

    x: Tensor
    error: Tensor
    learn: int
    intercept: bool


@dataclass(frozen=True)
class Solution:
    """The step (groups, columns, outputs), the constants (groups, 1, outputs), the ridge; `helps`: on rows held back too."""

    step: Tensor
    shift: Tensor
    ridge: float
    helps: bool = True

    def left(self, rows: Rows) -> Tensor:
        """What is still missing."""
        return rows.error - rows.x @ self.step - self.shift


@dataclass(frozen=True)
class _Sums:
    """All that ridge regression needs of some rows: sums of products, in double precision."""

    count: int
    x: Tensor  # (groups, columns)
    error: Tensor  # (groups, outputs)
    gram: Tensor  # XᵀX
    cross: Tensor  # XᵀE
    square: Tensor  # of E

    @classmethod
    def of(cls, x: Tensor, error: Tensor) -> _Sums:
        gram, cross = (x.mT @ x).double(), (x.mT @ error).double()
        return cls(x.shape[1], x.sum(1).double(), error.sum(1).double(), gram, cross, error.square().sum().double())

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(
            self.count + other.count,
            self.x + other.x,
            self.error + other.error,
            self.gram + other.gram,
            self.cross + other.cross,
            self.square + other.square,
        )

    def solution(self, ridge: float, *, intercept: bool) -> tuple[Tensor, Tensor]:
        """The step and the constants, in double precision."""
        gram, cross = self.gram.clone(), self.cross
        if intercept:
            gram -= self.x[:, :, None] * self.x[:, None, :] / self.count
            cross = cross - self.x[:, :, None] * self.error[:, None, :] / self.count
        weight = ridge * gram.diagonal(dim1=1, dim2=2).mean(1)
        tiny = torch.finfo(torch.float32).tiny  # inputs that are all zero fit anything
        gram.diagonal(dim1=1, dim2=2).add_(weight.clamp(min=tiny)[:, None])
        step = torch.cholesky_solve(cross, torch.linalg.cholesky_ex(gram)[0])
        if not intercept:
            return step, torch.zeros_like(self.error[:, None])
        return step, (self.error[:, None] - self.x[:, None] @ step) / self.count

    def left(self, step: Tensor, shift: Tensor) -> float:
        """The sum of squares that a step and constants leave of these rows' errors."""
        made = (step * (self.gram @ step)).sum() + self.count * shift.square().sum()
        made += 2 * ((self.x[:, None] @ step) * shift).sum()
        common = (step * self.cross).sum() + (shift * self.error[:, None]).sum()
        return float(self.square - 2 * common + made)


def solve(rows: Rows) -> Solution:
    """Find the step that takes away most of `rows.error`."""
    middle = rows.x.mean(1, keepdim=True) if rows.intercept else torch.zeros((), dtype=rows.x.dtype)
    x = rows.x - middle  # sums of products keep their digits so
    count, columns = x.shape[1:]
    if count < columns:
        return _few(x, rows, middle)
    if not 0 < rows.learn < count:
        return _solution(_Sums.of(x, rows.error), rows, middle, RIDGE)
    learn = _Sums.of(x[:, : rows.learn], rows.error[:, : rows.learn])
    back = _Sums.of(x[:, rows.learn :], rows.error[:, rows.learn :])
    tried = {ridge: back.left(*learn.solution(ridge, intercept=rows.intercept)) for ridge in RIDGES}
    ridge = min(tried, key=lambda name: tried[name] if math.isfinite(tried[name]) else math.inf)
    found = _solution(learn + back, rows, middle, ridge)
    return replace(found, helps=tried[ridge] < float(back.square))


def _solution(sums: _Sums, rows: Rows, middle: Tensor, ridge: float) -> Solution:
    step, shift = sums.solution(ridge, intercept=rows.intercept)
    dtype = rows.x.dtype
    return Solution(
        step.to(dtype), (shift - middle.double() @ step).to(dtype) if rows.intercept else shift.to(dtype), ridge
    )


def _few(x: Tensor, rows: Rows, middle: Tensor) -> Solution:
    """Fewer rows than columns: the smaller of the two systems, with the usual ridge."""
    weight = RIDGE * x.square().sum((1, 2)).double() / x.shape[2]
    kernel = (x @ x.mT).double()
    kernel.diagonal(dim1=1, dim2=2).add_(weight.clamp(min=torch.finfo(torch.float32).tiny)[:, None])
    error = rows.error - rows.error.mean(1, keepdim=True) if rows.intercept else rows.error
    step = x.mT @ torch.linalg.solve(kernel, error.double()).to(x.dtype)
    shift = rows.error.mean(1, keepdim=True) - middle @ step if rows.intercept else torch.zeros((), dtype=x.dtype)
    return Solution(step, shift, RIDGE)
