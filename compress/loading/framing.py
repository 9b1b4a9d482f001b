"""The frame of images that no option names: the model's own size, the images' one size, ImageNet's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

from compress.loading.preprocessing import Preprocessing

LOOKED_AT = 32  # images, two of a folder, that tell whether all have one size
IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"}


def framed(
    base: Preprocessing, folder: str | Path, model_size: tuple[int, int] | None, *, kept: bool
) -> tuple[Preprocessing, str]:
    """Return `base` with the frame that fits, and words for where it comes from ("" where it stays `base`'s).

    A model that takes one size only decides. Else, unless `kept` (the frame comes with the model's weights), images
    that all have one smaller size keep it: ImageNet's crop of 224 would blow 32×32 up seven times.
    """
    if model_size is not None:
        if model_size == base.size:
            return base, ""
        return _with_frame(base, model_size), "what the model takes"
    own = None if kept else common_size(folder)
    if own is not None and base.size is not None and max(own) < min(base.size):
        return _with_frame(base, own), "the images' own size"
    return base, ""


def common_size(folder: str | Path) -> tuple[int, int] | None:
    """Height and width that the images of a folder share; None where they differ (or there are none)."""
    sizes = {_size(path) for path in islice(_spread(Path(folder)), LOOKED_AT)}
    return sizes.pop() if len(sizes) == 1 else None


def _spread(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders.sort()
        images = (name for name in sorted(names) if Path(name).suffix.lower() in IMAGES and not name.startswith("."))
        yield from (Path(root) / name for name in islice(images, 2))


def _size(path: Path) -> tuple[int, int] | None:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError:  # a broken image is named when it is read
        return None


def _with_frame(base: Preprocessing, size: tuple[int, int]) -> Preprocessing:
    square = size[0] == size[1]
    return replace(base, resize=size[0], crop=size[0]) if square else replace(base, resize=size, crop=None)


def described(name: str, preprocessing: Preprocessing, origin: str) -> str:
    """Report how images are prepared where the user has not set it: the wrong mean costs accuracy in silence."""
    height, width = preprocessing.size or (0, 0)
    short = preprocessing.resize if isinstance(preprocessing.resize, int) else min(preprocessing.resize or (0,))
    frame = f"shorter side to {short}, centre {height}×{width}" if isinstance(preprocessing.resize, int) else ""
    frame = frame or f"resized to {height}×{width}"
    return f"images of {name}: {frame}{f' ({origin})' if origin else ''}"
