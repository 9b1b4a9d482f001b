"""Masks: weights held at zero, on top of `torch.nn.utils.prune`."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from compress.errors import PruningError, nearest
from compress.pruning.patterns import check_patterns, matches
from compress.pruning.request import PruneRequest
from compress.pruning.sparsity import sparsity_changes
from compress.state import copied, seeded
from compress.steps import Change, Step

MASK_METHODS = ("l1", "random", "ln", "random-structured", "N:M, such as 2:4")
MASKED = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.RNNBase, nn.MultiheadAttention)
NOTE = "zeros alone do not speed up dense kernels; remove channels for speed, or store the file sparse for size"


@dataclass(frozen=True)
class MaskRequest:
    """What to mask. `amount` is a fraction, or a whole number of elements (of slices, where structured)."""

    method: str = "l1"
    amount: float | int = 0.5
    scope: str = "layer"  # or "global": the least of all chosen weights together (l1, random)
    n: float = 2  # the norm of "ln"
    dim: int = 0  # of "ln" and "random-structured": 0 output channels, 1 input channels
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, request: PruneRequest) -> MaskRequest:
        shared = {field.name: getattr(request, field.name) for field in fields(cls)}
        return cls(**{**shared, "method": str(request.method)})


class PatternMask(torch_prune.BasePruningMethod):
    """N:M: of every M neighbours along the input dimension, the N largest stay (Mishra et al. 2021)."""

    PRUNING_TYPE = "global"  # on top of earlier masks torch hands in the whole weight, not a flat list of what is left

    def __init__(self, kept: int, of: int) -> None:
        self.kept, self.of = kept, of

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        groups = (t * default_mask).abs().movedim(1, -1)
        shape = groups.shape
        groups = groups.reshape(-1, self.of)
        mask = torch.zeros_like(groups).scatter_(1, groups.topk(self.kept, 1).indices, 1)
        return mask.reshape(shape).movedim(-1, 1).to(default_mask.dtype) * default_mask


def mask_weights(module: nn.Module, request: MaskRequest, *, permanent: bool = True) -> Step:
    """Return a copy of `module` with weights masked to zero.

    With `permanent=False` the masks stay attached (`weight_orig` and `weight_mask`), so that training keeps the zeros;
    `make_permanent` ends that.

    Raises:
        PruningError: an argument is out of range, or a name is unknown.
    """
    pattern = _check(request)
    twin = copied(module)
    chosen, refused = _chosen(twin, request, pattern)
    with seeded(request.seed):
        if request.scope == "global":
            kind = {"l1": torch_prune.L1Unstructured, "random": torch_prune.RandomUnstructured}[request.method]
            torch_prune.global_unstructured([(part, name) for _, part, name in chosen], kind, amount=request.amount)
        else:
            for _, part, name in chosen:
                _mask_one(part, name, request, pattern)
    refresh(twin)
    names = {(path, name) for path, _, name in chosen}
    changes = [*sparsity_changes(twin, names, request.method), *refused]
    return Step("mask", make_permanent(twin) if permanent else twin, tuple(changes), (NOTE,))


def check_masks(module: nn.Module, request: MaskRequest) -> None:
    """Say what is wrong with a request before anything is masked; raises as `mask_weights`."""
    _chosen(module, request, _check(request))


def _mask_one(part: nn.Module, name: str, request: MaskRequest, pattern: tuple[int, int] | None) -> None:
    amount: Any = request.amount
    if pattern is not None:
        PatternMask.apply(part, name, kept=pattern[0], of=pattern[1])
    elif request.method == "l1":
        torch_prune.l1_unstructured(part, name, amount=amount)
    elif request.method == "random":
        torch_prune.random_unstructured(part, name, amount=amount)
    elif request.method == "ln":
        torch_prune.ln_structured(part, name, amount=amount, n=request.n, dim=request.dim)
    else:
        torch_prune.random_structured(part, name, amount=amount, dim=request.dim)


def _check(request: MaskRequest) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d+):(\d+)", request.method)
    if match:
        kept, of = int(match[1]), int(match[2])
        if not 0 < kept < of:
            raise PruningError(
                f"mask pattern {request.method!r} keeps {kept} of {of}; give N:M with 0 < N < M, such as 2:4"
            )
        return kept, of
    if request.method not in MASK_METHODS[:4]:
        raise PruningError(f"mask method {request.method!r} is unknown; {nearest(request.method, MASK_METHODS)}")
    amount = request.amount
    number = isinstance(amount, (int, float)) and not isinstance(amount, bool)
    if not number or amount < 0 or (isinstance(amount, float) and not amount <= 1):
        raise PruningError(
            f"amount {amount!r} is outside [0, 1]; give a fraction such as 0.5, or a whole number of weights"
        )
    if request.scope not in ("layer", "uniform", "global"):
        raise PruningError(f"mask scope {request.scope!r} is unknown; {nearest(request.scope, ('layer', 'global'))}")
    if request.scope == "global" and request.method not in ("l1", "random"):
        raise PruningError(f"mask method {request.method!r} works layer by layer; use l1 or random with scope 'global'")
    if request.dim not in (0, 1):
        raise PruningError(f"dim {request.dim!r} is not a channel dimension; 0 is outputs, 1 is inputs")
    return None


def _chosen(
    module: nn.Module, request: MaskRequest, pattern: tuple[int, int] | None
) -> tuple[list[tuple[str, nn.Module, str]], list[Change]]:
    """Return the weights to mask as (path, layer, parameter name), and refusals."""
    check_patterns(module, *request.include, *request.exclude)
    chosen: list[tuple[str, nn.Module, str]] = []
    refused: list[Change] = []
    for path, part in module.named_modules():
        named = (not request.include or matches(path, request.include)) and not matches(path, request.exclude)
        if not isinstance(part, MASKED) or not named:
            continue
        if isinstance(part, (nn.RNNBase, nn.MultiheadAttention, nn.Embedding)):
            refused.append(
                Change(path, "masked", f"{type(part).__name__} holds its weights otherwise; not masked", True)
            )
            continue
        if "weight" not in part._parameters and "weight_orig" not in part._parameters:
            refused.append(Change(path, "masked", "its weight is computed from other parameters; not masked", True))
            continue
        size = part.weight.shape[1]
        if pattern is not None and size % pattern[1]:
            refused.append(Change(path, "masked", f"{size} inputs are no multiple of {pattern[1]}", True))
            continue
        count = (
            part.weight.shape[request.dim]
            if "structured" in request.method or request.method == "ln"
            else part.weight.numel()
        )
        if isinstance(request.amount, int) and request.scope != "global" and pattern is None and request.amount > count:
            raise PruningError(f"amount {request.amount} is more than the {count} that layer {path!r} has")
        chosen.append((path, part, "weight"))
    if not chosen:
        raise PruningError("no layer to mask: none of those named is a convolution or a linear layer")
    total = sum(getattr(part, name).numel() for _, part, name in chosen)
    if isinstance(request.amount, int) and request.scope == "global" and request.amount > total:
        raise PruningError(f"amount {request.amount} is more than the {total} weights of all chosen layers")
    return chosen, refused


def make_permanent(module: nn.Module) -> nn.Module:
    """Fold masks into the weights, in place; the zeros stay, the masks go. Returns the module."""
    for part in module.modules():
        for name in [key.removesuffix("_mask") for key in part._buffers if key.endswith("_mask")]:
            if f"{name}_orig" in part._parameters:
                torch_prune.remove(part, name)
    return module


def hold_zeros(module: nn.Module) -> nn.Module:
    """Return a copy whose zero weights are masked, so that training leaves them zero."""
    twin = copied(module)
    for part in twin.modules():
        if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear)) and "weight" in part._parameters:
            zeros = part.weight == 0
            if bool(zeros.any()):
                torch_prune.custom_from_mask(part, "weight", (~zeros).to(part.weight.dtype))
    refresh(twin)
    return twin


def refresh(module: nn.Module) -> None:
    """Recompute masked weights as leaves of no graph, so that the module can be copied."""
    for part in module.modules():
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, torch_prune.BasePruningMethod):
                name = hook._tensor_name
                setattr(part, name, hook.apply_mask(part).detach())
