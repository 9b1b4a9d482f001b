"""Several training processes on this machine, through PyTorch's elastic launcher."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from compress.errors import CompressError, InputError, TrainingError
from compress.scratch import scratch_folder
from compress.state import unlogged

LAUNCHED = "COMPRESS_LAUNCHED"  # set in the processes that `launch` starts
INTERRUPTED = 130  # 128 + SIGINT, what shells expect
KNOWN_CODES = (1, 2, 3, INTERRUPTED)  # what the command line promises; a process may leave with any


def available_processes() -> int:
    """How many processes this machine can bind to a device each: its GPUs, else its cores."""
    return torch.cuda.device_count() if torch.cuda.is_available() else _cores()


def _cores() -> int:
    """The cores that this process may use, which containers limit (systems without affinity: all)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_nproc(count: int) -> None:
    """
    Raises:
        InputError: more processes than the machine has devices for.
    """
    most = available_processes()
    if not 1 <= count <= most:
        kind = "GPUs" if torch.cuda.is_available() else "CPU cores"
        raise InputError(f"nproc {count} is not between 1 and {most}: this machine has {most} {kind}")


def launch(count: int, command: Sequence[str]) -> None:
    """Run `python *command` in `count` processes that form one process group; return when all are done.

    When one fails the others are ended, and its own error is raised here.

    Raises:
        InputError: more processes than the machine has devices for.
        CompressError: what the first failing process raised, with its exit code.
        KeyboardInterrupt: Ctrl-C; the processes were interrupted and have ended.
    """
    check_nproc(count)
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = scratch_folder()  # the launcher would make one of its own and leave it
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs.name),
    )
    # Not logged: the launcher writes each failure as several lines of its own; ours is one.
    with logs, unlogged(), _environment(count):
        try:
            elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            rank, failure = min(error.failures.items(), key=lambda item: _order(item[1]))
            raise _own_error(rank, failure.exitcode, failure.message) from None
        except SignalException as error:
            raise KeyboardInterrupt from error


@contextlib.contextmanager
def reporting_failure() -> Iterator[None]:
    """In a process that a launcher started, leave the error where the launcher reads it.

    Started by `launch`, the process then exits in silence, as it does after Ctrl-C: the launcher shows the error of
    the first that failed, once. Under `torchrun` the error goes on its way, to be printed here.
    """
    launched = bool(os.environ.get(LAUNCHED))
    try:
        if launched:  # from here on Ctrl-C unwinds what is under way
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
    except KeyboardInterrupt:
        if launched:
            _leave(INTERRUPTED)
        raise
    except Exception as error:
        _write_error_file(error)
        if launched:
            _leave(getattr(error, "exit_code", 1))
        raise


def _leave(exit_code: int) -> NoReturn:
    """End a process whose work is undone already, without the interpreter's own end: there a thread of a broken
    process group that asks for the interpreter makes C++ print "terminate called without an active exception"."""
    for child in multiprocessing.active_children():  # a DataLoader's, which the interpreter would have ended
        child.terminate()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _write_error_file(error: BaseException) -> None:
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not path:
        return
    known = isinstance(error, CompressError)
    details = {
        "py_callstack": traceback.format_exc(),
        "timestamp": str(int(time.time())),
        "known": known,
        "time": time.time(),
    }
    text = str(error) if known else f"{type(error).__name__}: {error}"
    Path(path).write_text(json.dumps({"message": {"message": text, "extraInfo": details}}))


def _order(failure: Any) -> tuple[int, float]:
    """Which failure came first. One that was killed could not note its moment, and what its end did to the others is
    theirs to tell within milliseconds, so it goes before them; the launcher's own end of a process is SIGTERM, and its
    moment in whole seconds may lie before the cause's, so it goes behind them."""
    message = failure.message
    moment = message["extraInfo"].get("time", failure.timestamp) if isinstance(message, dict) else failure.timestamp
    ended = failure.exitcode == -signal.SIGTERM
    return 2 if ended else int(failure.exitcode > 0), float(moment)


def _own_error(rank: int, exit_code: int, message: object) -> CompressError:
    if isinstance(message, dict):
        info = message.get("extraInfo", {})
        if not info.get("known"):
            sys.stderr.write(f"process {rank}:\n{info.get('py_callstack', '')}\n")
        text = str(message.get("message", "")).splitlines() or ["no message"]
        error = TrainingError(f"process {rank} failed: {text[0]}")
    else:
        cause = f": {message}" if exit_code < 0 else " without a message"  # the launcher's would be an address to read
        error = TrainingError(f"process {rank} failed with exit code {exit_code}{cause}")
    error.exit_code = exit_code if exit_code in KNOWN_CODES else 1
    return error


@contextlib.contextmanager
def _environment(count: int) -> Iterator[None]:
    """What the processes inherit: their mark, and no more threads than their share of the cores."""
    before = dict(os.environ)
    os.environ[LAUNCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // count)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
