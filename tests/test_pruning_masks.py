"""Masks against `torch.nn.utils.prune`; schedules; sparsity that stays."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune as torch_prune

from compress.errors import PruningError
from compress.pruning.denormals import flush_denormals
from compress.pruning.iterative import prune_iteratively
from compress.pruning.masks import MaskRequest, hold_zeros, make_permanent, mask_weights
from compress.pruning.prune import prune
from compress.pruning.schedule import next_fraction, schedule
from compress.pruning.sparsity import layer_sparsity, model_sparsity


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6)).eval()


X = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def zeros(module):
    return [round(item.fraction, 4) for item in layer_sparsity(module)]


def test_l1_is_what_torch_does_and_the_input_is_untouched():
    module, reference = net(), net()
    step = prune(module, amount=0.25, remove_channels=False)
    for index in (0, 3):
        torch_prune.l1_unstructured(reference[index], "weight", amount=0.25)
        assert torch.equal(step.model[index].weight, reference[index].weight)
        assert torch.equal(module[index].weight, net()[index].weight)
    assert zeros(step.model) == [0.25, 0.25] and not list(step.model.buffers())
    assert [change.values["zeros"] for change in step.changes] == [72, 48]


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("n", [1, 2, float("inf")])
def test_ln_structured_zeroes_the_least_slices(n, dim):
    model = prune(net(), amount=0.25, method="ln", n=n, dim=dim, remove_channels=False).model
    for index in (0, 3):
        weight, masked = net()[index].weight, model[index].weight
        norms = torch.linalg.vector_norm(weight.movedim(dim, 0).flatten(1), n, dim=1)
        gone = (masked.movedim(dim, 0).flatten(1) == 0).all(1)
        count = round(0.25 * len(norms))
        assert set(gone.nonzero().flatten().tolist()) == set(norms.argsort()[:count].tolist())


def test_counts_global_random_and_choice_of_layers():
    assert [c.values["zeros"] for c in prune(net(), amount=5, remove_channels=False).changes] == [5, 5]
    model = prune(net(), amount=0.5, scope="global", remove_channels=False).model
    values = torch.cat([net()[i].weight.abs().flatten() for i in (0, 3)])
    limit = values.sort().values[len(values) // 2 - 1]
    assert all(torch.equal(model[i].weight == 0, net()[i].weight.abs() <= limit) for i in (0, 3))
    for method in ("random", "random-structured"):
        one, two, three = (prune(net(), method=method, remove_channels=False, seed=s).model for s in (1, 1, 2))
        assert torch.equal(one[3].weight, two[3].weight) and not torch.equal(one[3].weight, three[3].weight)
    assert zeros(prune(net(), include=["3"], remove_channels=False).model) == [0.0, 0.5]
    assert zeros(prune(net(), exclude=["3"], remove_channels=False).model) == [0.5, 0.0]


def test_two_of_four():
    step = prune(net(), method="2:4", remove_channels=False)
    for index in (0, 3):
        before = net()[index].weight.detach().movedim(1, -1).reshape(-1, 4)
        after = step.model[index].weight.detach().movedim(1, -1).reshape(-1, 4)
        assert ((after != 0).sum(1) == 2).all()
        kept = before.abs().argsort(1, descending=True)[:, :2].sort(1).values
        assert torch.equal(after.nonzero()[:, 1].reshape(-1, 2), kept)
    odd = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
    refused = prune(odd, method="2:4", remove_channels=False).skipped
    assert [(change.layer, change.reason) for change in refused] == [("0", "6 inputs are no multiple of 4")]


def test_masks_stay_through_training_until_made_permanent():
    step = mask_weights(net(), MaskRequest(amount=0.5), permanent=False)
    for model in (step.model, hold_zeros(make_permanent(copy.deepcopy(step.model)))):
        optimizer = torch.optim.SGD(model.parameters(), 0.5, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().sum().backward()
            optimizer.step()
        make_permanent(model)
        assert zeros(model) == [0.5, 0.5] and not torch.equal(model[3].weight, net()[3].weight)
    plain = prune(net(), remove_channels=False).model
    plain(X).square().sum().backward()
    torch.optim.SGD(plain.parameters(), 0.5).step()
    assert model_sparsity(plain) < 0.4, "without masks, training fills zeros: otherwise this test shows nothing"


def test_sparsity_stays_through_export_and_quantization():
    from compress.graph.exporting import export
    from compress.onnx_files import save_onnx
    from compress.quantization.static import quantize_static

    model = prune(net(), amount=0.5, remove_channels=False).model
    graph = export(model, (X,)).model
    held = {name: value.const_value.numpy() for name, value in graph.graph.initializers.items()}
    weights = [value for value in held.values() if value.ndim > 1]
    assert [float((value == 0).mean()) for value in weights] == [0.5, 0.5]
    step = quantize_static(graph, [X])
    small = [v.const_value.numpy() for v in step.model.graph.initializers.values()]
    weights = [value for value in small if value.ndim > 1 and value.dtype == np.int8]
    assert len(weights) == 2 and all((value == 0).mean() >= 0.5 for value in weights)
    assert save_onnx is not None


# -- schedules --------------------------------------------------------------------------------------------------
@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 0.99), st.integers(1, 12), st.sampled_from(["linear", "agp"]))
def test_schedules_rise_to_the_amount(amount, steps, kind):
    totals = schedule(kind, amount, steps)
    assert len(totals) == steps and totals[-1] == pytest.approx(amount)
    assert all(a < b for a, b in itertools.pairwise(totals))
    left = 1.0
    for total in totals:
        left *= 1 - next_fraction(total, left)
        assert 1 - left == pytest.approx(total)


def test_agp_is_the_cubic_of_the_paper():
    assert schedule("agp", 0.9, 4) == pytest.approx([0.9 * (1 - (1 - t / 4) ** 3) for t in (1, 2, 3, 4)])
    assert schedule("one-shot", 0.9, 4) == [0.9] and schedule("cubic", 0.5, 2) == schedule("agp", 0.5, 2)


@pytest.mark.parametrize("kind", ["one-shot", "linear", "agp"])
def test_iterative_masks_reach_the_amount_with_training_in_between(kind):
    seen = []

    def between(module, number, count):
        seen.append((number, count, round(model_sparsity(module), 2)))
        with torch.no_grad():
            for part in (module[0], module[3]):
                part.weight_orig.add_(0.01)  # training fills nothing: masks are attached

    step = prune_iteratively(net(), X, amount=0.8, schedule_kind=kind, steps=3, between=between, remove_channels=False)
    assert model_sparsity(step.model) == pytest.approx(0.8, abs=0.01)
    assert [value for _, _, value in seen] == pytest.approx([round(s, 2) for s in schedule(kind, 0.8, 3)], abs=0.011)


@pytest.mark.parametrize("options", [{}, {"method": "ln"}, {"method": "2:4"}, {"scope": "global"}], ids=str)
def test_masks_grow_while_the_module_trains_in_between(options):
    module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16))

    def train(twin, number, count):
        twin(torch.randn(4, 8)).square().sum().backward()
        torch.optim.SGD(twin.parameters(), lr=0.01).step()

    step = prune_iteratively(module, None, amount=0.5, steps=3, remove_channels=False, between=train, **options)
    assert model_sparsity(step.model) == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(step.model[0].weight[step.model[0].weight != 0], module[0].weight[step.model[0].weight != 0])
    attached = prune(module, method="l1", remove_channels=False, permanent=False).model
    train(attached, 1, 1)
    assert model_sparsity(prune(attached, method="l1", amount=0.5, remove_channels=False).model) > 0.7


@pytest.mark.parametrize("kind", ["one-shot", "linear", "agp"])
def test_a_number_of_weights_is_that_number_after_the_last_step(kind):
    module = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 2))
    step = prune_iteratively(module, None, amount=10, schedule_kind=kind, steps=3, remove_channels=False)
    assert [int((part.weight == 0).sum()) for part in step.model] == [10, 10]
    with pytest.raises(PruningError, match="amount 65 is more than the 64 that layer '1' has"):
        prune_iteratively(module, None, amount=65, schedule_kind=kind, steps=3, remove_channels=False)


def test_computed_weights_are_not_masked():
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    (refused,) = prune(module, remove_channels=False).skipped
    assert refused.layer == "0" and refused.reason == "its weight is computed from other parameters; not masked"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"amount": "x"}, "amount 'x' is outside"),
        ({"amount": True}, "amount True is outside"),
        ({"amount": 1000, "scope": "global"}, "amount 1000 is more than the 80 weights of all chosen layers"),
    ],
)
def test_amounts_that_are_none(options, text):
    with pytest.raises(PruningError, match=text):
        prune(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), remove_channels=False, **options)


@pytest.mark.parametrize(
    "second", [nn.GroupNorm(4, 64), nn.Conv2d(64, 64, 1, groups=4), nn.Conv2d(64, 64, 1, groups=8)], ids=str
)
def test_steps_remove_what_one_does_where_channels_go_in_groups(second):
    """Below four groups channels go by their place in every group: a class is not what it was a step before."""
    module = nn.Sequential(nn.Conv2d(3, 64, 1), second, nn.Conv2d(64, 5, 1)).eval()
    for round_to in (1, None):
        once = prune(module, torch.randn(2, 3, 4, 4), amount=0.75, round_to=round_to)
        steps = prune_iteratively(module, torch.randn(2, 3, 4, 4), amount=0.75, steps=3, round_to=round_to)
        assert [change.action for change in steps.done] == [change.action for change in once.done]
        assert steps.model[0].out_channels == 16


def test_what_a_schedule_takes_beyond_the_target_is_told():
    module = nn.Sequential(nn.Conv2d(3, 48, 3), nn.ReLU(), nn.Conv2d(48, 4, 3)).eval()
    step = prune_iteratively(module, torch.randn(2, 3, 8, 8), amount=0.5, target="macs", steps=2)
    assert any("% of the MACs went, where 50 % were asked for" in note for note in step.notes)


def test_iterative_removal_takes_its_share_of_the_original():
    module = nn.Sequential(
        nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 1), nn.Flatten(), nn.Linear(64 * 16, 5)
    ).eval()
    widths = []
    step = prune_iteratively(
        module, torch.randn(2, 3, 4, 4), amount=0.5, schedule_kind="linear", steps=4, round_to=1,
        between=lambda m, number, count: widths.append(m[0].out_channels),
    )  # fmt: skip
    assert widths == [56, 48, 40, 32] and step.model[2].out_channels == 32
    change = next(change for change in step.changes if change.layer == "0")
    assert change.action == "64 → 32 channels" and change.values["before"] == 64
    assert sum("step" in note for note in step.notes) == 4


# -- denormals --------------------------------------------------------------------------------------------------
def test_denormals_are_flushed_and_nothing_else():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1e-39, -1e-40, 1.2e-38], [0.0, 1.0, -1e-30]]))
        layer.bias.copy_(torch.tensor([1e-45, -2.0]))
    assert flush_denormals(layer) == 3
    assert layer.weight.flatten().tolist() == pytest.approx([0, 0, 1.2e-38, 0, 1, -1e-30], rel=1e-5)
    assert layer.bias.tolist() == [0.0, -2.0] and flush_denormals(layer) == 0
    assert flush_denormals(nn.Linear(2, 2).double()) == 0


def test_pruning_flushes_denormals():
    module = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Flatten(), nn.Linear(256, 4)).eval()
    with torch.no_grad():
        module[2].weight[0] = 1e-40
    model = prune(module, torch.randn(2, 3, 4, 4)).model
    assert (model[2].weight[0] == 0).all() and (module[2].weight[0] != 0).all()


# -- bad input --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"amount": 1.5}, r"amount 1\.5 is outside \[0, 1\]; give a fraction such as 0\.5, or a whole number"),
        ({"amount": -1}, r"amount -1 is outside"),
        ({"amount": 500}, r"amount 500 is more than the 288 that layer '0' has"),
        ({"method": "l1_unstructered"}, r"mask method 'l1_unstructered' is unknown"),
        ({"method": "4:4"}, r"mask pattern '4:4' keeps 4 of 4; give N:M"),
        ({"method": "ln", "scope": "global"}, r"mask method 'ln' works layer by layer"),
        ({"method": "ln", "dim": 2}, r"dim 2 is not a channel dimension"),
        ({"scope": "all"}, r"mask scope 'all' is unknown"),
        ({"include": ["7"]}, r"no layer is named '7'"),
        ({"include": ["1"]}, r"no layer to mask: none of those named is a convolution or a linear layer"),
    ],
)
def test_bad_input(options, text):
    with pytest.raises(PruningError, match=text):
        prune(net(), remove_channels=False, **options)


def test_bad_schedules():
    with pytest.raises(PruningError, match=r"pruning schedule 'lineal' is unknown; did you mean 'linear'\?"):
        schedule("lineal", 0.5, 2)
    with pytest.raises(PruningError, match=r"a schedule of 0 steps prunes nothing"):
        schedule("agp", 0.5, 0)
