"""Agreement of two forms of one model on the same inputs, output by output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.batches import Batch, call, example_batch, leaves_of
from compress.counting import counted
from compress.errors import ParityError
from compress.runtimes.onnxruntime import Session
from compress.state import evaluating

# Largest difference allowed, as a share of the output's largest value: float32 convolutions of
# a hundred layers, summed in another order, differ by about 1e-4; a wrong weight by far more.
RELATIVE_TOLERANCE = {np.dtype(np.float64): 1e-3, np.dtype(np.float32): 1e-3, np.dtype(np.float16): 2e-2}
ABSOLUTE_TOLERANCE = 1e-6

Form = Path | str | ir.Model | Session | nn.Module | Callable[..., Any]


@dataclass(frozen=True)
class Parity:
    """How far two models are apart. `output` is the worst one, by difference over tolerance."""

    output: str
    difference: float  # max |first − second| there; inf where shapes differ or one is not finite
    scale: float  # max |first| there
    tolerance: float
    differences: Mapping[str, float] = field(default_factory=dict)  # of every output

    @property
    def excess(self) -> float:
        """Difference as a multiple of the tolerance: how parities are ranked."""
        return _excess(self.difference, self.tolerance)

    @property
    def agrees(self) -> bool:
        return self.difference <= self.tolerance


def compare(
    first: Form,
    second: Form,
    inputs: Any,
    *,
    output_names: Sequence[str] | None = None,
    relative_tolerance: float | None = None,
) -> Parity:
    """Run both on `inputs` (one batch, in any form of `example_batch`) and return where and how much they differ.

    Each may be a module (run in eval mode), a graph, an `.onnx` file, a `Session`, or a function
    of tensors. An output agrees where max |a − b| ≤ relative tolerance · max |a| + 1e-6 (of tiny outputs, such as
    random weights give, less: a hundredth of max |a|); integers and booleans must be equal.
    """
    run_first, run_second = _runner(first), _runner(second)
    # Functions that hold their inputs already are called without any.
    inputs = Batch({}) if isinstance(inputs, tuple) and not inputs else example_batch(inputs)
    names = output_names or next((s.output_names for s in (run_second, run_first) if isinstance(s, Session)), None)
    ours, theirs = _arrays(_call(run_first, inputs)), _arrays(_call(run_second, inputs))
    if len(ours) != len(theirs):
        raise ParityError(f"one model returns {counted(len(ours), 'output')}, the other {len(theirs)}")
    rows = [_difference(a, b, relative_tolerance) for a, b in zip(ours, theirs)]
    labels = list(names) if names and len(names) == len(rows) else [f"output_{index}" for index in range(len(rows))]
    if not rows:
        raise ParityError("the models return no tensors, so there is nothing to compare")
    worst = max(range(len(rows)), key=lambda index: _excess(rows[index][0], rows[index][2]))
    difference, scale, tolerance = rows[worst]
    return Parity(labels[worst], difference, scale, tolerance, {n: row[0] for n, row in zip(labels, rows)})


def check_parity(first: Form, second: Form, inputs: Any, *, output_names: Sequence[str] | None = None) -> Parity:
    """Like `compare`, but two models that differ are an error.

    Raises:
        ParityError: names the worst output and the largest difference.
    """
    parity = compare(first, second, inputs, output_names=output_names)
    if not parity.agrees:
        raise ParityError(
            f"output {parity.output!r} differs by up to {parity.difference:.3g} between the two models "
            f"(its largest value is {parity.scale:.3g}, allowed is {parity.tolerance:.3g})"
        )
    return parity


def _arrays(outputs: Any) -> tuple[np.ndarray, ...]:
    return tuple(_array(leaf) for leaf in leaves_of(outputs))


def _array(leaf: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(leaf, Tensor):
        leaf = leaf.detach().cpu()
        return leaf.float().numpy() if leaf.dtype == torch.bfloat16 else leaf.numpy()
    return leaf


def _runner(form: Form) -> Any:
    return Session(form) if isinstance(form, (str, Path, ir.Model)) else form


def _call(runner: Any, inputs: Batch) -> Any:
    if isinstance(runner, Session):
        return runner.run(inputs)
    if isinstance(runner, nn.Module):
        with evaluating(runner):
            return call(runner, inputs)
    return runner(*inputs.values)


def _difference(a: np.ndarray, b: np.ndarray, relative: float | None) -> tuple[float, float, float]:
    """(max |a − b|, max |a|, tolerance); NaN meets NaN and inf meets inf of the same sign."""
    if a.shape != b.shape:
        return float("inf"), 0.0, 0.0
    if a.size == 0:
        return 0.0, 0.0, 0.0
    if a.dtype.kind not in "fc":
        return float(np.max(a.astype(np.float64) != b.astype(np.float64))), float(np.max(np.abs(a.astype(float)))), 0.0
    relative = RELATIVE_TOLERANCE.get(b.dtype, RELATIVE_TOLERANCE.get(a.dtype, 1e-3)) if relative is None else relative
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
    with np.errstate(invalid="ignore"):
        apart = np.where(same, 0.0, np.abs(wide_a - wide_b))
    difference = float("inf") if np.isnan(apart).any() else float(apart.max())
    finite = np.abs(wide_a[np.isfinite(wide_a)])
    scale = float(finite.max()) if finite.size else 0.0
    # Without the limit, every output below 1e-6 would agree with every other.
    absolute = min(ABSOLUTE_TOLERANCE, scale / 100) if scale else ABSOLUTE_TOLERANCE
    return difference, scale, relative * scale + absolute


def _excess(difference: float, tolerance: float) -> float:
    if tolerance:
        return difference / tolerance
    return float("inf") if difference else 0.0
