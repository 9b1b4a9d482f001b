"""Reconstruction after pruning: least squares as NumPy solves it, layer by layer, on what really arrives."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.batches import Batch
from compress.errors import InputError, PruningError
from compress.pipeline.inputs import DataSource, ModelSource
from compress.pipeline.prune import prune as prune_job
from compress.pipeline.prune_options import PruneOptions
from compress.pruning import layer_views, lockstep, reconstruction
from compress.pruning.least_squares import RIDGES, Rows, _Sums, solve
from compress.pruning.reconstruction import reconstruct


def correlated(rows: int, *shape: int) -> torch.Tensor:
    """Samples whose channels can be told from each other's: eight sources behind all of them."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(8, shape[0], generator=generator)
    sources = torch.randn(rows, *shape[1:], 8, generator=generator)
    return (sources @ mixing + 0.1 * torch.randn(rows, *shape[1:], shape[0], generator=generator)).movedim(-1, 1)


def without_inputs(layer: nn.Module, kept: list[int]) -> nn.Module:
    """The layer with some of its inputs, as pruning leaves it."""
    smaller = copy.deepcopy(layer)
    smaller.weight = nn.Parameter(layer.weight[:, kept].detach().clone())
    return smaller


class Picked(nn.Module):
    """Some channels, then a layer: the layer's view of a pruned network."""

    def __init__(self, layer: nn.Module, kept: list[int]) -> None:
        super().__init__()
        self.layer, self.kept = layer, kept

    def forward(self, x):
        return self.layer(x[:, self.kept])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [None, [0, 2, 3]])
def test_a_linear_layer_gets_the_ridge_regression_of_numpy(bias, outputs):
    torch.manual_seed(0)
    x, kept = correlated(192, 16), [0, 1, 4, 7, 8, 9, 10, 13]
    layer = nn.Linear(16, 5, bias=bias)
    whole, smaller = Picked(layer, list(range(16))), Picked(without_inputs(layer, kept), kept)
    if outputs is not None:
        smaller.layer.weight = nn.Parameter(smaller.layer.weight[outputs].detach())
        if bias:
            smaller.layer.bias = nn.Parameter(layer.bias[outputs].detach().clone())
    before = copy.deepcopy(smaller.state_dict())
    fitted, changes = reconstruct(
        whole, smaller, [x[:120], x[120:]], outputs=None if outputs is None else {"layer": np.array(outputs)}
    )
    seen = x[:, kept].double().numpy()
    start = smaller.layer.weight.detach().double().numpy()
    target = layer(x).detach().double().numpy()[:, outputs if outputs is not None else slice(None)]
    missing = target - seen @ start.T - (smaller.layer.bias.detach().double().numpy() if bias else 0)
    x_, e_ = (seen - seen.mean(0), missing - missing.mean(0)) if bias else (seen, missing)
    gram = x_.T @ x_
    ridge = changes[0].values["ridge"]
    move = np.linalg.solve(gram + ridge * gram.trace() / len(gram) * np.eye(len(gram)), x_.T @ e_)
    np.testing.assert_allclose(fitted.layer.weight.detach().numpy(), start + move.T, rtol=1e-4, atol=1e-5)
    if bias:
        shift = (missing - seen @ move).mean(0)
        expected = smaller.layer.bias.detach().numpy() + shift
        np.testing.assert_allclose(fitted.layer.bias.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    values = changes[0].values
    assert 0 < values["error_after"] < 0.5 * values["error_before"]
    for name, value in smaller.state_dict().items():  # the input is never touched
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("intercept", [True, False])
def test_fewer_rows_than_columns_take_the_other_system_and_give_the_same(intercept):
    torch.manual_seed(0)
    x, error = torch.randn(2, 12, 30) + 3, torch.randn(2, 12, 4) + 1
    rows = Rows(x, error, 9, intercept)
    found = solve(rows)
    expected, shift = _Sums.of(x, error).solution(found.ridge, intercept=intercept)
    assert found.step.shape == (2, 30, 4)
    torch.testing.assert_close(found.step, expected.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.shift.expand_as(shift).double(), shift, rtol=1e-3, atol=1e-3)


def test_the_ridge_is_the_one_that_leaves_least_on_rows_held_back():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(1, 20, 3, generator=generator)
    for noise, wanted in ((0.0, min), (20.0, max)):
        x = torch.randn(1, 90, 20, generator=generator)
        error = x @ truth + noise * torch.randn(1, 90, 3, generator=generator)
        rows = Rows(x, error, 60, True)
        found = solve(rows)
        assert found.ridge == wanted(RIDGES)
        by_hand = {}
        for ridge in RIDGES:
            step, shift = _Sums.of(x[:, :60], error[:, :60]).solution(ridge, intercept=True)
            by_hand[ridge] = float((error[:, 60:] - x[:, 60:] @ step.float() - shift.float()).square().sum())
        assert min(by_hand, key=by_hand.get) == found.ridge
    nothing = Rows(x, torch.randn(1, 90, 3, generator=generator) * (torch.arange(90) >= 60)[None, :, None], 60, False)
    assert not solve(nothing).helps  # what is held back is no better for it


LAYERS = {
    "1d": (nn.Conv1d(16, 6, 3, stride=2, padding=1), (16, 9)),
    "2d": (nn.Conv2d(16, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (16, 7, 8)),
    "2d, reflected": (nn.Conv2d(16, 6, 3, padding=1, padding_mode="reflect", bias=False), (16, 6, 6)),
    "2d, same": (nn.Conv2d(16, 6, (3, 4), padding="same"), (16, 6, 6)),
    "3d": (nn.Conv3d(16, 6, 2), (16, 3, 4, 3)),
    "grouped": (nn.Conv2d(16, 8, 3, padding=1, groups=4), (16, 6, 6)),
    "depthwise": (nn.Conv2d(16, 16, 3, padding=1, groups=16), (16, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_columns_are_what_each_output_is_made_of(name):
    layer, shape = LAYERS[name]
    x = torch.randn(3, *shape)
    rows = layer_views.columns_of(layer, x, layer_views.Draw(10**6)).unflatten(1, (layer.groups, -1))
    weight = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))
    made = torch.einsum("rgn,gon->rgo", rows, weight).flatten(1)
    made = made if layer.bias is None else made + layer.bias
    torch.testing.assert_close(made, layer(x).movedim(1, -1).flatten(0, -2), rtol=1e-4, atol=1e-5)


class Net(nn.Module):
    """Residual, depthwise, tokens, a layer called twice, a tied head and a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.inner = nn.Sequential(
            nn.Conv2d(32, 64, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1, groups=64), nn.ReLU(), nn.Conv2d(64, 32, 1)
        )
        self.twice, self.gru = nn.Linear(32, 32), nn.GRU(32, 16, batch_first=True)
        self.head, self.tied = nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.head.weight

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.inner(x))
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.twice(torch.relu(self.twice(tokens)))
        return self.tied(torch.relu(self.head(self.gru(tokens)[0][:, -1])))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    module = Net().train()
    for _ in range(20):
        module(smooth(16, seed=_))
    return module.eval()


def smooth(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    return nn.functional.interpolate(torch.randn(count, 3, 3, 3, generator=generator), size=8, mode="bilinear")


def test_a_pruned_network_comes_nearer_to_the_original_on_new_data(net):
    data, new = [smooth(32, seed) for seed in range(6)], smooth(64, 99)
    flags = [part.training for part in net.modules()]
    plain = compress.prune(net, smooth(2), amount=0.5, round_to=1).model
    step = compress.prune(net, smooth(2), amount=0.5, round_to=1, data=data, reconstruct=True)
    with torch.no_grad():
        whole, cut, fitted = net(new), plain(new), step.model(new)
    assert (fitted - whole).square().mean() < 0.75 * (cut - whole).square().mean()
    assert [tuple(value.shape) for value in step.model.parameters()] == [tuple(v.shape) for v in plain.parameters()]
    names = {change.layer for change in step.changes if change.action == "weights fitted"}
    assert {"inner.2", "inner.4", "twice"} <= names and not names & {"head", "tied", "gru", "stem.0"}
    assert any("layers fitted to what they gave before pruning" in note for note in step.notes)
    assert flags == [part.training for part in net.modules()]
    assert not any(part._forward_hooks for part in (*net.modules(), *step.model.modules()))
    assert step.model.inner[4].weight.requires_grad


def test_the_same_twice(net):
    data = [smooth(32)]
    first, second = (
        compress.prune(net, smooth(2), amount=0.5, data=data, reconstruct=True).model.state_dict() for _ in range(2)
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_hooks_go_when_a_forward_fails(net):
    pruned = compress.prune(net, smooth(2), amount=0.5).model
    with pytest.raises(RuntimeError):
        reconstruct(net, pruned, [smooth(4), torch.randn(4, 5, 8, 8)])
    assert not any(part._forward_hooks for part in (*net.modules(), *pruned.modules()))


def test_side_by_side_and_by_hooks_give_the_same(net, monkeypatch):
    """Where no branch is fitted to its stream and no batch-norm follows, the two ways see the same rows."""
    torch.manual_seed(0)
    module = block()
    pruned = compress.prune(module, smooth(2), amount=0.5)
    data = [smooth(32, seed) for seed in range(4)]
    reconstruct_all = compress.prune(module, smooth(2), amount=0.5, data=data, reconstruct=True).model.state_dict()
    monkeypatch.setattr(lockstep, "replays", lambda *arguments: None)
    by_hooks = compress.prune(module, smooth(2), amount=0.5, data=data, reconstruct=True).model.state_dict()
    assert not torch.equal(reconstruct_all["2.weight"], pruned.model.state_dict()["2.weight"])
    for name, value in reconstruct_all.items():
        torch.testing.assert_close(value, by_hooks[name], rtol=1e-3, atol=1e-4)


class Stream(nn.Module):
    """Two residual branches; convolutions without bias in front of batch-norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.first, self.second = (
            nn.Sequential(
                nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Conv2d(32, 8, 3)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.first(x))
        return self.head(torch.relu(x + self.second(x)))


@pytest.fixture(scope="module")
def stream():
    torch.manual_seed(0)
    module = Stream().train()
    for seed in range(20):
        module(smooth(16, seed))
    return module.eval()


def test_a_branch_is_fitted_to_what_the_stream_lacks_and_batch_norm_takes_the_constant(stream):
    data, new = [smooth(64, seed) for seed in range(4)], smooth(64, 99)
    options = {"amount": 0.5, "round_to": 1}
    fitted = compress.prune(stream, smooth(2), data=data, reconstruct=True, **options).model
    plain = compress.prune(stream, smooth(2), **options).model
    with torch.no_grad():
        wanted = stream(new)
        cut, found = (float((module(new) - wanted).square().mean() / wanted.var()) for module in (plain, fitted))
    # Each layer held to its own output alone (by hooks, where no stream is known) leaves more.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lockstep, "replays", lambda *arguments: None)
        alone = compress.prune(stream, smooth(2), data=data, reconstruct=True, **options).model
    with torch.no_grad():
        by_itself = float((alone(new) - wanted).square().mean() / wanted.var())
    assert found < by_itself < 0.5 * cut
    moved = fitted.second[4].running_mean - plain.second[4].running_mean
    assert moved.abs().max() > 1e-4 and fitted.second[3].bias is None
    assert torch.equal(fitted.second[4].running_var, plain.second[4].running_var)


def test_small_networks_are_fitted_on_more_samples_than_large_ones():
    small, large = nn.Linear(4, 2), nn.Conv2d(3, 64, 7, padding=3)
    images = Batch.of(torch.randn(4, 3, 512, 512))
    assert layer_views.work_of(large, images) == 4 * 64 * 512 * 512 * 3 * 49
    assert reconstruction._affordable(small, Batch.of(torch.randn(8, 4))) == 1024
    assert reconstruction._affordable(large, images) == 256


def test_later_batches_catch_up_where_less_is_held(stream, monkeypatch):
    """Where memory is short, early layers are fitted on fewer batches; the last ones on all."""
    counts = {}
    monkeypatch.setattr(lockstep, "MOST_HELD", 8 * 32 * 2 * 16 * 9)  # of the last layer's inputs
    seen = lockstep._Lockstep.seen
    monkeypatch.setattr(lockstep._Lockstep, "seen", lambda run, layer: counts.setdefault(layer.name, seen(run, layer)))
    layers = nn.Conv2d(3, 64, 1), nn.ReLU(), nn.Conv2d(64, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 4, 3)
    module = nn.Sequential(*layers).eval()
    data = [smooth(64, seed) for seed in range(4)]
    compress.prune(module, smooth(2), amount=0.5, data=data, reconstruct=True)
    assert [len(counts[name].inputs) for name in ("2", "4")] == [4, 8]


def test_layers_in_waves_give_what_they_give_at_once(net, monkeypatch):
    data, pruned = [smooth(32)], compress.prune(net, smooth(2), amount=0.5)
    options = {"data": data, "reconstruct": True}
    at_once = compress.prune(net, smooth(2), amount=0.5, **options).model.state_dict()
    monkeypatch.setattr(layer_views, "waves", lambda layers: ([layer] for layer in layers))
    one_by_one = compress.prune(net, smooth(2), amount=0.5, **options).model.state_dict()
    assert all(torch.equal(value, one_by_one[name]) for name, value in at_once.items())
    assert not all(torch.equal(value, at_once[name]) for name, value in pruned.model.state_dict().items())


def test_blocks_too():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act, self.last = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            return x + self.last(self.act(self.conv(x)))

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(Block() for _ in range(4)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()
    data, new = [smooth(64, seed) for seed in range(4)], smooth(64, 99)
    options = {"amount": 0.5, "target": "blocks", "data": data}
    plain = compress.prune(module, smooth(2), **options).model
    fitted = compress.prune(module, smooth(2), reconstruct=True, **options).model
    with torch.no_grad():
        whole, cut, found = module(new), plain(new), fitted(new)
    assert (found - whole).square().mean() < 0.5 * (cut - whole).square().mean()


def test_in_steps(net):
    step = compress.prune_iteratively(
        net, smooth(2), amount=0.5, steps=2, schedule_kind="linear", data=[smooth(32)], reconstruct=True
    )
    assert step.model.inner[0].out_channels == 32
    assert any("layers fitted" in note for note in step.notes)
    assert {"inner.0: 64 → 32 channels", "inner.2: weights fitted"} <= {f"{c.layer}: {c.action}" for c in step.changes}


def test_steps_are_fitted_to_the_first_network_until_one_is_trained(net, monkeypatch):
    seen = []

    def watched(step, original, data, outputs):
        seen.append((original, {name: kept.copy() for name, kept in outputs.items()}))
        return reconstructed(step, original, data, outputs)

    from compress.pruning import prune as verb

    reconstructed = verb.reconstructed
    monkeypatch.setattr(verb, "reconstructed", watched)
    trained = []

    def between(module, number, count):
        trained.append(copy.deepcopy(module))
        return trained[-1] if number == 2 else None

    step = compress.prune_iteratively(
        net, smooth(2), amount=0.75, steps=3, schedule_kind="linear", data=[smooth(32)], reconstruct=True, round_to=1,
        between=between,
    )  # fmt: skip
    assert seen[0][0] is net and seen[1][0] is net and seen[2][0] is trained[1]
    for (_, kept), module in zip(seen[:2], trained):
        assert len(kept["inner.0"]) == len(module.inner[0].weight) and kept["inner.0"].max() < 64
    assert set(seen[1][1]["inner.0"]) < set(seen[0][1]["inner.0"])  # in the numbers of the first network
    assert len(seen[2][1]["inner.0"]) == step.model.inner[0].out_channels


def block() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def gain(module, make, **options):
    """The error of the outputs on new samples, as a share of that of plain pruning."""
    plain = compress.prune(module, make(2, 0), amount=0.5, round_to=1).model
    data = [make(64, seed) for seed in range(1, 5)]
    step = compress.prune(module, make(2, 0), amount=0.5, round_to=1, data=data, reconstruct=True, **options)
    new = make(64, 99)
    with torch.no_grad():
        whole, cut, fitted = (
            part(*new) if isinstance(new, tuple) else part(new) for part in (module, plain, step.model)
        )
    return float((fitted - whole).square().mean() / (cut - whole).square().mean()), step


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_widths_of_numbers(dtype):
    torch.manual_seed(0)
    share, step = gain(block().to(dtype), lambda count, seed: smooth(count, seed).to(dtype))
    assert share < 0.5 and step.model[0].weight.dtype == dtype


def test_the_scale_of_the_activations_plays_no_part():
    shares = []
    for scale in (1e-3, 1.0, 1e3):
        torch.manual_seed(0)
        module = block()
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.mul_(scale if name.endswith("bias") else 1.0)
        shares.append(gain(module, lambda count, seed, scale=scale: smooth(count, seed) * scale)[0])
    assert max(shares) < 0.3 and max(shares) / min(shares) < 1.05


class Aliased(nn.Module):
    """One layer under two names, another called by keyword, one on a single sample's vector, and one with a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared = nn.Linear(8, 32), nn.Linear(32, 32)
        self.again, self.hooked, self.head = self.shared, nn.Linear(32, 32), nn.Linear(32, 4)
        self.hooked.register_forward_hook(lambda part, args, output: 2 * output)

    def forward(self, x):
        x = torch.relu(self.again(torch.relu(self.first(input=x))))
        x = torch.relu(self.hooked(x))
        return torch.stack([self.head(row) for row in x.unbind()]) if len(x) < 2 else self.head(x)


def noise(*shape):
    mix = torch.randn(4, shape[-1], generator=torch.Generator().manual_seed(1))

    def make(count, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(count, *shape[:-1], 4, generator=generator) @ mix

    return make


def test_names_keywords_and_hooks():
    torch.manual_seed(0)
    module = Aliased().eval()
    share, step = gain(module, noise(8))
    assert share < 0.5
    assert {c.layer for c in step.changes if c.action == "weights fitted"} >= {"shared", "hooked", "head"}


def test_attention_with_a_padding_mask():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x, mask):
            return self.head(self.encoder(self.embed(x), src_key_padding_mask=mask))

    tokens = noise(6, 8)

    def make(count, seed):
        mask = torch.zeros(count, 6, dtype=torch.bool)
        mask[::2, 4:] = True
        return tokens(count, seed), mask

    torch.manual_seed(0)
    module = Encoder().eval()
    data = [(make(64, seed), None) for seed in range(4)]
    step = compress.prune(module, make(2, 0), amount=0.5, data=data, reconstruct=True)
    fitted = {c.layer for c in step.changes if c.action == "weights fitted"}
    assert {"embed", "head", "encoder.layers.0.linear2"} - {"embed"} <= fitted
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_that_are_not_what_their_class_says_stay():
    class Doubled(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return 2 * super()._conv_forward(x, weight, bias)

    torch.manual_seed(0)
    module = block()
    module[2] = Doubled(16, 32, 3, padding=1)
    _, step = gain(module, smooth)
    assert "2" not in {c.layer for c in step.changes if c.action == "weights fitted"}


def test_a_bias_of_two_layers_stays():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 32)
            self.third.bias = self.second.bias
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(torch.relu(self.third(torch.relu(self.second(torch.relu(self.first(x)))))))

    torch.manual_seed(0)
    _, step = gain(Two().eval(), noise(8))
    assert {c.layer for c in step.changes if c.action == "weights fitted"} == {"head"}


def test_no_more_samples_than_said(monkeypatch):
    seen = []
    monkeypatch.setattr(lockstep, "columns_of", lambda part, x, draw: seen.append(len(x)) or torch.zeros(1, 1))
    module = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    reconstruct(module, module, [torch.randn(100, 4), torch.randn(1000, 4), torch.randn(5, 4)])
    assert sum(seen) == 2 * 1024  # for each of the two layers


def test_few_or_dull_samples_leave_the_weights():
    torch.manual_seed(0)
    module = block()
    few = compress.prune(module, smooth(2), amount=0.5, data=[smooth(8)], reconstruct=True)
    assert "8 samples are too few to fit it on" in {c.reason for c in few.skipped}
    dull = compress.prune(module, smooth(2), amount=0.5, data=[torch.zeros(64, 3, 8, 8)], reconstruct=True)
    for change in (*few.changes, *dull.changes):
        assert change.values.get("error_before", 0) < 1e7
    with torch.no_grad():
        assert torch.isfinite(dull.model(smooth(4))).all()


@pytest.mark.parametrize("options", [{"method": "taylor"}, {"target": "blocks"}], ids=["taylor", "blocks"])
def test_data_that_can_be_gone_through_once(options):
    class Residual(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3), Residual(nn.Conv2d(16, 16, 3, padding=1)), Residual(nn.Conv2d(16, 16, 1)), *block()[4:]
    )
    module[-1] = nn.Linear(16, 5)
    labels = torch.zeros(32, dtype=torch.long)
    step = compress.prune(
        module.eval(),
        smooth(2),
        amount=0.5,
        data=((smooth(32, s), labels) for s in range(4)),
        reconstruct=True,
        **options,
    )
    assert any("layers fitted" in note for note in step.notes)


def test_what_cannot_be_done_is_said(net, tmp_path):
    with pytest.raises(PruningError, match="reconstruction fits weights on data; pass data"):
        compress.prune(net, smooth(2), amount=0.5, reconstruct=True)
    with pytest.raises(PruningError, match="cannot be reconstructed: the data is empty"):
        compress.prune(net, smooth(2), amount=0.5, reconstruct=True, data=[])
    with pytest.raises(PruningError, match="masks keep the weights that they leave"):
        compress.prune(net, amount=0.5, remove_channels=False, reconstruct=True, data=[smooth(2)])
    source = ModelSource(net, input_shape=(2, 3, 8, 8))
    for options, message in (
        ({"reconstruct": True}, "reconstruction needs data; give it with data"),
        ({"reconstruct": True, "masks": True, "data": True}, "masks=True keeps what reconstruct=True fits"),
        (
            {"reconstruct": True, "recalibrate": True, "data": True},
            "recalibrate=True measures anew what reconstruct=True",
        ),
    ):
        data = (smooth(64).numpy(), np.arange(64) % 16) if options.pop("data", False) else None
        np.savez(tmp_path / "d.npz", x=data[0], y=data[1]) if data else None
        given = DataSource(spec=str(tmp_path / "d.npz")) if data else None
        with pytest.raises((InputError, PruningError), match=message):
            prune_job(source, given, output=tmp_path / "out", options=PruneOptions(**options))
        assert not (tmp_path / "out").exists()
