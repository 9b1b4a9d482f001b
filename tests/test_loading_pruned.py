"""What shapes do not tell of a pruned model comes back with its weights: groups, heads, attributes, buffers of no file."""

import collections
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.loading.state_dicts import load_state_dict, read_state_dict
from compress.metadata import KEY, Record, from_text
from compress.pruning.prune import prune_channels
from compress.pruning.removal import Stage
from compress.pruning.verifying import difference
from compress.training.weight_files import save_weights


class Norm(nn.Module):
    """Whole groups go of 32 channels, places within each of the two groups that are left: shapes would say one group."""

    def __init__(self):
        super().__init__()
        self.a, self.n, self.head = nn.Conv2d(3, 64, 3, padding=1), nn.GroupNorm(4, 64), nn.Conv2d(64, 5, 1)
        nn.init.uniform_(self.n.weight, 0.5, 2.0)

    def forward(self, x):
        return self.head(self.n(self.a(x)).relu())


class Heads(nn.Module):
    """The count of heads under a name that says nothing."""

    def __init__(self):
        super().__init__()
        self.h = 4
        self.embed, self.qkv, self.out, self.head = (
            nn.Linear(8, 64),
            nn.Linear(64, 192),
            nn.Linear(64, 64),
            nn.Linear(64, 3),
        )

    def forward(self, x):
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        return self.head((x + self.out(y)).mean(1))


class Causal(nn.Module):
    """nanoGPT's attention: a width in an attribute, read by `split`."""

    def __init__(self):
        super().__init__()
        self.n_head, self.n_embd = 4, 64
        self.c_attn, self.c_proj = nn.Linear(64, 192), nn.Linear(64, 64)

    def forward(self, x):
        b, t, c = x.size()
        heads = [part.view(b, t, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(self.n_embd, dim=2)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(b, t, c))


def gpt():
    return nn.Sequential(nn.Linear(8, 64), Causal(), nn.Linear(64, 3))


class Scaled(nn.Module):
    """Statistics for each channel that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 3), nn.Conv2d(48, 4, 1)
        deviation = torch.rand(1, 48, 1, 1, generator=torch.Generator().manual_seed(0)) + 0.5
        self.register_buffer("deviation", deviation, persistent=False)

    def forward(self, x):
        return self.head((self.b((self.a(x) / self.deviation).relu()) / self.deviation).relu())


IMAGE, TOKENS = torch.randn(2, 3, 12, 12), torch.randn(2, 6, 8)
ZOO = {"norm": (Norm, IMAGE), "heads": (Heads, TOKENS), "causal": (gpt, TOKENS), "scaled": (Scaled, IMAGE)}


@pytest.fixture(params=ZOO)
def pruned(request):
    """An architecture, an input, and a module of it from which channels were removed twice."""
    factory, x = ZOO[request.param]
    torch.manual_seed(0)
    once = compress.prune(factory().eval(), x, amount=0.5).model
    twice = compress.prune(once, x, amount=0.5, round_to=1).model if request.param in ("norm", "scaled") else once
    return factory, x, twice


def same(first, second, x):
    with torch.no_grad():
        return difference(first(x), second(x)) == 0


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_saved_weights_reload(pruned, ending, tmp_path):
    factory, x, smaller = pruned
    path = save_weights(smaller, tmp_path / f"weights.{ending}")
    module = compress.load(factory(), weights=path)
    assert same(module, smaller, x)
    assert compress.export(module, (x,)).model.graph.num_nodes() > 0


def test_wrapped_weights_reload(pruned, tmp_path):
    factory, x, smaller = pruned
    torch.save({"model": nn.DataParallel(smaller).state_dict(), "epoch": 3}, tmp_path / "last.pt")
    assert same(compress.load(factory(), weights=tmp_path / "last.pt"), smaller, x)


def test_what_is_noted_outlives_copies_training_and_a_second_reload(pruned):
    factory, x, smaller = pruned
    tuned = pickle.loads(pickle.dumps(copy.deepcopy(smaller)))
    tuned(x).square().mean().backward()
    torch.optim.SGD(tuned.parameters(), lr=0.1).step()
    first, second = factory().eval(), factory().eval()
    load_state_dict(first, tuned.state_dict())
    load_state_dict(second, first.state_dict())
    assert same(second, tuned.eval(), x) and not same(second, smaller, x)


def test_a_reloaded_module_is_pruned_again(pruned):
    factory, x, smaller = pruned
    module, fresh = factory().eval(), factory().eval()
    load_state_dict(module, smaller.state_dict())
    again = prune_channels(module, x, stage=Stage(may_be_nothing=True), amount=0.5, round_to=1).step.model
    load_state_dict(fresh, again.state_dict())
    assert same(fresh, again, x)


def test_what_is_noted_outlives_removed_blocks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.blocks = nn.Linear(8, 3), nn.Sequential(Branch(), Branch(), gpt())

        def forward(self, x):
            return self.blocks(x)

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))

        def forward(self, x):
            return x + self.mlp(x)

    torch.manual_seed(0)
    shorter = compress.prune(Net().eval(), TOKENS, target="blocks", amount=0.5).model
    smaller = compress.prune(shorter, TOKENS, amount=0.5).model
    fresh = Net().eval()
    (note,) = load_state_dict(fresh, smaller.state_dict())
    assert "which were removed in it" in note and fresh.blocks[2][1].n_head == 2 and same(fresh, smaller, TOKENS)


def test_without_notes_the_shapes_decide():
    torch.manual_seed(0)
    smaller = compress.prune(Norm().eval(), IMAGE, amount=0.5).model
    fresh = Norm().eval()
    load_state_dict(fresh, dict(smaller.state_dict()))
    assert fresh.n.num_groups == 2 and same(fresh, smaller, IMAGE)


def test_layers_whose_shapes_tell_all_carry_nothing():
    module = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 8, 3)).eval()
    smaller = compress.prune(module, IMAGE, amount=0.5).model
    assert smaller[0].out_channels == 16 and not any(part._state_dict_hooks for part in smaller.modules())


@pytest.mark.parametrize(
    "entry",
    [
        {"attributes": {"h": 8}},
        {"attributes": {"h": 0}},
        {"attributes": {"h": True}},
        {"attributes": {"h": "2"}},
        {"attributes": {"h": [2]}},
        {"attributes": {"sizes": [1, 9]}},
        {"attributes": {"sizes": [1]}},
        {"attributes": {"forward": 3, "training": 0, "_version": 1, "__class__": 2, "more": 1, 3: 4}},
        {"kept": {"deviation": [[3]]}},
        {"kept": {"deviation": [[-1]]}},
        {"kept": {"deviation": [[]]}},
        {"kept": {"deviation": [[0, 0, 0, 0]]}},
        {"kept": {"deviation": [["0"]]}},
        {"kept": {"deviation": [[0], None]}},
        {"kept": {"deviation": 3, "mean": [[0]], "weight": [[0]]}},
        {"kept": 1, "attributes": [1]},
        [],
    ],
)
def test_a_file_can_only_make_smaller_what_is_there(entry):
    class Part(nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.h, self.sizes = 4, (4, 8)
            self.register_buffer("deviation", torch.arange(3.0), persistent=False)
            self.register_buffer("mean", torch.arange(3.0))

    module = Part()
    state = module.state_dict()
    state._metadata[""][KEY] = entry
    before = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    load_state_dict(module, state)
    assert {name: value for name, value in vars(module).items() if not name.startswith("_")} == before
    assert module.deviation.tolist() == module.mean.tolist() == [0, 1, 2]


def test_text_in_a_file_of_another_program():
    assert from_text("") is from_text("[1]") is from_text("{") is None


def test_a_record_is_plain_data(tmp_path):
    factory, x = ZOO["scaled"]
    smaller = compress.prune(factory().eval(), x, amount=0.5).model
    entry = smaller.state_dict()._metadata[""][KEY]
    assert entry["attributes"] == {} and [len(places or ()) for places in entry["kept"]["deviation"]] == [0, 32, 0, 0]
    torch.save(collections.OrderedDict(smaller.state_dict()), tmp_path / "copied.pt")  # what drops the metadata
    assert not hasattr(read_state_dict(tmp_path / "copied.pt"), "_metadata")
    assert isinstance(next(iter(smaller._state_dict_hooks.values())), Record)
