"""Graph rewrites, one file each, exact in float. A new one is one file with a function `apply` and one line here."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from compress.errors import QuantizationError, nearest
from compress.graph.editing import naming, remove_unused
from compress.graph.folding import infer_shapes
from compress.quantization.rewrites import (
    batch_norm,
    channel_bias,
    gelu,
    hard_swish,
    layer_norm,
    layer_scale,
    padding,
    prelu,
    product_scale,
    scalars,
    silu,
    spatial_mean,
)
from compress.steps import Change
from compress.tables import Entry

# In order: patterns of many nodes become one operator first; scalars fold once every other rewrite has left its own, and free additions;
# padding comes last, on the channels that are really there.
# Each works in place on a graph whose shapes are known, and returns what it did and declined.
REWRITES: dict[str, Entry] = {
    "batch_norm": Entry(batch_norm.apply, "batch normalization behind a layer, into its weights and bias"),
    "layer_norm": Entry(layer_norm.apply, "layer normalization in many nodes, as one"),
    "gelu": Entry(gelu.apply, "GELU in many nodes, as one"),
    "silu": Entry(silu.apply, "SiLU as x · sigmoid(x), both of which have int8 kernels"),
    "hard_swish": Entry(hard_swish.apply, "HardSwish as a clipped addition whose clip an int8 range performs"),
    "prelu": Entry(prelu.apply, "PReLU with one slope, as LeakyRelu"),
    "spatial_mean": Entry(spatial_mean.apply, "a mean over all spatial axes, as GlobalAveragePool"),
    "layer_scale": Entry(layer_scale.apply, "factors per channel behind a linear layer, into its weights"),
    "product_scale": Entry(product_scale.apply, "a number behind a product of two tensors, in front of it"),
    "scalars": Entry(scalars.apply, "multiplications by one number, into the weights before or behind them"),
    "channel_bias": Entry(channel_bias.apply, "what is added to the channels of one layer, into its bias"),
    "padding": Entry(padding.apply, "channels of depthwise layers padded to a multiple that the kernel likes"),
}


def apply_rewrites(graph: ir.Model, names: Collection[str] | None = None) -> tuple[Change, ...]:
    """Apply the named rewrites (None: all), in place and in the order of `REWRITES`; return what they did and declined.

    Raises:
        QuantizationError: a name that is not in the table; the nearest is given.
    """
    for name in names or ():
        if name not in REWRITES:
            raise QuantizationError(f"unknown rewrite {name!r}; {nearest(name, REWRITES)}")
    infer_shapes(graph)
    changes: list[Change] = []
    with naming(graph):
        for name, rewrite in REWRITES.items():
            if names is None or name in names:
                changes += rewrite.load()(graph)
    remove_unused(graph)
    infer_shapes(graph)
    return tuple(changes)
