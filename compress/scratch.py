"""Temporary folders: one locked folder for each process, so that what a kill leaves is found and removed."""

from __future__ import annotations

import atexit
import contextlib
import os
import tempfile
import threading
from pathlib import Path

from compress.errors import OutputError
from compress.locking import locked_folder

PREFIX = "compress-scratch-"
_GUARD = threading.Lock()
_ROOT: dict[int, Path] = {}  # by process: a forked child has its own


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """A temporary folder, as `tempfile.TemporaryDirectory`, inside the one folder of this process.

    Raises:
        OutputError: the system's temporary folder cannot be written.
    """
    try:
        return tempfile.TemporaryDirectory(dir=_root())
    except OSError as error:
        raise OutputError(
            f"cannot write to the temporary folder {tempfile.gettempdir()!r}: {error.strerror or error}; "
            "free some space, or set TMPDIR to another folder"
        ) from error


def _root() -> Path:
    with _GUARD:
        root = _ROOT.get(os.getpid())
        if root is None or not root.is_dir():
            stack = contextlib.ExitStack()
            root = stack.enter_context(locked_folder(Path(tempfile.gettempdir()), PREFIX))
            _ROOT[os.getpid()] = root
            atexit.register(_leave, os.getpid(), stack)
        return root


def _leave(owner: int, stack: contextlib.ExitStack) -> None:
    if os.getpid() == owner:  # not a forked child that ends: the folder is its parent's
        stack.close()
