"""A detector as YOLO has it, with a loss and a mean average precision of one's own.

python examples/detection.py --epochs 12

The same from the command line:

    compress train examples/detection.py:build --data examples/detection.py:data \
        --loss examples/detection.py:loss --epochs 12 -o squares
    compress quantize examples/detection.py:build --weights squares/weights.pt --data examples/detection.py:data \
        --metric examples/detection.py:AveragePrecision --max-drop 5 -o squares_int8
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import compress

SIDE, CELL = 64, 8  # pixels of an image and of a cell
GRID, MOST = SIDE // CELL, 3  # cells in a row; boxes in an image


class Detector(nn.Module):
    """Images (N, 1, 64, 64) → (N, 5, 64): centre, width and height in pixels, and a score, for each of 8×8 cells."""

    def __init__(self, width=16):
        super().__init__()
        layers, channels = [], 1
        for _ in range(3):  # 64 → 8 pixels: one for each cell
            layers += [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.head = nn.Conv2d(width, 5, 1)
        corner = torch.arange(GRID).float() * CELL
        self.register_buffer("corners", torch.stack(torch.meshgrid(corner, corner, indexing="xy")))

    def forward(self, x):
        raw = self.head(self.body(x))
        centre = self.corners + CELL * raw[:, :2].sigmoid()
        size = 2 * CELL * functional.softplus(raw[:, 2:4])
        return torch.cat([centre, size, raw[:, 4:]], 1).flatten(2)


def build():
    return Detector()


def data(count=700):
    """Bright squares on noise. Targets (N, 3, 4): centre, width, height of each, rows of −1 where there is none."""
    draw = np.random.default_rng(0)
    images, boxes = 0.1 * draw.normal(size=(count, 1, SIDE, SIDE)), -np.ones((count, MOST, 4))
    for image, found in zip(images, boxes):
        for box in found[: draw.integers(1, MOST + 1)]:
            (x, y), (width, height) = draw.integers(8, SIDE - 8, 2), draw.integers(8, 16, 2)
            box[:] = x, y, width, height
            image[0, y - height // 2 : y + height // 2, x - width // 2 : x + width // 2] += 1.0
    parts = {"train": slice(450), "calibration": slice(450, 570), "test": slice(570, count)}
    return {part: (images[where].astype("f"), boxes[where].astype("f")) for part, where in parts.items()}


def loss(outputs, target):
    """The cell with a box's centre answers for it: its score is 1, its four numbers are the box's."""
    there = target[:, :, 0] >= 0
    image, which = there.nonzero(as_tuple=True)
    wanted = target[image, which]
    cell = (wanted[:, 1] // CELL * GRID + wanted[:, 0] // CELL).long()
    score = torch.zeros_like(outputs[:, 4])
    score[image, cell] = 1.0
    boxes = functional.smooth_l1_loss(outputs[image, :4, cell], wanted)
    return boxes + 5 * functional.binary_cross_entropy_with_logits(outputs[:, 4], score)


class AveragePrecision:
    """Area under precision over recall of boxes that overlap a true one by half, each true one found once."""

    higher_is_better = True
    unit = "%"  # shown in percent; limits are then in points

    def __init__(self):
        self.scores, self.hits, self.boxes = [], [], 0

    def update(self, outputs, target):
        for found, truth in zip(outputs, target):
            truth = truth[truth[:, 0] >= 0]
            self.boxes += len(truth)
            taken = torch.zeros(len(truth), dtype=torch.bool)
            for box in found.T[found[4].argsort(descending=True)][:20]:
                overlap = iou(box[:4], truth)
                best = int(overlap.argmax())
                hit = bool(overlap[best] > 0.5) and not taken[best]
                taken[best] |= hit
                self.scores.append(float(box[4]))
                self.hits.append(float(hit))

    def compute(self):
        hits = torch.tensor(self.hits)[torch.tensor(self.scores).argsort(descending=True)]
        precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
        return float((precision * hits).sum()) / self.boxes


def iou(box, others):
    """Intersection over union of one box with several, each centre, width, height."""
    low = torch.maximum(box[:2] - box[2:4] / 2, others[:, :2] - others[:, 2:4] / 2)
    high = torch.minimum(box[:2] + box[2:4] / 2, others[:, :2] + others[:, 2:4] / 2)
    both = (high - low).clamp(min=0).prod(1)
    return both / (box[2:4].prod() + others[:, 2:4].prod(1) - both)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("squares_int8"))
    arguments = parser.parse_args(argv)

    squares = compress.open_data(f"{__file__}:data")
    options = compress.TrainOptions(epochs=arguments.epochs, optimizer="adam", lr=0.005, batch_size=32)
    trained = compress.fit(build(), squares, options, loss=loss).module

    report = compress.quantize(
        trained,
        squares,
        output=compress.Output(arguments.out, overwrite=True),
        metric=AveragePrecision,  # it decides: the search for float layers, the limit, the table
        gates=compress.Gates(max_drop=5),
    )
    print(report.text())
    return report


if __name__ == "__main__":
    main()
