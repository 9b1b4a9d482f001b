"""Map-style data sets over arrays, image files and images of other data sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compress.errors import DataError
from compress.loading.preprocessing import Preprocessing

ToTensor = Callable[[Any], Tensor]  # a user's own preprocessing: PIL image → tensor


class ArrayDataset(Dataset[Any]):
    """Samples held in memory: (x[i], y[i]), or x[i] alone where there are no targets.

    With `preprocessing`, x holds uint8 or float pixels (N, C, H, W) that become normalized floats when they are read.
    """

    def __init__(self, x: Tensor, y: Tensor | None = None, preprocessing: Preprocessing | None = None):
        self.x = x
        self.y = y
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Return several samples at once, which is what a DataLoader asks for: one pass over the pixels."""
        chosen = torch.as_tensor(indices)
        x = self.x[chosen].contiguous()  # pixels may be a view of (N, H, W, C)
        if self.preprocessing is not None:
            x = self.preprocessing.pixels(x)
        return list(x) if self.y is None else list(zip(x, self.y[chosen]))


class FileDataset(Dataset[Any]):
    """Image files with their labels; read, preprocessed one at a time. Label None: the image alone."""

    def __init__(self, files: Sequence[tuple[Path, int | None]], preprocessing: Preprocessing | ToTensor):
        self.files = tuple(files)
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image, UnidentifiedImageError

        path, label = self.files[index]
        try:
            with Image.open(path) as image:
                pixels = to_tensor(self.preprocessing, image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"image {str(path)!r} cannot be read ({error}); remove it or fetch it again") from error
        return pixels if label is None else (pixels, label)


class PreprocessedDataset(Dataset[Any]):
    """Another data set of (PIL image, label), preprocessed."""

    def __init__(self, dataset: Any, preprocessing: Preprocessing | ToTensor):
        self.dataset = dataset
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        image, *rest = self.dataset[index]
        return (to_tensor(self.preprocessing, image), *rest)


class ImageArrayDataset(Dataset[Any]):
    """Pixels (N, H, W) or (N, H, W, C) handed as PIL images to a preprocessing of the user's own."""

    def __init__(self, x: Tensor, y: Tensor | None, preprocessing: ToTensor):
        self.x = x
        self.y = y
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        from PIL import Image

        pixels = self.x[index].numpy()
        image = to_tensor(self.preprocessing, Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))
        return image if self.y is None else (image, self.y[index])


def to_tensor(preprocessing: Preprocessing | ToTensor, image: Any) -> Tensor:
    """Return a PIL image as the tensor that `preprocessing` makes of it."""
    if isinstance(preprocessing, Preprocessing):
        return preprocessing.image(image)
    result = preprocessing(image)
    if not isinstance(result, Tensor):
        raise DataError(f"the preprocessing function returned a {type(result).__name__}; return a tensor")
    return result


class NamedArrayDataset(Dataset[Any]):
    """Inputs by name, each an array with the samples in dimension 0; a sample is a mapping, its target under "labels"."""

    def __init__(self, columns: Mapping[str, Tensor], y: Tensor | None) -> None:
        self.columns = dict(columns)
        if y is not None:
            self.y = y

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = {name: values[index] for name, values in self.columns.items()}
        return sample | ({"labels": self.y[index]} if hasattr(self, "y") else {})
