"""Removing a group equals zeroing it, whatever the layers; refusals say why."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.errors import ExportError, InputError, PruningError
from compress.pruning.channels import find_channels
from compress.pruning.cost import CostModel
from compress.pruning.iterative import prune_iteratively
from compress.pruning.prune import prune, prune_channels
from compress.pruning.verifying import agree, check, difference, fewest
from compress.pruning.zeroing import zeroed_outputs


def small():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    ).eval()  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)
        self.head = nn.Linear(16 * 4, 5)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


class Grouped(nn.Module):
    """Grouped and depthwise convolution, group norm, gate, transposed convolution, PReLU, GLU, pixel shuffle."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.GroupNorm(8, 32)
        self.grouped, self.depthwise = nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 64, 3, groups=32)
        self.squeeze, self.excite, self.act = nn.Conv2d(64, 8, 1), nn.Conv2d(8, 64, 1), nn.PReLU(64)
        self.up, self.wide = nn.ConvTranspose2d(64, 32, 2, 2, groups=4), nn.Conv2d(32, 64, 1)
        self.after, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 6)

    def forward(self, x):
        x = self.depthwise(self.grouped(self.norm(self.stem(x))))
        x = self.act(x * torch.sigmoid(self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())))
        x = F.glu(self.wide(F.interpolate(self.up(x), scale_factor=2)), 1)
        return self.head(self.after(F.pixel_shuffle(x, 2)).mean((2, 3)))


class Attention(nn.Module):
    """Fused q, k, v and head counts as a user writes them; forward reads its width from the input."""

    def __init__(self, width=48, num_heads=4):
        super().__init__()
        self.num_heads = num_heads
        self.embed, self.position = nn.Linear(7, width), nn.Parameter(torch.randn(1, 6, width))
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale, self.head = nn.Parameter(torch.rand(width)), nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x) + self.position
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (c // self.num_heads) ** -0.5
        x = x + self.scale * self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))
        return self.head(x.mean(1))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(20, 16), nn.LSTM(16, 24, 2, batch_first=True, bidirectional=True)
        self.gru, self.head = nn.GRU(48, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.gru(self.lstm(self.embedding(x))[0])[0])


def encoder():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    return nn.Sequential(
        nn.Linear(5, 32), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 4)
    )


IMAGE = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
ZOO = {
    "plain": (small, IMAGE),
    "residual": (Residual, IMAGE),
    "grouped": (Grouped, IMAGE),
    "attention": (Attention, torch.randn(2, 6, 7)),
    "recurrent": (Tagger, torch.randint(0, 20, (2, 9))),
    "encoder": (encoder, torch.randn(2, 6, 5)),
}


@pytest.fixture(scope="module", params=ZOO)
def pruned(request):
    factory, inputs = ZOO[request.param]
    torch.manual_seed(0)
    module = factory().eval()
    before = copy.deepcopy(module.state_dict())
    removal = prune_channels(module, inputs, amount=0.5)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the input was touched"
    return request.param, module, removal, inputs


def test_removing_equals_zeroing(pruned):
    name, module, removal, inputs = pruned
    with torch.no_grad():
        wanted = zeroed_outputs(module, removal.channels, removal.removed, (inputs,))
        error = difference(removal.step.model(inputs), wanted)
        effect = difference(removal.step.model(inputs), module(inputs))
    assert error < 1e-5 and removal.error < 1e-5 < 1e-2 < effect, "an effect of nothing would show nothing"
    share = sum(p.numel() for p in removal.step.model.parameters()) / sum(p.numel() for p in module.parameters())
    assert share < 0.67 if name != "grouped" else share < 0.8


def test_counts_of_the_small_module_are_the_analytic_ones(pruned):
    _, _, removal, inputs = pruned
    cost = CostModel(removal.channels)
    assert cost.parameters(removal.removed) == sum(p.numel() for p in removal.step.model.parameters())
    again = find_channels(removal.step.model, (inputs,))
    assert cost.macs(removal.removed) == pytest.approx(CostModel(again).macs(np.zeros(0, dtype=np.int64)), rel=1e-6)


def test_the_small_module_trains_reloads_and_prunes_again(pruned):
    _, module, removal, inputs = pruned
    model = removal.step.model
    assert type(model) is type(module)
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    model.train()
    model(inputs).square().mean().backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in model.parameters())
    model.eval()
    again = prune(twin, inputs, amount=0.5, round_to=1)
    assert sum(p.numel() for p in again.model.parameters()) < sum(p.numel() for p in twin.parameters())


def test_original_architecture_fits_to_the_state_dict(pruned):
    name, _, removal, inputs = pruned
    from compress.loading.state_dicts import load_state_dict

    fresh = ZOO[name][0]().eval()
    load_state_dict(fresh, removal.step.model.state_dict(), "pruned.pt")
    with torch.no_grad():
        assert torch.equal(fresh(inputs), removal.step.model(inputs))


def test_zeroing_by_hand():
    """Independent of our reference: hooks zero the inputs of whatever reads the removed channels."""
    torch.manual_seed(0)
    module = small()
    step = prune(module, IMAGE, amount=0.5)
    kept = {}
    for index in (0, 3):
        rows, left = module[index].weight, step.model[index].weight
        if index == 3:
            rows = rows[:, kept[0]]
        kept[index] = [next(i for i, row in enumerate(rows) if torch.equal(row, other)) for other in left]
    zeroed = copy.deepcopy(module)
    with torch.no_grad():
        for reader, made in ((3, 0), (7, 3)):
            gone = [i for i in range(module[made].out_channels) if i not in kept[made]]
            zeroed[reader].weight[:, gone] = 0
        assert len(kept[0]) == 16 and len(kept[3]) == 32
        assert torch.allclose(zeroed(IMAGE), step.model(IMAGE), atol=1e-6)
    norms = module[0].weight.abs().sum((1, 2, 3))
    assert set(kept[0]) == set(norms.argsort(descending=True)[:16].tolist())


def test_pruning_nothing_is_the_identity():
    module = Residual().eval()
    step = prune(module, IMAGE, amount=0)
    for (name, a), (_, b) in zip(module.state_dict().items(), step.model.state_dict().items()):
        assert torch.equal(a, b), name
    assert not step.done


def test_comparison_notices_a_perturbed_weight():
    module = small()
    removal = prune_channels(module, IMAGE)
    with torch.no_grad():
        removal.step.model[7].weight[0, 0] += 0.5
    verdict = check(removal.step.model, module, removal.channels, removal.removed, (IMAGE,))
    assert "differ" in getattr(verdict, "reason", "")
    assert not agree(torch.ones(3), torch.ones(3) * 1.01) and difference(torch.ones(2), torch.ones(3)) == float("inf")


def test_heads_go_as_a_whole_and_keep_pace_with_the_width():
    module = Attention().eval()
    model = prune(module, torch.randn(2, 6, 7), amount=0.5).model
    assert model.num_heads == 2 and model.proj.in_features == 24 and model.qkv.weight.shape == (72, 24)
    assert model.position.shape == (1, 6, 24) and model.scale.shape == (24,)


def test_outputs_of_the_model_stay():
    step = prune(small(), IMAGE)
    assert step.model[7].out_features == 10
    assert next(c for c in step.skipped if c.layer == "7").reason == "output of the model"


class Fixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.free, self.a = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.a(self.free(x)).mean((2, 3))
        return self.head(x.reshape(-1, 2, 16).sum(1))


def test_sizes_written_in_forward_are_locked_with_the_reason():
    module = Fixed().eval()
    step = prune(module, IMAGE, amount=0.5)
    assert step.model.free.out_channels == 16 and step.model.a.out_channels == 32
    refused = next(change for change in step.skipped if change.layer == "a")
    assert "sizes fixed in the forward before head: mat1 and mat2" in refused.reason


class LeNet(nn.Module):
    """The network of PyTorch's tutorial: one size, written between the convolutions and the rest."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16 * 5 * 5, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.view(-1, 16 * 5 * 5))))))


class Halves(nn.Module):
    """Two sizes, written in one forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d, self.head = (nn.Linear(*sizes) for sizes in (
            (8, 32), (32, 64), (32, 48), (48, 32), (16, 3)))  # fmt: skip

    def forward(self, x):
        first, second = self.b(self.a(x).relu()).split([32, 32], 1)
        return self.head(self.d(self.c(first * second).relu()).unflatten(1, (2, 16)).sum(1))


class SharedKeys(nn.Module):
    """Heads of a size written down, in a stream that need not be as wide."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.out, self.head = (
            nn.Linear(*sizes) for sizes in ((8, 64), (64, 64), (64, 64), (64, 3))
        )
        self.k, self.v = nn.Linear(64, 32), nn.Linear(64, 32)

    def forward(self, x):
        x = self.embed(x)
        b, n, _ = x.shape
        q = self.q(x).view(b, n, 4, 16).transpose(1, 2)
        k, v = (layer(x).view(b, n, 2, 16).transpose(1, 2).repeat_interleave(2, 1) for layer in (self.k, self.v))
        return self.head((x + self.out((q @ k.mT).softmax(-1).matmul(v).transpose(1, 2).reshape(b, n, 64))).mean(1))


@pytest.mark.parametrize(
    ("factory", "shape", "locked", "after"),
    [
        (LeNet, (2, 3, 32, 32), {"conv2"}, {"conv1": 4, "fc1": 64, "fc2": 48}),
        (Halves, (2, 8), {"b", "d"}, {"a": 16, "c": 32}),
        (SharedKeys, (2, 6, 8), {"q", "k", "v"}, {"embed": 32, "out": 32}),
    ],
)
def test_a_size_written_in_forward_holds_the_layers_before_it_and_no_others(factory, shape, locked, after):
    torch.manual_seed(0)
    step = prune(factory().eval(), torch.randn(shape), amount=0.5)
    assert {change.layer for change in step.skipped if "sizes fixed in the forward" in change.reason} == locked
    assert {change.layer: change.values["after"] for change in step.done} == after


def test_the_fewest_that_are_enough():
    names = list("abcdefgh")
    for needed in ("a", "h", "ad", "bgh", "aceg"):
        tried = []

        def enough(part, needed=needed, tried=tried):
            tried.append(part)
            return set(needed) <= set(part)

        assert sorted(fewest(names, enough)) == list(needed) and len(tried) <= 4 * (len(needed) + 1)
    assert fewest(names, lambda part: set("abcdefg") <= set(part)) == names, "seven are too many to look for"


class Listed(nn.Module):
    """The Annotated Transformer's attention: layers in a list, sizes under names that say nothing."""

    def __init__(self):
        super().__init__()
        self.h, self.d_k, self.linears = 4, 16, nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        q, k, v = (layer(x).view(x.size(0), -1, self.h, self.d_k).transpose(1, 2) for layer in self.linears[:3])
        y = (q @ k.mT / self.d_k**0.5).softmax(-1) @ v
        return self.linears[3](y.transpose(1, 2).reshape(x.size(0), -1, self.h * self.d_k))


def test_attributes_follow_in_the_module_whose_forward_calls_layers_of_a_list():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 64), Listed(), nn.Linear(64, 3)).eval()
    step = prune(module, torch.randn(2, 100, 8), amount=0.5)
    assert step.model[1].h == 2 and step.model[1].d_k == 16
    assert [layer.weight.shape for layer in step.model[1].linears] == [(32, 32)] * 4


class Widths(nn.Module):
    """A size kept in an attribute whose name says nothing."""

    def __init__(self):
        super().__init__()
        self.parts = 2
        self.k = 16
        self.a, self.head = nn.Conv2d(3, 32, 3), nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.a(x).mean((2, 3)).reshape(-1, self.parts, self.k).sum(1))


def test_sizes_kept_in_attributes_follow():
    step = prune(Widths().eval(), IMAGE, amount=0.5)
    assert (step.model.parts, step.model.k, step.model.a.out_channels) == (2, 8, 16)


class Computed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        weight = self.b.weight / self.b.weight.square().sum((1, 2, 3), keepdim=True)
        x = F.conv2d(self.a(x), weight)
        return self.head(x.sort(1).values.mean((2, 3)))


def test_what_no_rule_knows_is_locked():
    with pytest.raises(PruningError, match=r"no channel of this model can be removed; locked: .*weight computed"):
        prune(Computed().eval(), IMAGE)


def test_auxiliary_heads_that_run_in_training_only_follow():
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.aux, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x):
            x = self.a(x).mean((2, 3))
            return (self.head(x), self.aux(x)) if self.training else self.head(x)

    model = prune(Auxiliary().eval(), IMAGE).model
    assert model.aux.in_features == model.head.in_features == 16
    assert model.train()(IMAGE)[1].shape == (2, 4)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.inner, self.head = (
                nn.Embedding(11, 32),
                nn.Linear(32, 32),
                nn.Linear(32, 11, bias=False),
            )
            self.head.weight = self.embedding.weight

        def forward(self, x):
            return self.head(self.inner(self.embedding(x)).relu())

    model = prune(Tied().eval(), torch.randint(0, 11, (2, 5))).model
    assert model.head.weight is model.embedding.weight and model.head.in_features == 16


@pytest.mark.parametrize("target", ["macs", "parameters"])
def test_targets_are_met(target):
    module = small()
    removal = prune_channels(module, IMAGE, amount=0.4, target=target, round_to=1)
    cost = CostModel(removal.channels)
    count = cost.macs if target == "macs" else cost.parameters
    left = count(removal.removed) / count(removal.removed[:0])
    assert 0.52 <= left <= 0.6


def test_latency_target_uses_the_measure_given():
    removal = prune_channels(
        small(), IMAGE, amount=0.5, target="latency", latency=lambda m: float(sum(p.numel() for p in m.parameters()))
    )
    share = sum(p.numel() for p in removal.step.model.parameters()) / sum(p.numel() for p in small().parameters())
    assert share <= 0.515


def test_what_rounding_takes_beyond_the_target_is_told():
    coarse = prune_channels(small(), IMAGE, amount=0.1, target="macs", round_to=16).step.notes
    assert any("% of the MACs went, where 10 % were asked for" in note and "--round-to 4" in note for note in coarse)
    assert not any(
        "asked for" in note for note in prune_channels(small(), IMAGE, amount=0.1, target="macs", round_to=1).step.notes
    )


def test_rounding():
    def widths(**options):
        model = prune(small(), IMAGE, **options).model
        return model[0].out_channels, model[3].out_channels

    assert widths(amount=0.3, round_to=1) == (22, 45)
    assert widths(amount=0.3, round_to=8) == (24, 48)
    assert widths(amount=0.3) == (16, 48) and widths(amount=0.5, round_to=32) == (32, 32)


def test_global_scope_takes_the_least_of_all():
    torch.manual_seed(0)
    module = small()
    with torch.no_grad():
        module[3].weight[:48] *= 0.01
    model = prune(module, IMAGE, amount=0.4, scope="global", round_to=1).model
    assert model[3].out_channels < 32 < 2 * model[0].out_channels


def test_include_and_exclude():
    step = prune(small(), IMAGE, exclude=["0"])
    assert step.model[0].out_channels == 32 and step.model[3].out_channels == 32
    assert next(c for c in step.skipped if c.layer == "0").reason == "excluded by the user"
    step = prune(small(), IMAGE, include=["0"])
    assert step.model[0].out_channels == 16 and step.model[3].out_channels == 64


def test_facade():
    assert compress.prune is prune


# -- scores -----------------------------------------------------------------------------------------------------
def _kept(method, **options):
    torch.manual_seed(3)
    module = small()
    with torch.no_grad():
        module[1].weight.uniform_(0.1, 2)
    model = prune(module, IMAGE, method=method, round_to=1, include=["0"], **options).model
    rows = module[0].weight
    kept = [next(i for i, row in enumerate(rows) if torch.equal(row, other)) for other in model[0].weight]
    return module, set(kept)


def test_scores_against_their_definitions():
    for method, by_hand in {
        "l1": lambda m: m[0].weight.flatten(1).abs().sum(1),
        "l2": lambda m: m[0].weight.flatten(1).square().sum(1),
        "batchnorm": lambda m: m[1].weight.abs() / m[1].weight.abs().mean(),
        "fpgm": lambda m: torch.stack([(m[0].weight - row).flatten(1).norm(dim=1).sum() for row in m[0].weight]),
    }.items():
        module, kept = _kept(method)
        if method == "batchnorm":
            assert kept == set(by_hand(module).argsort(descending=True)[:16].tolist())
        else:
            assert kept == set(by_hand(module).argsort(descending=True)[:16].tolist()), method


def test_taylor_is_the_first_order_change_of_the_loss():
    data = [(IMAGE, torch.tensor([1, 2]))]
    module, kept = _kept("taylor", data=data)
    gate = torch.ones(32, requires_grad=True)
    x = module[2](module[1](module[0](IMAGE)))  # a gate on what the next layer reads: the same derivative
    loss = F.cross_entropy(module[7](module[3](x * gate.view(1, -1, 1, 1)).relu().mean((2, 3))), data[0][1])
    (slope,) = torch.autograd.grad(loss, gate)
    assert kept == set(slope.abs().argsort(descending=True)[:16].tolist())


def test_random_follows_the_seed_and_a_function_of_the_user_is_a_score():
    assert _kept("random", seed=1)[1] == _kept("random", seed=1)[1] != _kept("random", seed=2)[1]
    _, kept = _kept(lambda filters: torch.arange(len(filters)).float())
    assert kept == set(range(16, 32))


# -- bad input --------------------------------------------------------------------------------------------------
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        return self.a(x) if x.sum().item() > 0 else x


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"amount": 1.0}, r"amount 1\.0 is outside \[0, 1\); give the fraction"),
        ({"amount": -0.1}, r"amount -0\.1 is outside"),
        ({"amount": float("nan")}, r"amount nan is outside"),
        ({"exclude": ["8"]}, r"no layer is named '8'; "),
        ({"method": "batch_norm"}, r"pruning score 'batch_norm' is unknown; did you mean 'batchnorm'"),
        ({"method": "l3"}, r"pruning score 'l3' is unknown; known: batchnorm, fpgm"),
        ({"method": "taylor"}, r"score 'taylor' needs data with labels"),
        ({"method": "taylor", "data": []}, r"score 'taylor' got no batch"),
        ({"method": "taylor", "data": [IMAGE]}, r"score 'taylor' needs targets"),
        ({"target": "mac"}, r"pruning target 'mac' is unknown; did you mean 'macs'"),
        ({"target": "latency"}, r"target 'latency' needs a way to measure it"),
        ({"scope": "globe"}, r"pruning scope 'globe' is unknown"),
        ({"round_to": 0}, r"round_to 0 is not a count of channels"),
        ({"amount": 0.999, "target": "parameters", "round_to": 16}, r"99.9 % of parameters cannot be removed: the closest reached is 8\d %; locked: 7: output of the model"),
        ({"amount": 0.01}, r"amount 0\.01 of channels removes no channel here: layers keep multiples of 16, .* or a smaller round_to; locked: 7: output of the model"),
        ({"amount": "x"}, r"amount 'x' is outside"),
        ({"amount": True}, r"amount True is outside"),
        ({"round_to": 2.5}, r"round_to 2\.5 is not a count of channels"),
        ({"method": lambda filters: filters.sum()}, r"score <lambda> must return one finite number for each of 32 filters"),
        ({"method": lambda filters: filters.sum(1) * torch.nan}, r"must return one finite number for each"),
        ({"exclude": "3", "amount": 0.01, "round_to": 64}, r"layers keep multiples of 64 channels"),
    ],
)  # fmt: skip
def test_bad_input(options, text):
    with pytest.raises(PruningError, match=text):
        prune(small(), IMAGE, **options)


def test_nearest_layer_is_suggested():
    with pytest.raises(PruningError, match=r"no layer is named 'heads'; did you mean 'head'\?"):
        prune(Residual().eval(), IMAGE, exclude=["heads"])


def test_a_model_that_cannot_be_exported_says_why_and_what_to_do():
    with pytest.raises(
        ExportError, match=r"torch\.export cannot take Branches: .*keep Python branches on tensor values"
    ):
        prune(Branches().eval(), torch.ones(2, 4))


def test_wrong_kinds_of_arguments():
    with pytest.raises(PruningError, match=r"pruning works on a torch\.nn\.Module, not on str"):
        prune("resnet18", IMAGE)
    with pytest.raises(PruningError, match=r"removing channels needs example_inputs"):
        prune(small())
    with pytest.raises(
        InputError, match=r"example inputs are a tensor, a sequence or a mapping of tensors, or a shape"
    ):
        prune(small(), object())
    with pytest.raises(PruningError, match=r"removing channels needs example_inputs"):
        prune_iteratively(small(), None)


def test_gradients_of_outputs_that_are_no_tensor_need_a_loss():
    class Named(nn.Sequential):
        def forward(self, x):
            return {"scores": super().forward(x)}

    module, data = Named(*small()).eval(), [(IMAGE, torch.tensor([0, 1]))]
    with pytest.raises(
        PruningError, match=r"follows cross entropy, and the model returns dict, not one tensor; pass loss"
    ):
        prune(module, IMAGE, method="taylor", data=data)
    own = lambda output, target: nn.functional.cross_entropy(output["scores"], target)  # noqa: E731
    assert prune(module, IMAGE, method="taylor", data=data, loss=own).done


def test_equal_scores_go_from_all_layers_alike():
    """Batch-norm as initialized scales every channel by one."""
    module = nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.BatchNorm2d(64),
        nn.Conv2d(64, 4, 1),
    ).eval()
    model = prune(module, IMAGE, amount=0.5, method="batchnorm", scope="global").model
    assert (model[0].out_channels, model[3].out_channels) == (16, 32)
