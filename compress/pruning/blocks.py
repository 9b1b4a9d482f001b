"""Residual blocks removed whole: a shallower network, the blocks that matter least first.

    y = x + f(x)        without f's parameters (all zero) the block is the identity, and can go
    y = relu(x + f(x))  as well, where x comes out of a relu

    y = norm(x + f(x))  a layer that normalizes last, as in BERT: with f at zero it normalizes x, which it is already

A block is therefore any module that returns its first input, or that one normalized, on the example inputs, once its
weights are zero; no list of architectures. It leaves an `nn.Identity`, and the outputs are those of the original with
those blocks passed by.
Why it pays: He et al. 2016 and Veit et al. 2016 show how little single blocks of a deep residual network matter, and
a removed layer saves its whole call, where a thinner one often takes as long as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from compress.batches import Batch, call, first_batches, joined
from compress.errors import PruningError
from compress.progress import track
from compress.pruning.amounts import check_amount
from compress.pruning.patterns import check_patterns, matches
from compress.pruning.removal import count_notes
from compress.pruning.verifying import difference, tensors_of
from compress.shapes import replace_module, skip_for
from compress.state import copied, evaluating
from compress.steps import Change, Step

SAMPLES = 64  # that blocks are scored on
ROUNDS = 8  # at most; the scores are taken anew after each
EXACT = 1e-5
NORMALIZED = 1e-2  # their small constants differ
TOLERANCE = 1e-4


def prune_blocks(
    module: nn.Module,
    inputs: Batch,
    *,
    amount: float = 0.5,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    data: Iterable[Any] | None = None,
) -> Step:
    """Return a copy of `module` without the fraction `amount` of its residual blocks.

    A block's score is the mean squared change of the outputs when it alone is left out, over their variance, on up to
    64 samples of `data` (else on `inputs`); blocks go in rounds, and each round scores the rest again.

    Raises:
        PruningError: no block can be removed, an unknown name, an amount outside [0, 1).
    """
    check_amount(amount)
    found = find_blocks(module, inputs)
    if not found:
        raise PruningError(
            "no block of this model can be removed: no submodule returns its first argument once its weights are zero; "
            "additions in the outermost forward cannot be taken out"
        )
    candidates = _asked_for(module, found, include, exclude)
    if not candidates:
        raise PruningError(f"none of the blocks asked for can be removed; these can: {', '.join(found[:8])}")
    wanted = int(amount * len(candidates) + 0.5)
    if not wanted and amount:
        raise PruningError(f"{100 * amount:g} % of {len(candidates)} removable blocks is less than one; give more")
    smaller, left, scores = copied(module), list(candidates), dict.fromkeys(candidates, 0.0)
    samples = _samples(data, inputs)
    with evaluating(module):
        whole = call(module, samples)
    removed: list[str] = []
    share = max(1, -(-wanted // ROUNDS))
    for start in track(range(0, wanted, share), "scoring blocks", unit="round"):
        for name in left:
            scores[name] = _change(without(smaller, [name]), samples, whole)
        gone = sorted(left, key=scores.__getitem__)[: min(share, wanted - start)]
        smaller = without(smaller, gone)
        removed += gone
        left = [name for name in left if name not in gone]
    _check(module, smaller, removed, inputs)
    notes = count_notes({"parameters": _count(module)}, {"parameters": _count(smaller)})
    notes.append(f"{len(removed)} of {len(candidates)} removable blocks removed: {', '.join(sorted(removed))}")
    return Step("prune", smaller, tuple(_changes(module, candidates, removed, scores)), tuple(notes))


def find_blocks(module: nn.Module, inputs: Batch) -> tuple[str, ...]:
    """Name the innermost modules that can be removed: called once, and the identity with their parameters at zero.

    One whose place the forward around it needs (it reads an attribute there) stays, and so does what it is part of.
    """
    calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any]] | None]] = {}

    def watch(name: str) -> Any:
        def hook(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            tensors = bool(args) and isinstance(args[0], Tensor) and isinstance(output, Tensor)
            same = tensors and args[0].shape == output.shape and args[0].dtype == output.dtype
            calls.setdefault(name, []).append(((args[0].detach().clone(), *args[1:]), kwargs) if same else None)

        return hook

    named = [(name, part) for name, part in module.named_modules() if name and _has_layers(part)]
    handles = [part.register_forward_hook(watch(name), with_kwargs=True) for name, part in named]
    try:
        with evaluating(module):
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    blocks: list[str] = []
    staying: list[str] = []
    for name, part in reversed(named):  # the inner ones first
        seen = calls.get(name, [])
        inner = any(other.startswith(f"{name}.") for other in (*blocks, *staying))
        if len(seen) != 1 or seen[0] is None or inner:
            continue
        args, kwargs = seen[0]
        if _is_identity(part, args, kwargs) or _only_normalizes(part, args, kwargs):
            (blocks if _runs_without(module, name, inputs) else staying).append(name)
    return tuple(reversed(blocks))


def without(module: nn.Module, blocks: Iterable[str]) -> nn.Module:
    """Return a copy of `module`, sharing its parameters, with what lets the input through in place of `blocks`."""
    shared = {id(value): value for value in (*module.parameters(), *module.buffers())}
    shorter = copied(module, shared)
    for name in blocks:
        replace_module(shorter, name, skip_for(module.get_submodule(name)))
    return shorter


def _has_layers(part: nn.Module) -> bool:
    return bool(list(part.children())) and any(value.dim() > 1 for value in part.parameters())


def _is_identity(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    x = args[0]
    zeroed = copied(part)
    try:
        with evaluating(zeroed):
            for parameter in zeroed.parameters():
                parameter.zero_()
            output = zeroed(*args, **kwargs)
    except Exception:  # whatever a forward raises on weights of zero: such a part is no block
        return False
    return isinstance(output, Tensor) and output.shape == x.shape and difference(output, x) <= EXACT


NORMS = (nn.LayerNorm, nn.RMSNorm)


def _only_normalizes(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether with its weights at zero, those of normalization at one, the input comes out normalized over the last axis."""
    x = args[0]
    plain = copied(part)
    norms = [inner for inner in plain.modules() if isinstance(inner, NORMS) and inner.weight is not None]
    if not norms or not x.is_floating_point():
        return False
    try:
        with evaluating(plain):
            for parameter in plain.parameters():
                parameter.zero_()
            for norm in norms:
                assert norm.weight is not None
                norm.weight.fill_(1.0)
            output = plain(*args, **kwargs)
    except Exception:  # as above
        return False
    wanted = (nn.functional.layer_norm(x, x.shape[-1:]), nn.functional.rms_norm(x, x.shape[-1:]))
    return any(difference(output, value) <= NORMALIZED for value in wanted)


def _runs_without(module: nn.Module, name: str, inputs: Batch) -> bool:
    shorter = without(module, [name])
    try:
        with evaluating(shorter):
            call(shorter, inputs)
    except Exception:  # whatever a forward raises that looks for something in the block
        return False
    return True


def _asked_for(
    module: nn.Module, blocks: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> tuple[str, ...]:
    check_patterns(module, *include, *exclude)
    return tuple(name for name in blocks if not matches(name, exclude) and (not include or matches(name, include)))


def _samples(data: Iterable[Any] | None, inputs: Batch) -> Batch:
    if data is None:
        return inputs
    seen = list(first_batches(data, SAMPLES))
    return joined(seen).part(0, SAMPLES) if seen else inputs


def _change(shorter: nn.Module, samples: Batch, whole: Any) -> float:
    with evaluating(shorter):
        outputs = call(shorter, samples)
    total = 0.0
    for now, before in zip(_leaves(outputs), _leaves(whole), strict=True):
        total += float((now - before).square().mean() / before.var().clamp(min=1e-12))
    return total


def _leaves(value: Any) -> list[Tensor]:
    return [item.double() for item in tensors_of(value) if item.is_floating_point()]


def _check(module: nn.Module, smaller: nn.Module, removed: Sequence[str], inputs: Batch) -> None:
    """Hold the shallower module to the original whose blocks give back their input."""
    passed = copied(module)
    for name in removed:
        passed.get_submodule(name).register_forward_hook(lambda part, args, output: args[0])
    with evaluating(passed), evaluating(smaller):
        error = difference(call(smaller, inputs), call(passed, inputs))
    if error > TOLERANCE:
        raise PruningError(
            f"without {', '.join(removed)} the outputs differ from the zeroed original's by {error:.1e}; "
            "leave one of them out with --exclude"
        )


def _changes(
    module: nn.Module, candidates: Sequence[str], removed: Sequence[str], scores: dict[str, float]
) -> Iterator[Change]:
    for name in candidates:
        values = {"parameters": _count(module.get_submodule(name)), "score": scores[name]}
        if name in removed:
            yield Change(name, "block removed", values=values)
        else:
            yield Change(name, "block kept", "its removal changes the outputs more", skipped=True, values=values)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
