"""What callers hand in, brought to what a verb works on: a Step for its model, Data for its batches, arrays for tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from compress.batches import Batch, first_batches, is_mapping, read_batch
from compress.errors import DataError, InputError

BATCH = 32  # of a data set that comes without a loader
STREAMED = 512  # samples that calibration takes of a stream


def model_of(value: Any) -> Any:
    """The module, graph or path in what a verb returned or another library holds; anything else as it is.

    A `Step`, a `FitResult`, a loaded model, an `onnx.ModelProto`.
    """
    kind = type(value).__name__
    if kind == "ModelProto":
        import onnx_ir as ir

        return ir.from_proto(value)
    if kind in ("Step", "LoadedModel"):
        return value.model
    if kind == "FitResult":
        return value.module
    return value


def batches_of(value: Any, part: str = "calibration") -> Iterable[Any]:
    """Batches that can be gone through as often as wanted, of whatever holds samples.

    A loader or a list of batches stays as it is; a generator is kept as a list; of a `Data` the loader of one part is
    taken, and of a pair (training, test) of loaders the one; a data set is batched, and so are the samples in a tensor, an
    array, a pair `(x, y)` of them or a mapping of them. Of a stream, which may have no end, calibration takes the beginning.

    Raises:
        DataError: it holds no samples, or is the name of data.
    """
    if isinstance(value, (str, bytes)) or value is None:
        raise DataError(
            f"data is given as {value!r}; open it first, as in compress.open_data('mnist5k'), or give batches"
        )
    if isinstance(value, Batch):
        return [value]
    if callable(getattr(value, "loader", None)):
        batches: Iterable[Any] = value.loader(_part_of(value, part))
        return batches
    if is_pair_of_loaders(value):
        return batches_of(value[1] if part == "test" and value[1] is not None else value[0], part)
    if isinstance(value, (Tensor, np.ndarray)) or is_mapping(value):
        return _one(value)
    if isinstance(value, tuple):
        return _one(value)
    if isinstance(value, IterableDataset) or (isinstance(value, Dataset) and hasattr(value, "__getitem__")):
        value = DataLoader(value, batch_size=BATCH)
    if part == "calibration" and isinstance(value, DataLoader) and isinstance(value.dataset, IterableDataset):
        return _Beginning(value, STREAMED)
    if isinstance(value, Iterator):
        return list(value)
    if isinstance(value, Iterable):
        return value
    raise DataError(f"data is a {type(value).__name__}; give a loader, a list of batches, a data set or arrays")


def _one(value: Any) -> list[Batch]:
    batch = read_batch(value)
    if any(not item.dim() for item in batch.values) and len(batch.inputs) == 1:
        raise DataError("data is a single number; the first dimension must be the samples")
    return [batch.part(at, at + BATCH) for at in range(0, batch.samples, BATCH)]


class _Beginning:
    """The first batches of a stream, as often as wanted."""

    def __init__(self, loader: Iterable[Any], samples: int) -> None:
        self.loader, self.samples = loader, samples

    def __iter__(self) -> Iterator[Batch]:
        return first_batches(self.loader, self.samples)


def is_pair_of_loaders(value: Any) -> bool:
    """(training, test): two loaders, data sets or lists of batches; the second may be None."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or value[0] is None:
        return False
    return all(item is None or isinstance(item, (DataLoader, Dataset)) or is_list_of_batches(item) for item in value)


def is_list_of_batches(value: Any) -> bool:
    """A list of pairs, mappings or batches; a list of tensors may itself be a batch."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], (tuple, list, Mapping, Batch))


def graph_of(value: Any) -> Any:
    """The graph in what holds one.

    Raises:
        InputError: it is none.
    """
    found = model_of(value)
    if not hasattr(found, "graph") or isinstance(found, torch.nn.Module):
        raise InputError(
            f"this needs an ONNX graph, got a {type(found).__name__}; compress.export makes one of a module"
        )
    return found


def _part_of(data: Any, part: str) -> str:
    """The part asked for, else the one that stands in for it."""
    order = {"calibration": ("calibration", "train"), "test": ("test",)}.get(part, (part,))
    return next((name for name in order if getattr(data, name, None) is not None), part)


def named_models(models: Any) -> Mapping[str, Any]:
    """Models by name: a mapping as it is, a list or one model under names of their own."""
    if isinstance(models, Mapping):
        return {name: model_of(model) for name, model in models.items()}
    listed = models if isinstance(models, (list, tuple)) else [models]
    found: dict[str, Any] = {}
    for model in map(model_of, listed):
        name = short_name(model)
        number = 1 + sum(other == name or other.startswith(f"{name} #") for other in found)
        found[name if number == 1 else f"{name} #{number}"] = model
    return found


def short_name(model: Any) -> str:
    """A name of one line for a model in hand: a file's name, a module's class, a graph's own name."""
    if isinstance(model, torch.nn.Module):
        return type(model).__name__
    graph = getattr(model, "graph", None)
    if graph is not None:
        return str(getattr(graph, "name", None) or "graph")
    return str(model)
