"""Commands that are killed, disks that are full, memory that is short: what is left, and whether going on gives the same.

    python benchmarks/faults.py                              # three signals at ten moments of six commands: half an hour
    python benchmarks/faults.py --commands train run --moments 2 --signals KILL
    python benchmarks/faults.py --only disk memory

Signals: each command is timed once, then stopped at moments spread over that time. After TERM and INT it must have said
one line, left with 130 and no temporary folder; after KILL the same command again (`--resume` for train and run) must
succeed, remove what the dead one left, and give the model of the uninterrupted run, byte for byte.
Disk: files end at N bytes (RLIMIT_FSIZE). Memory: RLIMIT_AS. Both must be one line, exit code 2, no output.
"""

from __future__ import annotations

import argparse
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

from fuzz import RECIPE, make_seeds

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["my.py:build", "--data", "good.npz", "--epochs", "3", "--seed", "1", "-o", "out"]
COMMANDS = {
    "quantize": ["quantize", "good.onnx", "--data", "good.npz", "--no-tune-latency", "-o", "out"],
    "qat": ["quantize", "good.onnx", "--data", "good.npz", "--method", "qat", "-o", "out"],
    "prune": [
        "prune",
        "my.py:build",
        "--weights",
        "good.pt",
        "--input-shape",
        "2,3,8,8",
        "--round-to",
        "1",
        "-o",
        "out",
    ],
    "train": ["train", *TRAIN],
    "finetune": ["finetune", *TRAIN, "--weights", "good.pt"],
    "run": ["run", "recipe.toml"],
}
RESUMED = ("train", "finetune", "run")
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
    )


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
    process = start(COMMANDS[name], folder)
    time.sleep(moment_s)
    process.send_signal(getattr(signal, f"SIG{signal_name}"))
    said = process.communicate(timeout=60)[1]
    code = process.returncode
    if signal_name != "KILL":
        if code not in (0, 130) or len(said.splitlines()) > 1:
            # Before Python runs our first line a signal ends it in Python's own way.
            return "" if moment_s < 1.0 and code in (-15, -2, 1) else f"exit {code}: {said[-200:]}"
        return f"left {left_behind(folder)}" if left_behind(folder) else ""
    more = ["--resume"] if name in RESUMED and (folder / "out").exists() else []
    if (folder / "out" / "report.json").exists():  # it had finished
        more = more or ["--overwrite"]
    again = start([*COMMANDS[name], *more], folder)
    said = again.communicate(timeout=300)[1]
    if again.returncode != 0:
        return f"again: exit {again.returncode}: {said[-200:]}"
    if left_behind(folder):
        return f"left {left_behind(folder)}"
    same = (folder / "out" / "model.onnx").read_bytes() == model
    return "" if same or name == "qat" else "another model than without the interruption"


def signals(good: Path, folder: Path, commands: list[str], moments: int, names: list[str]) -> int:
    lost = 0
    for name in commands:
        fresh(good, folder)
        started = time.monotonic()
        process = start(COMMANDS[name], folder)
        said = process.communicate(timeout=300)[1]
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


def limited(kind: str, good: Path, folder: Path, commands: list[str]) -> int:
    """The disk or the memory ends; each command must say so in one line."""
    limits = {"disk": (resource.RLIMIT_FSIZE, 2_000), "memory": (resource.RLIMIT_AS, 600_000_000)}
    number, size = limits[kind]
    lost = 0
    for name in commands:
        fresh(good, folder)
        process = start(COMMANDS[name], folder, lambda: resource.setrlimit(number, (size, size)))
        said = process.communicate(timeout=120)[1]
        ours = [line for line in said.splitlines() if line]
        whole = process.returncode == 2 and len(ours) == 1 and not (folder / "out" / "report.json").exists()
        print(f"{name:9} {kind}: exit {process.returncode}: {ours[-1][:150] if ours else ''}", flush=True)
        lost += not whole
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--signals", nargs="*", choices=["KILL", "TERM", "INT"], default=["KILL", "TERM", "INT"])
    parser.add_argument(
        "--only", nargs="*", choices=["signals", "disk", "memory"], default=["signals", "disk", "memory"]
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        good, folder = Path(name) / "good", Path(name) / "case"
        good.mkdir()
        make_seeds(good)
        # No time is measured into the model, so that two runs can be compared byte for byte.
        (good / "recipe.toml").write_text(
            RECIPE.replace("amount = 0.5", "amount = 0.5\nround_to = 1\n[finetune]\nepochs = 1")
        )
        lost = 0
        if "signals" in options.only:
            lost += signals(good, folder, options.commands, options.moments, options.signals)
        for kind in ("disk", "memory"):
            if kind in options.only:
                lost += limited(kind, good, folder, options.commands)
    print(f"{lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
