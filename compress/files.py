"""Writing without half-written files: beside first, flushed, then renamed; the cause of a failure in one line."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compress.errors import OutputError
from compress.locking import locked_folder


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse early, before hours of work, an output that could not be written at the end.

    Raises:
        OutputError: `path` exists and `overwrite` is False, or its folder cannot be written.
    """
    path = Path(path)
    try:
        occupied = any(path.iterdir()) if path.is_dir() else path.exists()
        parent = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
        blocking = [folder for folder in path.absolute().parents if folder.exists() and not folder.is_dir()]
    except (OSError, ValueError) as error:  # a name that is too long, a working folder that is gone
        raise OutputError(f"cannot write {str(path)!r}: {cause(error)}; choose another -o") from error
    if occupied and not overwrite:
        raise OutputError(
            f"output {str(path)!r} exists already; choose another -o, or pass --overwrite (overwrite=True)"
        )
    if blocking:
        raise OutputError(f"cannot write {str(path)!r}: {str(blocking[0])!r} is a file, no folder; choose another -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"folder {str(parent)!r} is not writable; choose another -o")
    return path


def check_name(path: Path) -> None:
    """Refuse a name that no file can have, or that leads in a circle.

    Raises:
        OutputError: what is wrong with it.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except (OSError, ValueError) as error:
        raise OutputError(f"{str(path)[:80]!r} cannot be written: {cause(error)}; choose another -o") from error


def check_file_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """The same, for a place that must be a file.

    Raises:
        OutputError: it is a folder, or as `check_writable`.
    """
    path = check_writable(path, overwrite=overwrite)
    if path.is_dir():
        raise OutputError(
            f"{str(path)!r} is a folder and a file is needed; name one such as {str(path / 'report.md')!r}"
        )
    return path


def check_space(path: Path, size_bytes: int) -> None:
    """Refuse to write `size_bytes` to where `path` will be, where the disk has less left.

    Raises:
        OutputError: names both figures.
    """
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), None)
    try:
        free = shutil.disk_usage(folder).free if folder is not None else size_bytes
    except OSError:
        return  # some file systems do not say
    if free < size_bytes:
        raise OutputError(
            f"cannot write {str(path)!r}: it takes {size_bytes / 1e6:.1f} MB and the disk has {free / 1e6:.1f} MB left; "
            "free some space, or choose another -o"
        )


@contextlib.contextmanager
def written_beside(path: str | Path, *, size_bytes: int = 0) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; flush it and rename it over `path` on success only.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched; what a kill leaves is
    removed by the next process that writes `path`. `size_bytes`, where it is known, is held against the space that is left.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # In a folder of its own, so that external data (`model.onnx.data`) keeps its final name.
            folder = stack.enter_context(locked_folder(path.parent, f".{path.name}.writing-"))
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {cause(error)}; choose another -o") from error
        check_space(path, size_bytes)
        try:
            yield folder / path.name
            flush(folder)
            for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):  # the file itself goes last
                os.replace(item, path.parent / item.name)
        except OSError as error:
            raise OutputError(f"cannot write {str(path)!r}: {cause(error)}") from error


def flush(folder: Path) -> None:
    """Have the system bring every file of `folder` to the disk: a rename must not outlive its content."""
    for item in folder.rglob("*"):
        if item.is_file():
            with item.open("rb") as file:
                os.fsync(file.fileno())


def cause(error: BaseException) -> str:
    """What went wrong, in the system's words where an error of the system is at the bottom of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


class _Remembering(io.RawIOBase):
    """A binary file that native writers may be given: the first failure is remembered, the rest of the writing ignored.

    PyTorch's archive writer finishes its archive in a C++ destructor; an exception there, from a disk that is still
    full, ends the whole process.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return int(self.file.tell())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self.file.seek(offset, whence)) if self.error is None else 0

    def write(self, content: Any) -> int:
        if self.error is None:
            try:
                self.file.write(content)
            except OSError as error:
                self.error = error
        return len(memoryview(content).cast("B")) if not isinstance(content, (bytes, bytearray)) else len(content)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.file.flush()
            except OSError as error:
                self.error = error


@contextlib.contextmanager
def native_file(path: Path) -> Iterator[Any]:
    """Open `path` for a writer in C++ (`torch.save`, `torch.export.save`); a failure of the disk is raised at the end.

    Raises:
        OSError: the error of the first write that failed.
    """
    with path.open("wb") as file:
        remembering = _Remembering(file)
        try:
            yield remembering
        except Exception:
            if remembering.error is None:
                raise
        remembering.flush()
        if remembering.error is not None:
            raise remembering.error
        os.fsync(file.fileno())
