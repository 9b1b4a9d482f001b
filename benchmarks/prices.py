"""What each method costs and gives on one small network: the seconds of the whole command, and its report's figures.

    compress quickstart && python benchmarks/prices.py --data mnist5k

Runs each command on quickstart/float.onnx (pruning and training: on quickstart/model.pt2 and its weights) in a folder that goes
afterwards. One thread; seconds include starting Python and the closing measurement of both files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOAT, MODULE = "quickstart/float.onnx", "quickstart/model.pt2"
BUILD = ["compress.pipeline.quickstart:build", "--weights", "quickstart/weights.pt"]
METHODS: dict[str, list[str]] = {
    "int8, calibrated (default)": ["quantize", FLOAT],
    "int8, `--accuracy fast`": ["quantize", FLOAT, "--accuracy", "fast"],
    "float16": ["quantize", FLOAT, "--method", "float16"],
    "`--weight-bits 4`": ["quantize", FLOAT, "--weight-bits", "4"],
    "`--method qat`, one epoch": ["quantize", FLOAT, "--method", "qat", "--epochs", "1"],
    "`prune --macs 0.5`": ["prune", MODULE, "--macs", "0.5"],
}


def row(title: str, words: list[str], data: str) -> str:
    """Run one command and read its report."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["--data", data, "-o", f"{folder}/out", "--threads", "1", "--quiet"]
        command = [sys.executable, "-m", "cli", *words, *settings]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - start
        if done.returncode:
            return f"| {title} | failed: {done.stderr.strip()[:200]} |"
        report = json.loads((Path(folder) / "out" / "report.json").read_text())
    base = next(item for item in report["rows"] if item["name"] == report["baseline"])
    made = report["rows"][-1]
    moved = f"{100 * (made['top1'] - base['top1']):+.2f}".replace("-", "−")
    return (
        f"| {title} | {seconds:.0f} s | {base['size_bytes'] / made['size_bytes']:.1f}× | {made['speedup']:.2f}× "
        f"| {moved} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist5k")
    parser.add_argument("--methods", help="some of them, by a part of their title")
    given = parser.parse_args()
    print("| method | whole command | smaller | faster | points |\n|---|---|---|---|---|", flush=True)
    for title, words in METHODS.items():
        if not given.methods or given.methods in title:
            print(row(title, words, given.data), flush=True)


if __name__ == "__main__":
    main()
