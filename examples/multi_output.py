"""A segmentation network with two outputs, judged by a metric of one's own.

python examples/multi_output.py --epochs 6
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import compress
from compress.state import seeded


class Segmenter(nn.Module):
    """Images (N, 1, 32, 32) → scores of disc and background for each pixel, and the disc's radius."""

    def __init__(self, width=16):
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.pixels = nn.Conv2d(width, 2, 1)
        self.radius = nn.Linear(width, 1)

    def forward(self, x):
        features = self.down(x)
        scores = functional.interpolate(self.pixels(features), scale_factor=2.0, mode="nearest")
        return scores, self.radius(features.mean((2, 3)))


class DiscIoU:
    """Intersection over union of the disc, over the whole data: counts first, one division at the end."""

    def __init__(self):
        self.both = self.either = 0

    def update(self, outputs, target):
        found, truth = outputs[0].argmax(1) == 1, target == 1
        self.both += int((found & truth).sum())
        self.either += int((found | truth).sum())

    def compute(self):
        return self.both / max(self.either, 1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("segmenter"))
    arguments = parser.parse_args(argv)

    with seeded(0):
        images, masks, radii = discs(320)
        module = Segmenter()
    train = [((images[i : i + 32]), masks[i : i + 32], radii[i : i + 32]) for i in range(0, 256, 32)]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(arguments.epochs):
        for x, mask, radius in train:
            scores, guess = module(x)
            loss = functional.cross_entropy(scores, mask) + functional.mse_loss(guess[:, 0], radius / 10)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    module.eval()

    test = [(images[256:], masks[256:])]
    exported = compress.export(module, (images[:2],), path=arguments.out / "float.onnx", overwrite=True)
    step = compress.quantize_static(exported.model, [x for x, _, _ in train])
    compress.save_onnx(step.model, arguments.out / "int8.onnx")
    scores = {}
    for name in ("float", "int8"):
        row = compress.evaluate(arguments.out / f"{name}.onnx", test, metric=DiscIoU)
        scores[name] = row.metric
        print(f"{name:>5}: intersection over union {row.metric:.4f}, pixels right {row.top1:.2%}")
    return scores


def discs(count):
    """Noisy images of one disc each, with its mask and radius."""
    centres = torch.randint(10, 22, (count, 2, 1, 1))
    radii = torch.randint(4, 10, (count,))
    rows, columns = torch.arange(32).view(1, 32, 1), torch.arange(32).view(1, 1, 32)
    inside = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 <= radii.view(-1, 1, 1) ** 2
    return (inside.float() + 0.3 * torch.randn(count, 32, 32)).unsqueeze(1), inside.long(), radii.float()


if __name__ == "__main__":
    main()
