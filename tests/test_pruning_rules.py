"""Rules of single operators: what may go through them goes, what stays is listed with the true reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.pruning.prune import prune_channels
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
            return torch.linalg.pinv(self.weight).T.matmul(x.T).T + torch.linalg.matrix_exp(x @ x.T)[:, :1]

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
        assert changes[layer].skipped and changes[layer].reason == "read by linalg_pinv in cell"
