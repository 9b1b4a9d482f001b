"""Writing without half-written files: beside first, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compress.errors import OutputError


def check_writable(path: str | Path, *, overwrite: bool = False) -> Path:
    """Refuse early, before hours of work, an output that could not be written at the end.

    Raises:
        OutputError: `path` exists and `overwrite` is False, or its folder cannot be written.
    """
    path = Path(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not overwrite:
        raise OutputError(
            f"output {str(path)!r} exists already; choose another -o, or pass --overwrite (overwrite=True)"
        )
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"folder {str(parent)!r} is not writable; choose another -o")
    return path


@contextlib.contextmanager
def written_beside(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write a file to; rename it over `path` on success only.

    On any exception, Ctrl-C included, the temporary file is removed and `path` is untouched.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a folder of its own, so that external data (`model.onnx.data`) keeps its final name.
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another -o") from error
    try:
        yield folder / path.name
        for item in sorted(folder.iterdir(), key=lambda item: item.name == path.name):  # the file itself goes last
            os.replace(item, path.parent / item.name)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
