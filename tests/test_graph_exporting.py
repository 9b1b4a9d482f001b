"""Modules become graphs that compute the same; what cannot is said in one line."""

import copy
import functools
import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from compress.errors import ExportError, InputError, OutputError, ParityError
from compress.graph.exporting import export, to_graph
from compress.graph.naming import layer_of, matching_nodes
from compress.graph.parity import check_parity, compare
from compress.onnx_files import save_onnx
from compress.runtimes.onnxruntime import Session


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(30, 8)
        self.rnn = kind(8, 6, batch_first=True, bidirectional=True, num_layers=2)
        self.head = nn.Linear(12, 5)

    def forward(self, tokens):
        states, _ = self.rnn(self.embedding(tokens))
        return self.head(states)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, image, scale):
        y = self.fc(image)
        return {"scaled": y * scale, "plain": y}


class Nested(nn.Module):
    def forward(self, x):
        return x + 1, (x * 2, [x - 1])


class BatchOfTwo(nn.Module):
    def forward(self, x):
        return x.reshape(2, -1) * 2


class LengthOfBatch(nn.Module):
    """`len(x)` is a plain number when the module runs, a symbol when its bytecode is read."""

    def forward(self, x):
        return x[torch.arange(len(x)), 0] * 2


class DataDependent(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


class NoOnnxForm(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), act=nn.Hardswish(), drop=nn.Dropout(0.5))
        )
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "inputs", "input_names", "output_names"),
    [
        (Convolutional, (torch.randn(2, 3, 8, 8),), ("x",), ("output",)),
        (lambda: Recurrent(nn.LSTM), (torch.randint(0, 30, (2, 7)),), ("tokens",), ("output",)),
        (lambda: Recurrent(nn.GRU), (torch.randint(0, 30, (2, 7)),), ("tokens",), ("output",)),
        (TwoInputs, (torch.randn(2, 3), torch.randn(2, 1)), ("image", "scale"), ("scaled", "plain")),
        (Nested, (torch.randn(2, 3),), ("x",), ("output_0", "output_1", "output_2")),
    ],
    ids=["conv", "lstm", "gru", "two-inputs", "nested"],
)
def test_same_outputs_any_batch_readable_names(build, inputs, input_names, output_names):
    module = build().eval()
    step = export(module, inputs)
    assert step.notes == () and step.changes[0].action == "exported, dynamic batch"
    session = Session(step.model)
    assert session.input_names == input_names and session.output_names == output_names
    assert all(shape[0] == "batch" for shape in session.input_shapes)
    larger = tuple(torch.cat([x, x, x[:1]]) for x in inputs)
    assert compare(module, session, larger).agrees
    assert {node.op_type for node in step.model.graph}.isdisjoint({"Constant", "BatchNormalization"})


def test_eval_mode_and_flags():
    module = Convolutional().train()
    module.body.bn.eval()
    step = export(module, torch.randn(2, 3, 8, 8))
    assert module.training and module.body.drop.training and not module.body.bn.training
    assert not any(node.op_type == "Dropout" for node in step.model.graph)


def test_the_module_is_not_touched_and_shares_no_memory():
    module = Convolutional().eval()
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(2, 3, 8, 8)
    graph = export(module, x).model
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    expected = Session(graph).run(x)[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    np.testing.assert_array_equal(Session(graph).run(x)[0], expected)


def test_nodes_bear_module_names_and_no_paths(tmp_path):
    graph = export(Convolutional(), torch.randn(2, 3, 8, 8)).model
    names = [node.name for node in graph.graph]
    assert "body.conv/Conv" in names and "fc/Gemm" in names
    assert layer_of(next(node for node in graph.graph if node.op_type == "Conv")) == "body.conv"
    path = save_onnx(graph, tmp_path / "m.onnx")
    assert b".py" not in path.read_bytes()
    assert {node.name for node in matching_nodes(graph, ["body"])} >= {"body.conv/Conv", "body.act/HardSwish"}
    assert {node.name for node in matching_nodes(graph, ["*.conv"])} == {"body.conv/Conv"}
    with pytest.raises(
        InputError, match=r"exclude 'body\.cov' matches no node of the graph; did you mean 'body\.conv'"
    ):
        matching_nodes(graph, ["body.cov"])


def test_a_batch_of_one_still_gives_a_dynamic_batch():
    step = export(Convolutional(), torch.randn(1, 3, 8, 8))
    assert Session(step.model).run(torch.randn(4, 3, 8, 8))[0].shape == (4, 2)


def test_static_where_the_model_fixes_the_batch():
    step = export(BatchOfTwo(), torch.randn(2, 3))
    assert step.changes[0].action == "exported, static batch"
    assert step.notes == (
        "the graph takes batches of exactly 2, because with a dynamic batch its code fixes the batch to 2",
    )
    assert Session(step.model).input_shapes == ((2, 3),)


def test_static_when_asked_needs_no_reason():
    step = export(nn.Linear(3, 2), torch.randn(2, 3), dynamic_batch=False)
    assert step.notes == () and Session(step.model).input_shapes == ((2, 3),)


def test_length_of_the_batch_stays_dynamic():
    step = export(LengthOfBatch(), torch.randn(2, 3))
    np.testing.assert_allclose(Session(step.model).run(np.ones((5, 3), np.float32))[0], np.full(5, 2))


def test_exported_programs_and_their_modules():
    module, x = Convolutional().eval(), torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},))
    for model in (program, program.module()):
        step = export(model, x)
        assert step.changes[0].action == "exported, dynamic batch"
        assert compare(module, step.model, (torch.randn(3, 3, 8, 8),)).agrees


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (DataDependent(), ExportError, "torch.export cannot take DataDependent: .*data-dependent.*; rewrite that line"),
        (NoOnnxForm(), ExportError, r"cannot take NoOnnxForm: it has no ONNX form of the operator \S*bessel_j0"),
        (Noisy(), ExportError, "Noisy gives other outputs each time it is called on the same inputs"),
        (nn.Linear(5, 2), InputError, r"Linear rejects inputs of shape \(2, 3\) float32: .*; give input_shape"),
    ],
)
def test_what_cannot_be_exported_says_why_in_one_line(module, error, message, capfd):
    with pytest.raises(error, match=message) as caught:
        export(module, torch.ones(2, 3))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


def test_export_is_quiet(capfd, recwarn):
    export(Recurrent(nn.LSTM), torch.randint(0, 30, (2, 7)))
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "m.onnx"
    export(nn.Linear(3, 2), torch.randn(2, 3), path=path)
    with pytest.raises(OutputError, match="exists already"):
        export(nn.Linear(3, 2), torch.randn(2, 3), path=path)
    first = path.read_bytes()
    with pytest.raises(ExportError):
        export(Noisy(), torch.randn(2, 3), path=path, overwrite=True)
    assert path.read_bytes() == first and [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


def test_to_graph(tmp_path):
    module, x = nn.Linear(3, 2), torch.randn(2, 3)
    graph = to_graph(module, x)
    clone = to_graph(graph)
    assert clone is not graph and clone.graph is not graph.graph
    read = to_graph(save_onnx(graph, tmp_path / "m.onnx"))
    for form in (clone, read):
        assert isinstance(form, ir.Model) and compare(module, form, (x,)).agrees
    with pytest.raises(InputError, match="needs example_inputs"):
        to_graph(module)
    with pytest.raises(InputError, match="got dict"):
        to_graph({})


def test_parity_fails_on_a_perturbed_model():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(4, 6)
    graph = export(module, x).model
    assert compare(module, graph, (x,)).agrees
    with torch.no_grad():
        module[2].weight[1, 2] += 0.05
    with pytest.raises(ParityError, match=r"output .output. differs by up to 0\.0"):
        check_parity(module, graph, (x,))


def test_parity_sees_shapes_nan_and_the_worst_output():
    def first(x):
        return x, x * 10, torch.tensor([float("nan")])

    assert compare(first, first, (torch.ones(2),)).agrees
    parity = compare(first, lambda x: (x + 1e-5, x * 10 + 1, torch.tensor([float("nan")])), (torch.ones(2),))
    assert parity.output == "output_1" and parity.difference == pytest.approx(1.0) and not parity.agrees
    assert not compare(lambda x: x, lambda x: x[:1], (torch.ones(2),)).agrees
    assert not compare(lambda x: x, lambda x: x * float("nan"), (torch.ones(2),)).agrees
    assert not compare(lambda x: x.long(), lambda x: x.long() + 1, (torch.ones(2),)).agrees
    with pytest.raises(ParityError, match="returns 1 output, the other 2"):
        compare(lambda x: x, lambda x: (x, x), (torch.ones(2),))
    with pytest.raises(ParityError, match="no tensors"):
        compare(lambda x: None, lambda x: None, (torch.ones(2),))


def test_parity_of_tiny_outputs_and_of_integers():
    tiny = torch.full((3,), 1e-12)
    assert compare(lambda x: x, lambda x: x * 1.001, (tiny,)).agrees
    assert not compare(lambda x: x, lambda x: x * 1.5, (tiny,)).agrees
    assert compare(lambda x: x * 0, lambda x: x * 0 + 1e-9, (tiny,)).agrees

    class Classes(nn.Module):
        def forward(self, x):
            return x.argmax(1)

    step = export(Classes(), torch.randn(2, 5))
    assert step.changes[0].values["max_difference"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda models: models.mobilenet_v3_small(),
        lambda models: models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4], num_classes=10),
    ],
    ids=["mobilenet_v3_small", "swin"],
)
def test_torchvision_models(build):
    from compress.loading.torchvision_ops import torchvision

    module = build(torchvision.models)
    step = export(module, torch.randn(2, 3, 64, 64))
    assert step.changes[0].action == "exported, dynamic batch"


@pytest.mark.slow
def test_the_real_lstm(shared_data):
    import sys

    sys.path.insert(0, str(shared_data))
    try:
        from models import polyphone_lstm
    finally:
        sys.path.remove(str(shared_data))
    module = polyphone_lstm()
    module.load_state_dict(torch.load(Path(shared_data) / "polyphones_lstm.pt", weights_only=True))
    tokens = torch.from_numpy(np.load(shared_data / "polyphones.npz")["x_dev"][:8].astype(np.int64))
    step = export(module, tokens[:2], parity_inputs=tokens)
    assert step.changes[0].action == "exported, dynamic batch"
    lstm = next(node for node in step.model.graph if node.op_type == "LSTM")
    assert all(value.is_initializer() for value in lstm.inputs[1:4])


@pytest.mark.parametrize("epsilon", [1e-6, 1e-9, 1e-12])
def test_a_small_epsilon_is_exported(epsilon):
    class Normalize(nn.Module):
        def forward(self, x):
            return x / (x.abs().sum(-1, keepdim=True) + epsilon) + 0

    graph = export(Normalize().eval(), torch.randn(2, 4)).model
    out = Session(graph, threads=1).run(torch.zeros(1, 4))[0]
    assert np.array_equal(out, np.zeros((1, 4), np.float32))  # without it 0 / 0


def test_graph_of_a_large_export_maps_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr("compress.graph.exporting.EXTERNAL_ABOVE_BYTES", 0)
    monkeypatch.setattr("compress.graph.exporting.save_onnx", functools.partial(save_onnx, external_above_bytes=0))
    module = nn.Linear(64, 64)
    kept = module.weight.detach().clone().numpy()
    graph = export(module, torch.ones(2, 64), path=tmp_path / "m.onnx").model
    with torch.no_grad():
        module.weight.zero_()
    (weight,) = (v.const_value for v in graph.graph.initializers.values() if v.const_value.size == 64 * 64)
    assert isinstance(weight, ir.ExternalTensor)
    assert np.allclose(np.sort(weight.numpy(), None), np.sort(kept, None))


@pytest.mark.parametrize("whose", ["input", "weights"])
def test_the_memory_format_leaves_no_trace_in_the_graph(whose):
    """An average pool of a channels-last tensor was a Gather of computed indices, which OpenVINO ran wrongly in int8."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    x = torch.randn(2, 3, 12, 12)
    plain = [node.op_type for node in export(net, x).model.graph]
    if whose == "input":
        x = x.to(memory_format=torch.channels_last)
    else:
        net = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert [node.op_type for node in export(net, x).model.graph] == plain


class Rnn(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.rnn = nn.RNN(5, 6, **options)
        self.directions = self.rnn.num_layers * (1 + self.rnn.bidirectional)

    def forward(self, x, state=None):
        return self.rnn(x, state)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"nonlinearity": "relu", "bidirectional": True, "num_layers": 2, "batch_first": True},
        {"bias": False, "num_layers": 2},
    ],
    ids=str,
)
def test_an_rnn_is_one_node_a_layer_whatever_its_length(options):
    torch.manual_seed(0)
    net = Rnn(**options).eval()
    batch = 0 if options.get("batch_first") else 1
    x = torch.randn(3, 7, 5) if batch == 0 else torch.randn(7, 3, 5)
    step = export(net, x, dynamic={"x": (0, 1)})
    assert [node.op_type for node in step.model.graph].count("RNN") == net.rnn.num_layers
    longer = torch.randn(2, 11, 5) if batch == 0 else torch.randn(11, 2, 5)
    for found, wanted in zip(Session(step.model).run(longer), net(longer), strict=True):
        np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-6)
    state = torch.randn(net.directions, 3, 6)
    given = export(net, {"x": x, "state": state}, dynamic="none").model
    np.testing.assert_allclose(Session(given).run(x, state)[0], net(x, state)[0].detach().numpy(), atol=1e-6)
