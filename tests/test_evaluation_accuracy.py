"""Accuracy figures against plain loops, for every kind of target."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from compress.batches import Batch, flat_outputs
from compress.errors import DataError, InputError
from compress.evaluation.accuracy import evaluate, evaluate_all
from compress.evaluation.runners import in_slices, open_runner
from compress.graph.exporting import export
from compress.measures.intervals import paired_interval, wilson
from compress.onnx_files import save_onnx
from compress.pipeline.outputs import export_program


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 7)

    def forward(self, x):
        return self.out(self.drop(torch.relu(self.norm(self.conv(x))).mean((2, 3))))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 1, 6, 6, generator=generator), torch.randint(0, 7, (n,), generator=generator))
        for n in (8, 8, 5)
    ]


@pytest.fixture(scope="module")
def files(net, batches, tmp_path_factory):
    """The same network as a module, a graph, an ONNX file with a free and with a fixed batch, and a .pt2."""
    folder = tmp_path_factory.mktemp("files")
    example = (batches[0][0][:2],)
    graph = export(net, example).model
    torch.export.save(export_program(net, example), folder / "net.pt2")
    fixed = export(net, example, dynamic_batch=False).model
    return {
        "module": net,
        "graph": graph,
        "onnx": save_onnx(graph, folder / "net.onnx"),
        "fixed": save_onnx(fixed, folder / "fixed.onnx"),
        "pt2": folder / "net.pt2",
    }


def by_hand(net, batches):
    net = net.eval()
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    with torch.no_grad():
        scores = net(x)
    order = scores.argsort(1, descending=True)
    return {
        "top1": np.mean([order[i, 0].item() == y[i].item() for i in range(len(y))]),
        "top5": np.mean([y[i].item() in order[i, :5].tolist() for i in range(len(y))]),
        "loss": np.mean([-math.log(scores[i].softmax(0)[y[i]].item()) for i in range(len(y))]),
    }


@pytest.mark.parametrize("kind", ["module", "graph", "onnx", "fixed", "pt2"])
def test_same_figures_for_every_kind_of_target(kind, files, net, batches):
    found = evaluate(files[kind], batches, baseline=net)
    expected = by_hand(net, batches)
    assert found.top1 == pytest.approx(expected["top1"])
    assert found.top5 == pytest.approx(expected["top5"])
    assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
    assert (found.agreement, found.samples) == (1.0, 21)
    assert sum(found.extra["class_total"].values()) == 21
    assert sum(found.extra["class_right"].values()) == round(expected["top1"] * 21)


def test_the_module_is_given_back_as_it_was(net, batches):
    net.train()
    net.norm.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, batches, threads=1)
    assert net.training and not net.norm.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_agreement_and_change_are_counted_by_sample(batches):
    class Fixed(nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, x):
            return torch.nn.functional.one_hot(torch.full((len(x),), self.answer), 7).float()

    y = torch.cat([b[1] for b in batches])
    rows = evaluate_all({"zero": Fixed(0), "one": Fixed(1)}, batches, baseline="zero")
    assert rows["one"].agreement == 0.0
    assert rows["zero"].agreement is None
    assert rows["one"].extra["won"] == int((y == 1).sum())
    assert rows["one"].extra["lost"] == int((y == 0).sum())
    confusions = {(a, b): n for a, b, n in rows["one"].extra["confusions"]}
    assert confusions == {(c, 1): int((y == c).sum()) for c in set(y.tolist()) - {1}}


def test_dense_classification_counts_positions_and_skips_the_ignored():
    scores = torch.zeros(1, 3, 2, 2)
    scores[0, 1] = 1.0
    target = torch.tensor([[[1, 1], [0, -100]]])
    found = evaluate(nn.Identity(), [(scores, target)])
    assert (found.samples, found.extra["positions"]) == (1, 3)
    assert found.top1 == pytest.approx(2 / 3)
    expected = torch.nn.functional.cross_entropy(scores, target, ignore_index=-100)
    assert found.loss == pytest.approx(float(expected))


def test_metric_as_function_and_as_class():
    batches = [(torch.full((n, 2), float(n)), torch.zeros(n, 2)) for n in (1, 3)]

    class Largest:
        def __init__(self):
            self.found = 0.0

        def update(self, outputs, target):
            self.found = max(self.found, float((outputs - target).max()))

        def compute(self):
            return self.found

    mean = evaluate(nn.Identity(), batches, metric=lambda outputs, target: (outputs - target).mean())
    assert mean.metric == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert mean.top1 is None and mean.samples == 4
    assert evaluate(nn.Identity(), batches, metric=Largest).metric == 3.0


def test_metric_that_is_neither():
    with pytest.raises(InputError, match="neither a function nor a class"):
        evaluate(nn.Identity(), [(torch.zeros(1, 2), None)], metric=3)
    with pytest.raises(InputError, match=r"without update\(outputs, target\) and compute\(\)"):
        evaluate(nn.Identity(), [(torch.zeros(1, 2), None)], metric=dict)


@pytest.mark.parametrize(("label", "shown"), [(7, "label 7"), (-1, "label -1")])
def test_labels_out_of_range(label, shown, net):
    with pytest.raises(DataError, match=f"{shown} is out of range: the model has 7 classes"):
        evaluate(net, [(torch.randn(1, 1, 6, 6), torch.tensor([label]))])


def test_outputs_that_are_not_finite(net):
    with pytest.raises(DataError, match="not finite"):
        evaluate(net, [(torch.full((1, 1, 6, 6), math.nan), torch.tensor([0]))])


def test_no_batches(net):
    with pytest.raises(DataError, match="yields no batch"):
        evaluate(net, [])


def test_rejected_shape_names_it(net):
    with pytest.raises(InputError, match=r"Net rejects inputs of shape \(1, 3, 6, 6\)"):
        evaluate(net, [(torch.zeros(1, 3, 6, 6), torch.tensor([0]))])


def test_targets_that_cannot_be_run(tmp_path):
    with pytest.raises(InputError, match="cannot be run as it stands"):
        open_runner(tmp_path / "weights.pt")
    with pytest.raises(InputError, match="a int cannot be run"):
        open_runner(3)


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (455, 600), (1, 3)])
def test_wilson_interval_against_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_paired_interval_against_the_sample_variance():
    differences = np.array([1] * 4 + [-1] * 9 + [0] * 87)
    spread = 1.959963984540054 * differences.std() / math.sqrt(100)
    assert paired_interval(4, 9, 100) == pytest.approx((-0.05 - spread, -0.05 + spread))


def test_slices_pad_and_cut():
    seen = []

    def run(inputs):
        seen.append(inputs.samples)
        return (inputs.values[0] * 2,)

    value = torch.arange(7.0).reshape(7, 1)
    assert torch.equal(in_slices(run, Batch.of(value), 3)[0], value * 2)
    assert seen == [3, 3, 3]


def test_outputs_of_any_structure_come_flat_and_in_order():
    a, b, c = torch.zeros(1), torch.ones(1), torch.ones(2)
    assert flat_outputs({"x": a, "y": [b, (c,)]}) == (a, b, c)
