"""How much from where: a family that the outputs do not miss pays, one that they need is spared; targets are met."""

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.errors import PruningError
from compress.pruning.balancing import GRID, Curve, _convex, prices
from compress.state import evaluating

DATA = [torch.randn(32, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


class Branches(nn.Module):
    """The outputs hang on `needed`; of `idle` they get a thousandth."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.needed, self.idle = nn.Linear(16, 64), nn.Linear(16, 64)
        self.a, self.b = nn.Linear(64, 8), nn.Linear(64, 8)

    def forward(self, x):
        return self.a(self.needed(x).relu()) + 0.001 * self.b(self.idle(x).relu())


def apart(module, teacher):
    with evaluating(module), evaluating(teacher):
        x = torch.cat(DATA)
        return float((module(x) - teacher(x)).square().mean() / teacher(x).var())


@pytest.mark.parametrize("target", ["macs", "parameters", "channels"])
def test_what_the_outputs_do_not_miss_goes_first(target):
    module = Branches().eval()
    options = {"amount": 0.4, "target": target, "round_to": 1, "data": DATA}
    balanced = compress.prune(module, DATA[0][:2], scope="balanced", **options).model
    uniform = compress.prune(module, DATA[0][:2], **options).model
    assert balanced.idle.out_features < 20 and balanced.needed.out_features > 55
    assert apart(balanced, module) < 0.1 * apart(uniform, module)
    left = balanced.idle.out_features + balanced.needed.out_features
    assert 0.6 * 128 - 8 <= left <= 0.6 * 128 + 1


def test_the_slope_of_the_convex_curve_never_falls():
    errors = np.sqrt(GRID) + (GRID > 0.5)
    found = _convex(errors)
    assert found[0] == 0 and (np.diff(found, 2) > -1e-12).all()
    assert found[-1] == pytest.approx(errors[-1])


def test_a_higher_price_takes_more_of_each():
    curves = {"a": Curve(_convex(GRID**2), 100 * GRID), "b": Curve(_convex(10 * GRID**2), 100 * GRID)}
    price = prices(curves)
    shares = [[curve.share(price(amount)) for amount in (0.0, 0.3, 0.5, 0.7, 1.0)] for curve in curves.values()]
    assert all(found == sorted(found) for found in shares)
    assert all(a >= b for a, b in zip(*shares)) and shares[0][0] == 0.0 and shares[1][-1] == GRID[-1]


def test_auto_takes_the_nearer_of_the_two_and_says_so():
    module = Branches().eval()
    step = compress.prune(module, DATA[0][:2], scope="auto", amount=0.4, target="macs", round_to=1, data=DATA)
    assert step.model.idle.out_features < 20
    assert any(note.startswith("shares of the layers: balanced (the outputs' error") for note in step.notes)


def test_balanced_needs_data():
    with pytest.raises(PruningError, match="scope 'balanced' measures what each layer costs on data"):
        compress.PruneRequest(scope="balanced")
    with pytest.raises(PruningError, match="what each layer costs cannot be measured: the data is empty"):
        compress.prune(Branches().eval(), DATA[0][:2], scope="balanced", data=[])
