"""Augmentation moves whole images, follows its seed, differs between workers."""

import pytest
import torch

from compress.errors import DataError
from compress.loading.augmentation import Augmentation
from compress.loading.data import open_data


def images(count=50):
    return torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(0)) + 1  # never the padding's zero


def test_nothing_is_the_identity():
    assert Augmentation()(images()) is not None
    torch.testing.assert_close(Augmentation()(images()), images(), rtol=0, atol=0)


def test_flip_mirrors_about_half():
    out = Augmentation(flip=True)(images(400), torch.Generator().manual_seed(0))
    mirrored = [torch.equal(x, source.flip(-1)) for x, source in zip(out, images(400))]
    kept = [torch.equal(x, source) for x, source in zip(out, images(400))]
    assert all(a or b for a, b in zip(mirrored, kept))
    assert 160 < sum(mirrored) < 240


def test_crops_are_shifts():
    padding = 2
    out = Augmentation(crop_padding=padding)(images(), torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images(), [padding] * 4)
    seen = set()
    for x, source in zip(out, padded):
        places = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(x, source[:, top : top + 6, left : left + 5])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 10


def epochs(**options):
    loader = open_data("digits").loader("calibration", augment=Augmentation(crop_padding=2), **options)
    return [torch.cat([x for x, _ in loader]) for _ in range(2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_follows_the_seed_and_changes_each_epoch(workers):
    first, again, other = epochs(workers=workers), epochs(workers=workers), epochs(workers=workers, seed=1)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_workers_do_not_repeat_each_other():
    data = open_data("digits")
    loader = data.loader("train", sampler=[0] * 64, batch_size=32, workers=2, augment=Augmentation(crop_padding=2))
    first, second = (x for x, _ in loader)
    assert not torch.equal(first, second)


def test_labels_are_left_alone():
    data = open_data("digits")
    plain = torch.cat([y for _, y in data.loader("test")])
    torch.testing.assert_close(torch.cat([y for _, y in data.loader("test", augment=Augmentation(1, True))]), plain)


def test_token_ids_cannot_be_augmented():
    with pytest.raises(DataError, match=r"augmentation needs float images \(N, C, H, W\), got torch.int64 \(2, 3\)"):
        Augmentation(flip=True)(torch.zeros(2, 3, dtype=torch.int64))
