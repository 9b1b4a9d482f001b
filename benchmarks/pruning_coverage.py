"""Prunes half the channels of every torchvision classifier, held to the zeroed original.

    python benchmarks/pruning_coverage.py                      # all 80, and the layer zoo
    python benchmarks/pruning_coverage.py swin_t maxvit_t
    python benchmarks/pruning_coverage.py --peer resnet18      # Torch-Pruning instead, where it is installed

Each model runs in a process of its own, with random weights and randomized batch-norm statistics. "error" is the
largest difference from the original with the removed channels' readers zeroed, relative to its largest output;
"effect" is the same from the original itself: where that were small too, the comparison would show nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings

import torch
from torch import nn

LIMIT_SECONDS = 600


def randomized(module: nn.Module, inputs: torch.Tensor) -> nn.Module:
    """Weights and batch-norm statistics under which outputs depend on inputs, as after training.

    As initialized, many of these models answer with their last bias alone (a head of zeros, activations that vanish
    over fifty layers), and then any pruning would look right.
    """
    generator = torch.Generator().manual_seed(0)
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 and name.endswith("bias"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            elif parameter.abs().max() < 1e-4:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        module.eval()
        for part in norms:
            part.momentum, part.training = 1.0, True
        if norms:
            module(inputs)
    return module.eval()


class UNet(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i, o):
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.PReLU(o))

        self.down1, self.down2, self.middle = block(3, 32), block(32, 64), block(64, 128)
        self.up2, self.dec2 = nn.ConvTranspose2d(128, 64, 2, 2), block(128, 64)
        self.dec1, self.head = block(96, 32), nn.Conv2d(32, 2, 1)

    def forward(self, x):
        a = self.down1(x)
        b = self.down2(nn.functional.max_pool2d(a, 2))
        c = self.middle(nn.functional.max_pool2d(b, 2))
        d = self.dec2(torch.cat([self.up2(c), b], 1))
        up = nn.functional.interpolate(d, scale_factor=2, mode="bilinear")
        return self.head(self.dec1(torch.cat([up, a], 1)))


class Zoo(nn.Module):
    """Transposed convolution, group norm, upsampling, PReLU, grouped convolution, GLU, pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(8, 64)
        self.grouped, self.act = nn.Conv2d(64, 64, 3, padding=1, groups=8), nn.PReLU(64)
        self.up, self.wide = nn.ConvTranspose2d(64, 64, 4, 2, 1, groups=4), nn.Conv2d(64, 128, 1)
        self.shuffle, self.after = nn.PixelShuffle(2), nn.Conv2d(16, 32, 3)
        self.instance, self.head = nn.InstanceNorm2d(32, affine=True), nn.Linear(32, 10)

    def forward(self, x):
        x = self.act(self.grouped(self.norm(self.stem(x)))) + x.mean(1, keepdim=True)
        x = nn.functional.glu(self.wide(self.up(nn.functional.interpolate(x, scale_factor=2))), 1)
        return self.head(self.instance(self.after(self.shuffle(x))).mean((2, 3)))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(100, 64), nn.LSTM(64, 64, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(128, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.gru(self.lstm(self.embedding(x))[0])[0])


def transformer():
    layer = nn.TransformerEncoderLayer(128, 8, 256, batch_first=True)
    return nn.Sequential(
        nn.Linear(32, 128), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(128, 10)
    )


EXTRA = {
    "unet (skip concatenation)": (UNet, lambda: torch.randn(2, 3, 64, 64)),
    "layer zoo": (Zoo, lambda: torch.randn(2, 3, 16, 16)),
    "embedding, LSTM, GRU, linear": (Tagger, lambda: torch.randint(0, 100, (2, 12))),
    "nn.TransformerEncoder": (transformer, lambda: torch.randn(2, 10, 32)),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name in EXTRA:
        factory, make = EXTRA[name]
        inputs = make()
        return randomized(factory(), inputs), inputs
    from compress.loading.torchvision_ops import torchvision

    side = 299 if name == "inception_v3" else 224
    inputs = torch.randn(2, 3, side, side)
    return randomized(torchvision.models.get_model(name), inputs), inputs


def ours(module: nn.Module, inputs: torch.Tensor) -> dict:
    import numpy as np

    from compress.pruning.cost import CostModel
    from compress.pruning.removal import remove_channels
    from compress.pruning.request import PruneRequest
    from compress.pruning.verifying import difference

    start = time.perf_counter()
    removal = remove_channels(module, (inputs,), PruneRequest(amount=0.5))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    step, channels, removed = removal.step, removal.channels, removal.removed
    with torch.no_grad():
        effect = difference(step.model(inputs), module(inputs))
    cost, none = CostModel(channels), np.zeros(0, dtype=np.int64)
    before, after = sum(p.numel() for p in module.parameters()), sum(p.numel() for p in step.model.parameters())
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time(),
        "memory_gb": memory,
        "error": removal.error,
        "effect": effect,
        "macs": cost.macs(removed) / cost.macs(none),
        "parameters": after / before,
        "kept": [note for note in step.notes if note.startswith("kept whole")],
    }


def peer(module: nn.Module, inputs: torch.Tensor) -> dict:
    import torch_pruning as tp

    start = time.perf_counter()
    last = [part for part in module.modules() if isinstance(part, nn.Linear) and part.out_features == 1000]
    before, weights = tp.utils.count_ops_and_params(module, inputs)
    pruner = tp.pruner.MagnitudePruner(
        module,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=last,
        round_to=16,
    )
    pruner.step()
    with torch.no_grad():
        module(inputs)
    after, left = tp.utils.count_ops_and_params(module, inputs)
    return {"seconds": time.perf_counter() - start, "macs": after / before, "parameters": left / weights}


def in_a_process(name: str, use_peer: bool, limit: float) -> dict:
    command = [sys.executable, "-W", "ignore", __file__, "--one", name] + (["--peer"] if use_peer else [])
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {limit:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def sound(found: dict) -> bool:
    """Pruned by at least a third, as the zeroed original to 1e-4, which itself is far from the original."""
    if "failed" in found:
        return False
    return found["macs"] <= 2 / 3 and found.get("error", 0) <= 1e-4 and found.get("effect", 1) > 1e-2


def row(name: str, found: dict) -> str:
    if "failed" in found:
        return f"| {name} | – | – | – | – | – | – | {found['failed']} |"
    error, effect = (f"{found[key]:.0e}" if key in found else "–" for key in ("error", "effect"))
    memory = f"{found['memory_gb']:.1f}" if "memory_gb" in found else "–"
    verdict = "ok" if sound(found) else "not met"
    kept = found.get("kept") or []
    return (
        f"| {name} | {found['macs']:.3f} | {found['parameters']:.3f} | {error} | {effect} | {found['seconds']:.1f} | {memory} | "
        f"{verdict}{'; ' + kept[0] if kept else ''} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--one", action="store_true", help="run a single model in this process, print JSON")
    parser.add_argument("--limit", type=float, default=LIMIT_SECONDS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.one:
        module, inputs = build(arguments.names[0])
        print(json.dumps((peer if arguments.peer else ours)(module, inputs)))
        return
    names = arguments.names
    if not names:
        from compress.loading.torchvision_ops import torchvision

        names = [*torchvision.models.list_models(module=torchvision.models), *EXTRA]
    print(
        "| model | MACs left | parameters left | error | effect | seconds | peak GB | verdict |\n|---|---|---|---|---|---|---|---|"
    )
    good = 0
    for name in names:
        found = in_a_process(name, arguments.peer, arguments.limit)
        good += sound(found)
        print(row(name, found), flush=True)
    print(f"\n{good} of {len(names)} pruned, MACs down by at least a third, equal to the zeroed original to 1e-4")


if __name__ == "__main__":
    main()
