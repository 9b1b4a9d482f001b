"""Batch-norm folded into the convolution, transposed convolution or linear layer before it.

In eval mode a batch-norm is one multiplication and one addition per channel:

    y = γ · (x − μ) / √(σ² + ε) + β        μ, σ² its running statistics; γ = 1, β = 0 where not affine

After a layer that computes x = W·u + b, with s = γ / √(σ² + ε), the two are one layer of the same kind:

    W' = s · W        s over the output channels: dimension 0 of Conv and Linear, dimension 1 of ConvTranspose,
                      there within each group
    b' = s · (b − μ) + β        b = 0 where the layer has no bias
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import example_batch
from compress.errors import ModelError
from compress.fusion.feeding import Found, find_batchnorms
from compress.given import model_of
from compress.shapes import replace_module
from compress.state import copied
from compress.steps import Change, Step
from compress.taking import takes

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)
_BATCHNORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@takes()
def fuse(module: nn.Module, example_inputs: Any = None) -> Step:
    """Fold every batch-norm that can be into the layer before it, on a copy of `module`.

    The result has the same class and submodules; a folded batch-norm has become `nn.Identity`. In eval mode its outputs
    equal the original's to float rounding. Each batch-norm left alone is listed with the reason. Without
    `example_inputs` the module is traced symbolically, which sees fewer models and no shapes.

    Raises:
        ModelError: the module can neither be exported nor traced, with the reason.
        InputError: the module rejects `example_inputs`.
    """
    module = model_of(module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"fuse folds batch-norm of a torch.nn.Module, not of a {type(module).__name__}")
    fused = copied(module)
    inputs = None if example_inputs is None else example_batch(example_inputs)
    changes = []
    for found in find_batchnorms(fused, _batchnorm_names(fused), inputs):
        reason = found.refusal or _refusal(fused, found)
        if reason:
            changes.append(Change(found.batchnorm, "not fused", reason, skipped=True))
            continue
        assert found.layer is not None
        with torch.no_grad():
            fold(fused.get_submodule(found.layer), fused.get_submodule(found.batchnorm))
        replace_module(fused, found.batchnorm, nn.Identity())
        changes.append(Change(found.batchnorm, f"fused into {found.layer}"))
    notes = () if changes else ("the module has no batch-norm to fuse",)
    return Step("fuse", fused, tuple(changes), notes)


def fold(layer: nn.Module, batchnorm: nn.Module) -> None:
    """Give `layer`, in place, the weight and bias that include `batchnorm`; the arithmetic is float64.

    Raises:
        ModelError: `batchnorm` has no running statistics, or the layer is of another kind.
    """
    if not isinstance(layer, _LAYERS):
        raise ModelError(f"a batch-norm folds into a convolution or linear layer, not into {type(layer).__name__}")
    mean, variance = batchnorm.running_mean, batchnorm.running_var
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        raise ModelError("this batch-norm keeps no running statistics, so its effect in eval mode is not fixed")
    weight, bias = layer.weight, layer.bias
    gamma = batchnorm.weight if isinstance(batchnorm.weight, Tensor) else torch.ones_like(mean)
    beta = batchnorm.bias if isinstance(batchnorm.bias, Tensor) else torch.zeros_like(mean)
    scale = gamma.double() / torch.sqrt(variance.double() + float(batchnorm.eps))  # type: ignore[arg-type]  # a number in every batch-norm
    start = bias.double() if bias is not None else torch.zeros_like(mean, dtype=torch.float64)
    new_bias = scale * (start - mean.double()) + beta.double()
    new_weight = weight.double() * _over_outputs(scale, layer)
    layer.weight = nn.Parameter(new_weight.to(weight.dtype), weight.requires_grad)
    trains = bias.requires_grad if bias is not None else weight.requires_grad
    layer.bias = nn.Parameter(new_bias.to(weight.dtype), trains)


def _over_outputs(scale: Tensor, layer: nn.Module) -> Tensor:
    """Shape the per-channel scale so that it multiplies the weight's output channels."""
    weight: Tensor = layer.weight  # type: ignore[assignment]  # a parameter
    if not isinstance(layer, _TRANSPOSED):
        return scale.reshape(-1, *[1] * (weight.ndim - 1))
    # Weight (in, out / groups, …): rows of group g make the output channels of group g.
    per_group = scale.reshape(layer.groups, -1).repeat_interleave(weight.shape[0] // layer.groups, dim=0)
    return per_group.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2))


def _batchnorm_names(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def _refusal(module: nn.Module, found: Found) -> str:
    """Why this pair, found next to each other, cannot be folded; empty if it can."""
    batchnorm, layer = module.get_submodule(found.batchnorm), module.get_submodule(found.layer or "")
    if type(batchnorm).forward not in {kind.forward for kind in _BATCHNORMS}:
        return f"its class {type(batchnorm).__name__} has a forward of its own, which may do more than normalize"
    if batchnorm._forward_hooks or batchnorm._forward_pre_hooks:
        return "it has forward hooks, which would be lost"
    if batchnorm.running_mean is None or batchnorm.running_var is None:
        return "it keeps no running statistics, so it depends on the batch also in eval mode"
    if not isinstance(layer, _LAYERS):
        return f"{found.layer} is a {type(layer).__name__}, not a layer of torch.nn with a weight and a bias"
    if hasattr(layer, "parametrizations") or type(layer).forward not in {kind.forward for kind in _LAYERS}:
        return f"{found.layer} computes its weight or has a forward of its own"
    if layer._forward_hooks:
        return f"{found.layer} has forward hooks, which see its output before the batch-norm"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if channels != batchnorm.running_mean.numel():  # type: ignore[operator]  # kept statistics: checked by the caller
        return f"it normalizes another dimension than the {channels} outputs of {found.layer}"
    return ""
