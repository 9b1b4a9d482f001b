"""A data set with parts, small networks, a hand-written training loop: what the training tests compare with."""

import copy

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class TinyData:
    """Blobs of 5 classes in 16 dimensions (or 3×6×6 images), with the interface that `fit` asks for."""

    def __init__(self, train=101, test=51, *, image=False, noise=0.5):
        generator = torch.Generator().manual_seed(7)
        count = train + test
        shape = (3, 6, 6) if image else (16,)
        centres = torch.randn(5, *shape, generator=generator)
        target = torch.randint(0, 5, (count,), generator=generator)
        inputs = centres[target] + noise * torch.randn(count, *shape, generator=generator)
        self.train = TensorDataset(inputs[:train], target[:train])
        self.calibration = None
        self.test = TensorDataset(inputs[train:], target[train:])
        self.num_classes = 5

    def loader(self, part, *, batch_size=64, sampler=None, workers=0, pin_memory=False, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return DataLoader(
            getattr(self, part), batch_size=batch_size, sampler=sampler, num_workers=workers, generator=generator
        )


def perceptron(*, dropout=0.0, norm=False, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 24),
        nn.BatchNorm1d(24) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(24, 5),
    )


def convolutional(*, norm=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )


def order(epoch, size, *, seed=0):
    """The order of samples that `fit` documents: a permutation from seed + epoch."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed + epoch))


def by_hand(module, data, *, epochs, batch_size, optimizer, after_backward=None, after_epoch=None, loss=None, seed=0):
    """Train a copy the plain way, without anything of `compress`."""
    module = copy.deepcopy(module)
    stepper = optimizer(module.parameters())
    inputs, target = data.train.tensors
    loss = loss or functional.cross_entropy
    torch.manual_seed(seed)
    module.train()
    for epoch in range(epochs):
        for index in order(epoch, len(target), seed=seed).split(batch_size):
            stepper.zero_grad()
            loss(module(inputs[index]), target[index]).backward()
            if after_backward:
                after_backward(module)
            stepper.step()
        if after_epoch:
            after_epoch(stepper)
    return module


def distance(first, second):
    """The greatest difference between two state dicts (or modules)."""
    first = first.state_dict() if isinstance(first, nn.Module) else first
    second = second.state_dict() if isinstance(second, nn.Module) else second
    assert first.keys() == second.keys()
    return max((first[key].double() - second[key].double()).abs().max().item() for key in first)
