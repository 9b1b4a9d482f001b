"""One way to run anything that can be measured: a module, a .pt2, an .onnx file, a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.batches import Batch, example_batch, resized_batch
from compress.errors import InputError
from compress.given import model_of
from compress.runtimes.runtime import DEFAULT, TORCH, find_runtime
from compress.runtimes.torch import Session


@dataclass(frozen=True)
class Runnable:
    """A model file or graph together with the runtime that runs it."""

    model: Path | str | ir.Model
    runtime: str = DEFAULT
    float_precision: str = "float32"  # in which what is left in float computes, where the runtime offers another


def run_by(path: Path, runtime: str) -> Path | Runnable:
    """A file as what measures take: with its runtime where that is not the usual one."""
    return path if runtime == DEFAULT else Runnable(path, runtime)


Target = nn.Module | ir.Model | Path | str | Runnable


class Runner(Protocol):
    """A model ready to run: called with a batch (or tensors, in order), it returns its outputs as tensors, flat."""

    path: Path | None

    def __call__(self, *inputs: Tensor | Batch) -> tuple[Tensor, ...]: ...

    def prepare(self, *inputs: Tensor | Batch) -> Callable[[], Any]:
        """Return a call without arguments that runs the model once on `inputs`, conversions done: what is timed."""
        ...


class GraphRunner:
    """An ONNX file or graph in its runtime. A fixed batch is fed in slices, the last one padded and cut."""

    def __init__(
        self,
        model: Path | str | ir.Model,
        *,
        threads: int | None = None,
        runtime: str = DEFAULT,
        float_precision: str = "float32",
    ) -> None:
        self.path = None if isinstance(model, ir.Model) else Path(model)
        self.session = find_runtime(runtime).open(model, threads=threads, float_precision=float_precision)
        self.fixed_batch = self.session.fixed_batch
        self.output_names = self.session.output_names

    def __call__(self, *inputs: Tensor | Batch) -> tuple[Tensor, ...]:
        batch = as_batch(inputs)
        if self.fixed_batch is None or batch.samples == self.fixed_batch:
            return self._run(batch)
        return in_slices(self._run, batch, self.fixed_batch)

    def _run(self, batch: Batch) -> tuple[Tensor, ...]:
        return tuple(torch.from_numpy(np.asarray(value)) for value in self.session.run(batch))

    def prepare(self, *inputs: Tensor | Batch) -> Callable[[], Any]:
        batch = as_batch(inputs)
        if self.fixed_batch is not None:
            batch = resized_batch(batch, self.fixed_batch)
        arrays = [np.ascontiguousarray(value.detach().cpu().numpy()) for value in self.session.in_order(batch)]
        return lambda: self.session.run(*arrays)


class ModuleRunner:
    """A module in eval mode without gradients; its own flags and torch's threads are given back after each call."""

    def __init__(self, module: nn.Module, *, threads: int | None = None, path: Path | None = None) -> None:
        self.path = path
        self.session = Session(module, threads=threads)
        self.fixed_batch = self.session.fixed_batch
        self.borrowed = self.session.borrowed

    def __call__(self, *inputs: Tensor | Batch) -> tuple[Tensor, ...]:
        batch = as_batch(inputs)
        with self.borrowed():
            if self.fixed_batch is None or batch.samples == self.fixed_batch:
                return self.session.tensors(batch)
            return in_slices(self.session.tensors, batch, self.fixed_batch)

    def prepare(self, *inputs: Tensor | Batch) -> Callable[[], Any]:
        batch = as_batch(inputs)
        if self.fixed_batch is not None:
            batch = resized_batch(batch, self.fixed_batch)
        return self.session.prepare(batch)


def open_runner(target: Target, *, threads: int | None = None) -> GraphRunner | ModuleRunner:
    """Open anything that can be measured: a module, an `onnx_ir.Model`, or the path of a .onnx or .pt2 file.

    Raises:
        InputError: the target is none of these.
        ModelError: the file cannot be read.
    """
    target = model_of(target)
    if isinstance(target, Runnable):
        runtime = find_runtime(target.runtime)
        if not runtime.reads_graphs:
            raise InputError(f"{runtime.name} runs modules, not ONNX graphs; give the module or its file alone")
        if isinstance(target.model, (str, Path)) and Path(target.model).suffix != ".onnx":
            raise InputError(f"{target.runtime} runs ONNX files, not {str(target.model)!r}; export the model first")
        return GraphRunner(
            target.model, threads=threads, runtime=target.runtime, float_precision=target.float_precision
        )
    if isinstance(target, nn.Module):
        return ModuleRunner(target, threads=threads)
    if isinstance(target, ir.Model):
        return GraphRunner(target, threads=threads)
    if isinstance(target, (str, Path)):
        path = Path(target)
        if path.suffix == ".onnx":
            return GraphRunner(path, threads=threads)
        if path.suffix in find_runtime(TORCH).suffixes:
            from compress.loading.models import open_model

            return ModuleRunner(open_model(str(path)).model, threads=threads, path=path)
        raise InputError(f"{str(path)!r} cannot be run as it stands; give a .onnx or .pt2 file, or a module")
    raise InputError(
        f"a {type(target).__name__} cannot be run; give a module, an onnx_ir.Model, or a .onnx or .pt2 file"
    )


def model_in(target: Target) -> Any:
    """The module, graph or path of a target, whatever runs it."""
    return target.model if isinstance(target, Runnable) else target


def runtime_of(target: Target) -> str:
    """The name of what runs a target."""
    if isinstance(target, Runnable):
        return target.runtime
    is_module = isinstance(target, nn.Module) or (isinstance(target, (str, Path)) and Path(target).suffix != ".onnx")
    return TORCH if is_module else DEFAULT


def float_precision_of(target: Target) -> str:
    """In what the float layers of a target compute."""
    return target.float_precision if isinstance(target, Runnable) else "float32"


def as_batch(inputs: Sequence[Any]) -> Batch:
    """What a runner was called with: one batch (or what becomes one), or tensors in order."""
    return example_batch(inputs[0] if len(inputs) == 1 else inputs)


def in_slices(run: Callable[[Batch], tuple[Tensor, ...]], batch: Batch, samples: int) -> tuple[Tensor, ...]:
    """Run a model that takes exactly `samples` on any number: slice, pad the last slice, cut its outputs."""
    pieces: list[tuple[Tensor, ...]] = []
    for start in range(0, batch.samples, samples):
        part = batch.part(start, start + samples)
        outputs = run(resized_batch(part, samples))
        pieces.append(tuple(value[: part.samples] if value.dim() else value for value in outputs))
    return tuple(torch.cat(values) if values[0].dim() else values[0] for values in zip(*pieces))
