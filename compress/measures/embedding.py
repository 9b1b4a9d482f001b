"""Vectors that are compared by angle: cosine to the float model's, and the user's pairs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from compress.errors import DataError
from compress.measures.figure import Figure, Records, ratio
from compress.measures.task import Reading, Seen, Task

CHUNK = 1024  # vectors that are set beside all others at a time


def record(seen: Seen, reading: Reading) -> dict[str, Tensor]:
    """The angle to the baseline's vector of each sample; with targets, the vector itself and what it belongs to."""
    vectors = seen.scores.flatten(1)
    reference = vectors if seen.reference is None else seen.reference.flatten(1).float()
    kept = {"cosine": cosine_similarity(vectors.double(), reference.double(), dim=1)}
    target = seen.target
    if target is None:
        return kept
    if isinstance(target, Tensor) and target.is_floating_point() and target.numel() == vectors.numel():
        return {**kept, "to target": cosine_similarity(vectors.double(), target.reshape(vectors.shape).double(), dim=1)}
    if not isinstance(target, Tensor) or target.numel() != len(vectors):
        got = tuple(target.shape) if isinstance(target, Tensor) else type(target).__name__
        raise DataError(
            f"task embedding takes {TASK.needs}; the model gives {tuple(seen.scores.shape)}, the targets are {got}"
        )
    return {**kept, "vector": normalize(vectors.float(), dim=1), "group": target.reshape(-1)}


def cosine(records: Records) -> tuple[Tensor, Tensor]:
    return records["cosine"], torch.ones_like(records["cosine"])


def to_target(records: Records) -> float | None:
    if "to target" not in records:
        return None
    return ratio(records, lambda kept: (kept["to target"], torch.ones_like(kept["to target"])))


def pairs(records: Records) -> tuple[Tensor, Tensor]:
    """Of the samples that have another one with their label: which have such a one nearest (recall@1)."""
    vectors, groups = records["vector"], records["group"]
    _, which, sizes = groups.unique(return_inverse=True, return_counts=True)
    found = torch.zeros(len(groups), dtype=torch.bool)
    for start in range(0, len(groups), CHUNK):
        angles = vectors[start : start + CHUNK] @ vectors.T
        angles[torch.arange(len(angles)), torch.arange(start, start + len(angles))] = -2.0  # not itself
        found[start : start + CHUNK] = groups[angles.argmax(1)] == groups[start : start + CHUNK]
    wanted = sizes[which] > 1
    return found & wanted, wanted


def recall(records: Records) -> float | None:
    return ratio(records, pairs) if "vector" in records else None


PAIRS = Figure("recall@1", "share of samples whose nearest other sample has the same label", recall, terms=pairs)
TO_TARGET = Figure("cosine to targets", "mean cosine of outputs and targets", to_target, unit="")
COSINE = Figure(
    "cosine",
    "mean cosine of outputs and the baseline's",
    lambda kept: ratio(kept, cosine),
    unit="",
    needs="the outputs of the baseline",
    terms=cosine,
)

TASK = Task(
    "embedding",
    "vectors that are compared by angle",
    "outputs (N, D); targets, where there are any, (N,) of numbers that pairs share, or vectors (N, D)",
    (PAIRS, TO_TARGET, COSINE),
    record,
)
