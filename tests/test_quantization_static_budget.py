"""Sensitivity finds the layer that was broken; the budget leaves just that one float."""

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.errors import DataError, QuantizationError
from compress.graph.constants import constant_array
from compress.graph.exporting import to_graph
from compress.quantization.apart import take_apart
from compress.quantization.budget import Budget, quantize_within
from compress.quantization.layer_errors import compare_outputs, rank_layers
from compress.quantization.static import calibrate_static, quantize_static
from compress.runtimes.onnxruntime import Session


@pytest.fixture(scope="module")
def case():
    """(graph, batches, name of its bad node): the second convolution gets four bits, the others eight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    data = [torch.randn(4, 3, 8, 8) for _ in range(4)]
    graph = to_graph(model, (data[0],))
    bad = [node.name for node in graph.graph if node.op_type == "Conv"][1]
    return graph, data, bad


def test_the_broken_layer_ranks_first(case):
    graph, data, bad = case
    calibrated, _ = calibrate_static(graph, data, layer_bits={bad: 4}, correct_bias=False, threads=1)
    ranking = rank_layers(calibrated, data, samples=8, threads=1)
    assert ranking[0].node == bad and ranking[0].error > 10 * ranking[1].error
    assert [item.error for item in ranking] == sorted((item.error for item in ranking), reverse=True)
    # The figure is that of a graph with this layer alone in int8, by hand.
    others = [name for name in calibrated.layers if name != bad]
    alone = quantize_static(graph, data, exclude=others, layer_bits={bad: 4}, correct_bias=False, threads=1).model
    inputs = torch.cat(data)[:8]
    a, b = (
        Session(graph, threads=1).run(inputs)[0].astype(float),
        Session(alone, threads=1).run(inputs)[0].astype(float),
    )
    assert ranking[0].error == pytest.approx(np.square(a - b).sum() / np.square(a).sum(), rel=0.05)
    assert ranking[0].as_change().values["sensitivity"] == ranking[0].error
    with pytest.raises(DataError, match="the data is empty"):
        rank_layers(calibrated, [])


def test_the_error_is_split_into_weights_and_activations(case):
    graph, data, bad = case
    calibrated, _ = calibrate_static(graph, data, layer_bits={bad: 4}, correct_bias=False, threads=1)
    score = fidelity(graph, data)
    worst = rank_layers(calibrated, data, samples=16, apart=True, score=score, threads=1)[0]
    assert worst.node == bad and worst.weights > 20 * worst.activations
    assert worst.weights + worst.activations == pytest.approx(worst.error, rel=0.2)
    assert worst.own > worst.error > 0
    assert worst.bytes_saved == 64 * 4 - 32 and worst.lost > 0
    # By hand: the float network with the bad layer's weight as the four-bit file has it.
    weights = take_apart(calibrated, bad).weights
    assert not any("Quantize" in node.op_type for node in weights.graph)
    floats = {node.name: node for node in calibrated.graph.graph}
    for node in weights.graph:
        if node.op_type == "Conv":
            same = np.array_equal(constant_array(node.inputs[1]), constant_array(floats[node.name].inputs[1]))
            assert same == (node.name != bad)


def test_a_product_without_weights_has_activations_only():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.left(x) @ self.right(x).transpose(1, 2)

    data = [torch.randn(8, 4, 8)]
    found = compress.sensitivity(Products().eval(), data, timed=True, threads=1)
    (product,) = (item for item in found if item.weights is None)
    assert len(found) == 3 and product.op_type == "MatMul"
    assert product.activations == pytest.approx(product.error, rel=1e-3) and product.bytes_saved == 0


def fidelity(graph, data):
    """A score in (−∞, 1]: 1 less the relative error of the output."""
    inputs = torch.cat(data)
    expected = Session(graph, threads=1).run(inputs)

    def score(candidate):
        return 1 - compare_outputs(expected, Session(candidate, threads=1).run(inputs))[0]

    return score


def test_the_budget_leaves_the_fewest_layers_in_float(case):
    graph, data, bad = case
    score = fidelity(graph, data)
    whole = score(quantize_static(graph, data, layer_bits={bad: 4}, correct_bias=False, threads=1).model)
    one = score(quantize_static(graph, data, exclude=[bad], correct_bias=False, threads=1).model)
    assert one > whole
    budget = Budget(score, 1 - (whole + one) / 2)
    result = quantize_within(graph, data, budget, layer_bits={bad: 4}, correct_bias=False)
    assert result.met and result.trials[0].float_layers == ()
    left = [change.layer for change in result.step.skipped if "left in float for accuracy" in change.reason]
    assert len(left) == 1 and result.score == score(result.step.model) == pytest.approx(one)
    assert "inside the accuracy budget" in result.step.notes[-1]


def test_a_generous_budget_costs_one_trial(case):
    graph, data, _ = case
    result = quantize_within(graph, data, Budget(fidelity(graph, data), 2.0, baseline=1.0), threads=1)
    assert result.met and len(result.trials) == 1 and result.ranking == ()


def test_an_impossible_budget_returns_the_best_found(case):
    graph, data, _ = case
    score = fidelity(graph, data)
    budget = Budget(score, 0, baseline=2.0, max_float_layers=2)
    result = quantize_within(graph, data, budget, correct_bias=False, threads=1)
    assert not result.met
    assert result.score == max(trial.score for trial in result.trials) == score(result.step.model)
    assert "outside the accuracy budget" in result.step.notes[-1]
    with pytest.raises(QuantizationError, match="max_drop must be 0 or more, not -1"):
        Budget(score, -1)
