"""Healing without labels: nearer to the unpruned network, never further; within its budget; what cannot be healed."""

import pytest
import torch
from torch import nn

import compress
from compress.errors import PruningError
from compress.pipeline.prune_options import PruneOptions
from compress.pruning.block_outputs import kept_of_blocks
from compress.pruning.healing import heal
from compress.pruning.prune import prune_channels
from compress.state import evaluating


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.n, self.b = (
            nn.Conv2d(width, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.Conv2d(32, width, 3, padding=1),
        )

    def forward(self, x):
        return x + self.b(self.n(self.a(x)).relu())


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 2), Block(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 9, 5)).eval()


DATA = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
TEST = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(99))


def apart(module, teacher):
    with evaluating(module), evaluating(teacher):
        wanted = teacher(TEST)
        return float((module(TEST) - wanted).square().mean() / wanted.var())


def test_healing_brings_outputs_nearer_and_touches_nothing():
    teacher = net()
    removal = prune_channels(teacher, DATA[0][:2], amount=0.5, round_to=1)
    pruned = removal.step.model
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    outputs = kept_of_blocks(removal.channels, removal.removed)
    assert outputs["1"][1].numel() == 8  # the stream keeps half of its 16 channels
    step = heal(pruned, teacher, DATA, budget_s=3, outputs=outputs)
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items())
    assert apart(step.model, teacher) < 0.7 * apart(pruned, teacher)
    change = step.changes[0]
    assert change.action == "healed" and change.values["error_after"] < change.values["error_before"]
    assert "healed without labels" in step.notes[0]


def test_what_is_given_is_kept_where_healing_does_not_help(monkeypatch):
    monkeypatch.setattr("compress.pruning.healing.RATES", (1e6,))
    teacher = net()
    step = heal(teacher, teacher, DATA, budget_s=1)
    assert step.notes == ("healing did not help: the weights stay as they were",)
    assert step.changes[0].skipped and apart(step.model, teacher) == 0.0


def test_prune_heals_when_asked_in_one_step_and_in_several():
    teacher = net()
    options = {"amount": 0.5, "round_to": 1, "data": DATA, "heal_s": 2.0}
    for prune in (compress.prune, lambda *a, **k: compress.prune_iteratively(*a, steps=2, **k)):
        cut = prune(teacher, DATA[0][:2], **{**options, "heal_s": 0.0})
        healed = prune(teacher, DATA[0][:2], **options)
        assert apart(healed.model, teacher) < apart(cut.model, teacher)
        assert any(change.action == "healed" for change in healed.changes)


def test_frozen_weights_are_healed_and_stay_frozen():
    teacher = net().requires_grad_(False)
    pruned = prune_channels(teacher, DATA[0][:2], amount=0.5, round_to=1).step.model
    healed = heal(pruned, teacher, DATA, budget_s=1).model
    assert not any(value.requires_grad for value in healed.parameters()) and apart(healed, teacher) < apart(
        pruned, teacher
    )


def test_refusals():
    with pytest.raises(PruningError, match="a network cannot be healed: the data is empty"):
        heal(net(), net(), [], budget_s=1)
    with pytest.raises(PruningError, match="a budget of 0 seconds heals nothing"):
        heal(net(), net(), DATA, budget_s=0)
    with pytest.raises(PruningError, match="3 samples are too few to heal a network on; give 10 or more"):
        heal(net(), net(), [TEST[:3]], budget_s=1)
    with pytest.raises(PruningError, match="healing learns from data"):
        compress.PruneRequest(heal_s=3)


def test_as_many_steps_give_the_same_weights():
    teacher = net()
    removal = prune_channels(teacher, DATA[0][:2], amount=0.5, round_to=1)
    pruned, outputs = removal.step.model, kept_of_blocks(removal.channels, removal.removed)
    one, other = (heal(pruned, teacher, DATA, steps=24, outputs=outputs) for _ in range(2))
    assert one.changes[0].values["steps"] == 24 + 2  # a short trial of each rate first: the best goes on
    assert all(torch.equal(value, other.model.state_dict()[name]) for name, value in one.model.state_dict().items())
    assert apart(one.model, teacher) < apart(pruned, teacher)
    with pytest.raises(PruningError, match="0 steps heal nothing"):
        heal(pruned, teacher, DATA, steps=0)
    with pytest.raises(compress.CompressError, match="heal says for how long, heal_steps how far; give one"):
        PruneOptions(heal=1.0, heal_steps=3)
