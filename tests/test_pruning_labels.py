"""Labels: an equivalence; propagation agrees with brute force over tiny random graphs."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.pruning.channels import find_channels
from compress.pruning.labels import NONE, LabelStore, concatenate, core, shrink, varying
from compress.pruning.surgery import remove


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_united_labels_form_an_equivalence(count, pairs):
    store = LabelStore()
    labels = store.new(count)
    pairs = [(a % count, b % count) for a, b in pairs]
    for a, b in pairs:
        store.unite(labels[a], labels[b])
        store.flush()  # merging in pieces or at once must not matter
    at_once = LabelStore()
    again = at_once.new(count)
    at_once.unite(again[[a for a, _ in pairs]], again[[b for _, b in pairs]])
    classes = list(range(count))
    for a, b in pairs:  # by hand: relabel the whole class
        old, new = classes[a], classes[b]
        classes = [new if value == old else value for value in classes]
    for roots in (store.roots(labels), at_once.roots(again)):
        same = roots[:, None] == roots[None, :]
        assert torch.equal(same, torch.tensor(classes)[:, None] == torch.tensor(classes)[None, :])


def test_none_unites_nothing():
    store = LabelStore()
    labels = store.new(2)
    store.unite(labels, torch.tensor([NONE, NONE]))
    store.unite(torch.full((1,), NONE), labels)
    assert store.roots(labels).tolist() == labels.tolist()


def test_locks_report_the_first_reason_of_a_class():
    store = LabelStore()
    labels = store.new(4)
    store.lock(labels[:1], "first")
    store.lock(labels[1:2], "second")
    store.unite(labels[0], labels[1])
    assert store.locked() == {int(labels[0]): "first"}


def test_uniform_dimensions_cost_nothing():
    labels = torch.arange(6).reshape(1, 6, 1, 1).expand(2, 6, 50, 50)
    assert core(labels).numel() == 6 and varying(labels) == [1]
    unfolded = labels.contiguous()
    assert torch.equal(shrink(unfolded), unfolded) and core(shrink(unfolded)).numel() == 6
    joined = concatenate([labels, shrink(labels + 6)], 1)
    assert joined.shape == (2, 12, 50, 50) and core(joined).numel() == 12
    assert torch.equal(joined, torch.cat([labels, labels + 6], 1))


# -- brute force ------------------------------------------------------------------------------------------------
class RandomGraph(nn.Module):
    """A few layers wired at random; `spec` says how, for the module and for the brute force alike."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.spec, self.layers, widths = [], nn.ModuleList(), [3]
        for _ in range(7):
            source = rng.randrange(len(widths))
            kind = rng.choice(["conv", "conv", "add", "cat", "swap", "shuffle", "depthwise", "relu"])
            if kind in ("add", "cat"):
                others = [i for i, w in enumerate(widths) if i and (kind == "cat" or w == widths[source])]
                if source == 0 or not others:
                    kind = "conv"
                else:
                    self.spec.append((kind, source, rng.choice(others)))
                    widths.append(widths[source] if kind == "add" else widths[source] + widths[self.spec[-1][2]])
                    continue
            if source == 0 or (kind in ("swap", "shuffle") and (widths[source] % 2 or widths[source] < 8)):
                kind = "conv"
            if kind == "conv":
                out = rng.choice([8, 10, 12])
                self.layers.append(nn.Conv2d(widths[source], out, 1))
                widths.append(out)
            else:
                if kind == "depthwise":
                    self.layers.append(nn.Conv2d(widths[source], widths[source], 3, padding=1, groups=widths[source]))
                widths.append(widths[source])
            layer = len(self.layers) - 1 if kind in ("conv", "depthwise") else None
            self.spec.append((kind, source, layer))
        self.head = nn.Linear(widths[-1], 4)

    def forward(self, x):
        values = [x]
        for kind, source, other in self.spec:
            value = values[source]
            if kind in ("conv", "depthwise"):
                value = self.layers[other](value)
            elif kind == "add":
                value = value + values[other]
            elif kind == "cat":
                value = torch.cat([value, values[other]], 1)
            elif kind == "swap":
                first, second = value.chunk(2, 1)
                value = torch.cat([second, first], 1)
            elif kind == "shuffle":
                b, c, h, w = value.shape
                value = value.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
            else:
                value = value.relu()
            values.append(value)
        return self.head(values[-1].mean((2, 3)))


class BruteForce:
    """Channels as lists of numbers, united one by one in plain Python."""

    def __init__(self, model: RandomGraph) -> None:
        self.parent, self.reads, self.makes = {}, {}, {}
        values = [[self.new(-1) for _ in range(3)]]
        for kind, source, other in model.spec:
            value = values[source]
            if kind == "conv":
                self.reads[other] = value
                value = self.makes[other] = [self.new(0) for _ in range(model.layers[other].out_channels)]
            elif kind == "depthwise":
                self.makes[other] = value
            elif kind == "add":
                for a, b in zip(value, values[other]):
                    self.unite(a, b)
            elif kind == "cat":
                value = value + values[other]
            elif kind in ("swap", "shuffle"):
                half = len(value) // 2
                for a, b in zip(value[:half], value[half:]):
                    self.unite(a, b)
                mixed = [channel for pair in zip(value[:half], value[half:]) for channel in pair]
                value = value[half:] + value[:half] if kind == "swap" else mixed
            values.append(value)
        self.head = values[-1]

    def new(self, _):
        self.parent[len(self.parent)] = len(self.parent)
        return len(self.parent) - 1

    def root(self, channel):
        return channel if self.parent[channel] == channel else self.root(self.parent[channel])

    def unite(self, a, b):
        self.parent[self.root(a)] = self.root(b)

    def zeroed(self, model, x, gone):
        """The model's output with the columns that read channels in `gone` set to zero."""
        values = [x]
        for kind, source, other in model.spec:
            if kind == "conv":
                layer = model.layers[other]
                mask = torch.tensor([0.0 if self.root(c) in gone else 1.0 for c in self.reads[other]])
                values.append(nn.functional.conv2d(values[source], layer.weight * mask[:, None, None], layer.bias))
            elif kind == "depthwise":
                values.append(model.layers[other](values[source]))
            elif kind == "add":
                values.append(values[source] + values[other])
            elif kind == "cat":
                values.append(torch.cat([values[source], values[other]], 1))
            elif kind == "swap":
                values.append(torch.cat(values[source].chunk(2, 1)[::-1], 1))
            elif kind == "shuffle":
                values.append(nn.functional.channel_shuffle(values[source], 2))
            else:
                values.append(values[source].relu())
        mask = torch.tensor([0.0 if self.root(c) in gone else 1.0 for c in self.head])
        return nn.functional.linear(values[-1].mean((2, 3)), model.head.weight * mask, model.head.bias)


@pytest.mark.parametrize("seed", range(12))
def test_brute_force_over_random_graphs_agrees(seed):
    torch.manual_seed(seed)
    model = RandomGraph(seed).eval()
    x = torch.randn(2, 3, 4, 4)
    found, brute = find_channels(model, (x,)), BruteForce(model)
    ours, theirs = [], []
    used = {name for name, _ in found.axes}
    for place, channels in brute.makes.items():
        if f"layers.{place}.weight" in used:  # a branch that reaches no output may be dropped by the export
            ours.extend(found.axes[f"layers.{place}.weight", 0].tolist())
            theirs.extend(brute.root(channel) for channel in channels)
    ours.extend(found.axes["head.weight", 1].tolist())
    theirs.extend(brute.root(channel) for channel in brute.head)
    a, b = np.array(ours), np.array(theirs)
    assert np.array_equal(a[:, None] == a[None, :], b[:, None] == b[None, :])
    rng = np.random.default_rng(seed)
    gone = [rng.permutation(f.classes)[: max(f.classes.size // 2, 0)] for f in found.families]
    removed = np.concatenate(gone)
    translated = {theirs[ours.index(int(label))] for label in removed if int(label) in ours}
    with torch.no_grad():
        small, wanted = remove(model, found, removed)(x), brute.zeroed(model, x, translated)
    assert torch.allclose(small, wanted, atol=1e-5)
    assert removed.size and sum(p.numel() for p in model.parameters()) > 0
