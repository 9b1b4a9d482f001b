"""Further processes of this machine that take part in a search."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from compress.pipeline.search.session import Session

GRACE_S = 10.0  # in which a process ends by itself


@contextlib.contextmanager
def workers(session: Session) -> Iterator[None]:
    """Run the block while `options.workers − 1` processes search along; they are gone at its end.

    Each joins the search by its folder, as `compress search --join` does.
    """
    if session.options.workers == 1:
        yield
        return
    session.stop_at([])  # they ask when to stop
    started = [_start(session) for _ in range(session.options.workers - 1)]
    try:
        yield
    finally:
        for process in started:
            process.terminate()
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            process.kill()
            process.wait()
        session.study.give_up_dead()


def _start(session: Session) -> subprocess.Popen[bytes]:
    threads = str(session.job.settings.threads or 1)
    command = [
        sys.executable,
        "-m",
        "cli",
        "search",
        "--join",
        str(session.front.root),
        "--threads",
        threads,
        "--quiet",
    ]
    root = str(Path(__file__).resolve().parents[3])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
