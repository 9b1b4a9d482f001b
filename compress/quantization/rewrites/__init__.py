"""Graph rewrites, one file each, exact in float."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from compress.graph.folding import infer_shapes, naming, remove_unused
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

# In order: patterns of many nodes become one operator first; scalars fold once every other rewrite has left its own, and free additions;
# padding comes last, on the channels that are really there.
REWRITES: Mapping[str, Callable[[ir.Model], tuple[Change, ...]]] = {
    "batch_norm": batch_norm.apply,
    "layer_norm": layer_norm.apply,
    "gelu": gelu.apply,
    "silu": silu.apply,
    "hard_swish": hard_swish.apply,
    "prelu": prelu.apply,
    "spatial_mean": spatial_mean.apply,
    "layer_scale": layer_scale.apply,
    "product_scale": product_scale.apply,
    "scalars": scalars.apply,
    "channel_bias": channel_bias.apply,
    "padding": padding.apply,
}


def apply_rewrites(graph: ir.Model, names: tuple[str, ...] = tuple(REWRITES)) -> tuple[Change, ...]:
    """Apply the named rewrites, in place and in the order of `REWRITES`; return what they did and declined."""
    infer_shapes(graph)
    changes: list[Change] = []
    with naming(graph):
        for name, apply in REWRITES.items():
            if name in names:
                changes += apply(graph)
    remove_unused(graph)
    infer_shapes(graph)
    return tuple(changes)
