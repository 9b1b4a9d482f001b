"""Residual blocks removed whole: found by themselves, equal to the zeroed original, reloaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import compress
from compress.batches import Batch
from compress.errors import PruningError, WeightsError
from compress.loading.state_dicts import load_state_dict, read_state_dict
from compress.pruning.blocks import find_blocks, prune_blocks


class Branch(nn.Module):
    """relu(x + f(x)), f ending in batch-norm; without `residual`, only f."""

    def __init__(self, channels: int, residual: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.residual = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            residual,
        )

    def forward(self, x):
        y = self.norm(self.conv(x))
        return torch.relu(x + y if self.residual else y)


class PreNorm(nn.Module):
    """Tokens: x + mlp(norm(x)); its mlp keeps the shape too, and is no block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.stage = nn.Sequential(Branch(8), Branch(8, residual=False), Branch(8), Branch(8))
        self.tokens = nn.Sequential(PreNorm(8), PreNorm(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stage(self.stem(x))
        return self.head(self.tokens(x.flatten(2).transpose(1, 2)).mean(1))


BLOCKS = ("stage.0", "stage.2", "stage.3", "tokens.0", "tokens.1")


def net() -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    module = Net().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.bias.data.normal_()
    return module, torch.randn(4, 3, 8, 8)


def test_blocks_are_what_is_the_identity_with_its_weights_at_zero():
    module, x = net()
    assert find_blocks(module, Batch.of(x)) == BLOCKS


def test_outputs_are_those_of_the_zeroed_original():
    module, x = net()
    before = copy.deepcopy(module.state_dict())
    step = compress.prune(module, x, amount=0.6, target="blocks")
    removed = [change.layer for change in step.done]
    assert len(removed) == 3 and all(isinstance(step.model.get_submodule(name), nn.Identity) for name in removed)
    zeroed = copy.deepcopy(module)
    for name in removed:
        for parameter in zeroed.get_submodule(name).parameters():
            parameter.data.zero_()
    with torch.no_grad():
        torch.testing.assert_close(step.model(x), zeroed(x))
        assert (step.model(x) - module(x)).abs().max() > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_the_block_that_matters_least_goes_first():
    module, x = net()
    for parameter in module.stage[2].parameters():
        parameter.data.mul_(1e-3)
    module.stage[2].norm.running_mean.zero_()
    step = prune_blocks(module, Batch.of(x), amount=0.2, data=[torch.randn(8, 3, 8, 8)])
    assert [change.layer for change in step.done] == ["stage.2"]


def test_names_in_and_out():
    module, x = net()
    step = compress.prune(module, x, amount=0.5, target="blocks", include=("tokens",), exclude=("tokens.0",))
    assert [change.layer for change in step.changes] == ["tokens.1"] and not step.skipped


def test_weights_alone_reload_it(tmp_path):
    module, x = net()
    smaller = compress.prune(module, x, amount=0.6, target="blocks").model
    torch.save({"state_dict": smaller.state_dict()}, tmp_path / "pruned.pt")
    fresh = Net().eval()
    notes = load_state_dict(fresh, read_state_dict(tmp_path / "pruned.pt"), "pruned.pt")
    with torch.no_grad():
        torch.testing.assert_close(fresh(x), smaller(x))
    assert len(notes) == 1 and "removed" in notes[0]


def test_a_plain_dict_without_the_blocks_is_still_another_models(tmp_path):
    module, x = net()
    smaller = compress.prune(module, x, amount=0.6, target="blocks").model
    torch.save(dict(smaller.state_dict()), tmp_path / "plain.pt")
    with pytest.raises(WeightsError, match="missing"):
        load_state_dict(Net(), read_state_dict(tmp_path / "plain.pt"))


def test_then_channels_can_go_and_it_exports():
    module, x = net()
    smaller = compress.prune(module, x, amount=0.4, target="blocks").model
    thinner = compress.prune(smaller, x, amount=0.5, round_to=1).model
    assert compress.export(thinner, (x,)).model.graph.num_nodes() > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"amount": 1.0}, "outside"),
        ({"amount": 0.05}, "less than one"),
        ({"method": "taylor"}, "leave it out"),
        ({"exclude": ("stag.0",)}, "stage.0"),
    ],
)
def test_bad_arguments(arguments, said):
    module, x = net()
    with pytest.raises(PruningError, match=said):
        compress.prune(module, x, target="blocks", **arguments)


def test_a_network_without_residuals_has_none():
    plain = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    with pytest.raises(PruningError, match="no block"):
        compress.prune(plain, torch.randn(2, 3, 8, 8), target="blocks")


@pytest.mark.parametrize("norm_first", [True, False])
def test_layers_that_take_masks_go(norm_first, tmp_path):
    """`nn.TransformerEncoder` reads its first layer, which stays; the others go, also where they normalize last."""
    torch.manual_seed(0)

    def build():
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        return nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 4)).eval()

    module, x = build(), torch.randn(2, 5, 8)
    assert find_blocks(module, Batch.of(x)) == ("1.layers.1", "1.layers.2")
    step = prune_blocks(module, Batch.of(x), amount=0.5)
    with torch.no_grad():
        wanted = step.model(x)
        gone = next(change.layer for change in step.changes if change.action == "block removed")
        module.get_submodule(gone).forward = lambda x, **masks: x
        assert torch.allclose(module(x), wanted, atol=1e-6)
    torch.save(step.model.state_dict(), tmp_path / "weights.pt")
    again = build()
    load_state_dict(again, read_state_dict(tmp_path / "weights.pt"))
    with torch.no_grad():
        assert torch.equal(again(x), wanted)


def test_a_network_without_blocks_says_so():
    with pytest.raises(PruningError, match="no submodule returns its first argument once its weights are zero"):
        prune_blocks(nn.Sequential(nn.Linear(8, 8), nn.ReLU()).eval(), Batch.of(torch.randn(2, 8)))


def test_a_pattern_without_blocks_names_those_there_are():
    with pytest.raises(
        PruningError, match=r"none of the blocks asked for can be removed; these can: stage\.0, stage\.2"
    ):
        prune_blocks(Net().eval(), Batch.of(torch.randn(2, 3, 6, 6)), include=("stem*",))
