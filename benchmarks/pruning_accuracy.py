"""Prunes the CIFAR-10 ResNets by every score beside Torch-Pruning, at equal MACs.

    python benchmarks/pruning_accuracy.py --model cifar_resnet20 --macs 0.5 --epochs 1
    python benchmarks/pruning_accuracy.py --scores l1 taylor --latency    # with the latency of the exported file

Needs the checkpoints in ../shared/data. Torch-Pruning runs where it is installed; its pruning ratio is searched so
that its MACs are at most ours. All get the same epochs, data, order of samples and learning rate; "reconstructed" has
its weights fitted on 256 images, without labels, before that (`compress prune` does so wherever there is data).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHECKPOINTS = {"cifar_resnet20": "cifar_resnet20-12fca82f.th", "cifar_resnet56": "cifar_resnet56-4bfd9763.th"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("random", "l1", "l2", "fpgm", "batchnorm", "taylor")


def load(name: str) -> nn.Module:
    spec = importlib.util.spec_from_file_location("shared_models", SHARED / "models.py")
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    module = getattr(source, name)()
    state = torch.load(SHARED / CHECKPOINTS[name], weights_only=True, map_location="cpu")["state_dict"]
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return module.eval()


def images(part: str, limit: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    held = np.load(SHARED / "cifar10.npz")
    x = torch.from_numpy(held[f"x_{part}"][:limit]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(), torch.from_numpy(held[f"y_{part}"][:limit]).long().flatten()


@torch.no_grad()
def accuracy(module: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    module.eval()
    right = sum((module(x).argmax(1) == y).sum() for x, y in zip(data[0].split(250), data[1].split(250)))
    return float(right) / len(data[1])


def finetuned(module: nn.Module, data: tuple[torch.Tensor, torch.Tensor], epochs: int, lr: float) -> nn.Module:
    """SGD with momentum and a cosine; random flips and shifts of 4, the same for all."""
    module = copy.deepcopy(module).train()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), lr, momentum=0.9, weight_decay=1e-4, nesterov=True)
    x, y = data
    steps = epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(128):
            batch = F.pad(x[index], (4, 4, 4, 4))
            top, left = torch.randint(0, 9, (2,), generator=generator).tolist()
            batch = batch[:, :, top : top + 32, left : left + 32]
            batch = torch.where(torch.rand(len(index), 1, 1, 1, generator=generator) < 0.5, batch.flip(3), batch)
            optimizer.zero_grad()
            F.cross_entropy(module(batch), y[index]).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def macs(module: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted by hooks: the same for both tools."""
    total = 0

    def count(part: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if output.dim() > 2 else 1
        total += positions * part.weight.numel()

    handles = [p.register_forward_hook(count) for p in module.modules() if isinstance(p, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        module(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return total


def ours(
    module: nn.Module,
    score: str,
    scope: str,
    removed: float,
    calibration: list,
    round_to: int | None,
    reconstruct: bool = False,
) -> nn.Module:
    from compress.pruning.prune import prune

    example = torch.randn(2, 3, 32, 32)
    options = {"amount": removed, "target": "macs", "method": score, "scope": scope, "round_to": round_to}
    return prune(module, example, data=calibration, reconstruct=reconstruct, **options).model


def _stream(module: nn.Module) -> list[nn.Module]:
    return [part for name, part in module.named_modules() if name == "conv1" or name.endswith(".conv2")]


def peer(module: nn.Module, score: str, scope: str, goal: float, calibration: list, round_to: int | None) -> nn.Module:
    """Torch-Pruning at the least ratio whose MACs are at most `goal`.

    Its own choice of layers fails on these networks: shortcuts that pad channels make it cut the last layer wrongly.
    It is told to leave the residual stream alone, and prunes the inner width of each block.
    """
    import torch_pruning as tp

    importances = {
        "random": tp.importance.RandomImportance,
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "fpgm": tp.importance.FPGMImportance,
        "batchnorm": tp.importance.BNScaleImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }

    def at(ratio: float) -> nn.Module:
        torch.manual_seed(0)
        twin = copy.deepcopy(module)
        pruner = tp.pruner.BasePruner(
            twin,
            torch.randn(2, 3, 32, 32),
            importance=importances[score](),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[twin.linear, *_stream(twin)],
            round_to=round_to,
        )
        if score == "taylor":
            for x, y in calibration:
                F.cross_entropy(twin(x), y).backward()
        pruner.step()
        return twin

    low, high, best = 0.0, 0.95, None
    for _ in range(9):
        middle = (low + high) / 2
        candidate = at(middle)
        if macs(candidate) <= goal:
            high, best = middle, candidate
        else:
            low = middle
    return best if best is not None else at(high)


def milliseconds(modules: dict[str, nn.Module]) -> dict[str, float]:
    import tempfile

    from compress.evaluation.latency import benchmark
    from compress.graph.exporting import export

    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for place, (name, module) in enumerate(modules.items()):
            paths[name] = Path(folder) / f"{place}.onnx"
            export(module, (torch.randn(2, 3, 32, 32),), path=paths[name])
        rows = benchmark(paths, (torch.randn(1, 3, 32, 32),), rounds=40, threads=1)
    return {name: row.p50_ms for name, row in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CHECKPOINTS, default="cifar_resnet20")
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the MACs to remove")
    parser.add_argument("--scores", nargs="*", default=list(OURS))
    parser.add_argument("--scopes", nargs="*", default=["uniform", "global"])
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--train-samples", type=int, default=6000)
    parser.add_argument("--round-to", type=int, default=1, help="the same for both tools")
    parser.add_argument("--latency", action="store_true", help="latency of the exported file against its MACs instead")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not SHARED.is_dir():
        sys.exit("needs ../shared/data with the CIFAR checkpoints")
    module, test = load(arguments.model), images("test")
    x, y = train = images("train", arguments.train_samples)
    calibration = [(x[i : i + 128], y[i : i + 128]) for i in range(0, 1024, 128)]
    whole = macs(module)
    if arguments.latency:
        latency_table(module, whole, calibration)
        return
    print(f"{arguments.model}: {accuracy(module, test):.2%}, {whole:,} MACs; {arguments.macs:.0%} of them to remove\n")
    print(
        "| score | scope | tool | MACs left | after pruning | after fine-tuning | seconds |\n|---|---|---|---|---|---|---|"
    )
    for score in arguments.scores:
        for scope in arguments.scopes:
            start = time.perf_counter()
            mine = ours(module, score, scope, arguments.macs, calibration, arguments.round_to)
            show(score, scope, "compress", mine, whole, start, test, train, arguments)
            start = time.perf_counter()
            fitted = ours(module, score, scope, arguments.macs, calibration, arguments.round_to, reconstruct=True)
            show(score, scope, "compress, reconstructed", fitted, whole, start, test, train, arguments)
            if importlib.util.find_spec("torch_pruning"):
                start = time.perf_counter()
                try:
                    theirs = peer(module, score, scope, macs(mine), calibration, arguments.round_to)
                except Exception as error:
                    print(
                        f"| {score} | {scope} | Torch-Pruning | fails: {str(error).splitlines()[0][:90]} | | | |",
                        flush=True,
                    )
                    continue
                show(score, scope, "Torch-Pruning", theirs, whole, start, test, train, arguments)


def show(score, scope, tool, module, whole, start, test, train, arguments) -> None:
    seconds = time.perf_counter() - start
    before = accuracy(module, test)
    after = accuracy(finetuned(module, train, arguments.epochs, arguments.lr), test) if arguments.epochs else before
    print(
        f"| {score} | {scope} | {tool} | {macs(module) / whole:.3f} | {before:.2%} | {after:.2%} | {seconds:.1f} |",
        flush=True,
    )


def latency_table(module: nn.Module, whole: int, calibration: list) -> None:
    modules = {"whole": module}
    for removed in (0.2, 0.35, 0.5, 0.65):
        modules[f"{removed:.0%} removed"] = ours(module, "l1", "uniform", removed, calibration, None)
    print("| MACs | MACs left | p50 ms of the exported file (1 thread) | share |\n|---|---|---|---|")
    found = milliseconds(modules)
    for name, value in modules.items():
        print(f"| {name} | {macs(value) / whole:.3f} | {found[name]:.3f} | {found[name] / found['whole']:.3f} |")


if __name__ == "__main__":
    main()
