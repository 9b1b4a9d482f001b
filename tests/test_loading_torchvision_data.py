"""Data sets of torchvision open through their real path, from files as a download would leave them."""

import struct
import urllib.error

import numpy as np
import pytest

from compress.errors import DataError
from compress.loading.data import open_data
from compress.loading.preprocessing import IMAGENET


@pytest.fixture
def mnist(tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 20), ("t10k", 8)):
        x = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images = struct.pack(">iiii", 0x803, count, 28, 28) + x.tobytes()
        labels = struct.pack(">ii", 0x801, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(labels)
        if name == "t10k":
            (folder / "x.npy").write_bytes(x.tobytes())
    return tmp_path


def test_mnist(mnist):
    data = open_data(f"torchvision:MNIST:{mnist}", mean=0.5, std=0.25)
    assert data.sizes() == {"train": 18, "calibration": 2, "test": 8}
    assert (data.input_shape, data.num_classes) == ((1, 28, 28), 10)
    x = np.frombuffer((mnist / "MNIST" / "raw" / "x.npy").read_bytes(), np.uint8).reshape(8, 28, 28)
    np.testing.assert_allclose(data.test[3][0][0].numpy(), (x[3] / 255 - 0.5) / 0.25, atol=1e-6)


def test_images_of_one_size_keep_it(mnist):
    assert open_data(f"torchvision:MNIST:{mnist}", preprocessing=IMAGENET).input_shape == (3, 28, 28)
    assert open_data(f"torchvision:MNIST:{mnist}", resize=32).input_shape == (1, 32, 32)


def test_unknown():
    with pytest.raises(DataError, match=r"unknown torchvision data set 'CIFAR11'; did you mean 'CIFAR10"):
        open_data("torchvision:CIFAR11")


def test_download_that_fails(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(
        DataError,
        match=r"torchvision data set 'CIFAR10' could not be opened or downloaded into '.*' \(URLError: .*no route to host.*\); "
        r"put its files there, or write a factory and name it as file\.py:factory",
    ):
        open_data(f"torchvision:CIFAR10:{tmp_path / 'new'}")
