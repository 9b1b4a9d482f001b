"""The one tensor of a model's outputs that losses and teachers are about."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from compress.errors import InputError

PREFERRED = ("logits", "out")  # as transformers' outputs and torchvision's segmentation name it


def named_outputs(output: Any) -> dict[str, Any]:
    """The parts of an output by name (those of a tuple: by position); {} of a tensor."""
    if isinstance(output, Mapping):
        return {str(key): value for key, value in output.items()}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    if isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        return {str(name): value for name, value in zip(names, output)}
    return {}


def one_tensor(output: Any) -> Tensor:
    """Return the tensor that an output is, or holds: `logits` or `out`, else the only one beside a loss.

    Raises:
        InputError: it holds none, or several.
    """
    found = find_tensor(output)
    if found is None:
        names = [name for name, value in named_outputs(output).items() if isinstance(value, Tensor)]
        content = f"{len(names)} tensors ({', '.join(names)})" if names else f"a {type(output).__name__}"
        raise InputError(
            f"this loss takes one tensor, and the model returns {content}; give a loss of your own (module:function)"
        )
    return found


def find_tensor(output: Any) -> Tensor | None:
    """As `one_tensor`, or None."""
    if isinstance(output, Tensor):
        return output
    parts = {name: value for name, value in named_outputs(output).items() if isinstance(value, Tensor)}
    for name in PREFERRED:
        if name in parts:
            return parts[name]
    rest = [value for name, value in parts.items() if name != "loss"]
    return rest[0] if len(rest) == 1 else None
