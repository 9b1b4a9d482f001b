"""Commands that are killed, disks that are full, memory that is short: what is left, and whether going on gives the same.

    python benchmarks/faults.py                              # three signals at ten moments of seven commands: half an hour
    python benchmarks/faults.py --commands train run --moments 2 --signals KILL
    python benchmarks/faults.py --only disk memory readonly processes

Signals: each command is timed once, then stopped at moments spread over that time. After TERM and INT it must have said
one line, left with 130 and no temporary folder; after KILL the same command again (`--resume` for train and run) must
succeed, remove what the dead one left, and give the model of the uninterrupted run, byte for byte.
Disk: files end at N bytes (RLIMIT_FSIZE), at several N. Memory: RLIMIT_AS, at several limits. Read-only: a folder that this
user may not write. Each must be one line, exit code 2, no output (or, with enough of it, success).
Processes: a worker that loads data, and one of two that train together, is killed, leaves, raises: the command ends within
a minute of its start, tells that one's error in its last line, and no process is left.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import fuzz
from fuzz import DATA, MINE, OUT, RECIPE, SHAPE, make_seeds

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["my.py:build", *DATA, "--epochs", "3", "--seed", "1", *OUT]
COMMANDS = {
    "quantize": ["quantize", "good.onnx", *DATA, "--no-tune-latency", *OUT],
    "qat": ["quantize", "good.onnx", *DATA, "--method", "qat", *OUT],
    "prune": ["prune", *MINE, *SHAPE, "--round-to", "1", *OUT],
    "train": ["train", *TRAIN],
    "finetune": ["finetune", *TRAIN, "--weights", "good.pt"],
    "search": ["search", *MINE, *DATA, "--minutes", "3", "--trials", "2", *OUT],
    "run": ["run", "recipe.toml"],
}
RESUMED = ("train", "finetune", "search", "run")
TIMED = ("qat", "search")  # what they give depends on the clock, so only that they go on is checked
DISK_BYTES = (2_000, 5_000, 20_000)
MEMORY_BYTES = (450_000_000, 600_000_000, 720_000_000, 850_000_000, 1_100_000_000)
LONGEST_END_S = 60.0  # with what comes before: a process imports for 4 s, several of them on one core for more
DYING = """
import os, signal, sys, time
import torch
from torch.utils.data import Dataset, get_worker_info

def end(how):
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leaves":
        os._exit(5)
    if how == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    raise ValueError("sample 7 is no image")

class Dying(Dataset):
    def __init__(self, how):
        self.how = how
    def __len__(self):
        return 16
    def __getitem__(self, index):
        if self.ends_at(index):
            end(self.how)
        return torch.ones(3, 8, 8), index % 4

class Worker(Dying):
    def ends_at(self, index):
        return get_worker_info() is not None and index == 7

class Rank(Dying):
    def ends_at(self, index):
        return os.environ.get("RANK") == "1" and index > 6

for how in ("killed", "leaves", "crashes", "raises"):
    globals()[f"worker_{how}"] = lambda how=how: {"train": Worker(how), "test": Worker(how)}
    globals()[f"rank_{how}"] = lambda how=how: {"train": Rank(how), "test": Rank(how)}
"""
SAID = {  # what the last line must tell, by who ends and how
    ("worker", "killed"): "exited unexpectedly",
    ("worker", "leaves"): "exited unexpectedly",
    ("worker", "crashes"): "exited unexpectedly",
    ("worker", "raises"): "sample 7 is no image",
    ("rank", "killed"): "process 1 failed with exit code -9",
    ("rank", "leaves"): "process 1 failed with exit code 5",
    ("rank", "crashes"): "process 1 failed with exit code -11",
    ("rank", "raises"): "sample 7 is no image",
}
OWN_OF_OTHERS = {".ses"}  # ONNX Runtime's, in the temporary folder


def start(arguments: list[str], folder: Path, limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments, "-q"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        start_new_session=True,  # whoever is left of it can be found
    )


class Forked:
    """A command in a child of this process, which has imported everything: moments fall into its work, not into imports."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        reading, writing = os.pipe()
        self.words, self.returncode = os.fdopen(reading, "rb"), 0
        self.child = os.fork()
        if self.child == 0:
            self.words.close()
            fuzz.become([*arguments], folder, writing)
        os.close(writing)

    def send_signal(self, number: int) -> None:
        os.kill(self.child, number)

    def communicate(self) -> str:
        said = self.words.read().decode("utf-8", "replace")
        self.words.close()
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        return said


def left_behind(folder: Path) -> list[str]:
    hidden = [str(p.relative_to(folder)) for p in folder.rglob(".*") if ".writing-" in p.name or p.suffix == ".lock"]
    return hidden + [p.name for p in (folder / "tmp").iterdir() if p.name not in OWN_OF_OTHERS]


def fresh(good: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    (folder / "tmp").mkdir()


def stopped(name: str, signal_name: str, moment_s: float, good: Path, folder: Path, model: bytes) -> str:
    """Stop a command at one moment; return what is wrong, or nothing."""
    fresh(good, folder)
    process = Forked(COMMANDS[name], folder)
    time.sleep(moment_s)
    process.send_signal(getattr(signal, f"SIG{signal_name}"))
    said = process.communicate()
    code = process.returncode
    done = (folder / "out" / "report.json").exists()
    if signal_name != "KILL":
        late = done and code in (-15, -2)  # the command was over, this process not yet
        if not late and (code not in (0, 130) or len(said.splitlines()) > 1):
            return f"exit {code}: {said[-200:]}"
        if code == 130 and done and name not in RESUMED:
            return "130 with an output"
        return f"left {left_behind(folder)}" if left_behind(folder) and not late else ""
    more = ["--resume"] if name in RESUMED and (folder / "out").exists() else []
    if done and name != "search":  # it had finished
        more = more or ["--overwrite"]
    again = Forked([*COMMANDS[name], *more], folder)
    said = again.communicate()
    if again.returncode != 0:
        return f"again {more}: exit {again.returncode}: {said[-200:]}"
    if left_behind(folder):
        return f"left {left_behind(folder)}"
    same = (folder / "out" / "model.onnx").read_bytes() == model
    return "" if same or name in TIMED else "another model than without the interruption"


def signals(good: Path, folder: Path, commands: list[str], moments: int, names: list[str]) -> int:
    lost = 0
    for name in commands:
        fresh(good, folder)
        Forked(COMMANDS[name], folder).communicate()  # the first reads files that the system does not hold yet
        fresh(good, folder)
        started = time.monotonic()
        process = Forked(COMMANDS[name], folder)
        said = process.communicate()
        whole_s = time.monotonic() - started
        if process.returncode != 0:
            print(f"{name}: does not run: {said.strip()[-300:]}")
            lost += 1
            continue
        model = (folder / "out" / "model.onnx").read_bytes()
        for signal_name in names:
            wrong = []
            for index in range(moments):
                moment_s = whole_s * (index + 0.5) / moments
                why = stopped(name, signal_name, moment_s, good, folder, model)
                wrong += [f"at {moment_s:.1f} s: {why}"] if why else []
            print(
                f"{name:9} {signal_name:4} {moments} moments of {whole_s:.1f} s: {len(wrong)} lost",
                *wrong,
                sep="\n  ",
                flush=True,
            )
            lost += len(wrong)
    return lost


def refused(name: str, kind: str, folder: Path, limit: Callable[[], None] | None) -> bool:
    """Whether a command that cannot be done says so in one line and leaves no output; or is done after all."""
    process = start(COMMANDS[name], folder, limit)
    said = process.communicate(timeout=200)[1]
    ours = [line for line in said.splitlines() if line]
    done = process.returncode == 0 and (folder / "out" / "report.json").exists()
    whole = process.returncode == 2 and len(ours) == 1 and not (folder / "out" / "report.json").exists()
    if whole or done:
        whole = done = not (left := left_behind(folder))
        ours += [f"left {left}"] if left else []
    print(f"{name:9} {kind}: exit {process.returncode}: {ours[-1][:150] if ours else ''}", flush=True)
    return whole or done


def limited(kind: str, good: Path, folder: Path, commands: list[str]) -> int:
    """The disk or the memory ends; each command must say so in one line."""
    limits = {"disk": (resource.RLIMIT_FSIZE, DISK_BYTES), "memory": (resource.RLIMIT_AS, MEMORY_BYTES)}
    number, sizes = limits[kind]
    lost = 0
    for name in commands:
        for size in sizes:
            fresh(good, folder)
            lost += not refused(
                name, f"{kind} {size}", folder, lambda size=size: resource.setrlimit(number, (size, size))
            )
    return lost


def held_to_permissions() -> None:
    """In the child: root without CAP_DAC_OVERRIDE (1), taken from what the next program may have (PR_CAPBSET_DROP, 24)."""
    if os.getuid() == 0 and ctypes.CDLL(None).prctl(24, 1, 0, 0, 0):
        raise OSError("cannot give up CAP_DAC_OVERRIDE")


def read_only(good: Path, folder: Path, commands: list[str]) -> int:
    """The folder may not be written; root may write everything, so that there the command runs without that right."""
    lost = 0
    for name in commands:
        fresh(good, folder)
        folder.chmod(0o555)
        before = sorted(item.name for item in folder.iterdir())
        fine = refused(name, "read-only", folder, held_to_permissions)
        changed = sorted(item.name for item in folder.iterdir()) != before
        folder.chmod(0o755)
        lost += not fine or changed
    return lost


def alive(session: int) -> list[str]:
    """The processes of a session that still run, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z" and int(fields[3]) == session:
                found.append((entry / "cmdline").read_text().replace("\0", " ")[:100])
        except (OSError, IndexError, ValueError):
            continue
    return found


def processes(good: Path, folder: Path) -> int:
    """Workers and ranks that die: the command ends soon, tells why, leaves nobody."""
    lost = 0
    for (who, how), expected in SAID.items():
        fresh(good, folder)
        (folder / "dying.py").write_text(DYING)
        more = ["--workers", "2"] if who == "worker" else ["--nproc", "2"]
        began = time.monotonic()
        process = start(
            ["train", "my.py:build", "--data", f"dying.py:{who}_{how}", "--epochs", "1", "-o", "out", *more], folder
        )
        try:
            said = process.communicate(timeout=2 * LONGEST_END_S)[1]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said = "did not end"
        took_s = time.monotonic() - began
        lines = said.splitlines() or [""]
        time.sleep(0.5)
        left = alive(process.pid) + left_behind(folder)
        fine = (
            process.returncode == (1 if who == "rank" and how != "raises" else 2)
            and expected in lines[-1]
            and not left
            and took_s < LONGEST_END_S
        )
        print(
            f"{who} {how}: exit {process.returncode} after {took_s:.1f} s, {len(lines)} lines: {lines[-1][:150]}",
            *left,
            flush=True,
        )
        lost += not fine
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--signals", nargs="*", choices=["KILL", "TERM", "INT"], default=["KILL", "TERM", "INT"])
    kinds = ["signals", "disk", "memory", "readonly", "processes"]
    parser.add_argument("--only", nargs="*", choices=kinds, default=kinds)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        good, folder = Path(name) / "good", Path(name) / "case"
        good.mkdir()
        make_seeds(good)
        # No time is measured into the model, so that two runs can be compared byte for byte.
        (good / "recipe.toml").write_text(
            RECIPE.replace("heal = 0.0", "heal = 0.0\nround_to = 1\n[finetune]\nepochs = 1")
        )
        lost = 0
        if "signals" in options.only:
            fuzz.prepare()
            lost += signals(good, folder, options.commands, options.moments, options.signals)
        for kind in ("disk", "memory"):
            if kind in options.only:
                lost += limited(kind, good, folder, options.commands)
        if "readonly" in options.only:
            lost += read_only(good, folder, options.commands)
        if "processes" in options.only:
            lost += processes(good, folder)
    print(f"{lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
