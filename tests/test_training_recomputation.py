"""Gradient checkpointing: the same training in less memory."""

import pytest
import torch
from tiny_training import TinyData, convolutional, distance
from torch import nn
from torch.nn import functional

from compress.errors import InputError
from compress.training.loop import fit
from compress.training.options import TrainOptions
from compress.training.recomputation import recomputed


def gradients(module, names, inputs, target):
    module.zero_grad()
    torch.manual_seed(3)
    with recomputed(module, names):
        functional.cross_entropy(module(inputs), target).backward()
    return [parameter.grad.clone() for parameter in module.parameters()]


@pytest.mark.parametrize("names", [("0",), ("0", "1"), (".",), (".:2",), (".:3", "1:2")])
def test_gradients_and_statistics_are_those_of_the_plain_run(names):
    inputs, target = TinyData(image=True).train[:16]
    plain, saving = convolutional(), convolutional()
    for layers in (plain, saving):
        layers[1].append(nn.Dropout(0.3))
    wanted, found = gradients(plain, (), inputs, target), gradients(saving, names, inputs, target)
    for mine, theirs in zip(found, wanted):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    # The forward pass ran twice; running means and counters must have moved once.
    assert distance(dict(plain.named_buffers()), dict(saving.named_buffers())) == 0
    assert saving[0][1].momentum == 0.1
    assert "forward" not in vars(saving[0]) and "forward" not in vars(saving)


def saved_bytes(module, names, inputs, target):
    """The bytes of activations that autograd keeps at the end of the forward pass."""
    kept = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with recomputed(module, names), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = functional.cross_entropy(module(inputs), target)
    del loss
    return sum(kept.values())


@pytest.mark.parametrize("names", [("0", "1"), (".:3",)])
def test_fewer_bytes_are_kept(names):
    inputs, target = TinyData(image=True).train[:64]
    plain = saved_bytes(convolutional(), (), inputs, target)
    saving = saved_bytes(convolutional(), names, inputs, target)
    assert saving < 0.5 * plain


def test_fit_with_and_without():
    data, module = TinyData(image=True), convolutional()
    options = {"epochs": 2, "batch_size": 20}
    plain = fit(module, data, TrainOptions(**options))
    saving = fit(module, data, TrainOptions(**options, recompute=("0", "1")))
    assert distance(plain.module, saving.module) < 1e-6


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("layer1", "recompute: the model has no layer 'layer1'; known: ., 0, 0.0"),
        ("0.0:2", r"recompute: '0.0' is a Conv2d; only an nn.Sequential can be cut into segments"),
        ("0:9", r"recompute: segments of '0' must be 1 to 3, got '9'"),
        ("0:x", r"recompute: segments of '0' must be 1 to 3, got 'x'"),
    ],
)
def test_refused(name, text):
    with pytest.raises(InputError, match=text):
        fit(convolutional(), TinyData(image=True), TrainOptions(recompute=(name,)))
