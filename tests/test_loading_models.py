"""Every way of naming a model gives that model; every wrong way gives one line."""

import subprocess
import sys
import urllib.error

import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import compress
from compress.errors import CompressError, InputError, ModelError, WeightsError
from compress.loading.data import open_data
from compress.loading.models import example_inputs, open_model
from compress.loading.torchvision_models import names
from compress.loading.torchvision_ops import torchvision

FACTORY = """
import torch
from torch import nn

def build(width=4, act="relu"):
    return nn.Sequential(nn.Linear(3, width), nn.ReLU() if act == "relu" else nn.Tanh(), nn.Dropout(0.5))

def number():
    return 3

def broken():
    raise ValueError("no width\\nsecond line")

ready = nn.Linear(3, 2)
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FACTORY)
    return path


def exported(tmp_path, dynamic=True):
    batch = {0: torch.export.Dim("batch")} if dynamic else None
    program = torch.export.export(nn.Linear(3, 2), (torch.zeros(2, 3),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def onnx_file(tmp_path, shape=("n", 3), dtype=TensorProto.FLOAT):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "copy",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_torchvision_name():
    loaded = open_model("squeezenet1_1")
    assert loaded.kind == "module" and not loaded.model.training
    assert loaded.input_shape == (2, 3, 224, 224)
    assert loaded.preprocessing.mean == (0.485, 0.456, 0.406)
    (x,) = example_inputs(loaded).values
    assert x.shape == (2, 3, 224, 224)


def test_random_weights_are_the_same_each_time_and_leave_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = (compress.load("squeezenet1_1").state_dict() for _ in range(2))
    torch.testing.assert_close(torch.rand(1), expected, rtol=0, atol=0)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_every_torchvision_classifier_is_known():
    assert len(names()) >= 80
    for name in names():
        weights = torchvision.models.get_model_weights(name).DEFAULT
        assert weights.transforms().crop_size, name


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ModelError, match=r"unknown model 'renset18'; did you mean 'resnet18'\?"):
        compress.load("renset18")


def test_model_arguments_reach_torchvision():
    assert compress.load("squeezenet1_1", model_args={"num_classes": 7}).num_classes == 7
    with pytest.raises(ModelError, match=r"model 'squeezenet1_1' cannot be built with \{'widht': 3\}: TypeError"):
        compress.load("squeezenet1_1", model_args={"widht": 3})


def test_file_factory_with_arguments_and_weights(script, tmp_path):
    source = nn.Sequential(nn.Linear(3, 6))
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    module = compress.load(f"{script}:build", weights=tmp_path / "w.pth", model_args={"width": 6, "act": "tanh"})
    assert isinstance(module[1], nn.Tanh) and not module[2].training
    torch.testing.assert_close(module[0].weight, source[0].weight)


def test_module_that_is_there_already(script):
    assert isinstance(compress.load(f"{script}:ready"), nn.Linear)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("number", {}, r"number' returned a int; return a torch\.nn\.Module"),
        ("broken", {}, r"broken' failed: ValueError: no width$"),
        ("build", {"depth": 3}, r"build' cannot be called: .*'depth'; give its arguments as model_arg key=value"),
    ],
)
def test_bad_factories(script, name, arguments, message):
    with pytest.raises(ModelError, match=message):
        compress.load(f"{script}:{name}", model_args=arguments)


def test_weights_of_another_architecture(script, tmp_path):
    torch.save(nn.LSTM(3, 4).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        WeightsError, match=r"w\.pth' belong to another architecture than Sequential: 2 missing \(0\.weight"
    ):
        compress.load(f"{script}:build", weights=tmp_path / "w.pth")


def test_default_weights_of_a_factory(script):
    with pytest.raises(WeightsError, match="has no default weights to download; give weights FILE"):
        compress.load(f"{script}:build", weights="DEFAULT")


@pytest.mark.parametrize("weights", ["DEFAULT", "IMAGENET1K_V1"])
def test_download_that_fails(monkeypatch, weights, tmp_path):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", offline)
    with pytest.raises(
        WeightsError,
        match=r"weights of 'squeezenet1_1' could not be downloaded \(URLError: .*no route to host.*\); "
        r"fetch https://.*\.pth yourself and pass weights FILE",
    ):
        compress.load("squeezenet1_1", weights=weights)


def test_download_path(monkeypatch, tmp_path):
    """DEFAULT takes the file that a download would have left in the cache."""
    known = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / known.url.rsplit("/", 1)[1])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    loaded = compress.load("squeezenet1_1", weights="DEFAULT").state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_weights_that_are_neither_file_nor_known():
    with pytest.raises(
        WeightsError, match=r"weights 'DEFUALT' are no file and none of squeezenet1_1's own; did you mean"
    ):
        compress.load("squeezenet1_1", weights="DEFUALT")


def test_exported_program(tmp_path):
    loaded = open_model(exported(tmp_path))
    assert (loaded.kind, loaded.input_shape, loaded.inputs[0].shape) == ("exported", (2, 3), (None, 3))
    assert loaded.model(torch.zeros(5, 3)).shape == (5, 2)


def test_exported_program_with_a_fixed_batch(tmp_path):
    loaded = open_model(exported(tmp_path, dynamic=False))
    assert loaded.inputs[0].shape == (2, 3)
    assert example_inputs(loaded, batch=7).values[0].shape == (2, 3)


def test_truncated_program(tmp_path):
    path = exported(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ModelError, match=r"model\.pt2' is not an exported program that this torch .* or is truncated"):
        compress.load(path)


@pytest.mark.parametrize("name", ["absent.pt2", "absent.onnx", "absent.pth"])
def test_missing_files(name):
    with pytest.raises(ModelError, match=rf"{name}' does not exist; check the path"):
        compress.load(name)


def test_onnx_file(tmp_path):
    loaded = open_model(onnx_file(tmp_path, shape=("n", 3), dtype=TensorProto.INT64))
    assert isinstance(loaded.model, ir.Model)
    assert (loaded.kind, loaded.input_shape, loaded.input_dtype) == ("onnx", (2, 3), torch.int64)
    assert example_inputs(loaded, batch=4).values[0].dtype == torch.int64


def test_onnx_file_with_unknown_sizes(tmp_path):
    loaded = open_model(onnx_file(tmp_path, shape=("n", 3, "h", "w")))
    assert loaded.input_shape is None
    with pytest.raises(
        InputError, match=r"input shape of 'm' is not known; give input_shape, as in 2,3,224,224, or data"
    ):
        example_inputs(loaded)
    assert example_inputs(loaded, input_shape=(1, 3, 8, 8)).values[0].shape == (1, 3, 8, 8)


def test_files_carry_their_own_weights(tmp_path):
    with pytest.raises(ModelError, match="carries its own weights; leave weights and model_arg out"):
        compress.load(onnx_file(tmp_path), weights="w.pth")


def test_pickled_module(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "whole.pt")
    with pytest.raises(WeightsError, match="pass trust_pickle=True if you trust"):
        compress.load(tmp_path / "whole.pt")
    assert compress.load(tmp_path / "whole.pt", trust_pickle=True).in_features == 3


def test_weights_given_as_the_model(tmp_path):
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ModelError, match="holds weights, not a model; name the architecture and pass the file as weights"
    ):
        compress.load(tmp_path / "w.pth")


def test_a_module_passes_through():
    module = nn.Linear(3, 2)
    assert open_model(module).model is module


def test_a_module_in_hand_gets_weights_in_a_copy(tmp_path):
    module, other = nn.Sequential(nn.Linear(3, 8)), nn.Sequential(nn.Linear(3, 5))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="layer 0 has 5 outputs in the checkpoint and 8 in the architecture"):
        loaded = compress.load(module, weights=tmp_path / "w.pt")
    assert torch.equal(loaded[0].weight, other[0].weight) and not loaded.training
    assert module[0].out_features == 8 and module[0].weight.shape == (8, 3)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Linear(3, 2), {"weights": "DEFAULT"}, "Linear has no default weights to download; give a checkpoint file"),
        (nn.Linear(3, 2), {"weights": "none.pt"}, "'none.pt' does not exist"),
        (nn.Linear(3, 2), {"model_args": {"width": 3}}, "Linear is built already; leave model_args out"),
        (ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), {"weights": "w.pt"}, "a graph carries its own weights"),
    ],
)
def test_options_that_a_model_in_hand_cannot_follow(model, options, message):
    with pytest.raises(CompressError, match=message):
        compress.load(model, **options)


def test_example_inputs_are_samples_of_the_data():
    data = open_data("digits")
    (x,) = example_inputs(open_model(nn.Flatten()), data=data).values
    torch.testing.assert_close(x[0], data.calibration[0][0])


def test_several_inputs():
    shapes = [(2, 3), (2, 5)]
    assert [tuple(x.shape) for x in example_inputs(open_model(nn.Identity()), input_shape=shapes).values] == shapes


@pytest.mark.parametrize("shape", [(0, 3), (2, -1), ()])
def test_bad_shapes(shape):
    with pytest.raises(InputError, match="cannot be used; give positive sizes, batch first"):
        example_inputs(open_model(nn.Identity()), input_shape=shape)


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match=r"model 'timm:resnet10t' needs timm .*; run: pip install timm"):
        compress.load("timm:resnet10t")


def test_timm():
    pytest.importorskip("timm")
    loaded = open_model("timm:test_resnet", model_args={"num_classes": 3})
    assert loaded.model(example_inputs(loaded).values[0]).shape == (2, 3)
    with pytest.raises(ModelError, match=r"unknown timm model 'resent18'; did you mean"):
        open_model("timm:resent18")


def test_torchvision_has_one_door_that_opens():
    """In a process of its own: a wheel whose operators do not load still gives models, transforms and data sets."""
    code = (
        "from compress.loading.torchvision_ops import torchvision as t;"
        "import torch, torchvision.transforms, torchvision.datasets;"
        "print(len(t.models.list_models(module=t.models)), hasattr(torch.ops.torchvision, 'nms'))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, declared = shown.stdout.split()
    assert int(count) >= 80 and declared == "True"


def test_a_python_file_needs_a_function():
    with pytest.raises(ModelError, match=r"'my.py' is a Python file; name its function too, as in my.py:build"):
        open_model("my.py")
