"""What runtimes refuse of quantized graphs: files made for each fit it, each way to break a rule is found and named."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from cli.doctor import RUNTIMES
from cli.main import main
from compress.errors import CompressError
from compress.onnx_files import save_onnx
from compress.pipeline.suitability import suits
from compress.quantization.rules import RULES
from compress.quantization.rules.rule import EFFECTS
from compress.runtimes.onnxruntime import Session


class Block(nn.Module):
    """A residual branch, a gated one, a Concat, a linear head."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.gated, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = self.first(x).relu()
        x = (x + self.second(x)).relu()
        x = torch.cat([nn.functional.silu(self.gated(x)), self.other(x).relu()], 1)
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def data():
    return torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(data, tmp_path_factory):
    torch.manual_seed(0)
    module, folder = Block().eval(), tmp_path_factory.mktemp("for")
    ways = {"onnxruntime": {}, "openvino": {"runtime": "openvino"}, "tensorrt": {"target": "tensorrt"}}
    steps = {name: compress.quantize_static(module, [data], **way) for name, way in ways.items()}
    return module, {name: save_onnx(step.model, folder / f"{name}.onnx") for name, step in steps.items()}


def effects(found):
    return {finding.effect for finding in found.findings}


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_made_for_a_runtime_breaks_none_of_its_rules(files, runtime):
    found = suits(files[1][runtime], runtime)
    assert found.fits and not found.findings, found.text()


def test_onnx_runtimes_own_file_does_not_fit_tensorrt(files):
    found = suits(files[1]["onnxruntime"], "tensorrt")
    said = " ".join(finding.text for finding in found.findings)
    assert not found.fits and not found.ran
    assert "zero points are 0" in said and "int8, not uint8" in said and "biases are float" in said
    assert "no pair inside x · sigmoid(x)" in said and "between a convolution and the addition" in said


def test_rules_and_the_installed_runtime_agree(files):
    own, foreign = (suits(files[1][name], "onnxruntime") for name in ("onnxruntime", "openvino"))
    assert set(own.ran.values()) == {"int8"}
    told = {name for finding in foreign.findings if finding.effect == "float" for name in finding.nodes}
    assert told and all(foreign.ran[name] == "float" for name in told if name in foreign.ran)


def test_a_tensorrt_file_is_symmetric_and_computes_the_same(files, data):
    module, made = files
    graph = ir.load(made["tensorrt"])
    for node in graph.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2:
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8 and not zero.any()
    convolutions = [node for node in graph.graph if node.op_type == "Conv"]
    assert all(node.inputs[2].is_initializer() and node.inputs[2].dtype == ir.DataType.FLOAT for node in convolutions)
    wanted, got = module(data).detach().numpy(), Session(made["tensorrt"], threads=1).run(data)[0]
    assert 10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()) > 25


def test_training_for_tensorrt_ends_in_the_same_form(data):
    torch.manual_seed(0)
    trained = compress.prepare_qat(Block().eval(), [data], target="tensorrt")
    step = compress.convert(trained, [data])
    assert not [node for node in step.model.graph if node.op_type == "DequantizeLinear" and _codes(node) == "INT32"]


def _codes(node):
    return node.inputs[0].dtype.name if node.inputs[0].dtype is not None else ""


BROKEN = {  # what is done to a file for TensorRT → the rule that finds it
    "zero": ("zero points are 0", lambda graph: _set(graph, "x_zero", np.int8(3))),
    "scales": ("one scale for the whole tensor", lambda graph: _set(graph, "x_scale", np.full(3, 0.02, np.float32))),
    "axis": ("scales of weights lie along the outputs", lambda graph: _weight(graph).attributes.update(_axis())),
    "domain": ("no integer operators", lambda graph: setattr(graph.graph[-1], "domain", "com.microsoft")),
    "half": ("both its input and its weight", lambda graph: _float_input(graph)),
}


def _set(graph, name, array):
    graph.graph.initializers[name].const_value = ir.Tensor(np.asarray(array), name=name)


def _axis():
    return {"axis": ir.AttrInt64("axis", 1)}


def _weight(graph):
    return next(node.inputs[1].producer() for node in graph.graph if node.op_type == "Conv")


def _float_input(graph):
    node = next(node for node in graph.graph if node.op_type == "Conv")
    node.replace_input_with(0, node.inputs[0].producer().inputs[0].producer().inputs[0])


@pytest.mark.parametrize("kind", BROKEN)
def test_what_breaks_a_rule_is_found_and_named(files, kind, tmp_path):
    text, change = BROKEN[kind]
    graph = ir.load(files[1]["tensorrt"])
    change(graph)
    ir.save(graph, tmp_path / "broken.onnx")
    found = suits(tmp_path / "broken.onnx", "tensorrt")
    assert any(text in finding.text and all(finding.nodes) for finding in found.findings), found.text()


def test_the_command(files):
    made = files[1]
    result = CliRunner().invoke(main, ["doctor", str(made["tensorrt"]), "--for", "tensorrt"])
    assert result.exit_code == 0 and "tensorrt.onnx for tensorrt: fits" in result.stdout
    result = CliRunner().invoke(main, ["doctor", str(made["onnxruntime"]), "--for", "tensorrt", "--json"])
    (found,) = json.loads(result.stdout)
    assert result.exit_code == 3 and not found["fits"] and found["findings"][0]["effect"] == "refused"
    result = CliRunner().invoke(main, ["doctor", "--for", "tensorrt"])
    assert result.exit_code == 2 and "give its name" in result.stderr
    assert set(RUNTIMES) == set(RULES)
    assert {rule.effect for rules in RULES.values() for rule in rules} <= set(EFFECTS)


def test_bad_input(files, tmp_path):
    with pytest.raises(CompressError, match="no rules are known of runtime 'tensorflow'; did you mean 'tensorrt'"):
        suits(files[1]["tensorrt"], "tensorflow")
    save_onnx(compress.export(nn.Linear(2, 2).eval(), torch.zeros(2, 2)).model, tmp_path / "float.onnx")
    with pytest.raises(CompressError, match=r"float\.onnx is not quantized"):
        suits(tmp_path / "float.onnx", "tensorrt")
    with pytest.raises(CompressError, match="target tensorrt takes static ranges"):
        compress.quantize_dynamic(nn.Linear(2, 2), target="tensorrt")
    with pytest.raises(CompressError, match=r"unknown runtime 'tensorrt'.*it is a target"):
        compress.quantize_static(nn.Linear(2, 2), [torch.zeros(4, 2)], runtime="tensorrt")
