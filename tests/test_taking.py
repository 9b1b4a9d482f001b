"""Public verbs take what is unambiguous, and answer anything else in one line of their caller's words."""

import inspect
import re

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import compress
from compress.given import batches_of
from compress.loading.data import Data, in_hand

X = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3
BATCHES = [(X[:4], Y[:4]), (X[4:], Y[4:])]
SET = TensorDataset(X, Y)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(SET)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 3)).eval()


@pytest.fixture(scope="module")
def graph(module):
    return compress.export(module, X).model


FORMS = {
    "batches": BATCHES,
    "loader": DataLoader(SET, batch_size=4),
    "data set": SET,
    "stream": Stream(),
    "loader of a stream": DataLoader(Stream(), batch_size=4),
    "pair of arrays": (X.numpy(), Y.numpy()),
    "pair of tensors": (X, Y),
    "mapping": {"input": X, "labels": Y},
    "training and test": (BATCHES[:1], BATCHES),
    "training and test loaders": (DataLoader(SET), DataLoader(SET)),
    "data": Data("own", SET, SET, SET, None, 3, (12,), torch.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_data_gives_the_same_figure(graph, module, form):
    right = (module(X).argmax(1) == Y).float().mean().item()
    found = compress.evaluate(graph, FORMS[form])
    assert found.samples == 8
    assert found.top1 == pytest.approx(right)


@pytest.mark.parametrize("form", [*FORMS, "tensor", "array"])
def test_every_form_of_data_calibrates_alike(graph, form):
    given = {"tensor": X, "array": X.numpy()}.get(form, FORMS.get(form))
    if form == "training and test":
        given = (BATCHES, BATCHES[:1])
    step = compress.quantize_static(graph, given)
    expected = compress.quantize_static(graph, BATCHES)
    assert ir.to_proto(step.model).SerializeToString() == ir.to_proto(expected.model).SerializeToString()


def test_calibration_takes_the_beginning_of_an_endless_stream():
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield X[0]

    read = batches_of(Endless())
    assert [sum(batch.samples for batch in read) for _ in range(2)] == [512, 512]


@pytest.mark.parametrize(
    "form",
    [Stream(), SET, (X, Y), BATCHES, (DataLoader(Stream(), batch_size=4), None)],
    ids=["stream", "set", "pair", "batches", "loaders"],
)
def test_what_trains(module, form):
    assert compress.fit(module, form, {"epochs": 1, "lr": 0.01, "batch_size": 4}).steps == 2


def test_two_batches_are_no_pair_of_loaders():
    data = in_hand(BATCHES)
    assert {len(data.train) + len(data.calibration), len(data.test)} == {6, 2}


def test_models_come_in_what_holds_them(graph, module):
    right = compress.evaluate(module, BATCHES).top1
    step = compress.Step("own", graph)
    for form in (step, ir.to_proto(graph), compress.fit(module, BATCHES, {"epochs": 1, "lr": 1e-9})):
        assert compress.evaluate(form, BATCHES).top1 == right
    assert compress.evaluate(graph, BATCHES).name == graph.graph.name
    names = list(compress.benchmark([graph, module, module], X, rounds=5, warmup=1))
    assert names == [graph.graph.name, "Sequential", "Sequential #2"]


def test_quantize_takes_loaders_and_arrays(module, tmp_path):
    for index, form in enumerate((DataLoader(SET, batch_size=4), (BATCHES, BATCHES), (X.numpy(), Y.numpy()))):
        options = {"tune_latency": False}
        report = compress.quantize(module, form, output=tmp_path / str(index), options=options)
        assert (tmp_path / str(index) / "model.onnx").is_file()
        assert report.rows[0].samples == (8 if index == 1 else 2)


def test_compare_takes_a_mapping(graph, tmp_path):
    compress.save_onnx(compress.Step("own", graph), tmp_path / "a.onnx")
    report = compress.compare({"first": tmp_path / "a.onnx", "second": graph}, BATCHES, rounds=5)
    assert [row.name for row in report.rows] == ["first", "second"]


class Strange:
    """Nothing that any verb knows."""


STRANGE = [Strange(), 3, np.array([object()]), b"bytes"]


def calls():
    for name in sorted(compress.__all__):
        verb = getattr(compress, name)
        if inspect.isfunction(verb):
            yield name


@pytest.mark.parametrize("name", calls())
@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: type(value).__name__)
def test_wrong_types_are_one_line(name, strange, module, tmp_path):
    """Each parameter in turn gets something that it cannot be, the others what they need."""
    verb = getattr(compress, name)
    parameters = inspect.signature(verb).parameters
    good = {
        "model": module, "module": module, "teacher": module, "target": module, "targets": [module], "graph": compress.Step, "data": BATCHES,
        "loader": BATCHES, "calibration": BATCHES, "example_inputs": X, "inputs": X, "models": [module], "spec": "digits",
        "path": tmp_path / "x.onnx", "recipe": tmp_path / "none.toml", "output": tmp_path / "out", "amounts": (0.2, 0.4),
    }  # fmt: skip
    needed = [key for key, item in parameters.items() if item.default is inspect.Parameter.empty and item.kind < 4]
    first = needed[0]
    given = {key: good[key] for key in needed if key in good}
    with pytest.raises(compress.CompressError) as told:
        verb(**{**given, first: strange})
    assert "\n" not in str(told.value)
    assert not re.search(r"--[a-z]", str(told.value))
