"""PyTorch as a runtime: modules, `.pt2` and `.torchscript` files (its own int8 among them), run in eval mode without gradients."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compress.state as state
from compress.batches import Batch, call, example_batch, flat_outputs, parameters_of
from compress.errors import CompressError, InputError

VERSION: str = str(torch.__version__)


class Session:
    """A module, called with a batch or tensors in order; its own flags and torch's threads are given back after each call.

    Args:
        model: a module, or a `.pt2` or `.torchscript` file.
        threads: torch's threads while it runs (None: as they are).
        profile: record the time of every operator; read it with `.profile()`.

    Raises:
        ModelError: the file cannot be read.
        InputError: it is no module, nor a file that holds one.
    """

    def __init__(self, model: Any, *, threads: int | None = None, profile: bool = False) -> None:
        self.module = model if isinstance(model, nn.Module) else _module_in(model)
        self.threads = threads
        self.fixed_batch = exported_batch(self.module)
        self.input_names = tuple(parameters_of(self.module)[0])
        self.output_names: tuple[str, ...] = ()  # known when it has run: modules do not name what they return
        self._times: dict[str, list[float]] | None = {} if profile else None

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[None]:
        """Within the block torch's threads and the module's mode are those that it runs with."""
        with state.threads(self.threads), state.evaluating(self.module):
            yield

    def in_order(self, batch: Batch) -> tuple[Tensor, ...]:
        """The inputs of a batch in the order of the module's forward."""
        return batch.in_order(self.module)

    def run(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Run on one `Batch`, or on arrays in the order of forward.

        Raises:
            InputError: the module rejects its inputs, with its own words.
        """
        batch = example_batch(inputs[0] if len(inputs) == 1 else tuple(torch.as_tensor(value) for value in inputs))
        with self.borrowed():
            found = self.tensors(batch)
        return tuple(value.detach().cpu().numpy() for value in found)

    def tensors(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the module returns of a batch, flat; to be called within `borrowed()`."""
        try:
            with self._recorded():
                found = flat_outputs(call(self.module, batch))
        except CompressError:
            raise
        except Exception as error:  # the user's own forward may raise anything
            shapes = ", ".join(str(tuple(value.shape)) for value in batch.values)
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InputError(f"{type(self.module).__name__} rejects inputs of shape {shapes}: {reason}") from error
        self.output_names = tuple(f"output_{index}" for index in range(len(found)))
        return found

    def prepare(self, batch: Batch) -> Callable[[], Any]:
        """A call without arguments that runs the module once: what is timed, within `borrowed()`."""
        positional, named = batch.arguments(self.module)
        return lambda: self.module(*positional, **named)

    @contextlib.contextmanager
    def _recorded(self) -> Iterator[None]:
        if self._times is None:
            yield
            return
        with torch.autograd.profiler.profile(use_kineto=False) as seen:  # Kineto takes ten seconds to start
            yield
        for row in seen.key_averages():
            self._times.setdefault(row.key, []).append(float(row.self_cpu_time_total))

    def profile(self) -> list[dict[str, Any]]:
        """Per operator its name and median microseconds per run (of all its calls together), the slowest first."""
        if self._times is None:
            raise InputError("this session does not record times; open it with profile=True")
        rows = [
            {"node": name, "op_type": name, "microseconds": float(statistics.median(times))}
            for name, times in self._times.items()
        ]
        return sorted(rows, key=lambda row: -row["microseconds"])

    def precisions(self) -> dict[str, str]:
        """By name of the layer, the type of the weights that its kernel reads: i8 where they are packed, else their own."""
        found = {}
        for name, part in self.module.named_modules():
            weight = getattr(part, "weight", None)
            if hasattr(part, "_packed_params"):
                found[name] = "i8"
            elif isinstance(weight, Tensor):
                found[name] = _SHORT.get(weight.dtype, str(weight.dtype).removeprefix("torch."))
        return found


_SHORT = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64", torch.int8: "i8"}


def precisions(model: Any) -> dict[str, str]:
    """By name of the layer, the type of its weights as the kernel reads them."""
    return Session(model).precisions()


def _module_in(model: Any) -> nn.Module:
    from compress.loading.models import open_model

    path = Path(model) if isinstance(model, (str, Path)) else None
    if path is None or path.suffix not in (".pt2", ".torchscript"):
        shown = f"a {type(model).__name__}" if path is None else repr(str(path))
        raise InputError(f"torch runs modules, .pt2 and .torchscript files, not {shown}")
    module: nn.Module = open_model(str(path)).model
    return module


def exported_batch(module: nn.Module) -> int | None:
    """Return the batch that an exported program insists on, None where it is free (or the module is no program)."""
    graph = getattr(module, "graph", None)
    if graph is None or not isinstance(module, torch.fx.GraphModule):
        return None
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor) and node.meta["val"].dim():
            size = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None
