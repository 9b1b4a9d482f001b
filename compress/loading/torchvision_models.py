"""Models of torchvision, with the preprocessing that their weights were trained with."""

from __future__ import annotations

import contextlib
import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

from compress.errors import ModelError, WeightsError, first_line, nearest
from compress.loading.loaded import BATCH, LoadedModel
from compress.loading.preprocessing import from_torchvision
from compress.loading.torchvision_ops import torchvision


def names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    return list(torchvision.models.list_models(module=torchvision.models))


def build(name: str, weights: str | Path | None, arguments: dict[str, Any]) -> LoadedModel:
    """Build a torchvision model; weights that are no file are torchvision's own, and are downloaded.

    Raises:
        ModelError: no such model, or arguments that it does not take.
        WeightsError: no such weights, or the download failed.
    """
    if name not in torchvision.models.list_models():
        raise ModelError(f"unknown model {name!r}; {nearest(name, names())}")
    known = torchvision.models.get_model_weights(name)
    own = _own_weights(name, known, weights)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the table
        warnings.simplefilter("ignore", FutureWarning)  # the initialization of inception_v3 and googlenet
        try:
            module = torchvision.models.get_model(name, weights=own, **_complete(name, own, arguments))
        except OSError as error:  # URLError among them
            raise WeightsError(_failed(name, own, error)) from error
        except RuntimeError as error:
            if own is None or "hash" not in str(error):
                raise ModelError(f"model {name!r} cannot be built: {first_line(error)}") from error
            raise WeightsError(_failed(name, own, error)) from error
        except (TypeError, ValueError) as error:
            raise ModelError(f"model {name!r} cannot be built with {arguments}: {first_line(error)}") from error
    recipe = from_torchvision((own or known.DEFAULT).transforms()) if len(known) else None
    size = recipe.size if recipe is not None else None
    shape = None if size is None else (BATCH, 3, *size)
    return LoadedModel(name, module, "module", input_shape=shape, preprocessing=recipe)


def _own_weights(name: str, known: Any, weights: str | Path | None) -> Any:
    text = str(weights)
    if weights is None or Path(text).suffix or Path(text).exists():
        return None
    if text not in known.__members__:
        raise WeightsError(f"weights {text!r} are no file and none of {name}'s own; {nearest(text, known.__members__)}")
    return known[text]


def _complete(name: str, own: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    # Detectors otherwise download their backbone's weights even where their own were not asked for.
    parameters = _parameters(name)
    return {"weights_backbone": None, **arguments} if own is None and "weights_backbone" in parameters else arguments


def _parameters(name: str) -> set[str]:
    return set(inspect.signature(torchvision.models.get_model_builder(name)).parameters)


def _failed(name: str, own: Any, error: Exception) -> str:
    return f"weights of {name!r} could not be downloaded ({first_line(error)}); fetch {own.url} yourself and pass --weights FILE"
