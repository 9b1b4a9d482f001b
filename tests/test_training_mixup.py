"""Mixup: images and labels blended alike, repeatable, refused where it cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import compress
from compress.batches import Batch
from compress.errors import TrainingError
from compress.training.mixup import mixed, on_mixed


def test_images_and_losses_are_blended_alike():
    x, y = torch.randn(6, 3), torch.arange(6)
    batch = mixed(Batch.of(x, y), 1.0, (0, 1))
    (blended,), target = batch.values, batch.target
    order = target.second
    torch.testing.assert_close(blended, target.share * x + (1 - target.share) * x[order])
    scores = torch.randn(6, 6)
    soft = target.share * functional.one_hot(y, 6) + (1 - target.share) * functional.one_hot(order, 6)
    torch.testing.assert_close(
        on_mixed(functional.cross_entropy)(scores, target), functional.cross_entropy(scores, soft.float())
    )


def test_what_is_random_follows_from_the_seed():
    x, y = torch.randn(6, 3), torch.arange(6)
    first, again, other = (mixed(Batch.of(x, y), 1.0, seed).values[0] for seed in ((0, 1), (0, 1), (0, 2)))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_fit_trains_on_blends_with_and_without_a_teacher():
    torch.manual_seed(0)
    batches = [(torch.randn(8, 4), torch.randint(0, 3, (8,))) for _ in range(3)]
    module = nn.Linear(4, 3)
    options = {"epochs": 1, "batch_size": 8, "lr": 0.1}
    plain, blended, taught = (
        compress.fit(module, (batches, None), compress.TrainOptions(mixup=alpha, **options), teacher=teacher).module
        for alpha, teacher in ((0.0, None), (1.0, None), (1.0, nn.Linear(4, 3)))
    )
    assert not torch.equal(plain.weight, blended.weight)
    assert not torch.equal(taught.weight, blended.weight)


def test_tokens_are_refused():
    with pytest.raises(TrainingError, match="mixup"):
        mixed(Batch.of(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2)), 1.0, (0,))
