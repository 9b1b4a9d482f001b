"""The folder that a job leaves behind: model files and reports, all there or none."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import OutputError
from compress.files import cause, check_name, check_space, check_writable, flush, native_file
from compress.locking import claimed, locked_folder
from compress.steps import Change

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.reporting.report import Report

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # no fault of the code that happened to be writing

# What a folder may hold; with --overwrite, those of an earlier run that this one does not write again are removed.
OURS = (
    "model.onnx",
    "model.onnx.data",
    "weights.pt",
    "model.pt2",
    "model.torchscript",
    "report.json",
    "report.md",
    "report.html",
)


SIZE_FOLDER = re.compile(r"(channels|macs|parameters|latency|blocks)-0(\.[0-9]+)?")  # as `size_folder` names them

FILE_SUFFIXES = (".onnx", ".pt", ".pt2", ".pth", ".safetensors", ".torchscript")


def size_folder(target: str, amount: float) -> str:
    """The folder of one of several models, by what was removed.

    >>> size_folder("macs", 0.4)
    'macs-0.4'
    """
    return f"{target}-{amount:g}"


@dataclass(frozen=True)
class Output:
    """Where the user wants the result; asked for early so that a bad place costs no work."""

    path: Path
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a text does as well
        check_name(self.path)

    @classmethod
    def of(cls, value: Output | Path | str) -> Output:
        if isinstance(value, Output):
            return value
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise OutputError(f"output must be the path of a folder, got {value!r}")
        return cls(Path(value))

    def check(self) -> None:
        """Refuse a place that exists (without `overwrite`) or cannot be written.

        Raises:
            OutputError: what is wrong with the place.
        """
        check_writable(self.path, overwrite=self.overwrite)

    def check_folder(self) -> None:
        """The same, for a place that must be a folder."""
        if self.path.is_file():
            raise OutputError(f"output {str(self.path)!r} is a file and a folder is needed; choose another -o")
        if self.path.suffix in FILE_SUFFIXES and not self.path.is_dir():
            raise OutputError(
                f"output {str(self.path)!r} is named like a file, and a folder is written; give -o {self.path.with_suffix('')}: "
                f"its file is then {self.path.with_suffix('') / 'model.onnx'}"
            )
        self.check()


@dataclass
class OutputFolder:
    """A folder being filled beside its final place. Measure the files here: they are the ones that ship."""

    path: Path  # where the files are now
    final: Path  # where they will be

    @property
    def onnx(self) -> Path:
        return self.path / "model.onnx"

    def listed(self) -> dict[str, str]:
        """What a report lists: the model, a module's weights where they were saved, the page."""
        names = {"model": "model.onnx", "weights": "weights.pt", "page": "report.html"}
        if not (self.path / names["weights"]).exists():
            del names["weights"]
        return {kind: str(self.path / name) for kind, name in names.items()}

    def inner(self, name: str) -> OutputFolder:
        """A folder in this one, for one of several models."""
        (self.path / name).mkdir()
        return OutputFolder(self.path / name, self.final / name)

    def save_graph(self, graph: Any, name: str = "model.onnx") -> Path:
        """Write an ONNX graph, load it once as its user will, and return the path that it has now.

        Raises:
            ModelError: the runtime refuses the file, with its reason; nothing is left behind then.
        """
        from compress.onnx_files import save_onnx
        from compress.runtimes.onnxruntime import Session

        path = save_onnx(graph, self.path / name)
        Session(path)
        return path

    def save_module(self, module: nn.Module, example_inputs: Any) -> tuple[Change, ...]:
        """Write `weights.pt` (plain state dict) and `model.pt2`; return a refusal where the latter cannot be made."""
        import torch

        state = module.state_dict()  # its metadata tells which blocks were removed
        for name, value in state.items():
            state[name] = value.detach().cpu().contiguous()
        self._check_space(sum(value.nbytes for value in state.values()))
        with native_file(self.path / "weights.pt") as file:
            torch.save(state, file)
        try:
            program = export_program(module, example_inputs)
        except Exception as error:  # torch.export raises its own errors and the module's
            reason = " ".join(str(error).split())[:200]
            return (Change("model.pt2", "saved", reason=f"torch.export: {reason}", skipped=True),)
        self._check_space(sum(value.nbytes for value in state.values()))
        with native_file(self.path / "model.pt2") as file:
            torch.export.save(program, file)
        return ()

    def _check_space(self, size_bytes: int) -> None:
        try:
            check_space(self.path / "model", size_bytes)
        except OutputError as error:  # named as the user knows it, not as the folder is called while it is filled
            raise OutputError(str(error).replace(str(self.path / "model"), str(self.final))) from None

    def save_report(self, report: Report) -> Report:
        """Write `report.json`, `report.md` and `report.html`; return the report with its final paths."""
        report = report.relocated(self.path, self.final)
        for name in ("report.json", "report.md", "report.html"):
            report.write(self.path / name)
        return report


def export_program(module: nn.Module, example_inputs: Any) -> Any:
    """Export a module with a free batch dimension where it allows one, else with the batch of the examples."""
    import torch

    from compress.batches import example_batch
    from compress.state import copied, evaluating
    from compress.tracing import traced

    # A copy: an exported program shares its parameters with the module that it came from.
    twin = copied(module)
    with evaluating(twin):
        batch = torch.export.Dim("batch", min=1)
        example = example_batch(example_inputs)
        positional, named = example.arguments(twin)

        def free(value: Tensor) -> dict[int, Any]:
            return {0: batch} if value.dim() and len(value) == example.samples else {}

        shapes: Any = tuple(map(free, positional)) or {name: free(value) for name, value in named.items()}
        try:
            return traced(twin, positional, named, dynamic_shapes=shapes)
        except Exception:
            return traced(twin, positional, named)


@contextlib.contextmanager
def output_folder(
    output: Output | Path | str, *, overwrite: bool = False, scratch: Path | None = None, is_claimed: bool = False
) -> Iterator[OutputFolder]:
    """Fill a folder beside `output`, then move its files into place; on any exception nothing is left.

    The place is claimed meanwhile, unless the caller has (`is_claimed`): a second command that would write it is
    refused. `scratch` is where to fill it (default: beside), for callers that keep more there and have claimed it.

    Raises:
        OutputError: the place exists already (without `overwrite`), another command is writing it, the disk is full.
    """
    output = output if isinstance(output, Output) else Output(Path(output), overwrite=overwrite)
    output.check_folder()
    final = output.path
    made = [folder for folder in final.absolute().parents if not folder.exists()]
    try:
        with contextlib.ExitStack() as stack:
            path = _folder_to_fill(final, scratch, is_claimed, stack)
            output.check_folder()  # again, for what came to be while the place was not yet ours
            try:
                yield OutputFolder(path, final)
                _move_into_place(path, final)
            except OSError as error:
                if error.errno in FULL:
                    raise OutputError(f"cannot write {str(final)!r}: {cause(error)}; free some space") from error
                raise
    except BaseException:
        for folder in made:  # deepest first; only those that we made and that are empty
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _folder_to_fill(final: Path, scratch: Path | None, is_claimed: bool, stack: contextlib.ExitStack) -> Path:
    try:
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
            return stack.enter_context(locked_folder(scratch, ".half-"))
        final.absolute().parent.mkdir(parents=True, exist_ok=True)
        if not is_claimed:
            stack.enter_context(claimed(final))
        return stack.enter_context(locked_folder(final.absolute().parent, f".{final.absolute().name}.writing-"))
    except OSError as error:
        raise OutputError(f"cannot write {str(final)!r}: {cause(error)}; choose another -o") from error


def _move_into_place(path: Path, final: Path) -> None:
    try:
        flush(path)
        path.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        if not final.exists():
            os.replace(path, final)
            return
        written = {item.name for item in path.iterdir()}
        # Reports last: a reader of the new report then finds the new files.
        for item in sorted(path.iterdir(), key=lambda item: item.name.startswith("report")):
            if item.is_dir() and (final / item.name).is_dir():
                shutil.rmtree(final / item.name)
            os.replace(item, final / item.name)
        for name in OURS:
            if name not in written:
                (final / name).unlink(missing_ok=True)
        for inner in final.iterdir():
            if inner.name not in written and _is_one_of_several(inner):
                shutil.rmtree(inner)
    except OSError as error:
        raise OutputError(f"cannot write {str(final)!r}: {cause(error)}") from error


def _is_one_of_several(folder: Path) -> bool:
    """Whether an earlier run that made several models left this one, and nothing else is in it."""
    return (
        folder.is_dir()
        and not folder.is_symlink()
        and SIZE_FOLDER.fullmatch(folder.name) is not None
        and all(item.name in OURS for item in folder.iterdir())
    )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
