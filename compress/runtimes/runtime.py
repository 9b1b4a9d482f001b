"""What a runtime is, and the table of those that there are. A new runtime is one file and one line here.

A runtime opens a file or a graph and answers with something that runs it by input name: a class `Session` like
`OpenedModel`, a function `precisions` and a text `VERSION`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compress.errors import InputError, nearest

if TYPE_CHECKING:  # a command's help names the runtimes, and must not wait for what they load
    import numpy as np

    from compress.batches import Batch

DEFAULT = "onnxruntime"
FLOAT_PRECISIONS = ("float32", "bf16", "fp16")  # in which the layers that are left in float compute
TORCH = "torch"
INTEGERS = frozenset({"i8", "u8", "i4", "u4"})  # precisions of `Runtime.precisions` that are int8 or narrower
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
    title: str = ""  # as its makers write it
    suffixes: tuple[str, ...] = (".onnx",)  # of the files that it runs
    one_precision: str = ""  # why its float layers compute in float32 alone; empty: the processor decides
    tried_apart: bool = False  # each file first in a process of its own: what has not run it yet may crash on it

    @property
    def reads_graphs(self) -> bool:
        """Whether it runs ONNX; else modules and their files."""
        return ".onnx" in self.suffixes

    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def open(
        self,
        model: Path | str | Any,
        *,
        threads: int | None = None,
        profile: bool = False,
        float_precision: str = "float32",
    ) -> OpenedModel:
        """Load a file, or a model in memory: a graph, a module for torch.

        Raises:
            InputError: the runtime is not installed, with the line that installs it, or has no such precision here.
            ModelError: it cannot take the model, with its reason.
            RuntimeCrashError: its library crashes on the model.
        """
        self.check()
        self.try_first(model, threads=threads)
        self.check_float_precision(float_precision)
        wanted = {} if float_precision == "float32" else {"float_precision": float_precision}
        door = importlib.import_module(self.module)
        session: OpenedModel = door.Session(model, threads=threads, profile=profile, **wanted)
        return session

    def precisions(self, model: Path | str | Any) -> dict[str, str]:
        """By name of the node (or layer), the precision in which this runtime really runs it: i8, u8, f32, bf16, …

        Raises:
            InputError: the runtime is not installed.
            ModelError: it cannot take the model, with its reason.
            RuntimeCrashError: its library crashes on the model.
        """
        self.check()
        self.try_first(model)
        found: dict[str, str] = importlib.import_module(self.module).precisions(model)
        return found

    def offers(self, float_precision: str) -> bool:
        """Whether float layers can compute in that precision here."""
        if float_precision == "float32":
            return True
        self.check()
        found = () if self.one_precision else importlib.import_module(self.module).float_precisions()
        return float_precision in found

    def check_float_precision(self, float_precision: str) -> None:
        """Refuse a precision that the runtime does not offer on this processor.

        Raises:
            InputError: it does not, with the reason.
        """
        check_precision_name(float_precision)
        if not self.offers(float_precision):
            why = self.one_precision or "this processor has no instructions for it"
            raise InputError(f"--float-precision {float_precision} is not offered by runtime {self.name}: {why}")

    def try_first(self, model: Path | str | Any, *, threads: int | None = None) -> None:
        """Load a model in a process of its own, where this runtime is new to it.

        Raises:
            RuntimeCrashError: its library crashes on the model.
        """
        if self.tried_apart:
            from compress.runtimes.first_try import try_first

            try_first(self.module, self.title or self.name, model, threads=threads)

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
    DEFAULT: Runtime(
        DEFAULT,
        "compress.runtimes.onnxruntime",
        "onnxruntime",
        None,
        "ONNX Runtime, on every processor",
        "ONNX Runtime",
        one_precision="its fast-math option (bf16) is for ARM; --method float16 makes a file that computes in half",
    ),
    "openvino": Runtime(
        "openvino",
        "compress.runtimes.openvino",
        "openvino",
        "openvino",
        "OpenVINO, fastest on x86 with VNNI or AMX",
        "OpenVINO",
        tried_apart=True,
    ),
    TORCH: Runtime(
        TORCH,
        "compress.runtimes.torch",
        "torch",
        None,
        "PyTorch, its own int8 too (deprecated there)",
        "PyTorch",
        (".pt2", ".torchscript"),
        one_precision="a module runs in the type of its own weights",
    ),
}
ALIASES = {"onnx": "onnxruntime"}


def check_precision_name(name: str) -> None:
    """Raise InputError for a precision that is not in `FLOAT_PRECISIONS`; the nearest is given."""
    if name not in FLOAT_PRECISIONS:
        raise InputError(f"unknown --float-precision {name!r}; {nearest(str(name), FLOAT_PRECISIONS)}")


def others_installed(name: str = DEFAULT) -> list[str]:
    """The runtimes of ONNX files beside `name` that are installed here, in the order of the table."""
    return [
        other for other, runtime in RUNTIMES.items() if other != name and runtime.reads_graphs and runtime.installed()
    ]


def names(*, graphs_only: bool = False) -> tuple[str, ...]:
    """What an option may be given: the table's names, their aliases, `auto`; of those that run ONNX files on request."""
    table = [name for name, runtime in RUNTIMES.items() if runtime.reads_graphs or not graphs_only]
    return (*ALIASES, *table, AUTO)


def find_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        InputError: there is none; the nearest is given.
    """
    known = ALIASES.get(name, name)
    if known not in RUNTIMES:
        raise InputError(f"unknown runtime {name!r}; {nearest(name, [*RUNTIMES, AUTO])}")
    return RUNTIMES[known]
