"""QAT from calibration to the file: structure, agreement with ONNX Runtime, schedule, reloading, pruning, DDP."""

import copy
import socket

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from compress.errors import ExportError, QuantizationError
from compress.graph.exporting import export
from compress.onnx_files import save_onnx
from compress.quantization.fake_quantize import BiasFakeQuantize, WeightFakeQuantize
from compress.quantization.qat import QATSchedule, convert, fake_quantizers, freeze_ranges, prepare_qat
from compress.quantization.static import quantize_static
from compress.runtimes.onnxruntime import Session


class Tiny(nn.Module):
    """Convolution, ReLU6, depthwise, residual addition, concatenation, pooling, linear."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish())
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        y = torch.relu(self.point(self.depth(x)) + x)
        return self.head(torch.cat([x, y], 1).mean((2, 3)))


def batches(count=4, size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, 8, 8, generator=generator), torch.randint(0, 5, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    module = Tiny()
    for x, _ in batches():
        module(x)  # batch-norm statistics of its own
    return export(module.eval(), (torch.randn(2, 3, 8, 8),)).model


def train(module, steps=8, lr=0.01, seed=0):
    optimizer = torch.optim.SGD(module.parameters(), lr, momentum=0.9)
    losses = []
    for index in range(steps):
        x, target = batches(seed=seed)[index % 4]
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def structure(graph):
    return [(node.op_type, len(node.inputs)) for node in graph.graph]


@pytest.mark.parametrize("scales", ["learned", "observed", "fixed"])
def test_converted_graph_is_the_static_one_and_agrees(graph, scales):
    module = prepare_qat(graph, batches(), scales=scales, target="any")
    losses = train(module, 24)
    assert losses[-1] < losses[0]
    step = convert(module)
    static = quantize_static(graph, batches(), target="any")
    assert structure(step.model) == structure(static.model)
    assert {value.dtype for value in step.model.graph.initializers.values()} >= {ir.DataType.INT8, ir.DataType.INT32}
    found = step.changes[-1].values
    assert found["samples"] == 64
    assert found["top1_agreement"] >= 0.98
    assert found["largest_steps"] <= 2
    assert "ONNX Runtime against the trained module on 64 samples" in step.notes[-1]


def test_before_training_it_is_the_static_graph(graph):
    module = prepare_qat(graph, batches(), target="any").eval()
    (static,) = Session(quantize_static(graph, batches(), target="any").model).run(batches()[0][0])
    with torch.no_grad():
        ours = module(batches()[0][0]).numpy()
    assert np.abs(ours - static).max() <= 2 * (ours.max() - ours.min()) / 255


def test_biases_round_as_the_file_rounds_them(graph):
    """Only ties of float32 sums may differ: far under what a bias left in float would make."""
    module = prepare_qat(graph, batches(), target="any")
    train(module, 8)
    shipped = convert(module).model
    (theirs,) = Session(shipped, optimize=False).run(batches()[0][0])
    with torch.no_grad():
        ours = module.eval()(batches()[0][0]).numpy()
        for part in module.modules():
            if isinstance(part, BiasFakeQuantize):
                part.forward = lambda bias: bias
        unrounded = module(batches()[0][0]).numpy()
    assert np.abs(ours - theirs).mean() < np.abs(unrounded - theirs).mean() / 2


def test_agreement_is_measured_not_assumed(graph):
    """The comparison fails on a module that differs from the graph."""
    from compress.quantization.qat import agreement

    module = prepare_qat(graph, batches(), target="any")
    shipped = convert(module).model
    with torch.no_grad():
        module._parameters[module.names["head.bias"]][0] += 5
    found = agreement(module, shipped, batches())
    assert not found.holds
    assert found.steps > 2
    assert "more than expected" in found.sentence()


def test_learning_wins_back_what_four_bits_lose(graph):
    """Weights of 4 bits: training moves outputs towards the float model's, scales are learned, codes fit."""
    wanted = [torch.from_numpy(Session(graph).run(x)[0]) for x, _ in batches()]
    module = prepare_qat(graph, batches(), weight_bits=4, target="any")

    def distance(part):
        with torch.no_grad():
            return sum(float((part(x) - y).square().mean()) for (x, _), y in zip(batches(), wanted))

    before = distance(module)
    optimizer = torch.optim.SGD(module.parameters(), 5e-3, momentum=0.9)
    for index in range(120):
        optimizer.zero_grad()
        (module(batches()[index % 4][0]) - wanted[index % 4]).square().mean().backward()
        optimizer.step()
    assert distance(module) < before / 3
    moved = [part for part in module.quantizers.values() if part.scales == "learned"]
    assert any(not torch.allclose(part.ratio, torch.ones(())) for part in moved)
    shipped = convert(module).model
    codes = [v.const_value.numpy() for v in shipped.graph.initializers.values() if v.dtype == ir.DataType.INT4]
    weights = [array.astype(np.int8) for array in codes if array.ndim > 1]
    assert len(weights) == 4
    assert max(int(np.abs(array).max()) for array in weights) == 7


def test_works_for_an_onnx_file(graph, tmp_path):
    path = save_onnx(graph, tmp_path / "foreign.onnx")
    before = path.read_bytes()
    module = prepare_qat(path, batches(), target="any")
    train(module, 4)
    assert convert(module).changes[-1].values["largest_steps"] <= 2
    assert path.read_bytes() == before


def test_input_is_not_touched(graph):
    before = ir.to_proto(graph).SerializeToString()
    module = prepare_qat(graph, batches(), target="any")
    state = copy.deepcopy(module.state_dict())
    convert(module)
    assert ir.to_proto(graph).SerializeToString() == before
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_pruned_weights_and_channels_survive(graph):
    pruned = graph.clone()
    for name in ("point.weight", "head.weight"):
        value = next(v for k, v in pruned.graph.initializers.items() if k.startswith(name))
        array = value.const_value.numpy().copy()
        array[np.abs(array) < np.quantile(np.abs(array), 0.5)] = 0
        value.const_value = ir.Tensor(array, name=value.name)
    module = prepare_qat(pruned, batches(), target="any")
    train(module, 8, lr=0.1)
    shipped = convert(module).model
    for name in ("point.weight", "head.weight"):
        codes = next(
            v.const_value.numpy()
            for k, v in shipped.graph.initializers.items()
            if k.startswith(name) and v.dtype == ir.DataType.INT8
        )
        assert (codes == 0).mean() >= 0.5


def test_schedule_freezes_ranges_and_begins_rounding(graph):
    module = prepare_qat(graph, batches(), scales="observed", target="any")
    schedule = QATSchedule(freeze_ranges_from=2, quantize_from=1)
    float_output = torch.from_numpy(Session(graph).run(batches()[0][0])[0])
    scales = []
    for epoch in range(4):
        schedule.apply(module, epoch)
        if epoch == 0:  # nothing is rounded yet
            torch.testing.assert_close(module(batches()[0][0]), float_output, rtol=1e-3, atol=1e-4)
        train(module, 4, seed=epoch)
        scales.append({name: part.scale.clone() for name, part in module.quantizers.items()})
    assert any(not torch.equal(scales[0][name], scales[1][name]) for name in scales[0])
    assert all(torch.equal(scales[2][name], scales[3][name]) for name in scales[0])
    freeze_ranges(module)
    assert not any(part.observing for part in fake_quantizers(module))


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_saved_and_reloaded_mid_training(graph, scales):
    def run(module, optimizer, steps):
        for x, target in batches()[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(module(x), target).backward()
            optimizer.step()

    first = prepare_qat(graph, batches(), scales=scales, target="any")
    optimizer = torch.optim.SGD(first.parameters(), 0.01, momentum=0.9)
    run(first, optimizer, 3)
    QATSchedule(freeze_ranges_from=0).apply(first, 0)
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    run(first, optimizer, 4)
    second = prepare_qat(graph, batches(seed=5), scales=scales, target="any")  # other ranges
    other = torch.optim.SGD(second.parameters(), 0.01, momentum=0.9)
    second.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    run(second, other, 4)
    for name, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=0)
    x = batches()[0][0]
    torch.testing.assert_close(second(x), first(x), rtol=0, atol=0)


def test_copy_shares_the_calibration_and_nothing_else(graph):
    class Loader(list):
        def __deepcopy__(self, memo):
            raise AssertionError("the data was copied")

    module = prepare_qat(graph, Loader(batches()), target="any")
    duplicate = copy.deepcopy(module)
    assert duplicate.calibration is module.calibration
    train(duplicate, 2)
    assert not torch.equal(next(duplicate.parameters()), next(module.parameters()))


def test_one_grid_for_tensors_that_share_a_scale(graph):
    module = prepare_qat(graph, batches(), target="any")
    weights = [part for part in module.quantizers.values() if isinstance(part, WeightFakeQuantize)]
    assert len(weights) == 4
    assert all(part.unit.dim() == 1 for part in weights)  # per channel
    names = [name for name, _ in module.named_parameters() if name.endswith("ratio")]
    assert len(names) == len([part for part in module.quantizers.values() if part.scales == "learned"])


def test_what_convert_and_prepare_refuse(graph):
    with pytest.raises(QuantizationError, match="convert takes what prepare_qat returned, got Linear"):
        convert(nn.Linear(2, 2))
    with pytest.raises(QuantizationError, match="unknown scales 'learn'; did you mean 'learned'"):
        prepare_qat(graph, batches(), scales="learn")


# --- two processes against one ---


def _port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _steps(module, share, scales):
    """Train four steps; return what the state was after the first, and at the end."""
    # Ranges alone are compared over all steps: rounding makes weights that differ in the last bit drift apart.
    optimizer = torch.optim.SGD(module.parameters(), 0.0 if scales == "observed" else 0.01, momentum=0.9)
    states = []
    for index, (x, target) in enumerate(batches()):
        optimizer.zero_grad()
        F.cross_entropy(module(x[share]), target[share]).backward()
        optimizer.step()
        if index == 2:
            freeze_ranges(module)
        values = getattr(module, "module", module).state_dict().items()
        states.append({name: value.numpy().copy() for name, value in values if "extra" not in name})
    return states[0], states[-1]


def _rank(rank, module, port, answers, scales):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    # A copy: torch's processes share the memory of the tensors that they are handed.
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(module))
    answers.put((rank, _steps(wrapped, slice(rank, None, 2), scales)))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_two_processes_as_one(graph, scales):
    module = prepare_qat(graph, batches(), scales=scales, target="any")
    context, port = mp.get_context("spawn"), _port()
    answers = context.Queue()
    workers = [context.Process(target=_rank, args=(rank, module, port, answers, scales)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(answers.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(60)
    before = copy.deepcopy(module.state_dict())
    alone = _steps(module, slice(None), scales)
    for index in range(2):
        for name, value in found[0][index].items():  # both ranks: the same to the last bit
            np.testing.assert_array_equal(value, found[1][index][name], err_msg=name)
    compared = 1 if scales == "observed" else 0
    for name, value in alone[compared].items():
        np.testing.assert_allclose(found[0][compared][name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    key = "unit" if scales == "observed" else "ratio"
    moved = [n for n, v in before.items() if n.endswith(key) and not np.array_equal(v.numpy(), alone[1][n])]
    assert len(moved) > 5


class PreActivation(nn.Module):
    """A batch-norm first, and one that two readers share: neither can be folded into a layer before it."""

    def __init__(self):
        super().__init__()
        self.first_norm, self.first = nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.conv, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x):
        h = self.first(self.first_norm(x))
        return self.head((h + self.conv(torch.relu(self.norm(h)))).mean((2, 3)))


@pytest.mark.parametrize("fresh", [True, False])
def test_batchnorm_that_cannot_be_folded_is_trained(fresh):
    """Of a fresh one mean and bias are equal, stored once by the exporter, and must not be trained together."""
    torch.manual_seed(0)
    net, x = PreActivation(), torch.randn(16, 3, 8, 8)
    if not fresh:
        for _ in range(5):
            net(x * 2 + 1)
    module = prepare_qat(net.eval(), [x])
    statistics = {name: value.clone() for name, value in module.named_buffers()}
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (module(x) - 1).square().mean().backward()
        optimizer.step()
    assert all(
        torch.equal(value, statistics[name])
        for name, value in module.named_buffers()
        if "running" in name or "statistics" in name
    )
    assert any("statistics" in name or "running" in name for name in statistics)
    assert "the same first class on 100.0%" in convert(module).notes[-1]


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.head(F.dropout(torch.relu(self.first(x)), 0.5, training=True))


def test_a_model_that_draws_random_numbers_is_told_in_one_line():
    with pytest.raises(
        ExportError, match=r"Noisy gives other outputs each time it is called .* make them depend on self.training"
    ):
        prepare_qat(Noisy().eval(), [torch.randn(16, 8)])


def test_rounding_that_grows_through_a_deep_network_is_told_from_a_fault():
    """ONNX Runtime's own two executions of one deep file part by steps; the module must be no further off than they are."""
    from compress.quantization.qat import agreement
    from compress.quantization.static import fold_weights

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 16, 3, padding=1)]
    for _ in range(14):
        layers += [torch.nn.ReLU(), torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)]
        torch.nn.init.normal_(layers[-1].weight, std=0.118)  # keeps the size of the signal
    net = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(16 * 64, 10)).eval()
    x = torch.randn(16, 3, 8, 8)
    module = prepare_qat(net, [x], target="any").eval()
    graph = fold_weights(module.write_back())
    found = agreement(module, graph, [x])
    assert found.rounding > 0 and found.by_rounding and found.holds, found
    with torch.no_grad():
        next(p for p in module.parameters() if p.ndim == 4).mul_(1.05)
    wrong = agreement(module, graph, [x])
    assert not wrong.holds and wrong.distance > 2 * found.distance, (found, wrong)
