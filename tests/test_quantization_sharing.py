"""Both runtimes' forms from one calibration: what is the same tensor is observed once, what is not is observed anew."""

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch
from gated_block import GatedBlock
from torch import nn

import compress
import compress.quantization.calibrated as calibrated
from compress.graph.constants import constant_array
from compress.quantization.sharing import sharing

# SiLU, hard-swish and a mean, which ONNX Runtime's form has rewritten and OpenVINO's has not.
Block = functools.partial(GatedBlock, nn.functional.hardswish)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    x = torch.randn(32, 3, 12, 12)
    return compress.export(Block().eval(), x[:2]).model, [x[:16], x[16:]]


@pytest.fixture
def passes(monkeypatch):
    """The tensors that each pass over the data observes."""
    found = []
    calibrate = calibrated.calibrate

    def counted(graph, names, *rest, **options):
        found.append(set(names))
        return calibrate(graph, names, *rest, **options)

    monkeypatch.setattr(calibrated, "calibrate", counted)
    return found


def _constants(graph: ir.Model) -> dict[str, np.ndarray]:
    found = {f"{n.name}.{i}": constant_array(v) for n in graph.graph for i, v in enumerate(n.inputs)}
    return {name: value for name, value in found.items() if value is not None}


def _made(block, runtime, **options):
    graph, batches = block
    return compress.quantize_static(graph, batches, target="any", runtime=runtime, accuracy="fast", **options).model


def test_the_second_form_takes_what_the_first_pass_saw_and_is_the_same_file(block, passes):
    alone = [_constants(_made(block, name)) for name in ("onnxruntime", "openvino")]
    del passes[:]
    with sharing(["openvino"]) as shared:
        together = [_constants(_made(block, name)) for name in ("onnxruntime", "openvino")]
    # Hard-swish is six times as large in the first form, where a scale carries the sixth: no tensor of both.
    assert passes[1:] == [{"HardSwish"}] and shared.taken == shared.asked - 1 > 2
    for one, other in zip(alone, together):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-5, atol=1e-6 * np.abs(value).max(), err_msg=name)


def test_other_data_another_method_and_other_values_are_seen_anew(block, passes):
    graph, (first, second) = block
    with sharing():
        _made((graph, [first]), "openvino")
        _made((graph, [second]), "openvino")
        _made((graph, [first]), "openvino", ranges="mse")
        assert len(passes) == 3 and passes[0] == passes[1] == passes[2]
    twice = graph.clone()
    weight = next(value for name, value in twice.graph.initializers.items() if "stem" in name and "weight" in name)
    weight.const_value = ir.tensor(weight.const_value.numpy() * 2)
    batches = [first]
    with sharing() as shared:
        _made((graph, batches), "openvino")
        _made((twice, batches), "openvino")
        assert shared.taken == 1 and passes[-1] == passes[-2] - {"x"}  # the same input alone
    _made((graph, batches), "openvino")
    assert passes[-1] == passes[-3]  # outside of it nothing is kept
