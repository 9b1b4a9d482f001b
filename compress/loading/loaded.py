"""What a source of models gives: the model, and what the source tells of its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compress.batches import Batch
from compress.loading.preprocessing import Preprocessing

BATCH = 2  # a batch of one would be specialized by torch.export


@dataclass(frozen=True)
class TensorSpec:
    """One input of a model; a dimension that may vary is None."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class LoadedModel:
    """A model and what its source says about its inputs.

    `kind` is "module", "exported" (a module out of an exported program, kept as `program`) or "onnx" (a graph).
    `input_shape` includes the batch; it is None where the source does not tell. Modules are in eval mode. `notes` are
    sentences for the user: what about the weights looks wrong.
    """

    name: str
    model: Any
    kind: str
    path: Path | None = None
    input_shape: tuple[int, ...] | None = None
    input_dtype: torch.dtype = torch.float32
    preprocessing: Preprocessing | None = None
    inputs: tuple[TensorSpec, ...] = ()
    program: Any = None
    notes: tuple[str, ...] = ()
    example: Batch | None = None  # inputs that the source itself tells, by name
    tokenizer: str | None = None  # the folder, or id, of the tokenizer that goes with a text model
