"""Models of timm, where it is installed."""

from __future__ import annotations

from typing import Any

from compress.errors import ModelError, WeightsError, first_line, nearest
from compress.loading.loaded import BATCH, LoadedModel
from compress.loading.preprocessing import Preprocessing


def build(name: str, *, pretrained: bool, arguments: dict[str, Any]) -> LoadedModel:
    """Build a timm model; `pretrained` downloads its default weights.

    Raises:
        ModelError: timm is not installed, has no such model, or does not take these arguments.
        WeightsError: the weights could not be downloaded.
    """
    # timm imports torchvision, which may need its one door.
    import compress.loading.torchvision_ops  # noqa: F401

    try:
        import timm
    except ImportError as error:
        raise ModelError(f"model 'timm:{name}' needs timm ({error}); run: pip install timm") from error
    if not timm.is_model(name):
        raise ModelError(f"unknown timm model {name!r}; {nearest(name, timm.list_models())}")
    try:
        module = timm.create_model(name, pretrained=pretrained, **arguments)
    except (TypeError, ValueError) as error:
        raise ModelError(f"model 'timm:{name}' cannot be built with {arguments}: {first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise ModelError(f"model 'timm:{name}' cannot be built: {first_line(error)}") from error
        raise WeightsError(
            f"weights of 'timm:{name}' could not be downloaded ({first_line(error)}); fetch them and pass --weights FILE"
        ) from error
    return _described(name, module, timm.data.resolve_model_data_config(module))


def _described(name: str, module: Any, config: dict[str, Any]) -> LoadedModel:
    channels, height, width = config["input_size"]
    crop = (height, width) if height != width else height
    recipe = Preprocessing(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize=round(min(height, width) / config.get("crop_pct", 1.0)),
        crop=crop,
        interpolation=config.get("interpolation", "bilinear"),
        suggested=True,
    )
    return LoadedModel(name, module, "module", input_shape=(BATCH, channels, height, width), preprocessing=recipe)
