"""The interface of a runtime, and the table of those that there are.

A runtime opens a file or a graph and answers with something that runs it by input name. A new one is one file with a
class like `OpenedModel`, and one line of `RUNTIMES`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from compress.batches import Batch
from compress.errors import InputError, nearest

DEFAULT = "onnxruntime"
AUTO = "auto"  # whichever of the installed ones is faster here


class OpenedModel(Protocol):
    """A file or graph that a runtime has loaded."""

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    @property
    def fixed_batch(self) -> int | None:
        """The only batch that the model takes; None where any will do."""
        ...

    def run(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """Run on one `Batch`, or on arrays in the order of `input_names`."""
        ...

    def in_order(self, batch: Batch) -> tuple[Any, ...]:
        """The inputs of a batch in the order of `input_names`."""
        ...

    def profile(self) -> list[dict[str, Any]]:
        """Per node its name, operator and median microseconds; of a model opened with `profile=True`."""
        ...


@dataclass(frozen=True)
class Runtime:
    """One runtime: where its door is, what to install, one line of help."""

    name: str
    module: str  # of ours; has `Session(model, threads=…, profile=…)`
    package: str  # of theirs
    extra: str | None
    help: str

    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def open(self, model: Path | str | ir.Model, *, threads: int | None = None, profile: bool = False) -> OpenedModel:
        """Load a model.

        Raises:
            InputError: the runtime is not installed, with the line that installs it.
            ModelError: it cannot take the model, with its reason.
        """
        self.check()
        session: OpenedModel = importlib.import_module(self.module).Session(model, threads=threads, profile=profile)
        return session

    def version(self) -> str:
        """The version of the library."""
        self.check()
        return str(importlib.import_module(self.module).VERSION)

    def check(self) -> None:
        """Raise InputError where the library is not installed."""
        if not self.installed():
            extra = f"[{self.extra}]" if self.extra else ""
            raise InputError(f"runtime {self.name} is not installed; run: pip install 'torch-compress{extra}'")


RUNTIMES: Mapping[str, Runtime] = {
    "onnxruntime": Runtime(
        "onnxruntime", "compress.runtimes.onnxruntime", "onnxruntime", None, "ONNX Runtime, on every processor"
    ),
    "openvino": Runtime(
        "openvino", "compress.runtimes.openvino", "openvino", "openvino", "OpenVINO, fastest on x86 with VNNI or AMX"
    ),
}
ALIASES = {"onnx": "onnxruntime"}


def others_installed(name: str = DEFAULT) -> list[str]:
    """The runtimes beside `name` that are installed here, in the order of the table."""
    return [other for other, runtime in RUNTIMES.items() if other != name and runtime.installed()]


def find_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        InputError: there is none; the nearest is given.
    """
    known = ALIASES.get(name, name)
    if known not in RUNTIMES:
        raise InputError(f"unknown runtime {name!r}; {nearest(name, [*RUNTIMES, AUTO])}")
    return RUNTIMES[known]
