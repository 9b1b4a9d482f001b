"""Numbers: MAE, RMSE, R²."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from compress.errors import DataError
from compress.measures.figure import LOWER, TOTAL, Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    """Sums of absolute and squared errors for each sample, in float64; sums for each column over all samples for R²."""
    scores, target = seen.scores, seen.target
    if not isinstance(target, Tensor) or target.numel() != scores.numel() or len(target) != len(scores):
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(
            f"task regression takes {TASK.needs}; the model gives {tuple(scores.shape)}, the targets are {got}"
        )
    target = target.reshape(scores.shape).double()
    if not bool(torch.isfinite(target).all()):
        raise DataError("the targets are not finite (NaN or infinity); check the data")
    error = scores.double() - target
    samples = len(scores)
    wide = scores.dim() == 2  # (N, k): R² of each of the k numbers, averaged; of pictures, over all elements
    columns = target if wide else target.reshape(-1, 1)
    return {
        "absolute": error.abs().reshape(samples, -1).sum(1),
        "squared": error.square().reshape(samples, -1).sum(1),
        "count": torch.full((samples,), scores[0].numel() if samples else 0),
        f"{TOTAL}rows": torch.tensor([len(columns)]),
        f"{TOTAL}target": columns.sum(0),
        f"{TOTAL}squared target": columns.square().sum(0),
        f"{TOTAL}squared error": error.reshape(columns.shape).square().sum(0),
    }


def absolute(records: Records) -> tuple[Tensor, Tensor]:
    return records["absolute"], records["count"]


def rmse(records: Records) -> float | None:
    mean = ratio(records, lambda kept: (kept["squared"], kept["count"]))
    return None if mean is None else math.sqrt(mean)


def r2(records: Records) -> float | None:
    """1 − Σ(error²) / Σ((target − mean)²), averaged over the columns; None where a target never changes."""
    rows = float(records[f"{TOTAL}rows"])
    spread = records[f"{TOTAL}squared target"] - records[f"{TOTAL}target"].square() / rows
    least = 1e-12 * records[f"{TOTAL}squared target"]
    if not bool((spread > least).all()):
        return None
    return float((1 - records[f"{TOTAL}squared error"] / spread).mean())


MAE = Figure("MAE", "mean absolute error", lambda kept: ratio(kept, absolute), unit="", better=LOWER, terms=absolute)
RMSE = Figure("RMSE", "root of the mean squared error", rmse, unit="", better=LOWER)
R2 = Figure("R²", "share of the targets' variance that is explained", r2, unit="", needs_totals=True)

TASK = Task(
    "regression",
    "numbers",
    "outputs and targets of one shape, such as (N, 1) and (N,)",
    (MAE, RMSE, R2),
    record,
)
