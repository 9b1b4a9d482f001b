"""The first time that a runtime gets a file, in a process of its own: a crash inside its library ends that, not the job.

A file is known by its bytes, so that each is tried once in a process, whatever its path. A file that the runtime merely
refuses is no crash: the caller gets the refusal, in words, from the runtime itself.
"""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from compress.children import environment
from compress.errors import ModelError

# The door alone is imported: a door that imports nothing heavy beside its library is tried in less than a second.
CHILD = """
import importlib, sys
door, path, threads = sys.argv[1:]
try:
    session = importlib.import_module(door).Session(path, threads=int(threads) or None)
    zeros = getattr(session, "zeros", lambda: None)()
    if zeros is not None:
        session.run(*zeros)
except Exception:
    pass
"""
MOST_SECONDS = 600.0  # a model of gigabytes loads and runs once in less, on a slow machine too
EXTERNAL = ".data"  # beside a file: its weights
_verdicts: dict[tuple[str, str], str] = {}  # (door, digest) → what went wrong; empty where nothing did


class RuntimeCrashError(ModelError):
    """A runtime's library crashed or hung on a file (in a process of its own, so that the caller goes on)."""


def try_first(door: str, who: str, model: Path | str | Any, *, threads: int | None = None) -> None:
    """Load `model` (a file or a graph) through the module `door` in a child process, unless that went well before.

    Raises:
        RuntimeCrashError: the child died of a signal, or hung; `who` is named, and the file.
    """
    if not isinstance(model, (str, Path)):
        verdict, label = _of_graph(door, model, threads), f"graph {model.graph.name!r}"
    elif Path(model).is_file():
        verdict, label = _of_file(door, Path(model), threads), repr(str(model))
    else:  # reported when the runtime opens it
        return
    if verdict:
        raise RuntimeCrashError(f"{who} {verdict.format(label=label)}, in a process of its own")


def _of_graph(door: str, graph: Any, threads: int | None) -> str:
    """The verdict on a graph, which is written to a file only where it was not tried before."""
    import onnx_ir as ir

    from compress.scratch import scratch_folder

    try:
        content = ir.to_proto(graph).SerializeToString()
    except ValueError:  # protobuf refuses messages of 2 GiB
        content = b""
    known = _verdicts.get((door, hashlib.sha256(content).hexdigest()))
    if content and known is not None:
        return known
    with scratch_folder() as name:
        path = Path(name) / "model.onnx"
        if content:
            path.write_bytes(content)
        else:
            ir.save(graph.clone(), path, external_data=path.name + EXTERNAL)
        return _of_file(door, path, threads)


def _of_file(door: str, path: Path, threads: int | None) -> str:
    key = (door, _digest(path))
    if key not in _verdicts:
        command = [sys.executable, "-c", CHILD, door, str(path.absolute()), str(threads or 0)]
        _verdicts[key] = _tried(command)
    return _verdicts[key]


def _tried(command: list[str]) -> str:
    """What went wrong in a child process, with a place for the model's name; empty where nothing did."""
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment(),
            check=False,
            timeout=MOST_SECONDS,
        )
    except subprocess.TimeoutExpired:  # which has killed it
        return f"did not come back from {{label}} within {MOST_SECONDS:g} seconds"
    crash = _crash(done.returncode)
    return f"crashed on {{label}} ({crash})" if crash else ""


def _crash(code: int) -> str:
    """What a return code says of a crash, in words; empty where there was none (Python's own errors are no crash)."""
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"code {code:#x}" if code >= 0xC0000000 else ""  # Windows: an uncaught exception


def _digest(path: Path) -> str:
    """A file's content; of the weights beside it, which may be large, their size and time."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    beside = path.with_name(path.name + EXTERNAL)
    if beside.is_file():
        status = beside.stat()
        digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()
