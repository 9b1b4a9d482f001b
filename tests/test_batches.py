"""A batch is a value: what a loader yields is read once, and feeds a model by name where it has names."""

import warnings
from collections import UserDict

import numpy as np
import pytest
import torch
from torch import nn

import compress
import compress.runtimes.onnxruntime
from compress.batches import Batch, call, example_batch, joined, parameters_of, read_batch
from compress.errors import DataError, InputError

X, Y = torch.arange(12.0).reshape(4, 3), torch.tensor([0, 1, 0, 1])


class Minus(nn.Module):
    def forward(self, first, second):
        return first - second


class Optional(nn.Module):
    def forward(self, ids, mask=None, kind=None):
        return ids + 10 * kind if mask is None else ids * mask


@pytest.mark.parametrize(
    ("raw", "names", "target"),
    [
        (X, ["0"], None),
        (X.numpy(), ["0"], None),
        (X.tolist(), ["0"], None),
        ((X, Y), ["0"], Y),
        ([X, Y.numpy()], ["0"], Y),
        ((X, Y.tolist()), ["0"], Y),
        ((X, Y[:, None]), ["0"], Y),
        ((X, np.asarray(Y)[:, None].astype(np.int32)), ["0"], Y),
        ((X,), ["0"], None),
        (((X, X), Y), ["0", "1"], Y),
        ((X, None), ["0"], None),
        ({"a": X, "b": X, "labels": Y}, ["a", "b"], Y),
        ({"b": X, "y": Y.numpy(), "a": X}, ["b", "a"], Y),
        (UserDict(a=X, target=Y), ["a"], Y),
        (Batch.of(X, Y), ["0"], Y),
    ],
)
def test_forms_of_a_batch(raw, names, target):
    batch = read_batch(raw)
    assert list(batch.inputs) == names and batch.samples == 4
    assert all(torch.equal(value, X) for value in batch.values)
    assert (batch.target is None) if target is None else torch.equal(batch.target, target)


def test_float_targets_keep_their_shape_and_boxes_are_left_as_they_are():
    assert read_batch((X, np.ones((4, 1)))).target.shape == (4, 1)
    boxes = [{"boxes": torch.zeros(1, 4)}] * 4
    assert read_batch((X, boxes)).target is boxes


@pytest.mark.parametrize("raw", [(X, Y, Y), "text", {"a": "text"}, {}, [object()]])
def test_what_is_no_batch_is_refused(raw):
    with pytest.raises(DataError, match="batch"):
        read_batch(raw)


def test_named_inputs_go_by_name_whatever_their_order():
    turned = read_batch({"second": X, "first": 3 * X})
    assert torch.equal(call(Minus(), turned), 2 * X)
    graph = compress.export(Minus(), {"second": X, "first": 3 * X}).model
    assert [value.name for value in graph.graph.inputs] == ["first", "second"]
    (found,) = compress.runtimes.onnxruntime.Session(graph).run(turned)
    assert np.array_equal(found, 2 * X)


def test_an_optional_input_in_the_middle_may_be_left_out():
    batch = read_batch({"kind": X, "ids": X})
    assert torch.equal(call(Optional(), batch), 11 * X)
    graph = compress.export(Optional(), batch).model
    assert [value.name for value in graph.graph.inputs] == ["ids", "kind"]


def test_names_that_do_not_fit_are_named_on_both_sides():
    with pytest.raises(InputError, match=r"'first', 'second'.*'one', 'second'.*'first' is missing"):
        call(Minus(), read_batch({"one": X, "second": X}))


def test_extra_names_are_left_out_with_one_warning():
    batch = read_batch({"first": X, "second": X, "index": X})
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            call(Minus(), batch)
    assert len(seen) == 1 and "'index' is no input of Minus" in str(seen[0].message)


def test_one_named_input_fits_the_one_place():
    assert torch.equal(call(nn.Flatten(), read_batch({"image": X, "label": Y})), X)


def test_a_pair_of_tensors_for_two_inputs_says_what_a_pair_is():
    graph = compress.export(Minus(), (X, X)).model
    with pytest.raises(InputError, match=r"takes 2 inputs \(first, second\), got 1; a pair is \(inputs, target\)"):
        compress.evaluate(graph, [(X, X)])


def test_parts_leave_whole_what_all_samples_share():
    batch = read_batch({"audio": X, "rate": torch.tensor(16000), "y": Y}).part(1, 3)
    assert batch.samples == 2 and int(batch.inputs["rate"]) == 16000
    assert torch.equal(batch.inputs["audio"], X[1:3]) and torch.equal(batch.target, Y[1:3])
    assert joined([batch, batch]).samples == 4


def test_example_inputs_by_shape():
    assert example_batch((2, 3)).values[0].shape == (2, 3) == example_batch(torch.Size((2, 3))).values[0].shape
    with pytest.raises(InputError, match="at least 1"):
        example_batch((0, 3))
    with pytest.raises(InputError, match="a tensor, a sequence or a mapping"):
        example_batch("2,3")


def test_parameters_of_wrappers():
    assert parameters_of(nn.DataParallel(Minus()))[0] == ("first", "second")
    program = torch.export.export(Minus(), (X, X)).module()
    assert parameters_of(program)[0] == ("first", "second")


@pytest.mark.parametrize("tuned", [False, True])
def test_models_of_two_inputs_are_quantized(tuned):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 32), nn.Linear(32, 4)

        def forward(self, x, y):
            return self.b(torch.relu(self.a(x)) * y.mean(1, keepdim=True))

    graph = compress.export(Two().eval(), (torch.randn(2, 16), torch.randn(2, 16))).model
    batches = [((torch.randn(8, 16), torch.randn(8, 16)), torch.zeros(8, dtype=torch.long))]
    verb = compress.quantize_tuned if tuned else compress.quantize_static
    assert verb(graph, batches).done


def test_parameters_behind_a_star_go_by_keyword():
    class ByKeyword(torch.nn.Module):
        def forward(self, x, *, scale):
            return x * scale

    x, scale = torch.ones(4, 2), torch.full((4, 2), 3.0)
    for batch in (read_batch({"scale": scale, "x": x}), read_batch(((x, scale), None))):
        assert torch.equal(call(ByKeyword(), batch), x * scale)


def test_columns_of_words_are_no_inputs():
    with pytest.warns(UserWarning, match="'title'"):
        batch = read_batch({"title": ["a", "b"], "x": torch.zeros(2, 3), "labels": [0, 1]})
    assert list(batch.inputs) == ["x"] and batch.samples == 2
    with pytest.raises(DataError, match="not numbers"):
        read_batch({"title": ["a", "b"], "labels": [0, 1]})
