"""Preprocessing: from an image, or a batch of pixels, to what the model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.counting import counted
from compress.errors import DataError, nearest

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming", "nearest-exact")


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, scale to [0, 1], subtract `mean` and divide by `std`, in this order.

    `resize=256` brings the shorter side to 256, `resize=(h, w)` both sides; `crop=224` keeps the centre 224×224.
    `mean` and `std` have one value per channel, or one for all; a grey image with three of them becomes three channels.
    None leaves a stage out. `suggested` marks a recipe that comes with a model rather than from the user: images held
    in arrays, or all of one size, then keep their size.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | tuple[int, int] | None = None
    crop: int | tuple[int, int] | None = None
    interpolation: str = "bilinear"
    antialias: bool = True
    suggested: bool = False

    def __post_init__(self) -> None:
        if self.interpolation not in _INTERPOLATIONS:
            raise DataError(
                f"unknown interpolation {self.interpolation!r}; {nearest(self.interpolation, _INTERPOLATIONS)}"
            )
        if self.std is not None and any(value <= 0 for value in self.std):
            raise DataError(f"std {self.std} must be positive; give the standard deviation of pixels scaled to [0, 1]")
        if (
            self.mean is not None
            and self.std is not None
            and not (len(self.mean) == len(self.std) or 1 in (len(self.mean), len(self.std)))
        ):
            raise DataError(
                f"mean has {counted(len(self.mean), 'value')} and std {len(self.std)}; give one per channel to both"
            )

    def image(self, image: Any) -> Tensor:
        """Return a PIL image as a float tensor (C, H, W)."""
        from compress.loading.torchvision_ops import torchvision

        if image.mode not in ("L", "RGB"):
            image = image.convert("RGB")
        return self._normalized(torchvision.transforms.functional.pil_to_tensor(self._framed(image))[None])[0]

    def pixels(self, pixels: Tensor) -> Tensor:
        """Return pixels (N, C, H, W) as floats: uint8 scaled from 0…255 to [0, 1], floats as already scaled."""
        return self._normalized(self._framed(pixels))

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of what comes out, where they are known."""
        frame = self.crop if self.crop is not None else self.resize
        return frame if frame is None or isinstance(frame, tuple) else (frame, frame)

    def as_dict(self) -> dict[str, Any]:
        """Return the stages as plain JSON values."""
        listed = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()}

    def _framed(self, image: Any) -> Any:
        if self.resize is None and self.crop is None:
            return image
        from compress.loading.torchvision_ops import torchvision

        images = torchvision.transforms.functional
        if self.resize is not None:
            size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
            image = images.resize(
                image, size, torchvision.transforms.InterpolationMode(self.interpolation), antialias=self.antialias
            )
        # With a shorter side only, images would come out in different sizes.
        return images.center_crop(image, list(self.size or ()))

    def _normalized(self, pixels: Tensor) -> Tensor:
        values = pixels.float().div(255) if pixels.dtype == torch.uint8 else pixels.float()
        channels = values.shape[1]
        for name, given in (("mean", self.mean), ("std", self.std)):
            if given is not None and channels != 1 and len(given) not in (1, channels):
                raise DataError(
                    f"{name} has {counted(len(given), 'value')} for images of {counted(channels, 'channel')}; give one per channel"
                )
        if self.mean is not None:
            values = values - torch.tensor(self.mean).view(1, -1, 1, 1)
        if self.std is not None:
            values = values / torch.tensor(self.std).view(1, -1, 1, 1)
        return values


# What nearly every published ImageNet classifier was trained with.
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), resize=256, crop=224, suggested=True)


def from_torchvision(preset: Any) -> Preprocessing | None:
    """Return the preprocessing that a torchvision weights' `transforms()` describes; None where it is another kind."""
    if not all(hasattr(preset, name) for name in ("mean", "std", "interpolation")):
        return None
    return Preprocessing(
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        resize=_side(getattr(preset, "resize_size", None)),
        crop=_side(getattr(preset, "crop_size", None)),
        interpolation=preset.interpolation.value,
        antialias=bool(getattr(preset, "antialias", True)),
        suggested=True,
    )


# PIL's numbers, which image processors of transformers store.
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


def from_image_processor(config: Mapping[str, Any]) -> Preprocessing | None:
    """Return what a `preprocessor_config.json` of transformers describes; None where it is for no images.

    A shorter side below 384 with `crop_pct` (ConvNeXt) is resized to side / crop_pct, then cropped to the side.
    `rescale_factor` other than 1/255 is folded into mean and std.

    Raises:
        DataError: sizes or a resampling that it holds are not understood.
    """
    if "image_mean" not in config and "size" not in config:
        return None
    size = _edges(config.get("size"))
    resize = size if config.get("do_resize", True) else None
    crop = _edges(config.get("crop_size")) if config.get("do_center_crop") else None
    share = config.get("crop_pct")
    if resize is not None and share and isinstance(resize, int):
        side = resize
        resize, crop = (int(side / share), (side, side)) if side < 384 else ((side, side), None)
    resample = config.get("resample", 2)
    if not isinstance(resample, int) or not 0 <= resample < len(_RESAMPLING):
        raise DataError(f"resample {resample!r} of the image processor is unknown; its numbers are 0 to 5")
    factor = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    normal = config.get("do_normalize", True)
    mean = _values(config.get("image_mean")) if normal else None
    std = _values(config.get("image_std")) if normal else None
    if abs(factor - 1) > 1e-6:  # (x·255·f − mean) / std, for x in [0, 1]
        mean = tuple(value / factor for value in mean or (0.0,))
        std = tuple(value / factor for value in std or (1.0,))
    return Preprocessing(mean, std, resize, crop, _RESAMPLING[resample], suggested=True)


def _edges(size: Any) -> int | tuple[int, int] | None:
    """A size of an image processor: a number, {"shortest_edge"}, or {"height", "width"}."""
    if isinstance(size, Mapping):
        if {"height", "width"} <= set(size):
            return int(size["height"]), int(size["width"])
        if "shortest_edge" not in size:
            raise DataError(f"size {dict(size)} of the image processor is unknown; give resize and crop")
        size = size["shortest_edge"]
    return _side(size)


def adjusted(
    base: Preprocessing,
    *,
    resize: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Preprocessing:
    """Return `base` with the user's values: any of resize and crop replaces both, any of mean and std likewise.

    Mixing the user's crop with another recipe's resize would be neither of the two.
    """
    if resize is not None or crop is not None:
        base = replace(base, resize=_side(resize), crop=_side(crop))
    if mean is not None or std is not None:
        base = replace(base, mean=_values(mean), std=_values(std))
    return base


def size_kept(preprocessing: Preprocessing, *, resized: bool) -> Preprocessing:
    """Return `preprocessing` without resize and crop where they were only suggested; `resized`: the user gave them."""
    return replace(preprocessing, resize=None, crop=None) if preprocessing.suggested and not resized else preprocessing


def _side(value: int | Sequence[int] | None) -> int | tuple[int, int] | None:
    sides = (value,) if isinstance(value, int) else tuple(value or ())
    if len(sides) > 2 or any(side < 1 for side in sides):
        raise DataError(f"size {value!r} cannot be used; give one positive number, or height and width")
    if not sides:
        return None
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _values(value: Sequence[float] | float | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    return (float(value),) if isinstance(value, (int, float)) else tuple(float(item) for item in value)
