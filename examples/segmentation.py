"""Segmentation with borders that nobody labelled: mIoU decides, and each image counts as one sample.

python examples/segmentation.py --epochs 6

The same from the command line (the loss is the function below, which leaves the borders out as well):

    compress train examples/segmentation.py:build --data examples/segmentation.py:data \
        --loss examples/segmentation.py:loss --epochs 6 -o discs
    compress quantize examples/segmentation.py:build --weights discs/weights.pt --data examples/segmentation.py:data \
        --ignore-label 255 --max-drop 2 -o discs_int8
"""

import argparse
from pathlib import Path

import numpy as np
from torch import nn
from torch.nn import functional

import compress

SIDE, BORDER = 32, 255


def build(width=12):
    """Images (N, 1, 32, 32) → scores of background, disc and square for each pixel, (N, 3, 32, 32)."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU()),
        nn.Conv2d(width, 3, 1),
    )


def data(count=460):
    """A disc and a square in each image; the pixels on their borders have label 255."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images, masks = np.zeros((count, 1, SIDE, SIDE), "float32"), np.zeros((count, SIDE, SIDE), "int64")
    for image, mask in zip(images, masks):
        for shape, value in ((1, 1.0), (2, 0.7)):
            row, column, radius = *draw.integers(7, SIDE - 7, 2), draw.integers(3, 7)
            far = (
                np.hypot(rows - row, columns - column)
                if shape == 1
                else np.maximum(abs(rows - row), abs(columns - column))
            )
            mask[far <= radius], image[0][far <= radius] = shape, value
            mask[abs(far - radius) < 0.7] = BORDER
        image += 0.15 * draw.normal(size=image.shape)
    parts = {"train": slice(240), "calibration": slice(240, 340), "test": slice(340, count)}
    return {part: (images[where], masks[where]) for part, where in parts.items()}


def loss(outputs, target):
    return functional.cross_entropy(outputs, target, ignore_index=BORDER)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("discs_int8"))
    arguments = parser.parse_args(argv)

    shapes = compress.open_data(f"{__file__}:data")
    options = compress.TrainOptions(epochs=arguments.epochs, optimizer="adam", lr=0.01, batch_size=32)
    trained = compress.fit(build(), shapes, options, loss=loss).module

    report = compress.quantize(
        trained,
        shapes,
        output=compress.Output(arguments.out, overwrite=True),
        ignore_label=BORDER,
        gates=compress.Gates(
            max_drop=2
        ),  # points of mIoU: accuracy of pixels, most of them background, would hide a loss
    )
    print(report.text())
    return report


if __name__ == "__main__":
    main()
