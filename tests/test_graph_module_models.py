"""Whole models through GraphModule: outputs as ONNX Runtime, gradients as the module it came from."""

import copy
import pickle

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn
from torch.nn import functional as F

from compress.errors import InputError, ModelError, UnsupportedOperatorError
from compress.graph.exporting import export
from compress.graph.module import GraphModule
from compress.runtimes.onnxruntime import Session


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return x * torch.sigmoid(self.beta * x)


class First(nn.Module):
    """A recurrent layer without its states."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.layer(x, x, x)[0]


def resized(**options):
    return Lambda(lambda x: F.interpolate(x, **options))


IMAGE, LINE, VOLUME, SEQUENCE = (2, 6, 9, 8), (2, 6, 12), (2, 6, 5, 4, 6), (2, 7, 8)
ZOO = {
    "conv1d": (nn.Conv1d(6, 4, 3, padding=1, stride=2), LINE),
    "conv2d": (nn.Conv2d(6, 4, (3, 2), padding=(1, 0), groups=2), IMAGE),
    "conv2d circular": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv2d reflect": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d same": (nn.Conv2d(6, 4, 4, padding="same"), IMAGE),
    "conv3d": (nn.Conv3d(6, 4, 3, dilation=(1, 1, 2)), VOLUME),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), IMAGE),
    "transposed 1d": (nn.ConvTranspose1d(6, 4, 4, stride=2), LINE),
    "linear": (nn.Linear(8, 3), (2, 8)),
    "linear n-d": (nn.Linear(8, 3), (2, 4, 5, 8)),
    "max pool": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "average pool": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "average pool 1d": (nn.AvgPool1d(3), LINE),
    "max pool 3d": (nn.MaxPool3d(2), VOLUME),
    "adaptive average": (nn.AdaptiveAvgPool2d((3, 2)), IMAGE),
    "adaptive average 1": (nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive max": (Lambda(lambda x: F.adaptive_max_pool2d(x, 1)), IMAGE),
    "batchnorm1d": (nn.BatchNorm1d(6), LINE),
    "batchnorm2d": (nn.BatchNorm2d(6), IMAGE),
    "layer norm": (nn.LayerNorm(8), SEQUENCE),
    "group norm": (nn.GroupNorm(3, 6), IMAGE),
    "instance norm": (nn.InstanceNorm2d(6, affine=True), IMAGE),
    "nearest": (resized(scale_factor=2, mode="nearest"), IMAGE),
    "bilinear": (resized(size=(7, 13), mode="bilinear"), IMAGE),
    "bilinear aligned": (resized(size=(7, 13), mode="bilinear", align_corners=True), IMAGE),
    "bicubic": (resized(scale_factor=1.5, mode="bicubic"), IMAGE),
    "dropout, flatten": (nn.Sequential(nn.Dropout(), nn.Flatten()), IMAGE),
    "activations": (nn.Sequential(nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.SiLU(), nn.Hardswish()), LINE),
    "more activations": (nn.Sequential(nn.ELU(), nn.LeakyReLU(), nn.Softplus(), nn.Mish(), nn.Hardsigmoid()), LINE),
    "gelu tanh": (nn.GELU("tanh"), LINE),
    "swish": (Swish(), LINE),
    "prelu": (nn.PReLU(6), IMAGE),
    "lstm": (First(nn.LSTM(8, 5, 2, batch_first=True, bidirectional=True)), SEQUENCE),
    "gru": (First(nn.GRU(8, 5, batch_first=True)), SEQUENCE),
    "rnn": (First(nn.RNN(8, 5, batch_first=True, nonlinearity="relu")), SEQUENCE),
    "attention": (Attention(), SEQUENCE),
    "transformer": (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), SEQUENCE),
    "pixel shuffle": (nn.PixelShuffle(2), (2, 8, 3, 4)),
    "pads": (nn.Sequential(nn.ReflectionPad2d(2), nn.ReplicationPad2d(1), nn.ZeroPad2d((1, 0, 0, 2))), IMAGE),
    "channel shuffle": (nn.ChannelShuffle(3), IMAGE),
    "einsum": (Lambda(lambda x: torch.einsum("bchw,bdhw->bcd", x, x)), IMAGE),
    "roll, chunk, cat": (Lambda(lambda x: torch.cat(torch.roll(x, 2, 1).chunk(2, 1)[::-1], 1)), IMAGE),
}


def randomized(module):
    """Batch-norm with statistics of its own: exporters merge equal constants."""
    torch.manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + 0.5 if "var" in name else torch.randn_like(value) * 0.3)
    return module.eval()


HEAVY = {"lstm", "gru", "rnn", "attention", "transformer"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in HEAVY)) for n in ZOO])
def test_layer_zoo(name):
    module, shape = ZOO[name]
    module = randomized(module)
    x = torch.randn(shape)
    graph = export(module, (x,)).model
    ours = GraphModule(graph)
    given = torch.randn(3, *shape[1:]) if ours.graph.graph.inputs[0].shape[0] != 2 else torch.randn(shape)
    first, second = given.clone().requires_grad_(), given.clone().requires_grad_()
    (expected,) = Session(graph).run(given)
    result = ours(first)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-4, atol=2e-5 * max(1, np.abs(expected).max()))
    weight = torch.randn(result.shape)
    (result * weight).sum().backward()
    (module(second) * weight).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-3, atol=1e-4)
    # Every parameter takes part in training under one name or another (weights may be transposed or stacked).
    assert sum(p.grad.norm() for p in ours.parameters()) > 0 or not list(module.parameters())


def mobilenet(models):
    config = models.mobilenetv3.InvertedResidualConfig
    settings = [config(16, 3, 16, 16, True, "RE", 2, 1, 1.0), config(16, 5, 48, 16, True, "HS", 1, 1, 1.0)]
    return models.MobileNetV3(settings, 64, num_classes=10)


def convnext(models):
    return models.ConvNeXt([models.convnext.CNBlockConfig(16, 32, 1), models.convnext.CNBlockConfig(32, None, 1)])


# Few blocks of each kind: the operators that the published sizes have, in a fraction of their nodes.
TORCHVISION = {
    "resnet": lambda models: models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1]),
    "squeezenet": lambda models: models.squeezenet1_1(),
    "mobilenet": mobilenet,
    "shufflenet": lambda models: models.ShuffleNetV2([2, 1, 1], [24, 32, 48, 64, 128]),
    "swin": lambda models: models.SwinTransformer([4, 4], 16, [2, 1], [2, 4], [4, 4], num_classes=10),
    "convnext": convnext,
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    from compress.loading.torchvision_ops import torchvision

    torch.manual_seed(0)
    module = TORCHVISION[name](torchvision.models).eval()
    for parameter in module.parameters():
        if parameter.dim() < 2:
            nn.init.uniform_(parameter, -0.2, 0.2) if parameter.abs().sum() == 0 else parameter.data.mul_(1.1)
    x = torch.randn(2, 3, 64, 64)
    graph = export(module, (x,), check=False).model
    ours = GraphModule(graph)
    (expected,) = Session(graph).run(x)
    result = ours(x)
    np.testing.assert_allclose(result.detach().numpy(), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max() + 1e-30)
    result.sum().backward()
    assert all(parameter.grad is not None for parameter in ours.parameters())


def small():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()
    return layers, export(layers, (torch.randn(2, 3, 6, 6),)).model


def test_trained_weights_are_written_back():
    _, graph = small()
    before = {name: value.const_value.numpy().copy() for name, value in graph.graph.initializers.items()}
    module, x = GraphModule(graph), torch.randn(8, 3, 6, 6)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(module(x), torch.arange(8) % 5))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    (written,) = Session(module.write_back()).run(x)
    np.testing.assert_allclose(written, module(x).detach().numpy(), atol=1e-5)
    for name, value in graph.graph.initializers.items():  # the graph handed in is as it was
        np.testing.assert_array_equal(value.const_value.numpy(), before[name])


def test_written_weights_do_not_follow_later_steps():
    module = GraphModule(small()[1])
    written = module.write_back()
    x = torch.randn(2, 3, 6, 6)
    (before,) = Session(written).run(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    np.testing.assert_array_equal(Session(written).run(x)[0], before)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(duplicate):
    module = GraphModule(small()[1])
    x = torch.randn(2, 3, 6, 6)
    other = duplicate(module)
    torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1)
    assert not torch.allclose(other(x), module(x))


def test_state_dict_round_trip():
    first, second = GraphModule(small()[1]), GraphModule(small()[1])
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.mul_(2)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(first(x), second(x), rtol=0, atol=0)


def test_names_follow_the_graph():
    module = GraphModule(small()[1])
    assert module.names["0.weight"] == "0_weight"
    assert {name for name, _ in module.named_parameters()} >= {"0_weight", "0_bias"}


def custom(op, domain=""):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="fine"),
        helper.make_node(op, ["a"], ["y"], "odd", domain=domain),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy"]
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("some.domain", 1)]
    return ir.from_proto(
        helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=imports)
    )


def test_missing_operator_is_named_before_anything_runs():
    with pytest.raises(UnsupportedOperatorError, match=r"node 'odd': operator Det \(domain 'ai.onnx'\) cannot be"):
        GraphModule(custom("Det"))
    with pytest.raises(UnsupportedOperatorError, match=r"node 'odd': operator Relu \(domain 'some.domain'\)"):
        GraphModule(custom("Relu", "some.domain"))
    with pytest.raises(UnsupportedOperatorError, match="did you mean 'Softmax'"):
        GraphModule(custom("SoftMax"))


def test_unsupported_attribute_is_named():
    x = torch.zeros(1, 1, 4, 4)
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], name="pool", kernel_shape=[2, 2])
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, None, None]) for name in "xy"]
    values.append(helper.make_tensor_value_info("i", TensorProto.INT64, [1, 1, None, None]))
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    with pytest.raises(
        UnsupportedOperatorError, match=r"node 'pool' \(MaxPool, opset 20\): the output 'Indices' cannot"
    ):
        GraphModule(ir.from_proto(model))(x)


def test_failing_node_is_named():
    module = GraphModule(small()[1])
    with pytest.raises(ModelError, match=r"node .*Conv.* fails on these inputs"):
        module(torch.randn(2, 4, 6, 6))
    with pytest.raises(InputError, match="the graph takes 1 input"):
        module(torch.randn(2, 3, 6, 6), torch.randn(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["transformer", "lstm", "roll, chunk, cat", "bicubic", "conv2d circular"])
def test_on_cuda(name):
    module, shape = ZOO[name]
    x = torch.randn(shape)
    ours = GraphModule(export(randomized(module), (x,)).model)
    expected = ours(x)
    torch.testing.assert_close(ours.cuda()(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
