"""The same command twice: are the files the same, byte for byte? Two processes with other hash seeds; one thread and two.

    python benchmarks/determinism.py
    python benchmarks/determinism.py --commands static train --skip-threads

Decisions by the clock are left out (`--no-tune-latency`, no healing by minutes, `--round-to`): what a clock decides may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz import DATA, MINE, SHAPE, make_seeds

ROOT = Path(__file__).resolve().parent.parent
STATIC = ["quantize", "good.onnx", *DATA, "--no-tune-latency"]
COMMANDS = {
    "export": ["export", *MINE, *SHAPE],
    "static": STATIC,
    "dynamic": ["quantize", "good.onnx", "--method", "dynamic", *SHAPE],
    "float16": ["quantize", "good.onnx", *DATA, "--method", "float16"],
    "qat": [*STATIC, "--method", "qat"],
    "prune": ["prune", *MINE, *DATA, "--round-to", "1", "--heal", "0"],
    "healed": ["prune", *MINE, *DATA, "--round-to", "1", "--heal-steps", "20"],
    "train": ["train", "my.py:build", *DATA, "--epochs", "2", "--seed", "3"],
}


def made(name: str, folder: Path, *, hashes: int, threads: int) -> str:
    """The digest of the model that a fresh process makes.

    Raises:
        SystemExit: the command fails.
    """
    out = folder / f"{name}-{hashes}-{threads}"
    place = f"{out.name}.onnx" if name == "export" else out.name
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": str(hashes),
        "OMP_NUM_THREADS": str(threads),
    }
    command = [sys.executable, "-m", "cli", *COMMANDS[name], "--threads", str(threads), "-q", "-o", place]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{name}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
    path = folder / place if name == "export" else out / "model.onnx"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--skip-threads", action="store_true")
    options = parser.parse_args()
    lost = 0
    with tempfile.TemporaryDirectory(prefix="determinism-") as folder_name:
        folder = Path(folder_name)
        make_seeds(folder)
        for name in options.commands:
            first = made(name, folder, hashes=1, threads=1)
            again = made(name, folder, hashes=2, threads=1) == first
            said = f"{name:8} two processes: {'the same bytes' if again else 'OTHER BYTES'}"
            lost += not again
            if not options.skip_threads:
                same = made(name, folder, hashes=1, threads=2) == first
                said += f"; one and two threads: {'the same bytes' if same else 'other bytes'}"
            print(said, flush=True)
    print(f"{lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
