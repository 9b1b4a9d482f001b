"""Free dimensions: what is asked for is free and holds at other sizes, what cannot be is said; opsets and fixed batches likewise."""

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import ExportError, InputError
from compress.evaluation.latency import benchmark
from compress.graph.dimensions import Wanted
from compress.graph.exporting import export
from compress.graph.opset import newest_opset, opset_of
from compress.pipeline.export import ExportOptions
from compress.pipeline.export import export as export_job
from compress.pipeline.inputs import ModelSource
from compress.reporting.words import plain_words
from compress.runtimes.onnxruntime import Session

IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


class Text(nn.Module):
    """Token ids, and a mask as long, to two numbers; `fixed` writes the length of nine into its forward."""

    def __init__(self, fixed=False):
        super().__init__()
        self.embedding, self.head, self.fixed = nn.Embedding(50, 8), nn.Linear(8, 2), fixed

    def forward(self, ids, mask):
        x = self.embedding(ids) * mask[..., None]
        x = x.reshape(-1, 9, 8) if self.fixed else x
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 8), nn.LSTM(8, 4, batch_first=True, bidirectional=True)

    def forward(self, ids):
        return self.lstm(self.embedding(ids))[0]


def shapes(step):
    return [tuple(d if isinstance(d, int) else str(d.value) for d in value.shape) for value in step.model.graph.inputs]


@pytest.mark.parametrize("module", [Text(), Recurrent()], ids=["mean", "lstm"])
def test_any_length_of_token_ids_by_default(module):
    module = module.eval()
    inputs = (IDS, torch.ones(2, 9)) if isinstance(module, Text) else (IDS,)
    step = export(module, inputs)
    assert step.notes == () and set(shapes(step)) == {("batch", "sequence")}
    session = Session(step.model)
    for batch, length in ((1, 1), (3, 2), (5, 128)):
        ids = torch.randint(0, 50, (batch, length))
        feeds = (ids, torch.ones(batch, length))[: len(inputs)]
        with torch.no_grad():
            np.testing.assert_allclose(session.run(*feeds)[0], module(*feeds).numpy(), atol=1e-5)


def test_a_length_that_the_model_fixes_is_said():
    step = export(Text(fixed=True).eval(), (IDS, torch.ones(2, 9)))
    (note,) = step.notes
    assert note.startswith("the graph takes inputs of length exactly 9, because") and shapes(step)[0] == ("batch", 9)
    with pytest.raises(ExportError, match=r"Text cannot keep sequence \(9 here\) dynamic: .*leave that out"):
        export(Text(fixed=True).eval(), (IDS, torch.ones(2, 9)), dynamic="batch,sequence")


@pytest.mark.parametrize(
    ("dynamic", "expected"),
    [
        (None, ("batch", 3, 8, 8)),
        ("batch", ("batch", 3, 8, 8)),
        ("x:0,2,3", ("batch", 3, "x_2", "x_3")),
        (["batch", "x:3"], ("batch", 3, 8, "x_3")),
        ({"x": (2,)}, (2, 3, "x_2", 8)),
        ("batch,height,width", ("batch", 3, "height", "width")),
        ("none", (2, 3, 8, 8)),
        (False, (2, 3, 8, 8)),
    ],
)
def test_what_is_asked_for_is_free(dynamic, expected):
    class Picture(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x):
            return self.conv(x).relu().mean((2, 3))

    module = Picture().eval()
    step = export(module, torch.randn(2, 3, 8, 8), dynamic=dynamic)
    assert shapes(step) == [expected] and step.notes == ()
    x = torch.randn(*(size if isinstance(size, int) else 11 for size in expected))
    with torch.no_grad():
        np.testing.assert_allclose(Session(step.model).run(x)[0], module(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ("btach", "unknown dimension 'btach'.*did you mean 'batch'"),
        ("y:0", "no input 'y' to keep dynamic"),
        ("input:5", "'input' has 2 dimensions, and 5"),
        ("input:a", "whole numbers from 0, as in input:0,2"),
        ("height", "no input has the dimension 'height'"),
    ],
)
def test_what_is_not_there_is_refused(dynamic, message):
    with pytest.raises(InputError, match=message):
        export(nn.Linear(4, 2), torch.randn(2, 4), dynamic=dynamic)


def test_opsets(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    for opset in (18, newest_opset()):
        step = export(network, torch.randn(2, 3, 8, 8), opset=opset, path=tmp_path / f"{opset}.onnx")
        assert opset_of(step.model) == opset
    with pytest.raises(InputError, match=rf"opset 12 cannot be written; choose 13 to {newest_opset()}"):
        export(network, torch.randn(2, 3, 8, 8), opset=12)
    with pytest.raises(ExportError, match=r"cannot be written with opset 14: .*opset 18"):
        export(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), torch.randn(2, 8), opset=14)


def test_a_fixed_batch_is_compared_by_sample(tmp_path):
    network = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    source = ModelSource(network, input_shape=(2, 256))
    for name, options in (("free", {}), ("four", {"batch": 4}), ("one", {"batch": 1})):
        export_job(source, output=tmp_path / f"{name}.onnx", options=ExportOptions(**options))
    assert Session(tmp_path / "four.onnx").input_shapes == ((4, 256),)
    assert Session(tmp_path / "one.onnx").input_shapes == ((1, 256),)
    files = {name: tmp_path / f"{name}.onnx" for name in ("free", "four", "one")}
    rows = benchmark(files, torch.randn(1, 256), rounds=5, threads=1)
    four = rows["four"]
    assert four.extra["fixed_batch"] == 4 and "fixed_batch" not in rows["one"].extra | rows["free"].extra
    assert four.throughput == pytest.approx(1000 / four.p50_ms)
    words = plain_words(list(rows.values()), rows["free"])
    assert any(
        "four takes batches of exactly 4; its latency is that of a run divided by 4, times 1" in w for w in words
    )
    with pytest.raises(InputError, match="exclude each other"):
        ExportOptions(batch=1, dynamic="batch")


def test_reading():
    assert Wanted.of(None) == Wanted() and Wanted.of("none") == Wanted((), (), True)
    assert Wanted.of("batch,sequence x:0,2").axes == (("x", (0, 2)),)
