"""Options of quantization: frozen values passed whole, or their fields spelled out, checked when made."""

import dataclasses

import pytest
import torch
from torch import nn

from compress.errors import InputError, QuantizationError
from compress.quantization.dynamic import quantize_dynamic
from compress.quantization.options import DynamicOptions, StaticOptions
from compress.quantization.qat import prepare_qat
from compress.quantization.static import calibrate_static, quantize_static
from compress.quantization.weights import LIMIT


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


DATA = [torch.linspace(-1, 1, 2 * 3 * 64).reshape(2, 3, 8, 8)]


def text(step):
    return [str(node) for node in step.model.graph]


def test_options_whole_and_spelled_out_are_the_same(model):
    whole = quantize_static(model, DATA, StaticOptions(ranges="mse", target="any"))
    assert text(whole) == text(quantize_static(model, DATA, ranges="mse", target="any"))
    # A field that is spelled out overrules the value it is spelled out beside.
    assert text(whole) == text(quantize_static(model, DATA, StaticOptions(target="any"), ranges="mse"))
    assert text(whole) != text(quantize_static(model, DATA, StaticOptions(target="arm64"), ranges="mse"))


@pytest.mark.parametrize("verb", [quantize_static, calibrate_static, prepare_qat])
def test_a_typo_is_answered_with_the_nearest(model, verb):
    with pytest.raises(InputError, match=rf"^{verb.__name__} has no option 'range'; did you mean 'ranges'\?$"):
        verb(model, DATA, range="mse")


def test_options_of_another_verb_are_refused(model):
    with pytest.raises(
        InputError,
        match="quantize_static: options takes StaticOptions or a mapping of its fields, got a DynamicOptions",
    ):
        quantize_static(model, DATA, DynamicOptions())
    with pytest.raises(InputError, match="quantize_dynamic has no option 'weight_types'; did you mean 'weight_type'"):
        quantize_dynamic(model, weight_types="uint8")


def test_values_are_checked_when_made_and_frozen():
    with pytest.raises(QuantizationError, match="unknown range method 'msee'; did you mean 'mse'"):
        StaticOptions(ranges="msee")
    with pytest.raises(QuantizationError, match="weight_bits must be 4 to 8, not 3"):
        StaticOptions(layer_bits={"a": 3})
    options = StaticOptions(exclude=["a"], op_types={"MatMul", "Conv"})
    assert options.exclude == ("a",) and options.op_types == ("Conv", "MatMul")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.ranges = "mse"


def test_layer_bits_take_patterns_and_module_names(model):
    calibrated, _ = calibrate_static(model, DATA, layer_bits={"*": 5, "2": 4})
    graph = calibrated.quantize(fold=False).model
    limits = [node.metadata_props[LIMIT] for node in graph.graph if LIMIT in node.metadata_props]
    assert limits == ["15", "7"]
    with pytest.raises(InputError, match="nothing_here"):
        quantize_static(model, DATA, layer_bits={"nothing_here": 4})
