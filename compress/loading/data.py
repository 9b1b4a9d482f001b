"""Data: what the user names becomes train, calibration, test parts with loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset, default_collate

from compress.batches import Batch, is_mapping, joined, read_batch
from compress.counting import counted
from compress.errors import CompressError, DataError, first_line, nearest
from compress.given import is_list_of_batches, is_pair_of_loaders
from compress.loading.arrays import as_dataset, check_labels, open_arrays
from compress.loading.augmentation import Augmentation, AugmentingCollate
from compress.loading.callables import import_callable
from compress.loading.datasets import ArrayDataset, NamedArrayDataset
from compress.loading.embedded import EMBEDDED
from compress.loading.folders import open_folder, read_classes
from compress.loading.framing import described, framed
from compress.loading.parts import Parts, Streamed, complete, draw, is_stream, size, subset
from compress.loading.preprocessing import IMAGENET, Preprocessing, adjusted, size_kept
from compress.taking import takes

PARTS = ("train", "calibration", "test")
_FACTORY_PARTS = {"train": "train", "calibration": "calibration", "test": "test", "val": "test", "validation": "test"}


class LoaderKeywords(TypedDict, total=False):
    """What `Data.loader` hands on to torch's DataLoader."""

    timeout: float
    worker_init_fn: Callable[[int], None] | None
    multiprocessing_context: Any
    prefetch_factor: int | None
    persistent_workers: bool
    pin_memory_device: str
    in_order: bool


@dataclass(frozen=True)
class Data:
    """Train, calibration and test data sets; a part is None where the source has none.

    `input_shape` is one sample's first input, without the batch; `num_classes` is None where targets are not classes.
    `notes` are sentences for the user: what was taken for granted.
    """

    name: str
    train: Dataset[Any] | None
    calibration: Dataset[Any] | None
    test: Dataset[Any] | None
    classes: tuple[str, ...] | None
    num_classes: int | None
    input_shape: tuple[int, ...]
    input_dtype: torch.dtype
    collate: Callable[[list[Any]], Any] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def loader(
        self,
        part: str,
        *,
        batch_size: int = 64,
        shuffle: bool = False,
        workers: int = 0,
        drop_last: bool = False,
        pin_memory: bool = False,
        seed: int = 0,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        limit: int | None = None,
        augment: Augmentation | Mapping[str, Any] | None = None,
        **options: Unpack[LoaderKeywords],
    ) -> DataLoader[Any]:
        """Return a DataLoader over one part, to be iterated as often as wanted.

        Shuffling, augmentation and workers draw from `seed`: two loaders made alike yield the same epochs. `limit`
        takes that many samples, drawn with the seed. `sampler` (a DistributedSampler over `data.train`) replaces
        shuffling. Other keyword arguments go to DataLoader.

        Raises:
            DataError: an unknown part, one that this data has not, or a number that is not positive.
        """
        dataset = self.part(part)
        for name, value in (("batch size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise DataError(f"{name} {value} must be positive")
        if limit is not None and sampler is not None:
            raise DataError("limit and sampler exclude each other; let the sampler draw fewer samples")
        if is_stream(dataset):
            shuffle, sampler = False, None
            dataset = dataset if limit is None else Streamed(dataset, lambda number: True, limit)
        elif limit is not None and limit < size(dataset):
            dataset = subset(dataset, sorted(draw(limit, size(dataset), seed)[0]))
        collate = self.collate
        if augment is not None:
            augment = Augmentation(**augment) if isinstance(augment, Mapping) else augment
            collate = AugmentingCollate(augment, seed, collate or default_collate)
        loader = _Loader(
            dataset,
            batch_size=batch_size,
            shuffle=shuffle and sampler is None,
            sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            drop_last=drop_last,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )
        loader.label = f"the {part} part of data {self.name!r}"
        return loader

    def part(self, name: str) -> Dataset[Any]:
        """Return a part by name.

        Raises:
            DataError: an unknown part, or one that this data has not; says how to give it.
        """
        if name not in PARTS:
            raise DataError(f"unknown part {name!r}; {nearest(name, PARTS)}")
        dataset: Dataset[Any] | None = getattr(self, name)
        if dataset is None:
            advice = {
                "calibration": "add x_calibration or a folder calibration, or leave test samples over with --test-samples",
                "train": "add x_train or a folder train",
                "test": "add x_test or a folder test",
            }
            raise DataError(f"data {self.name!r} has no {name} part; {advice[name]}")
        return dataset

    def check_labels(self, outputs: int) -> None:
        """Raise DataError where a class of this data has no output in a model of `outputs` classes."""
        if self.num_classes is not None and self.num_classes > outputs:
            raise DataError(
                f"data {self.name!r} has labels up to {self.num_classes - 1}, out of range for a model of {counted(outputs, 'output')}"
            )

    def sizes(self) -> dict[str, int]:
        """Return the number of samples of each part that there is."""
        parts = {name: getattr(self, name) for name in PARTS}
        return {name: size(part) for name, part in parts.items() if part is not None and not is_stream(part)}


class _Loader(DataLoader[Any]):
    """A loader that says in one line which data failed: a data set of the user's own may raise anything."""

    label = "the data"

    def __iter__(self) -> Any:
        return self._with_causes(super().__iter__())  # begun here, not at the first batch: it draws from the generator

    def _with_causes(self, batches: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from batches
        except Exception as error:
            in_worker = "\nOriginal Traceback" in str(error)
            if isinstance(error, CompressError) and not in_worker:
                raise
            reason = _line_of_worker(error) if in_worker else first_line(error)
            raise DataError(
                f"{self.label} cannot be read: {reason}; mend the data set, or leave that sample out"
            ) from error


def _line_of_worker(error: Exception) -> str:
    """The cause in a worker process: its exception arrives with the whole traceback for a message."""
    lines = str(error).splitlines()
    causes = [
        line
        for line in lines
        if type(error).__name__ in line.partition(":")[0] and not line.startswith(("Caught", " "))
    ]
    return (causes or lines)[-1]


@takes()
def open_data(
    spec: str | Path | Data | Any,
    *,
    preprocessing: Preprocessing | Callable[[Any], Tensor] | str | None = None,
    classes: str | Path | Sequence[str] | None = None,
    calibration_samples: int | None = None,
    test_samples: int | None = None,
    seed: int = 0,
    resize: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    model_size: tuple[int, int] | None = None,
    tokenizer: str | None = None,
) -> Data:
    """Open the data that `spec` names.

    Args:
        spec: `mnist5k`, `digits`, `imagefolder:DIR`, `torchvision:NAME[:ROOT]`, `text:FILE.csv?text=…&label=…`, `FILE.npz`,
            or a factory as `package.module:name` or `file.py:name`, which returns a `Data`, one data set, or a mapping of
            parts. Data in hand too: a loader, a data set, arrays, a pair (train, test) of those, a mapping of parts.
        preprocessing: what the model's weights came with (`LoadedModel.preprocessing`), or one's own, or a function
            from PIL image to tensor, or such a function's name. Default: scaling to [0, 1] for arrays; for image
            folders ImageNet's, but images that all have one smaller size keep it.
        classes: a file with one class name a line, or the names; gives the order of the classes.
        calibration_samples, test_samples: upper limits; by default 512 (at most an eighth of the training samples),
            all.
        seed: of every draw.
        resize, crop, mean, std: replace those of `preprocessing` (see `preprocessing.adjusted`).
        tokenizer: the folder, or id, of the tokenizer of `text:` data (`LoadedModel.tokenizer`).
        model_size: height and width, where the model takes no other; images of a folder are brought to it.

    Raises:
        DataError: the data is unknown, missing, empty, malformed, out of range or not finite.
    """
    if isinstance(spec, Data):
        return spec
    if not isinstance(spec, (str, Path)):
        return in_hand(spec, calibration_samples=calibration_samples, test_samples=test_samples, seed=seed)
    spec = str(spec)
    names = _classes(classes)
    resized = resize is not None or crop is not None
    given: dict[str, Any] = {"resize": resize, "crop": crop, "mean": mean, "std": std}
    chosen = _chosen(preprocessing, given)
    kind, _, rest = spec.partition(":")
    notes: tuple[str, ...] = ()
    if kind == "imagefolder":
        ready, notes = _for_folder(rest, chosen, given, model_size)
        parts = open_folder(rest, ready, names)
    elif kind == "text":
        from compress.loading.texts import open_texts

        parts = open_texts(rest, tokenizer=tokenizer, classes=names)
    elif kind == "torchvision":
        from compress.loading.torchvision_data import open_torchvision_data

        base = adjusted(Preprocessing(), **given) if chosen is None and any_given(given) else chosen
        parts = open_torchvision_data(rest, base, resized=resized)
    elif spec in EMBEDDED:
        parts = _embedded(spec, chosen, given, resized)
    elif spec.endswith(".npz") or (Path(spec).is_dir() and any(Path(spec).glob("*.npy"))):
        ready = _default(chosen, Preprocessing(), given)
        parts = open_arrays(
            spec, size_kept(ready, resized=resized) if isinstance(ready, Preprocessing) else ready, names
        )
    elif ":" in spec:
        made = _call(spec)
        if isinstance(made, Data):
            return made
        parts = _from_factory(spec, made, names)
    else:
        raise _unknown(spec)
    parts = complete(parts, calibration_samples=calibration_samples, test_samples=test_samples, seed=seed)
    return replace(_described(parts), notes=notes)


def in_hand(
    value: Any, *, calibration_samples: int | None = None, test_samples: int | None = None, seed: int = 0
) -> Data:
    """Data from what a caller holds: a loader, a data set, arrays, a pair (train, test) of those, a mapping of parts.

    What comes in one piece is divided as a file is.

    Raises:
        DataError: it is none of these, or empty.
    """
    made = value
    if is_pair_of_loaders(value) or (isinstance(value, tuple) and len(value) == 2 and not _is_array(value[0])):
        made = {"train": value[0], "test": value[1]}
    elif is_mapping(value) and not set(value) & {*_FACTORY_PARTS, "whole"}:
        batch = read_batch(value)
        made = {"whole": NamedArrayDataset(batch.inputs, batch.target)}
    parts = _from_factory("data", made, None)
    parts = complete(parts, calibration_samples=calibration_samples, test_samples=test_samples, seed=seed)
    return _described(parts)


def any_given(given: Mapping[str, Any]) -> bool:
    """Say whether the user gave any of the values."""
    return any(value is not None for value in given.values())


def _chosen(preprocessing: Any, given: Mapping[str, Any]) -> Preprocessing | Callable[[Any], Tensor] | None:
    if isinstance(preprocessing, str):
        preprocessing = import_callable(preprocessing)
    if isinstance(preprocessing, Preprocessing):
        return adjusted(preprocessing, **given)
    if preprocessing is not None and any_given(given):
        raise DataError("a preprocessing function replaces resize, crop, mean and std; leave those out")
    function: Callable[[Any], Tensor] | None = preprocessing
    return function


def _default(chosen: Any, base: Preprocessing, given: Mapping[str, Any]) -> Preprocessing | Callable[[Any], Tensor]:
    return adjusted(base, **given) if chosen is None else chosen


def _for_folder(
    folder: str, chosen: Any, given: Mapping[str, Any], model_size: tuple[int, int] | None
) -> tuple[Preprocessing | Callable[[Any], Tensor], tuple[str, ...]]:
    """How the images of a folder are prepared, with a note where the user has not set it."""
    base = _default(chosen, IMAGENET, given)
    resized = given["resize"] is not None or given["crop"] is not None
    if not isinstance(base, Preprocessing) or not base.suggested:
        return base, ()
    origin = ""
    if not resized:
        base, origin = framed(base, folder, model_size, kept=chosen is not None)
    guessed = chosen is None and given["mean"] is None and given["std"] is None
    if not origin and not guessed:
        return base, ()
    colours = "; ImageNet's mean and standard deviation" if guessed else ""
    return base, (f"{described(Path(folder).name, base, origin)}{colours} (--resize --crop --mean --std change this)",)


def _embedded(name: str, chosen: Any, given: Mapping[str, Any], resized: bool) -> Parts:
    if chosen is not None and not isinstance(chosen, Preprocessing):
        raise DataError(f"data {name!r} takes resize, crop, mean and std, not a preprocessing function")
    if chosen is None and any_given(given):
        chosen = adjusted(Preprocessing(), **given)
    return EMBEDDED[name](None if chosen is None else size_kept(chosen, resized=resized))


def _classes(classes: str | Path | Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    return read_classes(classes) if isinstance(classes, (str, Path)) else tuple(classes)


def _unknown(spec: str) -> DataError:
    path = Path(spec)
    if path.is_dir():
        return DataError(f"data {spec!r} is a folder; write imagefolder:{spec}")
    if path.is_file() or path.suffix:
        return DataError(f"data {spec!r} cannot be read; give an .npz file, imagefolder:DIR or file.py:factory")
    known = [*EMBEDDED, "imagefolder:DIR", "text:FILE.csv", "torchvision:NAME", "FILE.npz", "file.py:factory"]
    return DataError(f"unknown data {spec!r}; {nearest(spec, known)}")


def _call(spec: str) -> Any:
    factory = import_callable(spec)
    try:
        return factory()
    except Exception as error:
        raise DataError(f"data factory {spec!r} failed: {first_line(error)}") from error


def _from_factory(spec: str, made: Any, classes: tuple[str, ...] | None) -> Parts:
    if not isinstance(made, Mapping):
        made = {"whole": made}
    unknown = [key for key in made if key not in _FACTORY_PARTS and key != "whole"]
    if unknown:
        raise DataError(
            f"data factory {spec!r} returned a part {unknown[0]!r}; {nearest(str(unknown[0]), _FACTORY_PARTS)}"
        )
    collates = [value.collate_fn for value in made.values() if isinstance(value, DataLoader)]
    parts = {
        _FACTORY_PARTS.get(key, key): _as_part(value, f"{spec}:{key}")
        for key, value in made.items()
        if value is not None
    }
    if not parts:
        raise DataError(
            f"data factory {spec!r} returned no data; return a data set, or a mapping of train, calibration, test"
        )
    return Parts(
        spec,
        **parts,
        classes=classes,
        num_classes=len(classes) if classes else _count_classes(list(parts.values())),
        collate=collates[0] if collates else None,
    )


def _as_part(value: Any, where: str) -> Dataset[Any]:
    if isinstance(value, DataLoader):
        return value.dataset
    if isinstance(value, IterableDataset):
        return value
    if (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(item, (Tensor, np.ndarray)) for item in value)
    ):
        x, y = (torch.as_tensor(item) for item in value)
        if len(x) != len(y):
            raise DataError(f"{where} has {counted(len(x), 'sample')} and {counted(len(y), 'target')}; they must match")
        return as_dataset(x.numpy(), y, where, Preprocessing())
    if isinstance(value, (Tensor, np.ndarray)):
        return as_dataset(np.asarray(value), None, where, Preprocessing())
    if isinstance(value, Batch) or (is_list_of_batches(value) and _are_batches(value)):
        whole: Dataset[Any] = _one_of([value] if isinstance(value, Batch) else value, where)
        return whole
    if hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, (str, bytes)):
        indexed: Dataset[Any] = value
        return indexed
    raise DataError(f"{where} is a {type(value).__name__}; return data sets (len and [index]) or pairs of arrays")


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _are_batches(value: Sequence[Any]) -> bool:
    """A list of batches has as many targets as samples in each; a list of samples has not."""
    try:
        first = read_batch(value[0])
    except DataError:
        return False
    several = isinstance(first.target, list) or (isinstance(first.target, Tensor) and first.target.dim() > 0)
    return several and len(first.target) == first.samples


def _one_of(batches: Iterable[Any], where: str) -> Any:
    """All samples of some batches as one data set.

    Raises:
        DataError: their shapes differ.
    """
    read = list(map(read_batch, batches))
    try:
        whole, targets = joined(read), [batch.target for batch in read]
        listed = [item for target in targets if target is not None for item in target]
        y = None if targets[0] is None else torch.cat(targets) if isinstance(targets[0], Tensor) else listed
    except (RuntimeError, KeyError, TypeError) as error:
        raise DataError(f"{where}: its batches cannot be joined ({first_line(error)}); give a data set") from error
    if whole.named and not isinstance(y, list):
        return NamedArrayDataset(whole.inputs, y)
    if whole.named:
        columns = [dict(zip(whole.inputs, values)) for values in zip(*whole.values)]
        return [{**sample, "labels": target} for sample, target in zip(columns, y or ())]
    if len(whole.values) == 1 and (y is None or isinstance(y, Tensor)):
        return ArrayDataset(whole.values[0], y)
    samples = [tuple(values) if len(values) > 1 else values[0] for values in zip(*whole.values)]
    return list(zip(samples, [None] * len(samples) if y is None else y))


def _count_classes(parts: Sequence[Dataset[Any]]) -> int | None:
    """Labels of in-memory parts are counted; looking at every sample of others could take hours."""
    labels = [
        part.y if not isinstance(part, TensorDataset) else part.tensors[-1] for part in parts if hasattr(part, "y")
    ]
    whole = [y for y in labels if isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() and len(y)]
    if not whole or len(whole) < len(parts):
        return None
    for y in whole:
        check_labels(y.numpy(), "labels", None)
    return max(int(y.max()) for y in whole) + 1


def _described(parts: Parts) -> Data:
    sample = next(part for part in (parts.train, parts.calibration, parts.test) if part is not None)
    try:
        first = next(iter(sample)) if is_stream(sample) else sample[0]
        inputs = read_batch((parts.collate or default_collate)([first])).values
    except DataError:
        raise
    except Exception as error:  # the user's own data set may raise anything
        raise DataError(
            f"a sample of {parts.name!r} cannot be batched ({first_line(error)}); yield tensors or pairs"
        ) from error
    if not inputs:
        raise DataError(f"a sample of {parts.name!r} has no inputs")
    return Data(
        name=parts.name,
        train=parts.train,
        calibration=parts.calibration,
        test=parts.test,
        classes=parts.classes,
        num_classes=parts.num_classes,
        input_shape=tuple(inputs[0].shape[1:]),
        input_dtype=inputs[0].dtype,
        collate=parts.collate,
    )
