"""Each bad input of a user: one clear line on stderr, exit code 2, no traceback, nothing half-written."""

import io
import logging
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper

from cli.main import main
from compress.graph.exporting import export
from compress.onnx_files import save_onnx

FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=4, channels=3):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, padding=1)
        self.out = nn.Linear(channels, classes)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).mean((2, 3)))


def build(classes=4, channels=3):
    torch.manual_seed(0)
    return Net(classes, channels)


def other():
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def wants_rgb():
    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.LazyLinear(2))


class Fails(nn.Module):
    def forward(self, x):
        return {}["no such key"]


class FailsInTraining(Net):
    def forward(self, x):
        return self.no_such_layer(x) if self.training else super().forward(x)


class Samples:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index > 0:
            raise KeyError(f"sample {index}")
        return torch.zeros(1, 8, 8), 0


def own_loss(outputs, target):
    raise LookupError("no such weight")


def one_argument(outputs):
    return 1.0


def raising(outputs, target):
    raise KeyError("oops")


def text(outputs, target):
    return "good"


class Unfinished:
    def update(self, outputs, target):
        pass

    def compute(self):
        raise ZeroDivisionError("no samples")
"""


def arrays(path, *, labels=4, calibration=None, images=None):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 1, 8, 8)).astype(np.float32) if images is None else images
    y = np.arange(24) % labels
    more = {} if calibration is None else {"x_calibration": calibration, "y_calibration": y[: len(calibration)]}
    np.savez(path, x_train=x, y_train=y, x_test=x[::-1].copy(), y_test=y, **more)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model file, its checkpoint, one of another model, an ONNX file, data."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "net.py").write_text(FACTORY)
    arrays(folder / "data.npz")
    space = {}
    exec(FACTORY, space)
    module = space["build"]()
    torch.save(module.state_dict(), folder / "net.pt")
    torch.save(space["other"]().state_dict(), folder / "other.pt")
    save_onnx(export(module, (torch.zeros(2, 1, 8, 8),)).model, folder / "net.onnx")
    return folder


@pytest.fixture
def place(prepared, tmp_path, monkeypatch):
    """A working folder of its own that holds them."""
    folder = shutil.copytree(prepared, tmp_path / "here")
    monkeypatch.chdir(folder)
    return folder


def refused(*arguments, says):
    """Run a command; hold it to exit code 2, one line with `says` in it, an empty stdout and no new file."""
    before = sorted(os.listdir("."))
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.stderr or result.stdout
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("compress: error: "), result.stderr
    for text in [says] if isinstance(says, str) else says:
        assert text in lines[0]
    assert "{" not in lines[0] and "Traceback" not in lines[0]
    assert sorted(os.listdir(".")) == before


QUANTIZE = ("quantize", "net.py:build", "--weights", "net.pt")


def test_unknown_model_name(place):
    refused("quantize", "renset18", "--data", "data.npz", "-o", "out", says=("'renset18'", "did you mean 'resnet18'?"))


LONG = "a" * 5000


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", "net.py:build", "--weights", LONG, "--data", "data.npz"),
        ("evaluate", f"{LONG}.onnx", "--data", "data.npz"),
        ("evaluate", f"{LONG}:build", "--data", "data.npz"),
        ("evaluate", "net.py:build", "--data", f"text:{LONG}.csv"),
        ("evaluate", "net.py:build", "--data", "data.npz", "--metric", f"{LONG}.py:f"),
        ("doctor", f"{LONG}.onnx", "--for", "openvino"),
        ("run", f"{LONG}.toml"),
        ("quantize", "net.py:build", "--data", "data.npz", "-o", LONG),
    ],
    ids=["weights", "model", "factory", "data", "metric", "doctor", "recipe", "output"],
)
def test_a_name_that_no_file_can_have(place, arguments):
    refused(*arguments, says=("aaaa",))


def test_unknown_factory(place):
    refused("quantize", "net.py:biuld", "--data", "data.npz", "-o", "out", says=("biuld", "did you mean 'build'?"))


def test_checkpoint_of_another_architecture(place):
    refused(
        *("quantize", "net.py:build", "--weights", "other.pt", "--data", "data.npz", "-o", "out"),
        says=("other.pt", "conv.weight"),
    )


def test_not_a_checkpoint(place):
    (place / "junk.pt").write_bytes(b"this is no checkpoint")
    refused("quantize", "net.py:build", "--weights", "junk.pt", "--data", "data.npz", "-o", "out", says="junk.pt")
    refused("quantize", "net.py:build", "--weights", "none.pt", "--data", "data.npz", "-o", "out", says="none.pt")


def test_pickle_without_the_flag(place):
    class_free = torch.nn.Sequential(torch.nn.Linear(2, 2))
    torch.save(class_free, "whole.pt")
    refused("quantize", "whole.pt", "--data", "data.npz", "-o", "out", says="--trust-pickle")
    (place / "plain.pt").write_bytes(pickle.dumps(class_free))
    refused("quantize", "plain.pt", "--data", "data.npz", "-o", "out", says="plain.pt")


def test_data_folder_missing_or_empty(place):
    refused(*QUANTIZE, "--data", "imagefolder:nowhere", "-o", "out", says="nowhere")
    (place / "empty").mkdir()
    refused(*QUANTIZE, "--data", "imagefolder:empty", "-o", "out", says="empty")
    refused(*QUANTIZE, "--data", "none.npz", "-o", "out", says="none.npz")
    refused(*QUANTIZE, "--data", "mnist5kk", "-o", "out", says="did you mean 'mnist5k'?")


def test_data_that_the_method_needs(place):
    refused(*QUANTIZE, "--input-shape", "2,1,8,8", "-o", "out", says="--data")


def test_labels_out_of_range(place):
    arrays(place / "five.npz", labels=5)
    refused("evaluate", "net.onnx", "--data", "five.npz", says=("label", "out of range"))
    refused(*QUANTIZE, "--data", "five.npz", "-o", "out", says=("label", "out of range"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_calibration_data_that_is_not_finite(place, value):
    bad = np.zeros((4, 1, 8, 8), np.float32)
    bad[2, 0, 1, 1] = value
    arrays(place / "bad.npz", calibration=bad)
    refused(*QUANTIZE, "--data", "bad.npz", "-o", "out", says="finite")


def test_input_shape_that_the_model_rejects(place):
    refused("quantize", "net.py:wants_rgb", "--data", "data.npz", "-o", "out", says="(2, 1, 8, 8)")
    refused("export", "net.py:build", "--input-shape", "2,3,8,8", "-o", "out.onnx", says="(2, 3, 8, 8)")
    refused("benchmark", "net.onnx", "--input-shape", "2,3,8,8", says="net.onnx")
    refused("export", "net.py:build", "-o", "out.onnx", says="--input-shape")


def test_output_that_exists(place):
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("keep")
    refused(*QUANTIZE, "--data", "data.npz", "-o", "out", says="exists already")
    assert os.listdir("out") == ["mine.txt"]
    refused("export", "net.py:build", "--input-shape", "2,1,8,8", "-o", "net.onnx", says="--overwrite")
    refused("quickstart", "-o", "out", says="exists already")
    refused("compare", "net.onnx", "--input-shape", "2,1,8,8", "--report", "data.npz", says=".md, .json, .html")
    (place / "r.md").write_text("keep")
    refused("compare", "net.onnx", "--input-shape", "2,1,8,8", "--report", "r.md", says="exists already")
    assert (place / "r.md").read_text() == "keep"


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.exists("/proc/1"), reason="needs a folder that cannot be written")
def test_folder_that_cannot_be_written(place, monkeypatch):
    # Root may write anywhere, so the answer of the system is put in its mouth.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(*QUANTIZE, "--data", "data.npz", "-o", "out/deep", says="is not writable; choose another -o")


def test_folder_below_a_file(place):
    refused(*QUANTIZE, "--data", "data.npz", "-o", "net.pt/out", says="net.pt")


@pytest.mark.parametrize(
    ("option", "wrong", "right"),
    [
        ("--target", "x86-vnii", "x86-vnni"),
        ("--ranges", "percentle", "percentile"),
        ("--method", "statik", "static"),
        ("--runtime", "onx", "onnx"),
    ],
)
def test_unknown_choice(place, option, wrong, right):
    refused(*QUANTIZE, "--data", "data.npz", "-o", "out", option, wrong, says=(repr(wrong), f"did you mean {right!r}?"))


def test_unknown_weight_type_and_excluded_name(place):
    common = (*QUANTIZE, "--data", "data.npz", "-o", "out")
    refused(*common, "--method", "dynamic", "--weight-type", "int9", says="int9")
    refused(*common, "--exclude", "no_such_layer", says="no_such_layer")


def test_onnx_file_truncated(place):
    content = (place / "net.onnx").read_bytes()
    (place / "half.onnx").write_bytes(content[: len(content) // 2])
    refused("quantize", "half.onnx", "--data", "data.npz", "-o", "out", says="half.onnx")
    (place / "text.onnx").write_text("hello")
    refused("benchmark", "text.onnx", "--input-shape", "2,1,8,8", says="text.onnx")
    refused("evaluate", "none.onnx", "--data", "data.npz", says="none.onnx")


def onnx_model(path, operator, opset=17, domain=""):
    node = helper.make_node(operator, ["x"], ["y"], name="strange", domain=domain)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def test_onnx_operator_and_opset_that_cannot_be_taken(place):
    onnx_model(place / "odd.onnx", "Frobnicate", domain="my.company")
    refused("quantize", "odd.onnx", "--data", "data.npz", "-o", "out", says="Frobnicate")
    onnx_model(place / "new.onnx", "Relu", opset=99)
    refused("quantize", "new.onnx", "--data", "data.npz", "-o", "out", says="99")
    onnx_model(place / "old.onnx", "Relu", opset=3)
    refused("quantize", "old.onnx", "--data", "data.npz", "-o", "out", says="3")


def test_program_truncated(place, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("torch.export"), "handlers", [caplog.handler])
    content = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),)), content)
    (place / "half.pt2").write_bytes(content.getvalue()[:500])
    refused("evaluate", "half.pt2", "--data", "data.npz", "--quiet", says=("half.pt2", "truncated"))
    assert "torch.export" not in {record.name for record in caplog.records}  # it would log a traceback


@pytest.mark.parametrize("verb", ["evaluate", "benchmark"])
def test_forward_that_raises_anything(place, verb):
    says = ("Fails rejects inputs of shape", "KeyError: 'no such key'")
    refused(verb, "net.py:Fails", "--data", "data.npz", says=says)


def test_data_set_that_raises_anything(place):
    says = ("calibration part of data 'net.py:Samples' cannot be read: KeyError: 'sample ", "mend the data set")
    refused("evaluate", "net.py:build", "--data", "net.py:Samples", says=says)


def test_training_code_that_raises_anything(place):
    common = ("--data", "data.npz", "--epochs", "1", "-o", "out")
    refused(
        "train", "net.py:FailsInTraining", *common, says=("no_such_layer", "your own code", "net.py line", "in forward")
    )
    refused("train", "net.py:build", "--loss", "net.py:own_loss", *common, says=("LookupError", "in own_loss"))


@pytest.mark.parametrize(
    ("metric", "says"),
    [
        ("one_argument", ("TypeError", "a function (outputs, target) -> float")),
        ("raising", "failed: KeyError: 'oops'"),
        ("text", "returned a str; return one number"),
        ("Unfinished", "failed: ZeroDivisionError: no samples"),
    ],
)
def test_metric_that_fails(place, metric, says):
    says = (f"metric 'net.py:{metric}'", *([says] if isinstance(says, str) else says))
    refused("evaluate", "net.onnx", "--data", "data.npz", "--metric", f"net.py:{metric}", says=says)


def test_weights_that_no_model_takes(place):
    says = ("'net.onnx' carries its own weights", "leave --weights and --model-arg out")
    for option in (("--weights", "none.pt"), ("--model-arg", "classes=4")):
        refused("evaluate", "net.onnx", *option, "--data", "data.npz", says=says)
        refused("evaluate", "net.onnx", *option, "--baseline", "net.onnx", "--data", "data.npz", says=says)
        refused("compare", "net.onnx", "net.onnx", *option, "--data", "data.npz", says=says)


@pytest.mark.parametrize("gate", ["--max-drop", "--require-speedup"])
def test_gate_that_needs_a_baseline(place, gate):
    says = f"{gate} needs a second model; name the baseline first"
    refused("compare", "net.onnx", "--data", "data.npz", gate, "1", "--max-size", "1MB", says=says)


def test_calibration_part_that_is_missing(place):
    x = np.zeros((24, 1, 8, 8), np.float32)
    np.savez(place / "onlytest.npz", x_test=x, y_test=np.arange(24) % 4)
    says = ("'onlytest' has no calibration part", "add x_calibration", "--test-samples")
    refused("quantize", "net.onnx", "--data", "onlytest.npz", "-o", "out", says=says)


def test_metric_that_cannot_be_found(place):
    refused("evaluate", "net.onnx", "--data", "data.npz", "--metric", "net.py:f1", says="f1")


def test_a_budget_that_is_not_met_saves_the_files_and_exits_3(place):
    arguments = [*QUANTIZE, "--data", "data.npz", "-o", "out", "--max-size", "10", "--threads", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    assert "✗ int8" in result.stdout
    assert result.stderr.splitlines()[-1].startswith("compress: not met: int8: ")
    assert {"model.onnx", "report.json", "report.md"} <= set(os.listdir("out"))
