"""TorchScript files: the form in which PyTorch's int8 modules reload without their code."""

from __future__ import annotations

import contextlib
import json
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.batches import example_batch
from compress.errors import CompressError, InputError, ModelError, nearest
from compress.files import native_file, written_beside
from compress.loading.untrusted import check_torchscript

SUFFIX = ".torchscript"
_RECORD = "compress.json"


class EngineModule(nn.Module):
    """A module whose int8 kernels belong to one engine (x86, fbgemm, qnnpack, onednn), which is chosen at each call.

    The engine is a setting of the whole process in PyTorch; a model run with another one than it was packed for gives
    other results or none. Whatever was set before comes back after the call.
    """

    def __init__(self, module: nn.Module, engine: str) -> None:
        super().__init__()
        check_engine(engine)
        self.module = module
        self.engine = engine

    def forward(self, *inputs: Tensor) -> Any:
        with engine_set(self.engine):
            return self.module(*inputs)


@contextlib.contextmanager
def engine_set(name: str) -> Iterator[None]:
    """Run a block with the quantized engine `name`; restore the one before.

    Raises:
        InputError: this PyTorch has no such engine.
    """
    check_engine(name)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def check_engine(name: str) -> None:
    """Refuse an engine that this PyTorch was built without.

    Raises:
        InputError: names the nearest engine and the way by ONNX.
    """
    known = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
    if name not in known:
        raise InputError(
            f"this PyTorch has no quantized engine {name!r}; {nearest(name, known)}, or quantize for ONNX Runtime "
            "with --runtime onnx"
        )


def save_torchscript(module: EngineModule, path: str | Path, example_inputs: Any) -> Path:
    """Write an int8 module to `path`; scripted where its code allows it, else traced on `example_inputs`.

    Raises:
        ModelError: neither works, with the reason.
        OutputError: the place cannot be written.
    """
    path = Path(path)
    with engine_set(module.engine), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.jit announces its own deprecation at each call
        scripted = _scripted(module.module, example_batch(example_inputs).in_order(module.module))
        with written_beside(path) as beside, native_file(beside) as file:
            torch.jit.save(scripted, file, _extra_files={_RECORD: json.dumps({"engine": module.engine})})
    return path


def load_torchscript(path: str | Path, *, trusted: bool = False) -> EngineModule:
    """Read what `save_torchscript` wrote. TorchScript holds tensors and its own code; nothing is unpickled in Python.

    Unless `trusted`, code that calls operators beyond tensors (which can write files) is refused before it is loaded.

    Raises:
        ModelError: the file is missing, truncated, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"TorchScript file {str(path)!r} does not exist; check the path")
    try:
        engine = _engine_of(path)
        if not trusted:
            check_torchscript(path)
        with engine_set(engine), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu")
    except (CompressError, MemoryError):
        raise
    except Exception as error:  # torch's reader raises whatever its C++ does: IndexError for a name that is not there
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"{str(path)!r} is not a TorchScript model that can be read: {reason.strip()[:200]}"
        ) from error
    return EngineModule(module, engine)


def _engine_of(path: Path) -> str:
    """The engine must be set before the weights are read, for they are packed as they arrive."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(item for item in archive.namelist() if item.endswith(f"/extra/{_RECORD}"))
            return str(json.loads(archive.read(name))["engine"])
    except (zipfile.BadZipFile, StopIteration) as error:
        raise ValueError("it was not written by compress, or is truncated") from error


def _scripted(module: nn.Module, example_inputs: tuple[Tensor, ...]) -> Any:
    try:
        return torch.jit.script(module)
    except Exception as first:  # code that TorchScript does not know: follow one run instead
        try:
            return torch.jit.trace(module, example_inputs)
        except Exception as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"{type(module).__name__} can be neither scripted nor traced: {reason.strip()[:200]}; "
                "use --runtime onnx, whose file holds any exported model"
            ) from first
