"""Scalars, the graph, and hyper-parameters with their final metrics, for TensorBoard."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import InputError
from compress.state import evaluating
from compress.training.options import TrainOptions


class Board:
    """Writes one run's events into `folder`."""

    def __init__(self, folder: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("tensorboard is not installed; pip install 'torch-compress[training]'") from None
        self.writer = SummaryWriter(str(folder))

    def graph(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Add the graph; a model that cannot be traced has none, and trains all the same."""
        with contextlib.suppress(Exception), torch.random.fork_rng(), evaluating(module), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.writer.add_graph(module, inputs)

    def epoch(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if key not in ("epoch", "step"):
                self.writer.add_scalar(key if "/" in key else f"train/{key}", value, record["epoch"])
        self.writer.flush()

    def close(self, options: TrainOptions, final: dict[str, Any]) -> None:
        """Add the hyper-parameters beside the last epoch's figures, then close the file."""
        plain = (str, int, float, bool)
        chosen = {key: value if isinstance(value, plain) else str(value) for key, value in options.as_dict().items()}
        metrics = {f"final/{key}": float(value) for key, value in final.items() if "/" in key}
        with contextlib.suppress(Exception):
            self.writer.add_hparams(chosen, metrics, run_name=".")
        self.writer.close()
