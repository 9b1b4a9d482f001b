"""Large models, many samples, long graphs: peak memory and time of whole commands, each in a process of its own.

    python benchmarks/scale.py                               # all, with a model of 2.25 GiB: needs 12 GiB of free memory
    python benchmarks/scale.py --only size --matrices 9      # a model of 0.56 GiB
    python benchmarks/scale.py --only nodes --nodes 1000 5000 20000
    python benchmarks/scale.py --only samples --samples 500 50000

Goals: no command's memory is above 3 times the float file; 50,000 samples take the memory of 500; the time for each node
is that of a graph of 1,000 (at most twice, without the start of the command). Memory is `ru_maxrss` of the child, which
counts mapped files too.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDE = 4096  # of a square weight: 64 MiB
LARGEST_RATIO, LARGEST_GROWTH, LARGEST_SLOPE = 3.0, 1.15, 2.0
BIG = f"""
import torch
from torch import nn

def build(count):
    torch.manual_seed(0)
    layers = []
    for _ in range(count):
        layers += [nn.Linear({SIDE}, {SIDE}), nn.ReLU()]
    return nn.Sequential(*layers)

def big():
    return build({{count}})
"""
WRITE_LONG = """
import sys
import numpy as np, onnx
from onnx import TensorProto as T, helper as h, numpy_helper as n
count, path = int(sys.argv[1]), sys.argv[2]
rng, nodes, weights, last = np.random.default_rng(0), [], [], "x"
for index in range(count // 4):  # MatMul, Add, Relu, Add to what was before: four nodes
    weights.append(n.from_array(rng.normal(0, 0.3, (16, 16)).astype(np.float32), f"w{index}"))
    weights.append(n.from_array(rng.normal(0, 0.1, 16).astype(np.float32), f"b{index}"))
    nodes.append(h.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], name=f"matmul{index}"))
    nodes.append(h.make_node("Add", [f"m{index}", f"b{index}"], [f"a{index}"], name=f"add{index}"))
    nodes.append(h.make_node("Tanh", [f"a{index}"], [f"r{index}"], name=f"tanh{index}"))
    nodes.append(h.make_node("Add", [f"r{index}", last], [f"y{index}"], name=f"sum{index}"))
    last = f"y{index}"
graph = h.make_graph(nodes, "long", [h.make_tensor_value_info("x", T.FLOAT, ["batch", 16])],
                     [h.make_tensor_value_info(last, T.FLOAT, ["batch", 16])], weights)
onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
"""
WRITE_DATA = """
import sys
import numpy as np
count, path = int(sys.argv[1]), sys.argv[2]
size = [int(x) for x in sys.argv[3].split(",")]
rng = np.random.default_rng(0)
test = rng.integers(0, 255, (16, *size), dtype=np.uint8) if len(size) > 1 else rng.normal(size=(16, *size)).astype(np.float32)
train = np.resize(test, (count, *size)) if len(size) > 1 else rng.normal(size=(count, *size)).astype(np.float32)
np.savez(path, x_train=train, y_train=np.arange(count) % 4, x_test=test, y_test=np.arange(16) % 4)
"""
SMALL = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
"""
QUICK = ["--no-tune-latency", "-q"]


@dataclass(frozen=True)
class Used:
    """What one command took."""

    code: int
    seconds: float
    mib: float
    said: str


def measured(arguments: list[str], folder: Path) -> Used:
    """Run Python with `arguments` in `folder`; its time, and the largest memory that it held."""
    log = folder / "said.txt"
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, used = os.wait4(child, 0)
    seconds = time.monotonic() - started
    code = os.waitstatus_to_exitcode(status)
    return Used(code, seconds, used.ru_maxrss / 1024, log.read_text()[-400:])


def compress(words: str, folder: Path) -> Used:
    """Run one command line; a failure ends the program with what it said."""
    used = measured(["-m", "cli", *words.split(), "-q"], folder)
    if used.code not in (0, 3):
        sys.exit(f"compress {words}: exit {used.code}: {used.said}")
    return used


def write(program: str, folder: Path, *arguments: object) -> None:
    used = measured(["-c", program, *map(str, arguments)], folder)
    if used.code:
        sys.exit(used.said)


def sizes(folder: Path, matrices: int) -> list[str]:
    """A model of `matrices` weights of 64 MiB through export and every way to quantize it."""
    (folder / "big.py").write_text(BIG.replace("{count}", str(matrices)))
    write(WRITE_DATA, folder, 64, "vectors.npz", SIDE)
    steps = {
        "export": f"export big.py:big --input-shape 2,{SIDE} -o big.onnx",
        "quantize dynamic": f"quantize big.onnx --method dynamic --input-shape 2,{SIDE} -o dynamic",
        "quantize weight-only": f"quantize big.onnx --method weight-only --input-shape 2,{SIDE} -o weights",
        "quantize static": "quantize big.onnx --data vectors.npz --calibration-samples 32 --no-tune-latency -o static",
    }
    lost, file_mib = [], 0.0
    for name, words in steps.items():
        used = compress(words, folder)
        file_mib = file_mib or sum(item.stat().st_size for item in folder.glob("big.onnx*")) / 2**20
        ratio = used.mib / file_mib
        print(
            f"{name:22} float file {file_mib:6.0f} MiB  memory {used.mib:6.0f} MiB = {ratio:.2f} files  {used.seconds:5.0f} s",
            flush=True,
        )
        if ratio > LARGEST_RATIO:
            lost.append(f"{name}: {ratio:.2f} files of memory")
    return lost


def samples(folder: Path, counts: list[int]) -> list[str]:
    """Static quantization calibrated on few and on many images, which lie in a file that is mapped or read."""
    (folder / "small.py").write_text(SMALL)
    compress("export small.py:small --input-shape 2,3,32,32 -o small.onnx", folder)
    found = []
    for count in counts:
        write(WRITE_DATA, folder, count, "images.npz", "32,32,3")
        used = compress(
            f"quantize small.onnx --data images.npz --calibration-samples {count} --no-tune-latency --overwrite -o many",
            folder,
        )
        held = count * 32 * 32 * 3 / 2**20
        print(
            f"{count:6} samples  memory {used.mib:6.0f} MiB  (the images themselves {held:4.0f} MiB)  {used.seconds:5.0f} s",
            flush=True,
        )
        found.append(used.mib - held)
    growth = max(found) / found[0]
    return [f"{growth:.2f} times the memory with more samples"] if growth > LARGEST_GROWTH else []


def nodes(folder: Path, counts: list[int]) -> list[str]:
    """Graphs of many small nodes, static and dynamic."""
    write(WRITE_DATA, folder, 64, "short.npz", 16)
    lost = []
    for method in ("dynamic", "static"):
        spent = []
        for count in counts:
            write(WRITE_LONG, folder, count, "long.onnx")
            data = "--data short.npz --calibration-samples 32" if method == "static" else "--input-shape 2,16"
            used = compress(
                f"quantize long.onnx --method {method} {data} --no-tune-latency --overwrite -o long", folder
            )
            spent.append(used.seconds)
            print(f"{method:8} {count:6} nodes  {used.seconds:6.1f} s  memory {used.mib:6.0f} MiB", flush=True)
        if len(counts) > 2:  # the first holds the start of the command: the slope from there on is what counts
            first = (spent[1] - spent[0]) / (counts[1] - counts[0])
            last = (spent[-1] - spent[-2]) / (counts[-1] - counts[-2])
            print(f"{method:8} {first * 1000:.1f} ms for each node at first, {last * 1000:.1f} ms at last")
            if last > LARGEST_SLOPE * first:
                lost.append(f"{method}: {last / first:.1f} times the time for each node")
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=["size", "samples", "nodes"], default=["nodes", "samples", "size"])
    parser.add_argument("--matrices", type=int, default=36, help="weights of 64 MiB in the large model")
    parser.add_argument("--samples", type=int, nargs="*", default=[500, 50_000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1000, 5000, 20_000])
    options = parser.parse_args()
    lost = []
    with tempfile.TemporaryDirectory(prefix="scale-") as name:
        folder = Path(name)
        if "nodes" in options.only:
            lost += nodes(folder, options.nodes)
        if "samples" in options.only:
            lost += samples(folder, options.samples)
        if "size" in options.only:
            lost += sizes(folder, options.matrices)
    print(*lost, f"{len(lost)} goals missed", sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
