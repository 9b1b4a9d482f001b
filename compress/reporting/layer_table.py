"""Figures of single layers as a table, the worst layer first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from compress.decibels import decibels as to_decibels
from compress.reporting.table import size

Layer = Mapping[str, Any]


def decibels(noise: float | None) -> str | None:
    """Signal to noise of a noise power that is a share of the signal's.

    >>> decibels(0.01)
    '20.0'
    """
    return None if noise is None else f"{to_decibels(noise):.1f}" if noise else "∞"


# key of a layer's figures → heading, how its value is shown
COLUMNS: dict[str, tuple[str, Callable[[Any], str | None]]] = {
    "sensitivity": ("dB at the outputs", decibels),
    "weights_noise": ("weights alone", decibels),
    "activations_noise": ("activations alone", decibels),
    "own_noise": ("dB at its own", decibels),
    "agreement": ("same answers", lambda value: None if value is None else f"{100 * value:.1f} %"),
    "lost": ("lost", lambda value: None if value is None else f"{value:.4g}"),
    "bytes_saved": ("saved", size),
    "milliseconds_saved": ("ms gained", lambda value: None if value is None else f"{value:.3f}"),
}


def render(layers: Sequence[Layer], *, style: str = "simple") -> str:
    """The layers that have a sensitivity, one a line, with the columns that any of them fills; "" where there are none."""
    lines = cells(layers)
    align = ["left", *["right"] * (len(lines[0]) - 1)]
    return tabulate(lines[1:], lines[0], tablefmt=style, colalign=align, disable_numparse=True) if lines[1:] else ""


def cells(layers: Sequence[Layer]) -> list[list[str]]:
    """The headings, then a line for each layer that has a sensitivity."""
    found = [layer for layer in layers if "sensitivity" in layer]
    keys = [key for key in COLUMNS if any(layer.get(key) is not None for layer in found)]
    lines = [[str(layer["name"]), *(COLUMNS[key][1](layer.get(key)) or "" for key in keys)] for layer in found]
    return [["layer", *(COLUMNS[key][0] for key in keys)], *lines]
