"""A regressor: the pitch of a noisy tone, judged by its RMSE, which may rise by a tenth in int8.

python examples/regression.py --epochs 8

The same from the command line:

    compress train examples/regression.py:build --data examples/regression.py:data --loss mse --epochs 8 -o pitch
    compress quantize examples/regression.py:build --weights pitch/weights.pt --data examples/regression.py:data \
        --metric RMSE --max-drop 10% -o pitch_int8
"""

import argparse
from pathlib import Path

import numpy as np
from torch import nn

import compress

LENGTH = 128  # samples of the tone


def build(width=16):
    """Tones (N, 1, 128) → cycles in the window, (N, 1)."""
    return nn.Sequential(
        *(nn.Conv1d(1, width, 9, stride=2, padding=4), nn.ReLU()),
        *(nn.Conv1d(width, width, 9, stride=2, padding=4), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width * LENGTH // 4, 32), nn.ReLU(), nn.Linear(32, 1)),
    )


def data(count=900):
    """Tones of 2 to 12 cycles; the targets are fractions, which makes this a regression."""
    draw = np.random.default_rng(0)
    cycles = draw.uniform(2, 12, (count, 1))
    phase = 2 * np.pi * (cycles * np.arange(LENGTH) / LENGTH + draw.random((count, 1)))
    tones = np.sin(phase) + 0.1 * draw.normal(size=(count, LENGTH))
    x, y = tones[:, None].astype("float32"), cycles[:, 0].astype("float32")
    parts = {"train": slice(600), "calibration": slice(600, 750), "test": slice(750, count)}
    return {part: (x[where], y[where]) for part, where in parts.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("pitch_int8"))
    arguments = parser.parse_args(argv)

    tones = compress.open_data(f"{__file__}:data")
    options = compress.TrainOptions(epochs=arguments.epochs, loss="mse", optimizer="adam", lr=0.003, batch_size=32)
    trained = compress.fit(build(), tones, options).module

    report = compress.quantize(
        trained,
        tones,
        output=compress.Output(arguments.out, overwrite=True),
        metric="RMSE",  # which of the task's figures decides; MAE, R² and the outputs' signal to noise stand beside it
        gates=compress.Gates(max_drop="10%"),
    )
    print(report.text())
    return report


if __name__ == "__main__":
    main()
