"""The folder that a job leaves behind: model files and reports, all there or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import OutputError
from compress.files import check_writable
from compress.steps import Change

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.reporting.report import Report

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


@dataclass(frozen=True)
class Output:
    """Where the user wants the result; asked for early so that a bad place costs no work."""

    path: Path
    overwrite: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # a text does as well

    @classmethod
    def of(cls, value: Output | Path | str) -> Output:
        return value if isinstance(value, Output) else cls(Path(value))

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

    def save_graph(self, graph: Any, name: str = "model.onnx") -> Path:
        """Write an ONNX graph, load it once as its user will, and return the path that it has now.

        Raises:
            ModelError: the runtime refuses the file, with its reason; nothing is left behind then.
        """
        from compress.graph.runtime import Session
        from compress.onnx_files import save_onnx

        path = save_onnx(graph, self.path / name)
        Session(path)
        return path

    def save_module(self, module: nn.Module, example_inputs: Any) -> tuple[Change, ...]:
        """Write `weights.pt` (plain state dict) and `model.pt2`; return a refusal where the latter cannot be made."""
        import torch

        state = module.state_dict()  # its metadata tells which blocks were removed
        for name, value in state.items():
            state[name] = value.detach().cpu().contiguous()
        torch.save(state, self.path / "weights.pt")
        try:
            program = export_program(module, example_inputs)
        except Exception as error:  # torch.export raises its own errors and the module's
            reason = " ".join(str(error).split())[:200]
            return (Change("model.pt2", "saved", reason=f"torch.export: {reason}", skipped=True),)
        torch.export.save(program, self.path / "model.pt2")
        return ()

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
            return torch.export.export(twin, positional, named, dynamic_shapes=shapes)
        except Exception:
            return torch.export.export(twin, positional, named)


@contextlib.contextmanager
def output_folder(
    output: Output | Path | str, *, overwrite: bool = False, scratch: Path | None = None
) -> Iterator[OutputFolder]:
    """Fill a folder beside `output`, then move its files into place; on any exception nothing is left.

    `scratch` is where to fill it, for callers that clean up after a kill (same file system; default: beside).

    Raises:
        OutputError: the place exists already (without `overwrite`), or cannot be written.
    """
    output = output if isinstance(output, Output) else Output(Path(output), overwrite=overwrite)
    output.check_folder()
    final = output.path
    made = [folder for folder in final.absolute().parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        prefix, place = (f".{final.name}.", final.parent) if scratch is None else (".half-", scratch)
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    except OSError as error:
        raise OutputError(f"cannot write {str(final)!r}: {error.strerror or error}; choose another -o") from error
    try:
        yield OutputFolder(path, final)
        _move_into_place(path, final)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        for folder in made:  # deepest first; only those that we made and that are empty
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(path, ignore_errors=True)


def _move_into_place(path: Path, final: Path) -> None:
    try:
        path.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        if not final.exists():
            os.replace(path, final)
            return
        written = {item.name for item in path.iterdir()}
        for name in OURS:
            if name not in written:
                (final / name).unlink(missing_ok=True)
        # Reports last: whoever sees the new report sees the new files.
        for item in sorted(path.iterdir(), key=lambda item: item.name.startswith("report")):
            if item.is_dir() and (final / item.name).is_dir():
                shutil.rmtree(final / item.name)
            os.replace(item, final / item.name)
    except OSError as error:
        raise OutputError(f"cannot write {str(final)!r}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
