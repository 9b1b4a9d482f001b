"""Real checkpoints on real data score what they are known to score."""

import pytest
import torch

from compress.loading.data import open_data
from compress.loading.models import open_model
from compress.state import evaluating

CIFAR = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def top1(model, data, limit):
    hits = count = 0
    with evaluating(model):
        for x, y in data.loader("test", batch_size=50, limit=limit):
            hits += int((model(x).argmax(1) == y).sum())
            count += len(y)
    assert count == limit
    return hits / count


@pytest.mark.parametrize(
    ("factory", "weights", "file", "options", "limit", "expected"),
    [  # the published figure of the whole test part; on a subset it may differ by three standard deviations
        ("cifar_resnet20", "cifar_resnet20-12fca82f.th", "cifar10.npz", CIFAR, 300, 0.9195),
        ("cifar_resnet56", "cifar_resnet56-4bfd9763.th", "cifar10.npz", CIFAR, 200, 0.9265),
        ("polyphone_lstm", "polyphones_lstm.pt", "polyphones.npz", {}, 1000, 0.9738),
    ],
)
def test_arrays(shared_data, factory, weights, file, options, limit, expected):
    loaded = open_model(f"{shared_data}/models.py:{factory}", weights=shared_data / weights)
    measured = top1(loaded.model, open_data(f"{shared_data}/{file}", **options), limit)
    assert abs(measured - expected) < 3 * (expected * (1 - expected) / limit) ** 0.5


def imagenet(shared_data, mean, std):
    return open_data(
        f"imagefolder:{shared_data}/imagenet",
        classes=shared_data / "imagenet" / "classes.txt",
        crop=224,
        mean=mean,
        std=std,
    )


def test_image_folder(shared_data):
    model = open_model(
        f"{shared_data}/models.py:mobilenetv1_075", weights=shared_data / "mobilenetv1_0.75_224.pt"
    ).model
    data = imagenet(shared_data, 0.5, 0.5)
    assert (data.sizes(), data.num_classes) == ({"calibration": 256, "test": 600}, 1000)
    assert abs(top1(model, data, 50) - 0.7583) < 0.19


@pytest.mark.slow
def test_exported_program(shared_data):
    loaded = open_model(shared_data / "efficientnet_lite0.pt2")
    assert (loaded.kind, loaded.input_shape) == ("exported", (2, 3, 224, 224))
    with torch.no_grad():
        assert abs(top1(loaded.model, imagenet(shared_data, 127 / 255, 128 / 255), 50) - 0.8267) < 0.17
