"""Folded batch-norm equals the original to float rounding; what cannot be folded says why."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import InputError, ModelError
from compress.fusion.batchnorm import fold, fuse


def randomize(module, seed=0):
    """Statistics and weights that are far from 0 and 1, so that a forgotten term shows."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.running_mean is not None:
                part.running_mean.copy_(torch.randn(part.num_features, generator=generator))
                part.running_var.copy_(torch.rand(part.num_features, generator=generator) + 0.2)
            if part.affine:
                with torch.no_grad():
                    part.weight.copy_(torch.randn(part.num_features, generator=generator))
                    part.bias.copy_(torch.randn(part.num_features, generator=generator))
    return module.eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, groups=3), nn.BatchNorm2d(6, affine=False)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return y + self.bn2(self.conv2(y))


class PreActivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(torch.relu(self.bn(x)))


class SharedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.bn(y) + y


class ConvTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(self.conv(x)))


class SequenceNorm(nn.Module):
    """Batch-norm over the positions of a linear layer's output, which happen to be as many as its features."""

    def __init__(self):
        super().__init__()
        self.fc, self.bn = nn.Linear(5, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        return self.bn(self.fc(x))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.spare = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))


class Branching(nn.Module):
    """torch.fx cannot trace it, torch.export can."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        if x.shape[0] > 100 and x.sum() > 0:
            return x
        return self.bn(self.conv(x))


TINY = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU()), (2, 3, 9)),
    "conv2d": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(4)), (2, 3, 7, 7)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), (2, 2, 5, 5, 5)),
    "transposed1d": (lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.BatchNorm1d(6)), (2, 4, 5)),
    "transposed2d": (lambda: nn.Sequential(nn.ConvTranspose2d(6, 4, 3, stride=2, groups=2, bias=False), nn.BatchNorm2d(4)), (2, 6, 5, 5)),
    "transposed3d": (lambda: nn.Sequential(nn.ConvTranspose3d(2, 4, 2), nn.BatchNorm3d(4)), (2, 2, 3, 3, 3)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Dropout(), nn.BatchNorm1d(4)), (3, 5)),
    "residual": (Residual, (2, 3, 8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_outputs_equal_and_input_untouched(name):
    build, shape = TINY[name]
    module, x = randomize(build()), torch.randn(*shape)
    before = copy.deepcopy(module.state_dict())
    expected = module(x)
    step = fuse(module, (x,))
    assert not step.skipped and step.done
    assert type(step.model) is type(module)
    assert not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in step.model.modules())
    torch.testing.assert_close(step.model(x), expected, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    # The comparison above can fail: a batch-norm dropped without folding is far off.
    assert not torch.allclose(_dropped(module)(x), expected, atol=1e-2)


def _dropped(module):
    module = copy.deepcopy(module)
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            setattr(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Identity())
    return module


@pytest.mark.parametrize("name", [name for name in TINY if name != "linear"])
def test_symbolic_tracing_finds_the_same(name):
    build, shape = TINY[name]
    module, x = randomize(build()), torch.randn(*shape)
    traced, exported = fuse(module), fuse(module, x)
    assert traced.changes == exported.changes
    torch.testing.assert_close(traced.model(x), module(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(name=st.sampled_from(["conv2d", "transposed2d", "residual"]), seed=st.integers(0, 99))
def test_fusing_twice_is_fusing_once(name, seed):
    build, _ = TINY[name]
    once = fuse(randomize(build(), seed)).model
    twice = fuse(once).model
    assert [n for n, _ in once.named_modules()] == [n for n, _ in twice.named_modules()]
    assert all(torch.equal(value, twice.state_dict()[key]) for key, value in once.state_dict().items())


@pytest.mark.parametrize(
    ("build", "shape", "layer", "reason"),
    [
        (PreActivation, (2, 3, 8, 8), "bn", "its input comes from the model's input, not from a convolution"),
        (SharedOutput, (2, 3, 8, 8), "bn", "the output of conv is also read by add"),
        (ConvTwice, (2, 3, 8, 8), "bn", "conv is used more than once"),
        (SequenceNorm, (2, 4, 5), "bn", "normalizes dimension 1, which is not the outputs of fc"),
        (Unused, (2, 3, 8, 8), "spare", "is not executed"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
            (2, 3, 8, 8),
            "1",
            "statistics of the batch, also in eval mode",
        ),
        (
            lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)),
            (2, 3, 8, 8),
            "1",
            "weight of the layer before it is computed while running",
        ),
    ],
)
def test_refusals_have_reasons_and_change_nothing(build, shape, layer, reason):
    module, x = randomize(build()), torch.randn(*shape)
    step = fuse(module, (x,))
    assert [change.layer for change in step.skipped] == [layer]
    assert reason in step.skipped[0].reason
    torch.testing.assert_close(step.model(x), module(x), rtol=1e-5, atol=1e-5)


def test_a_batchnorm_with_a_forward_of_its_own_is_refused():
    class NormThenRelu(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    module, x = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), NormThenRelu(4))), torch.randn(2, 3, 8, 8)
    step = fuse(module, x)
    assert "NormThenRelu has a forward of its own" in step.skipped[0].reason
    assert torch.equal(step.model(x), module(x))


def test_hooks_are_a_reason():
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    module[0].register_forward_hook(lambda *_: None)
    assert "forward hooks" in fuse(module, torch.randn(2, 3, 8, 8)).skipped[0].reason


def test_training_flags_and_gradients_survive():
    module = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).train()
    module[0].weight.requires_grad_(False)
    fused = fuse(module, torch.randn(2, 3, 8, 8)).model
    assert module.training and fused.training and fused[1].training
    assert not fused[0].weight.requires_grad


def test_export_reads_what_tracing_cannot():
    module, x = randomize(Branching()), torch.randn(2, 3, 8, 8)
    assert fuse(module, x).done
    with pytest.raises(ModelError, match=r"cannot read the program of Branching .*give example_inputs"):
        fuse(module)


def test_wrong_inputs_are_named():
    with pytest.raises(InputError, match=r"Residual rejects inputs of shape \(2, 5, 8, 8\)"):
        fuse(Residual(), torch.randn(2, 5, 8, 8))


def test_nothing_to_fuse_is_said():
    assert fuse(nn.Linear(2, 2)).notes == ("the module has no batch-norm to fuse",)


def test_fold_refuses_other_layers():
    with pytest.raises(ModelError, match="not into Embedding"):
        fold(nn.Embedding(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ModelError, match="keeps no running statistics"):
        fold(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", lambda models: models.resnet18()),
        ("mobilenet_v2", lambda models: models.mobilenet_v2()),
        ("googlenet", lambda models: models.googlenet(init_weights=False)),
        ("densenet", lambda models: models.DenseNet(8, (2, 2), 16)),  # two blocks in place of four, thinner
        ("shufflenet", lambda models: models.shufflenet_v2_x0_5()),
    ],
)
def test_torchvision_models(name, build):
    from compress.loading.torchvision_ops import torchvision

    module = randomize(build(torchvision.models)).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    step = fuse(module, x)
    torch.testing.assert_close(step.model(x), module(x), rtol=1e-6, atol=1e-6 * float(module(x).abs().max()))
    assert step.done
    if name in ("resnet18", "mobilenet_v2"):
        assert not step.skipped
    if name == "densenet":  # batch-norm comes before the convolution in every second place
        assert any("not from a convolution" in change.reason for change in step.skipped)
