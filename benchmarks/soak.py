"""Many jobs in one process: memory and open files stay flat, nothing is left in the temporary folder.

    python benchmarks/soak.py                # 500 jobs
    python benchmarks/soak.py --jobs 50 --warm 14

Each job is one command as a shell gives it (export, quantize dynamic, static, float16, QAT, prune, evaluate, compare, sensitivity,
doctor, train, and two that are refused), run again and again in this process. After the first `--warm` jobs memory (resident, of /proc) and
open files are noted; at the end there may be at most `MOST_MIB` more memory and no more open files, threads or temporary
files.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import fuzz
from fuzz import DATA, MINE, SHAPE

MOST_MIB = 64.0  # the allocator's own ups and downs are some 20
OUT = [*fuzz.OUT, "--overwrite"]
TRACED = [*MINE, *SHAPE]
JOBS: dict[str, tuple[list[str], int]] = {  # the command, its exit code
    "export": (["export", *TRACED, "-o", "o.onnx", "--overwrite"], 0),
    "dynamic": (["quantize", "good.onnx", "--method", "dynamic", *SHAPE, *OUT], 0),
    "static": (["quantize", "good.onnx", *DATA, "--no-tune-latency", *OUT], 0),
    "float16": (["quantize", "good.onnx", *DATA, "--method", "float16", *OUT], 0),
    "qat": (["quantize", "good.onnx", *DATA, "--method", "qat", "--no-tune-latency", *OUT], 0),
    "prune": (["prune", *TRACED, "--round-to", "1", *OUT], 0),
    "evaluate": (["evaluate", "good.onnx", *DATA], 0),
    "program": (["evaluate", "good.pt2", *DATA], 0),
    "compare": (["compare", "good.onnx", "int8.onnx", *DATA], 0),
    "sensitivity": (["sensitivity", "good.onnx", *DATA, "--samples", "4"], 0),
    "doctor": (["doctor", "int8.onnx", "--for", "onnxruntime"], 0),
    "train": (["train", "my.py:build", *DATA, "--epochs", "1", *OUT], 0),
    "refused": (["quantize", "my.py", *DATA, *OUT], 2),
    "missed": (["evaluate", "good.onnx", "--data", "gone.npz"], 2),
}


def resident_mib() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def run(arguments: list[str]) -> tuple[int, str]:
    from cli.main import main

    said = io.StringIO()
    quiet = [] if arguments[0] in fuzz.LOUD else ["-q"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main([*arguments, *quiet])
        except SystemExit as stop:
            return (stop.code if isinstance(stop.code, int) else 98), said.getvalue()
    return 0, said.getvalue()


def soak(jobs: int, warm: int) -> list[str]:
    """Run the jobs in the current folder; return what grew."""
    names, lost = list(JOBS), []
    started, before = time.monotonic(), (0.0, 0, 0)
    temporary = Path(tempfile.gettempdir())
    for number in range(jobs):
        name = names[number % len(names)]
        arguments, expected = JOBS[name]
        code, said = run(arguments)
        if code != expected:
            lost.append(f"job {number}, {name}: exit {code}: {said.strip()[-300:]}")
            break
        if number + 1 == warm or number + 1 == jobs or (number + 1) % (4 * len(names)) == 0:
            gc.collect()
            now = (resident_mib(), open_files(), threading.active_count())
            before = now if number + 1 == warm else before
            print(
                f"{number + 1:4} jobs  {time.monotonic() - started:5.0f} s  {now[0]:6.0f} MiB  {now[1]} open files  {now[2]} threads",
                flush=True,
            )
    if before[0] and now[0] > before[0] + MOST_MIB:
        lost.append(f"memory grew by {now[0] - before[0]:.0f} MiB")
    if now[1] > before[1] or now[2] > before[2]:
        lost.append(f"open files {before[1]} → {now[1]}, threads {before[2]} → {now[2]}")
    left = [
        str(item.relative_to(temporary))
        for root in temporary.iterdir()
        if root.name != ".ses"  # ONNX Runtime's own
        for item in (root.iterdir() if root.is_dir() else [root])
    ]
    return lost + [f"left in the temporary folder: {name}" for name in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--warm", type=int, default=5 * len(JOBS), help="jobs before the first figure that counts")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")
        fuzz.make_seeds(folder)
        os.chdir(folder)
        lost = soak(options.jobs, options.warm)
        os.chdir("/")
    print(*lost, f"{options.jobs} jobs: {len(lost)} lost", sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
