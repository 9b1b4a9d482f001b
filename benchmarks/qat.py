"""Time of a QAT step beside a float step, beside torch.ao's prepare_qat_fx; agreement with ONNX Runtime.

    python benchmarks/qat.py [--models resnet18 mobilenet_v2] [--size 64] [--batch 16] [--rounds 15] [--threads 1]

A step is forward, loss, backward, SGD update, on one batch of random images. All forms take turns, round by round, so
that a busy machine slows all of them; figures are medians of milliseconds, and ratios are medians of the rounds' own
ratios to the float step. "float" is the module itself, batch-norm in training mode; "graph" the exported graph without
fake quantization. The last columns compare the converted file with the trained module.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from compress.graph.exporting import to_graph
from compress.graph.module import GraphModule
from compress.loading.torchvision_ops import torchvision
from compress.quantization.qat import convert, prepare_qat

SCALES = ("learned", "observed", "fixed")


def step_of(module: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """Return a function that trains `module` by one step."""
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), 1e-5, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(module(x), target).backward()
        optimizer.step()

    return step


def fx_module(module: nn.Module, x: Tensor) -> nn.Module:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prepare_qat_fx(copy.deepcopy(module).train(), get_default_qat_qconfig_mapping("x86"), (x,))


def measure(name: str, size: int, batch: int, rounds: int) -> tuple[list[list[object]], list[object]]:
    """Return rows of the table of times, and one row about agreement."""
    torch.manual_seed(0)
    x, target = torch.randn(batch, 3, size, size), torch.randint(0, 1000, (batch,))
    module = torchvision.models.get_model(name, weights=None)
    with torch.no_grad():
        for _ in range(20):  # batch-norm statistics that fit, else nothing has a sensible range
            module.train()(torch.randn(batch, 3, size, size))
    graph = to_graph(copy.deepcopy(module).eval(), (x[:2],))
    ours = {scales: prepare_qat(graph, [x], scales=scales) for scales in SCALES}
    forms = {"float": copy.deepcopy(module), "graph": GraphModule(graph)}
    forms |= {f"QAT, {scales}": ours[scales] for scales in SCALES}
    forms["torch.ao FX"] = fx_module(module, x)
    steps = {label: step_of(form, x, target) for label, form in forms.items()}
    times: dict[str, list[float]] = {label: [] for label in steps}
    for index in range(rounds + 2):
        for label, step in steps.items():
            start = time.perf_counter()
            step()
            if index >= 2:
                times[label].append((time.perf_counter() - start) * 1e3)
    rows = [
        [name, label, statistics.median(taken), statistics.median(a / b for a, b in zip(taken, times["float"]))]
        for label, taken in times.items()
    ]
    found = convert(ours["learned"], [torch.randn(batch, 3, size, size) for _ in range(8)]).changes[-1].values
    return rows, [name, found["samples"], found["top1_agreement"], found["largest_steps"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"torch {torch.__version__}, {given.threads} threads, batch {given.batch}, {given.size}×{given.size}")
    results = [measure(name, given.size, given.batch, given.rounds) for name in given.models]
    rows = [row for table, _ in results for row in table]
    print(tabulate(rows, headers=["model", "step of", "ms", "× float"], floatfmt=(None, None, ".1f", ".2f")))
    print()
    agreements = [row for _, row in results]
    print(tabulate(agreements, headers=["model", "samples", "top-1 agreement", "largest steps"], floatfmt=".3f"))


if __name__ == "__main__":
    main()
