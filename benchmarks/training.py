"""Training speed: `fit` beside a hand-written loop, two processes beside one, accuracy seed for seed.

    python benchmarks/training.py overhead      # images per second, interleaved; target: at most 3 % slower
    python benchmarks/training.py processes     # two processes, one thread each, beside one; target: 1.7 times
    python benchmarks/training.py accuracy      # Fashion-MNIST, the same settings in a plain script, seed for seed

Throughputs are medians over interleaved rounds; the overhead is the median of the rounds' own ratios, because the two
halves of a round see the same machine. `accuracy` needs ../shared/data.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from compress.loading.data import open_data
from compress.training.launching import available_processes, launch
from compress.training.loop import fit
from compress.training.options import TrainOptions

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class Images:
    """Random images, as `fit` takes data."""

    def __init__(self, count: int, size: int = 32):
        generator = torch.Generator().manual_seed(0)
        self.train = TensorDataset(
            torch.randn(count, 3, size, size, generator=generator), torch.randint(0, 10, (count,), generator=generator)
        )
        self.test = None
        self.num_classes = 10

    def loader(self, part: str, *, batch_size: int, sampler: Any = None, **_: Any) -> DataLoader:
        return DataLoader(getattr(self, part), batch_size=batch_size, sampler=sampler)


def network(channels: int = 3, width: int = 32) -> nn.Module:
    """A small CNN whose convolutions dominate."""
    torch.manual_seed(0)
    widths = [channels, width, width, 2 * width, 2 * width]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [
            nn.Conv2d(before, after, 3, 1 + index % 2, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10))


def plain_loop(module: nn.Module, loader: DataLoader, epochs: int, lr: float, *, cosine: bool = False) -> None:
    """What one writes by hand, with the loss and accuracy that one would look at."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if cosine else None
    for epoch in range(epochs):
        module.train()
        total, right, count = 0.0, 0, 0
        if hasattr(loader.sampler, "set_epoch"):
            loader.sampler.set_epoch(epoch)
        for inputs, target in loader:
            optimizer.zero_grad()
            output = module(inputs)
            loss = functional.cross_entropy(output, target)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(inputs)
            right += int((output.argmax(1) == target).sum())
            count += len(inputs)
        if scheduler:
            scheduler.step()


def overhead(rounds: int) -> None:
    data, batch = Images(512), 32
    options = TrainOptions(epochs=1, batch_size=batch, lr=0.01, scheduler="none", shuffle=False)
    times: dict[str, list[float]] = {"plain": [], "fit": []}

    def plain() -> None:
        plain_loop(network(), DataLoader(data.train, batch_size=batch), 1, 0.01)

    def ours() -> None:
        fit(network(), data, options, device="cpu")

    runs = {"plain": plain, "fit": ours}
    for _ in range(2):
        for run in runs.values():
            run()
    for index in range(rounds):
        for name in ("plain", "fit") if index % 2 else ("fit", "plain"):
            started = time.process_time()  # this process's own work: others on the machine do not count
            runs[name]()
            times[name].append(time.process_time() - started)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(times["fit"], times["plain"]))
    for name, values in times.items():
        print(f"{name:6} {512 / statistics.median(values):8.1f} images/s of processor time")
    print(f"overhead {100 * (ratio - 1):+.2f} % over {rounds} rounds")


def processes(rounds: int) -> None:
    """Whole runs in one process, then in two, each with one thread; the rates are those of the later epochs.

    The rate by processor time is what two free cores would give: the samples of all processes over the seconds that the
    first of them worked (waiting for the other is not work). On a machine that others use, it is the figure to read.
    """
    if available_processes() < 2:
        sys.exit("needs two cores")
    os.environ["OMP_NUM_THREADS"] = "1"
    rates: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for _ in range(rounds):
        for count, found in rates.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "rates.json"
                command = [__file__, "worker", str(out)]
                if count == 1:
                    subprocess.run([sys.executable, *command], check=True)
                else:
                    launch(count, command)
                found.append(json.loads(out.read_text()))
            shown = ", ".join(f"{rate:.1f} images/s by {clock}" for clock, rate in found[-1].items())
            print(f"{count} process(es): {shown}", flush=True)
    for clock in rates[1][0]:
        ratio = statistics.median(two[clock] / one[clock] for one, two in zip(rates[1], rates[2]))
        print(f"two processes: {ratio:.2f} times one by {clock}, over {rounds} rounds")


def worker(out: Path) -> None:
    torch.set_num_threads(1)
    data = Images(768)
    clock: list[tuple[float, float]] = []

    def tick(run: Any) -> None:
        clock.append((time.perf_counter(), time.process_time()))

    options = TrainOptions(epochs=4, batch_size=64, scheduler="none")
    fit(network(width=48), data, options, device="cpu", before_epoch=[tick])
    if os.environ.get("RANK", "0") == "0":
        spans = [[after - before for before, after in zip(*pair)] for pair in itertools.pairwise(clock[1:])]
        wall, worked = (statistics.median(span) for span in zip(*spans))
        out.write_text(json.dumps({"wall clock": len(data.train) / wall, "processor time": len(data.train) / worked}))


def accuracy(seeds: int, epochs: int) -> None:
    if not SHARED.is_dir():
        sys.exit("needs ../shared/data, which is not here")
    data = open_data(str(SHARED / "fashion_mnist.npz"), mean=0.2860, std=0.3530)
    inputs, target = map(
        torch.stack, zip(*((x, torch.as_tensor(y)) for x, y in (data.train[i] for i in range(len(data.train)))))
    )
    test = [
        torch.stack(items)
        for items in zip(*((x, torch.as_tensor(y)) for x, y in (data.test[i] for i in range(len(data.test)))))
    ]
    for seed in range(seeds):
        torch.manual_seed(100 + seed)
        start = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32),
            nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.2), nn.Linear(288, 10),
        )  # fmt: skip
        result = fit(start, data, TrainOptions(epochs=epochs, batch_size=64, lr=0.05, seed=seed), device="cpu")
        mine = _score(result.module, test)
        torch.manual_seed(seed)
        # A generator of its own, as loaders of `compress` have: without it every epoch draws from dropout's stream.
        order, own = _Order(len(inputs), seed), torch.Generator()
        loader = DataLoader(TensorDataset(inputs, target), 64, sampler=order, generator=own)
        plain_loop(start, loader, epochs, 0.05, cosine=True)
        plain = _score(start, test)
        pairs = zip(result.module.state_dict().values(), start.state_dict().values())
        apart = max((first - second).abs().max().item() for first, second in pairs)
        print(
            f"seed {seed}: fit {100 * mine:.2f} %, plain script {100 * plain:.2f} %, greatest difference of weights {apart:.1e}",
            flush=True,
        )


class _Order:
    """The permutation of `torch.randperm` seeded with seed + epoch."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.epoch = size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


@torch.no_grad()
def _score(module: nn.Module, test: list[Tensor]) -> float:
    module.eval()
    return float((module(test[0]).argmax(1) == test[1]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("overhead", "processes", "accuracy", "worker"))
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "worker":
        worker(arguments.out)
        return
    torch.set_num_threads(1)
    if arguments.what == "overhead":
        overhead(arguments.rounds)
    elif arguments.what == "processes":
        processes(min(arguments.rounds, 5))
    else:
        accuracy(arguments.seeds, arguments.epochs)


if __name__ == "__main__":
    main()
