"""Locks on places in the file system that end with the process that holds them, however it ends.

The kernel drops an flock when the last descriptor closes, so a killed command leaves names behind but no lock: whoever
comes next can tell leftovers from work in progress. Where the system has no flock (Windows, some network file systems)
nothing is locked and nothing is taken for a leftover.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from compress.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # Windows has none

_OURS: set[tuple[int, str]] = set()  # flock does not tell threads of one process apart when a descriptor is shared
_GUARD = threading.Lock()


def lock_folder(path: Path) -> int | None:
    """Lock the folder `path` until the descriptor returned is closed; None where it cannot be locked.

    Raises:
        BlockingIOError: a living process holds it.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    if _flock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _flock(descriptor: int) -> bool:
    """Whether the lock could be taken; False where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(descriptor)
            raise BlockingIOError(*error.args) from None
        return False


@contextlib.contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder `prefix` + 8 letters in `parent`, locked and at the end removed, what is then in it included.

    Folders of the same prefix that killed processes left are removed first.

    Raises:
        OSError: it cannot be made.
    """
    remove_leftovers(parent, prefix)
    path, descriptor = _make(parent, prefix)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def _make(parent: Path, prefix: str) -> tuple[Path, int | None]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            descriptor = lock_folder(path)
        except BlockingIOError:  # another process, sweeping, has just taken it for a leftover
            continue
        if path.is_dir() and (descriptor is None or os.fstat(descriptor).st_nlink):
            return path, descriptor
        if descriptor is not None:
            os.close(descriptor)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove the folders of `locked_folder` whose process is dead, and no others."""
    if fcntl is None:
        return
    try:
        found = [item for item in os.scandir(parent) if item.name.startswith(prefix)]
    except OSError:
        return
    for item in found:
        ending = item.name[len(prefix) :]
        if len(ending) != 8 or not item.is_dir(follow_symlinks=False) or not _is_mine(item):
            continue
        try:
            descriptor = lock_folder(Path(item.path))
        except BlockingIOError:
            continue
        if descriptor is not None:
            shutil.rmtree(item.path, ignore_errors=True)
            os.close(descriptor)


def _is_mine(item: os.DirEntry[str]) -> bool:
    return not hasattr(os, "getuid") or item.stat(follow_symlinks=False).st_uid == os.getuid()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Hold the output `path` for a block, so that two commands never write one place.

    The lock is a file `.NAME.lock` beside it, gone at the end; that of a dead process blocks no other.

    Raises:
        OutputError: another living command, or another thread of this process, holds it.
    """
    try:
        path = path.absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; choose another -o") from error
    beside = path.with_name(f".{path.name[:200]}.lock")
    key = (os.getpid(), str(beside))
    with _GUARD:
        if key in _OURS:
            raise _taken(path)
        _OURS.add(key)
    descriptor: int | None = None
    try:
        descriptor = _lock_file(beside, path)
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                beside.unlink()  # while the lock is ours: a process that waits for this file then sees that it is gone
            os.close(descriptor)
        with _GUARD:
            _OURS.discard(key)


def _lock_file(beside: Path, path: Path) -> int | None:
    if fcntl is None or not beside.parent.is_dir():
        return None
    while True:
        try:
            descriptor = os.open(beside, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # a folder that cannot be written is reported when it is written to
            return None
        try:
            if not _flock(descriptor):
                os.close(descriptor)
                return None
        except BlockingIOError:
            raise _taken(path) from None
        with contextlib.suppress(FileNotFoundError):
            if os.stat(beside).st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


def _taken(path: Path) -> OutputError:
    return OutputError(f"another command is writing {str(path)!r} now; wait until it is done, or choose another -o")
