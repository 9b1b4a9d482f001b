"""Data sets that torchvision downloads, by name."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from compress.errors import DataError, first_line, nearest
from compress.loading.datasets import PreprocessedDataset
from compress.loading.parts import Parts
from compress.loading.preprocessing import IMAGENET, Preprocessing, size_kept
from compress.loading.torchvision_ops import torchvision

DEFAULT_ROOT = Path("~/.cache/compress/datasets")
_SAMPLED = 16  # images looked at to learn whether all have one size


def open_torchvision_data(
    spec: str, preprocessing: Preprocessing | Callable[[Any], Tensor] | None, *, resized: bool = False
) -> Parts:
    """Open `NAME` or `NAME:ROOT` of `torchvision.datasets`, downloading it into ROOT where it is not there yet.

    Images that all have one size keep it unless the user asked for another (`resized`).

    Raises:
        DataError: no such data set, one that has no images with labels, or a download that failed.
    """
    name, _, root = spec.partition(":")
    folder = (Path(root) if root else DEFAULT_ROOT).expanduser()
    kind = _dataset_class(name)
    found = {part: _open(kind, name, folder, options) for part, options in _parts(kind).items()}
    first = next(iter(found.values()))
    if preprocessing is None:
        preprocessing = IMAGENET if not _one_size(first) else Preprocessing()
    elif isinstance(preprocessing, Preprocessing) and _one_size(first):
        preprocessing = size_kept(preprocessing, resized=resized)
    classes = getattr(first, "classes", None)
    parts: dict[str, Any] = {part: PreprocessedDataset(dataset, preprocessing) for part, dataset in found.items()}
    return Parts(
        name,
        **parts,
        classes=tuple(str(item) for item in classes) if isinstance(classes, (list, tuple)) else None,
        num_classes=len(classes) if isinstance(classes, (list, tuple)) else None,
    )


def _dataset_class(name: str) -> Any:
    known = [
        item for item in torchvision.datasets.__all__ if "root" in _parameters(getattr(torchvision.datasets, item))
    ]
    if name not in known:
        raise DataError(f"unknown torchvision data set {name!r}; {nearest(name, known)}")
    return getattr(torchvision.datasets, name)


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind.__init__).parameters)


def _parts(kind: Any) -> dict[str, dict[str, Any]]:
    parameters = _parameters(kind)
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    if "split" in parameters:
        evaluation = "val" if kind.__name__ in ("ImageNet", "Places365", "Imagenette") else "test"
        return {"train": {"split": "train"}, "test": {"split": evaluation}}
    return {"whole": {}}


def _open(kind: Any, name: str, folder: Path, options: dict[str, Any]) -> Any:
    if "download" in _parameters(kind):
        options = {**options, "download": True}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the table
            return kind(str(folder), **options)
    except (OSError, RuntimeError, ValueError, TypeError, ImportError) as error:  # URLError is an OSError
        raise DataError(
            f"torchvision data set {name!r} could not be opened or downloaded into {str(folder)!r} ({first_line(error)}); "
            f"put its files there, or write a factory and name it as file.py:factory"
        ) from error


def _one_size(dataset: Any) -> bool:
    step = max(1, len(dataset) // _SAMPLED)
    sizes = {getattr(dataset[index][0], "size", None) for index in range(0, len(dataset), step)}
    return len(sizes) == 1 and None not in sizes
