"""Rows of the table of layers (`benchmarks/layers.py` makes all of them): what has a figure has a good one, what has none has a reason."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.tracing import traced

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from layers import CASES, METHODS, row

LEAST_DB = {"export": 120, "static": 30, "qat": 30}


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("AdaptiveMaxPool1d", ("export", "static")),
        ("AdaptiveMaxPool2d", METHODS),
        ("AdaptiveMaxPool3d", ("export", "prune")),
        ("AdaptiveAvgPool3d", ("export",)),
        ("RReLU", ("export",)),
        ("EmbeddingBag", ("export", "static", "qat")),  # bags of one length: a look-up and a mean, no loop
        ("Fold", ("qat",)),
        ("RNN", ("static",)),  # its first state is always 0, and its weights are shared by all steps
    ],
)
def test_cells_with_figures(name, methods):
    cells = row(name, methods)
    assert set(cells) == set(methods)
    for method, figure in cells.items():
        assert isinstance(figure, float), f"{method}: {figure}"
        assert figure > LEAST_DB.get(method, 40), method


@pytest.mark.parametrize(
    ("name", "method", "reason"),
    [
        ("FractionalMaxPool2d", "export", "it has no ONNX form of the operator aten.fractional_max_pool2d"),
        ("Softmax2d", "prune", "read by softmax"),
    ],
)
def test_cells_without_say_why(name, method, reason):
    assert reason in str(row(name, (method,))[method])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES)[::6])  # `benchmarks/layers.py` makes all of them
def test_no_cell_fails_without_a_reason(name):
    for method, cell in row(name).items():
        assert isinstance(cell, float) or not cell.startswith("FAILS"), f"{method}: {cell}"


def test_indices_have_no_onnx_form():
    class Both(nn.Module):
        def forward(self, x):
            y, places = nn.functional.adaptive_max_pool2d(x, 2, return_indices=True)
            return y, places

    with pytest.raises(
        compress.CompressError, match="asked for indices, which adaptive max pooling has no ONNX form of"
    ):
        compress.export(Both(), torch.randn(2, 3, 6, 6))


def test_a_size_that_is_free_cannot_be_pooled_to_several():
    with pytest.raises(compress.CompressError, match="needs a fixed size of dimension 2"):
        compress.export(nn.AdaptiveMaxPool2d(2), torch.randn(2, 3, 6, 6), dynamic="input:0,2")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3, -1], ids=["all", "third", "last"])
def test_bags_of_one_length_are_traced_as_torch_computes_them(mode, padding):
    bag = nn.EmbeddingBag(20, 4, mode=mode, padding_idx=padding).eval()
    indices = torch.randint(0, 20, (6, 5), generator=torch.Generator().manual_seed(0))
    indices[0], indices[1] = 3, 19  # a bag of padding alone
    program = traced(bag, (indices,))
    assert all("embedding_bag" not in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(indices), bag(indices))
    assert nn.functional.embedding_bag.__module__ == "torch.nn.functional"
