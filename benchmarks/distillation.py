"""Distillation beside plain fine-tuning after channel pruning, at equal epochs, seed for seed.

    python benchmarks/distillation.py --epochs 8 --seeds 3

Prunes a CIFAR-10 ResNet of ../shared/data to half of its channels, then fine-tunes copies of it: with labels alone,
with the float model's soft targets, with its features too. The last epoch's weights are judged: nothing is chosen on
the test images. The interval is of the paired difference (same pruned model, same seeds, same order of samples).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset

from compress.loading.data import open_data
from compress.loading.models import open_model
from compress.pruning.prune import prune
from compress.training.loop import fit
from compress.training.options import TrainOptions

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CHECKPOINTS = {"cifar_resnet20": "cifar_resnet20-12fca82f.th", "cifar_resnet56": "cifar_resnet56-4bfd9763.th"}
WAYS: dict[str, dict[str, Any]] = {
    "labels": {},
    "soft-0.5": {"distill_weight": 0.5},
    "soft-0.9": {"distill_weight": 0.9},
    # The end of each stage: pruning changes its channels, not its positions.
    "features": {"distill_weight": 0.9, "feature_layers": ("layer1", "layer2", "layer3")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar_resnet20", choices=sorted(CHECKPOINTS))
    parser.add_argument("--amount", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--samples", type=int, help="train on the first so many images only; default: all")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=sorted(WAYS), help="this way (repeatable; default: all)")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("needs the checkpoints in ../shared/data, which are not here")
    teacher = open_model(
        f"{SHARED / 'models.py'}:{arguments.model}", weights=SHARED / CHECKPOINTS[arguments.model]
    ).model
    data = open_data(
        str(SHARED / "cifar10.npz"), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), calibration_samples=256
    )
    if arguments.samples:
        data = dataclasses.replace(data, train=Subset(data.train, range(arguments.samples)))
    student = prune(teacher, torch.randn(2, 3, 32, 32), amount=arguments.amount).model
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in (teacher, student)]
    print(f"{arguments.model}: {counts[0]} parameters, pruned to {counts[1]}; {len(data.train)} training images")
    ways = arguments.only or list(WAYS)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name in ways:
            options = TrainOptions(
                epochs=arguments.epochs,
                batch_size=128,
                lr=arguments.lr,
                weight_decay=5e-4,
                nesterov=True,
                crop_padding=4,
                flip=True,
                seed=seed,
                **WAYS[name],
            )
            started = time.perf_counter()
            result = fit(student, data, options, teacher=teacher if WAYS[name] else None)
            top1 = 100 * result.final["eval/top1"]
            found[name].append(top1)
            print(f"seed {seed}  {name:10} {top1:6.2f} %  {time.perf_counter() - started:5.0f} s", flush=True)
    for name, values in found.items():
        gains = [value - plain for value, plain in zip(values, found.get("labels", []))]
        spread = f" (sd {statistics.stdev(gains):.2f})" if len(gains) > 1 else ""
        gain = f"  gain {statistics.mean(gains):+.2f}{spread} points" if gains else ""
        print(f"{name:10} mean {statistics.mean(values):6.2f} %{gain}")


if __name__ == "__main__":
    main()
