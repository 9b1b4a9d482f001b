"""Models as users have them: modules inside checkpoints, folders of results, inputs declared by name, files that tell no sizes."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import compress
from cli.main import main
from compress.errors import InputError, ModelError
from compress.loading.declared import read_declared
from compress.loading.models import open_model


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, result.stderr
    assert len(result.stderr.strip().splitlines()) <= 1 or not code
    return result.stderr if code else result.stdout


class Head(nn.Linear):
    """A head with the switches that detectors have."""

    export, dynamic, format = False, False, None

    def forward(self, x):
        y = super().forward(x)
        return y if self.export else (y, x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), Head(8, 3))


@pytest.mark.parametrize("holders", [("model",), ("net",), ("module",), ("model", "ema")])
def test_a_module_inside_a_checkpoint(holders, tmp_path):
    module, path = network(), tmp_path / "best.pt"
    content = {"epoch": 3, "optimizer": None, **{name: network() for name in holders}}
    content[holders[-1]] = module.half()
    torch.save(content, path)
    with pytest.raises(compress.CompressError, match="trust_pickle=True"):
        open_model(path)
    loaded = open_model(path, trust_pickle=True)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.model[1].weight, module[1].weight.float())
    assert loaded.model[3].export and loaded.model[3].dynamic and loaded.model[3].format == "onnx"
    notes = " ".join(loaded.notes)
    assert f"under '{holders[-1]}'" in notes and "float16 weights" in notes and "export form of Head '3'" in notes
    assert compress.export(loaded.model, torch.randn(2, 12)).notes == ()


def test_a_checkpoint_without_a_module_is_no_model(tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "weights.pt")
    with pytest.raises(ModelError, match="holds weights, not a model"):
        open_model(tmp_path / "weights.pt", trust_pickle=True)


def test_ultralytics_says_what_it_needs(tmp_path):
    pytest.importorskip("torch")
    import importlib.util

    if importlib.util.find_spec("ultralytics"):
        pytest.skip("ultralytics is installed")
    with pytest.raises(ModelError, match="needs the package ultralytics"):
        open_model("ultralytics:best.pt", trust_pickle=True)


def test_folders_of_results_and_names_of_files(tmp_path):
    source = tmp_path / "net.onnx"
    compress.export(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(2, 64), path=source)
    said = run("quantize", source, "--method", "dynamic", "-o", tmp_path / "int8.onnx", code=2)
    assert "is named like a file, and a folder is written; give -o" in said and not (tmp_path / "int8.onnx").exists()
    run("quantize", source, "--method", "dynamic", "-o", tmp_path / "int8", "--quiet")
    assert open_model(tmp_path / "int8").path == tmp_path / "int8" / "model.onnx"
    assert "int8" in run("benchmark", tmp_path / "int8", "--rounds", "5", "--quiet")
    (tmp_path / "empty").mkdir()
    assert "is a folder without a model" in run("benchmark", tmp_path / "empty", code=2)
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "name it as hf:" in run("benchmark", tmp_path / "empty", code=2)


@pytest.fixture
def foreign(tmp_path):
    """Audio of any length, a state with the batch in the middle, a scalar rate that chooses a branch with weights."""
    random = np.random.default_rng(0)

    def branch(name):
        weight = numpy_helper.from_array(random.normal(size=(64, 64)).astype(np.float32), f"{name}w")
        nodes = [helper.make_node("MatMul", ["m", f"{name}w"], [name])]
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)], [weight]
        )

    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    nodes = [
        helper.make_node("ReduceMean", ["audio"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Squeeze", ["state", "zero"], ["s"]),
        helper.make_node("Add", ["mean", "s"], ["m"]),
        helper.make_node("Equal", ["rate", "fast"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    constants = [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.array(16000), "fast")]
    inputs = [value("audio", [None, None]), value("state", [1, None, 64]), value("rate", [], TensorProto.INT64)]
    graph = helper.make_graph(nodes, "g", inputs, [value("y", None)], constants)
    path = tmp_path / "foreign.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
    return path


def test_no_data_no_sizes(foreign, tmp_path):
    report = json.loads(run("quantize", foreign, "--method", "dynamic", "-o", tmp_path / "q", "--json"))
    assert any("nothing is timed: the file does not tell the sizes" in note for note in report["notes"])
    sizes = [path.stat().st_size for path in (foreign, tmp_path / "q" / "model.onnx")]
    assert sizes[1] < 0.5 * sizes[0]
    declared = ("--input", "audio:1,160", "--input", "state:1,1,64", "--input", "rate::int64=16000")
    report = json.loads(run("quantize", foreign, "--method", "dynamic", "-o", tmp_path / "t", "--json", *declared))
    assert not any("nothing is timed" in note for note in report["notes"])
    assert all(row["p50_ms"] for row in report["rows"])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["audio:1,160"], "also takes 'state', of unknown size; declare each"),
        (["audoi:1,160"], "has no input 'audoi'; did you mean 'audio'"),
        (["audio:1,160", "audio:1,160"], "input 'audio' is declared twice"),
        (["audio:1,x"], "is not NAME:SHAPE"),
        (["audio:1,160:float33"], "unknown type 'float33'; did you mean 'float32'"),
        ([], "--input audio:N,N --input state:1,N,64 --input rate:"),
    ],
)
def test_bad_declarations(foreign, inputs, message):
    assert message in run("benchmark", foreign, *(part for one in inputs for part in ("--input", one)), code=2)


def test_reading_declarations():
    audio, rate = read_declared(["a:2,3", "r::int=8"])
    assert audio.shape == (2, 3) and audio.dtype is None
    assert rate.shape == () and rate.tensor(torch.float32, torch.Generator()).item() == 8
    with pytest.raises(InputError):
        read_declared(["x:0,3"])


def test_nothing_to_gain_is_refused(tmp_path):
    graph = ir.from_proto(
        helper.make_model(
            helper.make_graph(
                [helper.make_node("Relu", ["x"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
                [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )
    )
    path = compress.save_onnx(graph, tmp_path / "relu.onnx")
    said = run("quantize", path, "--method", "dynamic", "-o", tmp_path / "q", code=2)
    assert "no layer of this model can be quantized" in said and not (tmp_path / "q").exists()
