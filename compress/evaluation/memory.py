"""Peak memory of a model file, measured in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from compress.batches import example_batch
from compress.children import environment
from compress.evaluation.runners import Target, float_precision_of, model_in, runtime_of
from compress.files import native_file
from compress.scratch import scratch_folder

# What the child runs: libraries and inputs first, then the model; the peak above that point is the model's.
CHILD = """
import json, sys
import torch
from compress.batches import Batch
from compress.evaluation.runners import Runnable, open_runner
path, inputs, threads, runtime, precision = json.loads(sys.argv[1])
inputs, named = torch.load(inputs, weights_only=True)
inputs = Batch.of(inputs if named else tuple(inputs.values()))
def status(key):  # not ru_maxrss: that one survives exec, so it would be the parent's
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = status("VmRSS:")
runner = open_runner(Runnable(path, runtime, precision) if runtime != "torch" else path, threads=threads)
for _ in range(3):
    runner(inputs)
print(max(0, status("VmHWM:") - before))
"""


def peak_memory_bytes(target: Target, inputs: Any, threads: int | None = None) -> int | None:
    """Return the peak resident memory that loading a file and running it adds; None where it cannot be known.

    Only files are measured (a module in hand shares its process with everything else), and only on Linux.
    """
    path = model_in(target)
    if not isinstance(path, (str, Path)) or not sys.platform.startswith("linux"):
        return None
    batch = example_batch(inputs)
    with scratch_folder() as folder:
        saved = str(Path(folder) / "inputs.pt")
        values = {name: x.detach().cpu().contiguous() for name, x in batch.inputs.items()}
        with native_file(Path(saved)) as file:
            torch.save((values, batch.named), file)
        arguments = json.dumps(
            [str(Path(path).absolute()), saved, threads, runtime_of(target), float_precision_of(target)]
        )
        done = subprocess.run(
            [sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, env=environment(), check=False
        )
    lines = done.stdout.split()
    return int(lines[-1]) if done.returncode == 0 and lines else None
