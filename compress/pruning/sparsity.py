"""How many weights are zero, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from compress.steps import Change


@dataclass(frozen=True)
class LayerSparsity:
    """Zeros among the elements of one weight."""

    layer: str
    parameter: str
    zeros: int
    elements: int

    @property
    def fraction(self) -> float:
        return self.zeros / self.elements if self.elements else 0.0


def layer_sparsity(module: nn.Module) -> list[LayerSparsity]:
    """Count zeros in every weight of two or more dimensions; a masked weight counts as its mask leaves it."""
    found = []
    for path, part in module.named_modules():
        for name, weight in _weights(part):
            zeros = int((weight == 0).sum())
            found.append(LayerSparsity(path, name, zeros, weight.numel()))
    return found


def _weights(part: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in part.named_parameters(recurse=False):
        plain = name.removesuffix("_orig")
        mask = part._buffers.get(f"{plain}_mask")
        if parameter.dim() > 1:
            yield (
                plain,
                parameter.detach() * mask if mask is not None and name.endswith("_orig") else parameter.detach(),
            )


def model_sparsity(module: nn.Module) -> float:
    """Fraction of the elements of all such weights that are zero."""
    layers = layer_sparsity(module)
    total = sum(layer.elements for layer in layers)
    return sum(layer.zeros for layer in layers) / total if total else 0.0


def sparsity_changes(module: nn.Module, chosen: set[tuple[str, str]], action: str) -> list[Change]:
    """One change for each masked weight, with its zeros."""
    return [
        Change(
            item.layer or item.parameter,
            f"{100 * item.fraction:.1f} % of {item.parameter} zero ({action})",
            values={
                "zeros": item.zeros,
                "elements": item.elements,
                "sparsity": item.fraction,
                "parameter": item.parameter,
            },
        )
        for item in layer_sparsity(module)
        if (item.layer, item.parameter) in chosen
    ]
