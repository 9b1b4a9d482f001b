"""Data in `.npz` files and folders of `.npy` files: images, float features, token ids, several inputs by name."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from compress.batches import TARGETS
from compress.counting import counted
from compress.errors import DataError, nearest
from compress.loading.datasets import ArrayDataset, ImageArrayDataset, NamedArrayDataset
from compress.loading.parts import Parts
from compress.loading.preprocessing import Preprocessing

# Part → the suffixes under which files keep it, the preferred one first.
SUFFIXES = {
    "train": ("_train",),
    "calibration": ("_calibration", "_calib", "_cal"),
    "test": ("_test", "_val", "_valid", "_dev"),
    "whole": ("",),
}
_CHUNK = 1 << 22  # elements checked at a time


def open_arrays(
    path: str | Path, preprocessing: Preprocessing | Callable[[Any], Tensor], classes: tuple[str, ...] | None
) -> Parts:
    """Read `x, y` or `x_train, y_train, x_calibration, x_test, …` from an `.npz` file.

    uint8 arrays of three or four dimensions are images, NHW or NHWC (NCHW where only that is possible); float arrays
    are taken as they stand; other integers are token ids and become int64. `y` may be left out.

    Without an `x`, arrays are inputs by name (`input_ids_train`, `attention_mask_train`, `y_train`, or without a suffix).
    A folder of `.npy` files holds the same names, one a file.

    Raises:
        DataError: no such file, not an `.npz`, no input in it, NaN or infinite values, targets that do not fit.
    """
    path = Path(path)
    arrays = _read_folder(path) if path.is_dir() else _read(path)
    if arrays and not any(name.partition("_")[0] == "x" for name in arrays):
        return _open_named(path, arrays, classes)
    parts: dict[str, Any] = {}
    highest = -1
    for part, suffixes in SUFFIXES.items():
        suffix = next((suffix for suffix in suffixes if f"x{suffix}" in arrays), None)
        if suffix is None:
            continue
        x, y = arrays[f"x{suffix}"], arrays.get(f"y{suffix}")
        where = f"{path.name}:x{suffix}"
        if x.ndim == 0 or (y is not None and y.ndim == 0):
            raise DataError(
                f"{where if x.ndim == 0 else f'{path.name}:y{suffix}'} is a single value; the first dimension must be the samples"
            )
        if y is not None and len(x) != len(y):
            raise DataError(f"{where} has {counted(len(x), 'sample')} and y{suffix} has {len(y)}; they must match")
        target = None if y is None else _target(y, f"{path.name}:y{suffix}", classes)
        if target is not None and target.ndim == 1 and not target.is_floating_point() and len(target):
            highest = max(highest, int(target.max()))
        parts[part] = as_dataset(x, target, where, preprocessing)
    if not parts:
        raise DataError(
            f"{str(path)!r} holds no x, x_train, x_calibration or x_test; {nearest('x_train', arrays) if arrays else 'it is empty'}"
        )
    if set(parts) - {"whole"}:
        parts.pop("whole", None)
    count = len(classes) if classes is not None else highest + 1 if highest >= 0 else None
    return Parts(path.stem, **parts, classes=classes, num_classes=count)


def as_dataset(
    x: np.ndarray, y: Tensor | None, where: str, preprocessing: Preprocessing | Callable[[Any], Tensor]
) -> Dataset[Any]:
    """Return one part as a data set; what x means follows from its type and shape (see `open_arrays`)."""
    if x.ndim == 0:
        raise DataError(f"{where} is a single value; the first dimension must be the samples")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        if not isinstance(preprocessing, Preprocessing):
            return ImageArrayDataset(torch.from_numpy(x), y, preprocessing)
        return ArrayDataset(torch.from_numpy(_channels_first(x, where)), y, preprocessing)
    if np.issubdtype(x.dtype, np.floating):
        check_finite(x, where)
        return ArrayDataset(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)), y)
    if np.issubdtype(x.dtype, np.integer):
        return ArrayDataset(torch.from_numpy(x.astype(np.int64)), y)
    raise DataError(f"{where} has type {x.dtype}; use uint8 for images, float32 for features, integers for token ids")


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise DataError where `values` hold NaN or infinity, naming the first such sample."""
    per_sample = max(1, int(np.prod(values.shape[1:], dtype=np.int64)))
    step = max(1, _CHUNK // per_sample)
    for start in range(0, len(values), step):
        finite = np.isfinite(values[start : start + step]).reshape(min(step, len(values) - start), -1).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{where} holds NaN or infinite values, first in sample {start + int(np.argmin(finite))}; clean it"
            )


def check_labels(labels: np.ndarray, where: str, classes: int | None) -> None:
    """Raise DataError where a label is negative, or not below the number of classes."""
    if not len(labels):
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0:
        raise DataError(f"{where}: label {low} is out of range; labels count from 0")
    if classes is not None and high >= classes:
        raise DataError(f"{where}: label {high} is out of range for {classes} classes (0 to {classes - 1})")


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"data file {str(path)!r} does not exist; check the path")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise DataError(f"{str(path)!r} holds one bare array; save x and y with numpy.savez")
            plain = any(name.partition("_")[0] == "x" for name in archive.files)
            wanted = [name for name in archive.files if not plain or name.partition("_")[0] in ("x", "y")]
            arrays = {name: archive[name] for name in wanted}
            if not all(isinstance(value, np.ndarray) for value in arrays.values()):
                raise ValueError("an entry that is no array of NumPy's")
            return arrays
    except DataError:
        raise
    except ValueError as error:
        if "pickle" in str(error).lower() and zipfile.is_zipfile(path):
            raise DataError(
                f"{str(path)!r} holds Python objects, not plain arrays; save numbers with numpy.savez"
            ) from error
        raise DataError(f"{str(path)!r} is not an .npz file, or is truncated; fetch or save it again") from error
    except MemoryError as error:
        raise DataError(f"{str(path)!r} declares arrays that are larger than this machine's memory") from error
    except Exception as error:  # what zip and NumPy raise for damaged bytes depends on the bytes
        raise DataError(f"{str(path)!r} is not an .npz file, or is truncated; fetch or save it again") from error


def _read_folder(folder: Path) -> dict[str, np.ndarray]:
    """Arrays by file name; mapped, so that what is not used is not read."""
    found = {}
    for file in sorted(folder.glob("*.npy")):
        try:
            found[file.stem] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            kind = (
                "holds Python objects, not plain numbers" if "pickle" in str(error).lower() else "is no whole .npy file"
            )
            raise DataError(f"{str(file)!r} {kind}; save it again with numpy.save") from error
    return found


def _open_named(path: Path, arrays: dict[str, np.ndarray], classes: tuple[str, ...] | None) -> Parts:
    """Inputs by name, part by part."""
    known = {suffix: part for part, suffixes in SUFFIXES.items() for suffix in suffixes if suffix}
    grouped: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        suffix = next((suffix for suffix in known if name.endswith(suffix)), "")
        grouped.setdefault(known.get(suffix, "whole"), {})[name.removesuffix(suffix)] = array
    if set(grouped) - {"whole"}:
        grouped.pop("whole", None)
    parts: dict[str, Any] = {}
    highest = -1
    for part, found in grouped.items():
        key = next((name for name in TARGETS if name in found), None)
        if not set(found) - {key}:
            raise DataError(f"{path.name} holds targets and no input for its part {part!r}; add x, or inputs by name")
        target = None if key is None else _target(np.asarray(found.pop(key)), f"{path.name}:{key}", classes)
        columns = {name: _column(array, f"{path.name}:{name}") for name, array in found.items()}
        sizes = {name: len(values) for name, values in columns.items()} | ({} if target is None else {"y": len(target)})
        if len(set(sizes.values())) > 1:
            raise DataError(f"{path.name}: the inputs of part {part!r} differ in samples: {sizes}; they must match")
        if target is not None and target.ndim == 1 and not target.is_floating_point() and len(target):
            highest = max(highest, int(target.max()))
        parts[part] = NamedArrayDataset(columns, target)
    count = len(classes) if classes is not None else highest + 1 if highest >= 0 else None
    return Parts(path.stem, **parts, classes=classes, num_classes=count)


def _column(values: np.ndarray, where: str) -> Tensor:
    if values.ndim == 0:
        raise DataError(f"{where} is a single value; the first dimension must be the samples")
    if np.issubdtype(values.dtype, np.floating):
        check_finite(values, where)
        return torch.from_numpy(np.array(values, dtype=np.float32))
    if np.issubdtype(values.dtype, np.integer) or values.dtype == np.bool_:
        return torch.from_numpy(np.array(values, dtype=np.int64 if values.dtype != np.bool_ else np.bool_))
    raise DataError(f"{where} has type {values.dtype}; inputs by name are numbers")


def _target(y: np.ndarray, where: str, classes: tuple[str, ...] | None) -> Tensor:
    if np.issubdtype(y.dtype, np.floating):
        check_finite(y, where)
        return torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32))
    if not (np.issubdtype(y.dtype, np.integer) or y.dtype == np.bool_):
        raise DataError(f"{where} has type {y.dtype}; use integers for classes, floats for values")
    y = y.astype(np.int64)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1:
        check_labels(y, where, None if classes is None else len(classes))
    return torch.from_numpy(y)


def _channels_first(x: np.ndarray, where: str) -> np.ndarray:
    if x.ndim == 3:
        return x[:, None]
    if x.shape[3] in (1, 3, 4):
        return x.transpose(0, 3, 1, 2)  # a view: a copy of all pixels would be as large as the file
    if x.shape[1] in (1, 3, 4):
        return x
    raise DataError(f"{where} has shape {x.shape}; images are (N, H, W) or (N, H, W, channels) with 1, 3 or 4 channels")
