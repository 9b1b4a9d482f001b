"""Every ONNX file that well-known packages ship: does it load, dynamic and static int8, size, weights, dB to its float outputs, speed.

    pip download --no-deps -d wheels rapidocr-onnxruntime==1.4.4 ddddocr==1.6.1 magika==1.0.3 silero-vad==6.2.3
    for wheel in wheels/*.whl; do python -m zipfile -e $wheel packages; done
    python benchmarks/foreign.py packages [--markdown]

Inputs are random (these packages bring no data), static ranges are from other random inputs of the same kind: the dB tell whether
the arithmetic is right, not how good the ranges are. Exit code 1 where a result does not load, is larger, or where a refusal is
not one line.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from layers import decibels
from torch import Tensor

import compress
from compress.evaluation.latency import benchmark
from compress.graph.constants import stored_bytes
from compress.loading.declared import read_declared
from compress.pipeline.quantize import check_gained
from compress.runtimes.onnxruntime import Session
from compress.steps import Step

# Sizes that the files leave open, by file name: what their packages feed them.
INPUTS = {
    "common": ["input1:1,1,64,160"],
    "common_old": ["input1:1,1,64,160"],
    "det_infer": ["x:1,3,320,320"],
    "rec_infer": ["x:1,3,48,320"],
    "cls_infer": ["x:1,3,48,192"],
    "silero_vad": ["input:1,576", "state:2,1,128", "sr::int64=16000"],
    "silero_vad_16k_sequence": ["input:4,576", "h:1,1,128", "c:1,1,128"],
    "silero_vad_16k_op15": ["input:1,576", "state:2,1,128", "sr::int64=16000"],
    "silero_vad_op18_ifless": ["input:1,576", "state:2,1,128", "sr::int64=16000"],
    "silero_vad_half": ["input:1,576", "state:2,1,128"],
}
BYTES = 256  # integers are drawn below this: bytes of a file
METHODS = ("dynamic", "static")


@dataclass
class Row:
    """One file with one method."""

    file: str
    method: str
    refused: str = ""
    cells: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="files whose path contains this")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    columns = ("file", "weights", "to float outputs", "speed", "layers done")
    print("| model | method |", " | ".join(columns), "|\n|---|---|" + "---|" * len(columns))
    rows = []
    for path in sorted(arguments.folder.rglob("*.onnx")):
        if arguments.only in str(path):
            for method in METHODS:
                row = measured(path, method, arguments.rounds)
                rows.append(row)
                shown = [row.refused] if row.refused else [row.cells.get(name, "") for name in columns]
                print("|", row.file, "|", method, "|", " | ".join(shown), "|", flush=True)
    wrong = [f"{row.file}, {row.method}: {what}" for row in rows for what in row.wrong]
    print(f"\n{len(rows)} results, {sum(bool(row.refused) for row in rows)} refused with a reason, {len(wrong)} wrong")
    print("\n".join(wrong))
    return int(bool(wrong))


def measured(path: Path, method: str, rounds: int) -> Row:
    """Quantize one file and hold the result against it."""
    row = Row("/".join(path.parts[-2:]), method)
    try:
        feeds = [stand_ins(path, seed) for seed in range(4)]
        step = MAKE[method](path, feeds[1:])
    except compress.CompressError as error:
        row.refused = str(error)
        if "\n" in row.refused or len(row.refused) > 400:
            row.wrong.append("the refusal is not one line")
        return row
    except Exception as error:
        row.refused = f"FAILS with {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        row.wrong.append("it fails")
        return row
    with tempfile.TemporaryDirectory() as folder:
        made = compress.save_onnx(step.model, Path(folder) / "int8.onnx")
        before, after = path.stat().st_size, made.stat().st_size
        row.cells["file"] = f"{before / 1e6:.2f} → {after / 1e6:.2f} MB ({after / before:.2f})"
        weights = stored_bytes(compress.read_onnx(path)), stored_bytes(step.model)
        row.cells["weights"] = f"{weights[1] / max(weights[0], 1):.2f}"
        row.cells["layers done"] = str(len(step.done))
        if after >= before:
            row.wrong.append("it is not smaller")
        try:
            expected, got = (Session(name, threads=1).run(*feeds[0])[0] for name in (path, made))
        except compress.CompressError as error:
            row.wrong.append(f"it does not load or run: {error}")
            return row
        row.cells["to float outputs"] = f"{decibels(expected, got):.1f} dB"
        timed = benchmark({"float": path, "int8": made}, feeds[0], rounds=rounds, threads=1, max_seconds=20)
        row.cells["speed"] = f"{timed['int8'].speedup:.2f}×"
    return row


def stand_ins(path: Path, seed: int) -> tuple[Tensor, ...]:
    """Random inputs of the sizes that the file, or `INPUTS`, tells."""
    generator = torch.Generator().manual_seed(seed)
    known = next(
        (found for name, found in sorted(INPUTS.items(), key=lambda x: -len(x[0])) if path.stem.endswith(name)), []
    )
    declared = {one.name: one for one in read_declared(known)}
    graph = compress.read_onnx(path)
    found = []
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:
            continue
        assert value.dtype is not None
        dtype = torch.from_numpy(np.empty(0, value.dtype.numpy())).dtype
        if value.name in declared:
            found.append(declared[value.name].tensor(dtype, generator))
            continue
        sizes = [size if isinstance(size, int) and size > 0 else 1 for size in value.shape or ()]
        random = torch.rand(sizes, generator=generator)
        found.append(random.to(dtype) if dtype.is_floating_point else (random * BYTES).to(dtype))
    return tuple(found)


def _dynamic(path: Path, feeds: list[tuple[Tensor, ...]]) -> Step:
    step = compress.quantize_dynamic(path)
    check_gained(compress.read_onnx(path), step)
    return step


def _static(path: Path, feeds: list[tuple[Tensor, ...]]) -> Step:
    return compress.quantize_static(path, [(inputs, None) for inputs in feeds], threads=1)


MAKE: dict[str, Callable[[Path, list[tuple[Tensor, ...]]], Step]] = {"dynamic": _dynamic, "static": _static}

if __name__ == "__main__":
    sys.exit(main())
