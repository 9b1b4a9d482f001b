"""Rules of single operators: what may go through them goes, what stays is listed with the true reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import InputError, PruningError
from compress.loading.state_dicts import load_state_dict, read_state_dict
from compress.pruning.prune import prune, prune_channels
from compress.pruning.request import PruneRequest
from compress.pruning.verifying import difference
from compress.pruning.zeroing import zeroed_outputs

SEQUENCE = torch.randn(2, 10, 8, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def pruned(module, *inputs, **options):
    """Prune by half, hold the result to the zeroed original, and return it with its changes by layer."""
    module.eval()
    removal = prune_channels(module, inputs, **{"amount": 0.5, "round_to": 1, **options})
    with torch.no_grad():
        wanted = zeroed_outputs(module, removal.channels, removal.removed, inputs)
        assert difference(removal.step.model(*inputs), wanted) < 1e-4 < difference(wanted, module(*inputs))
    left = sum(parameter.numel() for parameter in removal.step.model.parameters())
    assert f" → {left:,} " in removal.step.notes[1], "the count by labels is that of the module"
    return removal.step.model, {change.layer: change for change in removal.step.changes}


# -- tables of which a part is read -----------------------------------------------------------------------------
class Positions(nn.Module):
    """A learned table for 20 positions, of which the example reads 10."""

    def __init__(self):
        super().__init__()
        self.inner, self.table, self.head = nn.Linear(8, 32), nn.Parameter(torch.randn(1, 20, 32)), nn.Linear(32, 3)

    def forward(self, x):
        return self.head(self.inner(x) + self.table[:, : x.shape[1]])


class Sinusoids(nn.Module):
    """The table of PyTorch's tutorial on translation: a buffer, the sequence first."""

    def __init__(self, persistent):
        super().__init__()
        self.inner, self.head = nn.Linear(8, 32), nn.Linear(32, 3)
        angle = torch.arange(20)[:, None] * torch.exp(torch.arange(0, 32, 2) * (-torch.tensor(1e4).log() / 32))
        table = torch.stack([angle.sin(), angle.cos()], -1).reshape(20, 1, 32)
        self.register_buffer("table", table, persistent=persistent)

    def forward(self, x):
        x = self.inner(x).transpose(0, 1)
        return self.head((x + self.table[: x.size(0)]).transpose(0, 1))


class Places(nn.Module):
    """A table over rows and columns of an image larger than the example."""

    def __init__(self):
        super().__init__()
        self.inner, self.table, self.head = (
            nn.Conv2d(3, 32, 1),
            nn.Parameter(torch.randn(1, 32, 20, 20)),
            nn.Linear(32, 3),
        )

    def forward(self, x):
        x = self.inner(x)
        return self.head((x + self.table[:, :, : x.shape[2], : x.shape[3]]).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("module", "inputs", "longer", "dim"),
    [
        (Positions, SEQUENCE, torch.randn(2, 17, 8), 2),
        (lambda: Sinusoids(True), SEQUENCE, torch.randn(2, 17, 8), 2),
        (lambda: Sinusoids(False), SEQUENCE, torch.randn(2, 17, 8), 2),
        (Places, IMAGE, torch.randn(2, 3, 15, 12), 1),
    ],
    ids=["parameter", "buffer", "buffer-not-saved", "image"],
)
def test_a_table_longer_than_the_example_is_cut_over_its_whole_length(module, inputs, longer, dim):
    torch.manual_seed(0)
    module = module()
    model, _ = pruned(module, inputs)
    columns = [
        next(i for i, row in enumerate(module.inner.weight) if torch.equal(row, left)) for left in model.inner.weight
    ]
    assert len(columns) == 16 and torch.equal(model.table, module.table.index_select(dim, torch.tensor(columns)))
    with torch.no_grad():  # by hand, and on positions that the example did not reach
        module.head.weight[:, [i for i in range(32) if i not in columns]] = 0
        assert torch.allclose(model(longer), module(longer), atol=1e-4)


def test_rows_read_by_position_follow():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.table, self.head = nn.Linear(8, 32), nn.Parameter(torch.randn(20, 32)), nn.Linear(32, 3)

        def forward(self, x, t):
            return self.head(self.inner(x) + self.table[t])

    model, _ = pruned(Timed(), torch.randn(2, 8), torch.tensor([3, 7]))
    assert model.table.shape == (20, 16)


def test_a_table_of_which_some_columns_are_read_keeps_the_others():
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.table, self.head = nn.Linear(8, 16), nn.Parameter(torch.randn(20, 24)), nn.Linear(16, 3)

        def forward(self, x):
            x = self.inner(x)
            return self.head(x + self.table[: x.shape[1], : x.shape[2]])

    torch.manual_seed(0)
    module = Narrow()
    model, _ = pruned(module, SEQUENCE)
    assert model.table.shape == (20, 16) and torch.equal(model.table[:, 8:], module.table[:, 16:])


class Causal(nn.Module):
    """A mask of numbers for 20 positions, added to the scores inside the fused attention."""

    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.inner, self.qkv, self.head = nn.Linear(8, 32), nn.Linear(32, 96), nn.Linear(32, 3)
        self.register_buffer("mask", torch.full((20, 20), -1e9).triu(1))

    def forward(self, x):
        x = self.inner(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask[:n, :n])
        return self.head(x.transpose(1, 2).reshape(b, n, c))


def test_a_mask_stays_and_lets_heads_go():
    model, changes = pruned(Causal(), SEQUENCE)
    assert model.num_heads == 2 and model.qkv.weight.shape == (48, 16) and model.mask.shape == (20, 20)
    assert [layer for layer, change in changes.items() if change.skipped] == ["head"]


# -- division ---------------------------------------------------------------------------------------------------
class Split(nn.Module):
    """Ultralytics' C2f.forward_split."""

    def __init__(self):
        super().__init__()
        self.c = 16
        self.first, self.inner = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.head = nn.Conv2d(48, 24, 1), nn.Conv2d(24, 2, 1)

    def forward(self, x):
        parts = list(self.first(x).split((self.c, self.c), 1))
        parts.append(F.silu(self.inner(parts[-1])))
        return self.head(self.last(torch.cat(parts, 1)))


def test_a_split_into_equal_sizes_is_a_chunk():
    """Both halves lose as many channels, whatever the scores say of each."""
    module = Split()
    with torch.no_grad():
        module.first.weight[:16] *= 0.1
    model, changes = pruned(module, IMAGE, scope="global")
    assert model.c == model.inner.in_channels == model.first.out_channels // 2 < 16
    assert model.last.in_channels == 2 * model.c + model.inner.out_channels and not changes["first"].skipped


def test_sizes_written_into_a_split_stay_with_the_reason():
    class Literal(Split):
        def forward(self, x):
            first, second = self.first(x).split([16, 16], 1)
            return self.head(self.last(torch.cat([first, second, self.inner(first)], 1)))

    model, changes = pruned(Literal(), IMAGE)
    assert model.first.out_channels == 32 and model.last.out_channels == 12
    assert "sizes fixed in the forward" in changes["first"].reason and "split_with_sizes" in changes["first"].reason


def test_unequal_sizes_lose_channels_each_for_itself():
    class Unequal(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = [8, 24]
            self.first, self.a, self.b = nn.Linear(8, 32), nn.Linear(8, 4), nn.Linear(24, 4)

        def forward(self, x):
            small, large = self.first(x).split(self.sizes, -1)
            return self.a(small) + self.b(large)

    torch.manual_seed(0)
    model, _ = pruned(Unequal(), SEQUENCE)
    assert model.sizes == [model.a.in_features, model.b.in_features] and sum(model.sizes) == 16


# -- softmax ----------------------------------------------------------------------------------------------------
class Selective(nn.Module):
    """SKNet: softmax over two branches of the same channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(3, 32, 3, padding=1)
        self.squeeze, self.select, self.head = nn.Linear(32, 16), nn.Linear(16, 64), nn.Linear(32, 4)

    def forward(self, x):
        a, b = self.a(x).relu(), self.b(x).relu()
        weights = self.select(self.squeeze((a + b).mean((2, 3))).relu()).view(-1, 2, a.shape[1]).softmax(1)
        return self.head((a * weights[:, 0, :, None, None] + b * weights[:, 1, :, None, None]).mean((2, 3)))


def test_softmax_over_branches_lets_channels_go():
    model, changes = pruned(Selective(), IMAGE)
    assert (model.a.out_channels, model.b.out_channels, model.select.out_features) == (16, 16, 32)
    assert [layer for layer, change in changes.items() if change.skipped] == ["head"]


def test_softmax_over_channels_is_the_reason_of_what_meets_it():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.free, self.head = (
                nn.Linear(8, 16),
                nn.Linear(8, 16),
                nn.Linear(16, 16),
                nn.Linear(16, 4),
            )

        def forward(self, x):
            return self.head(self.free(self.a(x).softmax(-1) * self.b(x)))

    model, changes = pruned(Mixed(), SEQUENCE)
    assert model.free.out_features == 8
    assert changes["a"].reason == changes["b"].reason == "read by softmax in the model's forward"


# -- weights that are computed, layers without a rule -----------------------------------------------------------
def normed(norm, *, old=False):
    with pytest.warns(FutureWarning) if old else torch.no_grad():
        first = norm(nn.Linear(8, 32))
    return nn.Sequential(first, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.parametrize(
    ("norm", "layer"),
    [
        (nn.utils.parametrizations.spectral_norm, "0"),
        (nn.utils.parametrizations.weight_norm, "0"),
        (nn.utils.parametrizations.orthogonal, "0"),
        (nn.utils.spectral_norm, "0"),
        (nn.utils.weight_norm, "0"),
    ],
    ids=["spectral", "weight", "orthogonal", "old-spectral", "old-weight"],
)
def test_a_layer_whose_weight_is_computed_stays_and_is_listed(norm, layer):
    module = normed(norm, old=norm is nn.utils.weight_norm)
    model, changes = pruned(module, torch.randn(2, 8), bake=False)
    assert model[2].weight.shape == (16, 32)
    counts = prune_channels(module, torch.randn(2, 8), round_to=1, bake=False).step.notes[0]
    assert counts.startswith(f"MACs {8 * 32 + 32 * 32 + 32 * 4:,} → {8 * 32 + 32 * 16 + 16 * 4:,} ")
    assert changes[layer].skipped and changes[layer].action == "32 channels kept"
    assert changes[layer].reason == "its weight is computed from other parameters (parametrization)"


def test_a_weight_changed_in_forward_stays_and_is_listed():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)

        def forward(self, x):
            weight = self.a.weight / self.a.weight.square().sum((1, 2, 3), keepdim=True)
            return self.head(self.b(F.conv2d(x, weight)).mean((2, 3)))

    model, changes = pruned(Scaled(), IMAGE)
    assert model.b.out_channels == 8
    assert changes["a"].skipped and changes["a"].reason == "weight computed in the model's forward"


def test_layers_that_no_rule_knows_are_listed():
    class Foreign(nn.Linear):
        def __init__(self):
            super().__init__(32, 16)

        def forward(self, x):
            return torch.cdist(x, self.weight)

    class Cells(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.cell, self.after, self.head = (
                nn.Linear(8, 32),
                Foreign(),
                nn.Linear(16, 16),
                nn.Linear(16, 3),
            )

        def forward(self, x):
            return self.head(self.after(self.cell(self.inner(x))))

    model, changes = pruned(Cells(), torch.randn(2, 8))
    assert model.after.out_features == 8
    for layer in ("inner", "cell"):
        assert changes[layer].skipped and changes[layer].reason == "read by cdist in cell"


# -- what was refused, or wrongly counted ------------------------------------------------------------------------
class Cast(nn.Module):
    def __init__(self, cast):
        super().__init__()
        self.a, self.b, self.cast = nn.Linear(8, 32), nn.Linear(32, 4), cast

    def forward(self, x):
        return self.b(self.cast(self.a(x).relu()))


@pytest.mark.parametrize(
    "cast", [lambda h: h.float(), lambda h: h.to(h.dtype), lambda h: h.to("cpu"), lambda h: h.type_as(h)]
)
def test_casts_lock_nothing(cast):
    assert pruned(Cast(cast), torch.randn(2, 8))[0].a.out_features == 16


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.l, self.h = nn.Embedding(50, 32), nn.Linear(32, 32), nn.Linear(32, 50, bias=False)
        self.h.weight, self.unused = self.e.weight, nn.Linear(5, 7)

    def forward(self, i):
        return self.h(torch.relu(self.l(self.e(i))))


def test_tied_and_unused_weights_count_once():
    removal = prune_channels(Tied(), torch.randint(0, 50, (2, 6)), amount=0.5, round_to=1)
    before, after = 50 * 32 + 32 * 32 + 32 + 42, sum(p.numel() for p in removal.step.model.parameters())
    assert removal.step.notes[0].startswith(f"MACs {6 * (32 * 32 + 32 * 50):,} → {6 * (16 * 16 + 16 * 50):,} ")
    assert removal.step.notes[1].startswith(f"parameters {before:,} → {after:,} ")


class Cells(nn.Module):
    def __init__(self, kind, literal):
        super().__init__()
        self.i, self.c, self.o, self.literal = nn.Linear(8, 16), kind(16, 32), nn.Linear(32, 5), literal

    def forward(self, x):
        state = x.new_zeros(x.shape[0], 32) if self.literal else None
        state = (state, state) if self.literal and isinstance(self.c, nn.LSTMCell) else state
        for step in range(3):
            state = self.c(self.i(x[:, step]), state)
        return self.o(state[0] if isinstance(self.c, nn.LSTMCell) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_pruned_and_a_literal_state_keeps_only_the_hidden_units(kind):
    model, _ = pruned(Cells(kind, False), torch.randn(2, 3, 8))
    assert (model.c.hidden_size, model.c.input_size) == (16, 8)
    model, changes = pruned(Cells(kind, True), torch.randn(2, 3, 8))
    assert (model.c.hidden_size, model.c.input_size) == (32, 8)
    assert "sizes fixed" in changes["c"].reason


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.m, self.o = nn.Linear(8, 16), nn.Linear(8, 24), nn.Bilinear(16, 24, 32), nn.Linear(32, 5)

    def forward(self, x):
        return self.o(self.m(self.a(x).relu(), self.b(x).relu()).relu())


def test_a_bilinear_layer_loses_channels_along_three_axes():
    assert pruned(TwoInputs(), torch.randn(2, 8))[0].m.weight.shape == (16, 8, 12)


@pytest.mark.parametrize("groups", [3, 4, 6])
def test_shuffled_groups_are_pruned(groups, tmp_path):
    class Shuffle(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.a = nn.Conv2d(3, 48, 1), nn.Conv2d(48, 48, 1, groups=groups)
            self.b, self.o = nn.Conv2d(48, 48, 1, groups=groups), nn.Conv2d(48, 5, 1)

        def forward(self, x):
            x = self.i(x).relu()
            y = self.a(x).relu().unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
            return self.o(x + self.b(y))

    model, _ = pruned(Shuffle(), IMAGE)
    assert model.i.out_channels == 24 and model.b.groups == groups
    again = Shuffle()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    load_state_dict(again, read_state_dict(tmp_path / "w.pt"))
    with torch.no_grad():
        assert torch.equal(again(IMAGE), model(IMAGE))


class Composed(nn.Module):
    """The kernel of `b` is made of `b.weight` and `g` in the forward of the model: no layer of its own to bake."""

    def __init__(self, make, shape):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 4)
        self.g, self.make = nn.Parameter(torch.rand(shape) + 0.5), make

    def forward(self, x):
        return self.head(F.conv2d(self.a(x).relu(), self.make(self.b.weight, self.g), self.b.bias).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda w, g: w * g.view(-1, 1, 1, 1), 16),
        (lambda w, g: w * g.view(1, -1, 1, 1), 16),
        (lambda w, g: w * g, (16, 1, 1, 1)),
        (lambda w, g: w * g, (16, 16, 3, 3)),
        (lambda w, g: w + F.pad(g, (1, 1, 1, 1)), (16, 16, 1, 1)),
    ],
    ids=["rows", "columns", "rows-4d", "mask", "branches"],
)
def test_a_kernel_composed_element_by_element_is_pruned(make, shape):
    removal = prune_channels(Composed(make, shape).eval(), IMAGE, amount=0.5, round_to=1)
    assert removal.step.model.b.weight.shape == (8, 8, 3, 3) and removal.error < 1e-5
    left = sum(value.numel() for value in removal.step.model.parameters())
    assert f"→ {left:,} " in removal.step.notes[1]


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride)


def standardized():
    return nn.Sequential(
        Standardized(3, 16, 3, stride=2), nn.ReLU(), Standardized(16, 16, 3), nn.Flatten(), nn.Linear(64, 4)
    )


def weight_normed():
    norm = nn.utils.parametrizations.weight_norm
    return nn.Sequential(
        norm(nn.Conv2d(3, 16, 3, stride=2)), nn.ReLU(), norm(nn.Conv2d(16, 16, 3)), nn.Flatten(), nn.Linear(64, 4)
    )


@pytest.mark.parametrize("build", [standardized, weight_normed])
def test_computed_kernels_are_baked_and_reload(build, tmp_path):
    module = build().eval()
    x = torch.randn(2, 3, 9, 9)
    step = prune_channels(module, x, amount=0.5, round_to=1).step
    assert type(step.model[2]) is nn.Conv2d and step.model[2].weight.shape == (8, 8, 3, 3)
    assert step.notes[0] == "weights computed from others are stored as they came out (bake=False leaves them): 0, 2"
    torch.save(step.model.state_dict(), tmp_path / "w.pt")
    again = build().eval()
    load_state_dict(again, read_state_dict(tmp_path / "w.pt"))
    with torch.no_grad():
        assert torch.equal(again(x), step.model(x))


class Folded(nn.Module):
    """Heads in the batch before a depthwise convolution over the channels of a head, as in MViT."""

    def __init__(self, heads):
        super().__init__()
        self.i, self.qkv, self.pool = nn.Linear(12, 32), nn.Linear(32, 96), nn.Conv1d(32 // heads, 32 // heads, 3, 1, 1)
        self.proj, self.o, self.num_heads, self.dim_out = nn.Linear(32, 32), nn.Linear(32, 5), heads, 32

    def forward(self, x):
        x = self.i(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q = self.pool(q.flatten(0, 1).transpose(1, 2)).transpose(1, 2).unflatten(0, (b, self.num_heads))
        y = ((q * 0.3) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.o(self.proj(y.transpose(1, 2).reshape(b, -1, self.dim_out)).mean(1))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_folded_into_the_batch_stay_and_become_narrower(heads):
    model, _ = pruned(Folded(heads), torch.randn(2, 6, 12))
    assert model.num_heads == heads and model.qkv.out_features == 48 and model.dim_out == 16


@pytest.mark.parametrize(("name", "meant"), [("amout", "amount"), ("methd", "method"), ("reconstrct", "reconstruct")])
def test_a_typo_is_answered_with_the_nearest_option(name, meant):
    with pytest.raises(InputError, match=f"prune has no option '{name}'; did you mean '{meant}'"):
        prune(nn.Linear(4, 4), torch.randn(2, 4), **{name: 1})


def test_an_option_without_effect_is_refused():
    with pytest.raises(PruningError, match="n 3 is of masks; leave it out, or give remove_channels=False"):
        PruneRequest(n=3)
    with pytest.raises(PruningError, match="round_to 8 says how channels are removed, and masks remove none"):
        PruneRequest(round_to=8, remove_channels=False)
