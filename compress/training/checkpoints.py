"""Checkpoint files of a run: written atomically, read back so that training continues to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import OutputError, TrainingError, WeightsError
from compress.files import cause, native_file, written_beside
from compress.training.options import TrainOptions

FORMAT = 1
# These change neither the weights nor the order of the samples.
FREE_OPTIONS = (
    "workers",
    "pin_memory",
    "checkpoint_every",
    "checkpoint_minutes",
    "find_unused_parameters",
    "keep",
    "epochs",
)


def save(state: Mapping[str, Any], path: Path) -> None:
    """Write `state` beside `path`, then rename: a full disk or a kill leaves the old file intact.

    Raises:
        OutputError: the file cannot be written (no space left, no permission).
    """
    with written_beside(path) as beside:
        try:
            with native_file(beside) as file:
                torch.save({"format": FORMAT, **state}, file)
        except OSError as error:
            kept = "; the checkpoint before it is intact" if path.exists() else ""
            raise OutputError(f"cannot write checkpoint {str(path)!r}: {cause(error)}{kept}") from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint that `save` wrote.

    Raises:
        WeightsError: it is missing, damaged, or not a training checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(f"no checkpoint {str(path)!r} to resume from; train without resume first") from None
    except Exception as error:
        raise WeightsError(f"{str(path)!r} cannot be read as a checkpoint: {cause(error)}") from error
    if not isinstance(state, dict) or "optimizer" not in state or state.get("format") != FORMAT:
        raise WeightsError(
            f"{str(path)!r} is not a training checkpoint (weights alone cannot be resumed; pass them as weights)"
        )
    return state


def check_model(state: Mapping[str, Tensor], module: nn.Module, path: Path) -> None:
    """Refuse a checkpoint of another model, naming the first differences.

    Raises:
        TrainingError: names or shapes differ.
    """
    own = module.state_dict()
    found = [f"{name!r} is only in the model" for name in own if name not in state]
    found += [f"{name!r} is only in the checkpoint" for name in state if name not in own]
    found += [
        f"{name!r} is {tuple(state[name].shape)} in the checkpoint, {tuple(value.shape)} in the model"
        for name, value in own.items()
        if name in state and isinstance(value, Tensor) and state[name].shape != value.shape
    ]
    if found:
        more = f" … ({len(found)} in all)" if len(found) > 3 else ""
        raise TrainingError(f"{str(path)!r} is of another model: {', '.join(found[:3])}{more}")


def check_options(saved: Mapping[str, Any], options: TrainOptions, path: Path) -> None:
    """Refuse to resume with options that would make another run of it, naming each.

    More epochs are fine; a rate that falls over all of them goes on as it would with the new number.

    Raises:
        TrainingError: an option differs.
    """
    now = {key: list(value) if isinstance(value, tuple) else value for key, value in options.as_dict().items()}
    then = {key: list(value) if isinstance(value, tuple) else value for key, value in saved.items()}
    found = [
        f"{key} was {then.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*now, *then} - set(FREE_OPTIONS))
        if key in then and then[key] != now.get(key)
    ]
    if found:
        raise TrainingError(
            f"{str(path)!r} was written with other options: {'; '.join(found)}. "
            "Resume with the same ones, or start anew in another folder"
        )
