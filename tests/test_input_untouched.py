"""Every verb returns a new model: the one it was given is as it was, to the bit."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch
from tiny_training import TinyData
from torch import nn

import compress


class Residual(nn.Sequential):
    """x + f(x)"""

    def forward(self, x):
        return x + super().forward(x)


class Convolutions(nn.Module):
    """Batch-norm, a residual block, dropout, a frozen layer, and a head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.block = Residual(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32))
        nn.init.uniform_(self.block[1].weight, 0.5, 1.5)
        self.drop, self.head, self.auxiliary = nn.Dropout(0.1), nn.Linear(32, 4), nn.Linear(32, 4)
        self.stem[0].bias.requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.block(x)).mean((2, 3))
        out = self.head(self.drop(x))
        return out + 0.3 * self.auxiliary(x) if self.training else out


class Tokens(nn.Module):
    """Attention between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 32), nn.Linear(32, 4)
        self.block = Residual(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 32))
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x):
        return self.head(self.encoder(self.block(self.first(x))).mean(1))


MODELS = {
    "convolutions": (Convolutions, lambda count: torch.randn(count, 3, 8, 8)),
    "tokens": (Tokens, lambda count: torch.randn(count, 6, 8)),
}


def batches(x):
    return [(x(16), torch.randint(0, 4, (16,))) for _ in range(2)]


class Blobs(TinyData):
    """Training data of a model's own shape."""

    def __init__(self, x):
        self.train = self.test = torch.utils.data.TensorDataset(x(16), torch.randint(0, 4, (16,)))
        self.calibration, self.num_classes = None, 4


TRAIN = compress.TrainOptions(epochs=1, batch_size=8)
PRUNE = {
    "prune": {},
    "prune, global": {"scope": "global", "method": "batchnorm"},
    "prune, taylor": {"method": "taylor", "data": True},
    "prune, reconstruct": {"data": True, "reconstruct": True},
    "prune, macs": {"target": "macs"},
    "prune, masks": {"remove_channels": False},
    "prune, masks that stay": {"remove_channels": False, "permanent": False},
    "prune, blocks": {"target": "blocks", "data": True, "reconstruct": True},
}
VERBS = {
    **{
        name: lambda m, x, options=options: compress.prune(
            m, x(2), **{**options, **({"data": batches(x)} if "data" in options else {})}
        )
        for name, options in PRUNE.items()
    },
    "prune_iteratively": lambda m, x: compress.prune_iteratively(m, x(2), steps=2, data=batches(x), reconstruct=True),
    "fuse": lambda m, x: compress.fuse(m, x(2)),
    "export": lambda m, x: compress.export(m, x(2)),
    "quantize_dynamic": lambda m, x: compress.quantize_dynamic(m, example_inputs=(x(2),)),
    "quantize_static": lambda m, x: compress.quantize_static(m, batches(x)),
    "prepare_qat": lambda m, x: compress.prepare_qat(m, batches(x)),
    "fit": lambda m, x: compress.fit(m, Blobs(x), TRAIN),
    "fit, as teacher": lambda m, x: compress.fit(type(m)(), Blobs(x), TRAIN, teacher=m),
    "evaluate": lambda m, x: compress.evaluate(m, batches(x)),
    "benchmark": lambda m, x: compress.benchmark({"m": m}, (x(1),), rounds=5),
}


def picture(module):
    """All that a user could find changed."""
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "objects": [id(value) for value in (*module.parameters(), *module.buffers())],
        "modules": [(name, type(part), part.training) for name, part in module.named_modules()],
        "gradients": [(value.requires_grad, value.grad) for value in module.parameters()],
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()],
    }


def mixed(module):
    """In training, but for one part, as where batch-norm is frozen: a verb that sets all to one mode is found out."""
    module.train()
    module.block.eval()
    return module


@pytest.mark.parametrize(("model", "mode"), [("convolutions", mixed), ("tokens", nn.Module.eval)])
@pytest.mark.parametrize("verb", VERBS)
def test_a_module_is_as_it_was(verb, model, mode):
    torch.manual_seed(0)
    factory, x = MODELS[model]
    module = mode(factory())
    before = picture(module)
    VERBS[verb](module, x)
    after = picture(module)
    for name, value in before.pop("state").items():
        assert torch.equal(value, after["state"][name]), name
    del after["state"]
    assert before == after


GRAPH_VERBS = {
    "quantize_dynamic": lambda g, x: compress.quantize_dynamic(g),
    "quantize_static": lambda g, x: compress.quantize_static(g, batches(x)),
    "quantize_tuned": lambda g, x: compress.quantize_tuned(g, batches(x), budget_s=1),
    "prepare_qat": lambda g, x: compress.convert(compress.prepare_qat(g, batches(x))),
    "GraphModule": lambda g, x: compress.GraphModule(g)(x(2)),
    "save_onnx": None,
    "evaluate": lambda g, x: compress.evaluate(g, batches(x)),
}


@pytest.fixture(scope="module")
def graphs():
    """Each model as a graph, exported once."""
    torch.manual_seed(0)
    return {name: compress.export(factory().eval(), x(2)).model for name, (factory, x) in MODELS.items()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("verb", GRAPH_VERBS)
def test_a_graph_is_as_it_was(verb, model, graphs, tmp_path):
    graph, x = graphs[model], MODELS[model][1]
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    if verb == "save_onnx":
        compress.save_onnx(graph, tmp_path / "m.onnx")
    else:
        GRAPH_VERBS[verb](graph, x)
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before
