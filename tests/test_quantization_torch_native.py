"""torch.ao behind one door: dynamic, static, QAT; reloaded files; where torch has none."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from compress.errors import DataError, InputError, ModelError, QuantizationError
from compress.evaluation.runners import open_runner
from compress.loading.torchscript import EngineModule, engine_set, load_torchscript, save_torchscript
from compress.quantization import torch_native

ENGINES = [engine for engine in torch.backends.quantized.supported_engines if engine != "none"]
needs = {
    engine: pytest.mark.skipif(engine not in ENGINES, reason=f"this PyTorch has no engine {engine}")
    for engine in ("x86", "fbgemm", "qnnpack", "onednn")
}
every_engine = pytest.mark.parametrize("engine", [pytest.param(name, marks=mark) for name, mark in needs.items()])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(y + self.bn2(self.conv2(y)))
        return self.fc(y.mean((2, 3)))


class Branching(Residual):
    """torch.fx cannot trace it."""

    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


class Tagger(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding, self.rnn, self.head = nn.Embedding(50, 16), kind(16, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0])


@pytest.fixture
def residual():
    torch.manual_seed(0)
    return Residual().eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 12, 12, generator=generator), torch.zeros(8, dtype=torch.long)) for _ in range(3)]


def close(result, expected, share=0.05):
    return float((result - expected).abs().max()) < share * float(expected.abs().max())


@every_engine
def test_static_runs_in_int8_and_reloads(residual, engine, tmp_path):
    state = copy.deepcopy(residual.state_dict())
    before = torch.backends.quantized.engine
    step = torch_native.quantize_static(residual, batches(), engine=engine)
    assert {change.layer for change in step.done} == {"conv1", "conv2", "fc"} and not step.skipped
    assert any("deprecated" in note for note in step.notes)
    x = batches()[0][0]
    result = step.model(x)
    assert close(result, residual(x)) and not torch.equal(result, residual(x))
    path = save_torchscript(step.model, tmp_path / "m.torchscript", (x[:2],))
    loaded = load_torchscript(path)
    assert loaded.engine == engine and torch.equal(loaded(x), result)
    assert torch.equal(open_runner(path)(x[:3])[0], result[:3])
    assert torch.backends.quantized.engine == before
    assert all(torch.equal(value, state[key]) for key, value in residual.state_dict().items())


def test_static_is_the_arithmetic_of_a_reference():
    """One linear layer, by hand: quantize input, weight per channel, integer sum, quantize output."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4)).eval()
    x = torch.randn(16, 6)
    quantized = torch_native.quantize_static(module, [x], engine="x86").model
    layer = quantized.module.get_submodule("0")
    scale, zero = getattr(quantized.module, "0_input_scale_0"), getattr(quantized.module, "0_input_zero_point_0")
    codes = torch.clamp(torch.round(x / scale) + zero, 0, 255)
    weight = layer.weight()
    products = ((codes - zero) * scale) @ weight.dequantize().T + layer.bias()
    expected = (
        torch.clamp(torch.round(products / layer.scale) + layer.zero_point, 0, 255) - layer.zero_point
    ) * layer.scale
    assert float((quantized(x) - expected).abs().max()) <= layer.scale * 1.01


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(("weight_type", "share"), [("int8", 0.05), ("float16", 2e-3)])
def test_dynamic_recurrent(kind, weight_type, share, tmp_path):
    torch.manual_seed(0)
    module, tokens = Tagger(kind).eval(), torch.randint(0, 50, (3, 7))
    step = torch_native.quantize_dynamic(module, weight_type=weight_type)
    assert {change.layer for change in step.done} == {"rnn", "head"}
    assert [change.layer for change in step.skipped] == ["embedding"]
    result, expected = step.model(tokens), module(tokens)
    assert close(result, expected, share) and not torch.equal(result, expected)
    path = save_torchscript(step.model, tmp_path / "m.torchscript", (tokens[:2],))
    assert torch.equal(load_torchscript(path)(tokens), result)


def test_dynamic_choices():
    module = Tagger(nn.LSTM).eval()
    done = lambda **options: {c.layer for c in torch_native.quantize_dynamic(module, **options).done}  # noqa: E731
    assert done(op_types=["Linear"]) == {"head"}
    assert done(exclude=["head"]) == {"rnn"}
    with pytest.raises(QuantizationError, match="no dynamic layer type 'Linaer'; did you mean 'Linear'"):
        done(op_types=["Linaer"])
    with pytest.raises(QuantizationError, match=r"no dynamic weight type 'uint8'.*"):
        done(weight_type="uint8")
    with pytest.raises(InputError, match="exclude 'haed' is no layer of Tagger; did you mean 'head'"):
        done(exclude=["haed"])
    with pytest.raises(QuantizationError, match=r"has no Linear, LSTM or GRU.*use runtime onnx"):
        torch_native.quantize_dynamic(nn.Sequential(nn.Conv2d(3, 4, 3)))


@needs["qnnpack"]
def test_what_an_engine_lacks_names_the_onnx_path():
    with pytest.raises(
        QuantizationError, match=r"'qnnpack' has no float16 linear layer.*runtime onnx weight_type float16"
    ):
        torch_native.quantize_dynamic(Tagger(nn.LSTM), weight_type="float16", engine="qnnpack")


def test_unknown_engines():
    with pytest.raises(InputError, match=r"no quantized engine 'fbgem'; did you mean 'fbgemm'.*runtime onnx"):
        torch_native.quantize_dynamic(Tagger(nn.LSTM), engine="fbgem")


def test_when_torch_removes_it(monkeypatch, residual):
    monkeypatch.setattr(torch_native, "MISSING", "No module named 'torch.ao'")
    with pytest.raises(QuantizationError, match=r"no longer ships torch\.ao\.quantization.*use runtime onnx"):
        torch_native.quantize_static(residual, batches())


def test_excluded_layers_stay_float(residual):
    step = torch_native.quantize_static(residual, batches(), exclude=["conv2"])
    assert {change.layer for change in step.done} == {"conv1", "fc"}
    assert [(change.layer, change.reason) for change in step.skipped] == [("conv2", "excluded by name")]
    assert close(step.model(batches()[0][0]), residual(batches()[0][0]))


def test_eager_where_fx_cannot_trace(tmp_path):
    torch.manual_seed(0)
    module, x = Branching().eval(), batches()[0][0]
    step = torch_native.quantize_static(module, batches())
    assert any("torch.fx cannot trace the module" in note and "eager" in note for note in step.notes)
    assert {change.layer for change in step.done} == {"conv1", "conv2", "fc"}
    assert close(step.model(x), module(x))
    path = save_torchscript(step.model, tmp_path / "m.torchscript", (x,))
    assert torch.equal(load_torchscript(path)(x), step.model(x))


@pytest.mark.parametrize("build", [Residual, Branching])
def test_qat_trains_and_converts(build):
    torch.manual_seed(0)
    module, x = build().eval(), batches()[0][0]
    target = torch.randn(8, 4)
    before = copy.deepcopy(module.state_dict())
    prepared = torch_native.prepare_qat(module, x)
    optimizer = torch.optim.SGD(prepared.module.parameters(), lr=0.05)
    losses = []
    prepared.module.train()
    for step in range(12):
        if step == 8:
            torch_native.freeze_module(prepared.module)
        loss = nn.functional.mse_loss(prepared.module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    step = torch_native.convert(prepared, x)
    prepared.module.eval()
    with torch.no_grad():
        assert close(step.model(x), prepared.module(x), 0.1)
    assert {change.layer for change in step.done} == {"conv1", "conv2", "fc"}
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_calibration_data_is_checked(residual):
    with pytest.raises(DataError, match="calibration data is empty"):
        torch_native.quantize_static(residual, [])
    with pytest.raises(DataError, match="holds NaN or infinity"):
        torch_native.quantize_static(residual, [torch.randn(2, 3, 8, 8), torch.full((2, 3, 8, 8), float("nan"))])


def test_nothing_that_torch_could_quantize():
    with pytest.raises(QuantizationError, match="nothing to quantize; use runtime onnx"):
        torch_native.quantize_static(nn.Sequential(nn.ReLU()), [torch.randn(2, 3)])


def test_the_engine_comes_back_after_an_exception():
    before = torch.backends.quantized.engine
    other = next(engine for engine in ENGINES if engine != before)
    with pytest.raises(ZeroDivisionError), engine_set(other):
        assert torch.backends.quantized.engine == other
        _ = 1 / 0
    assert torch.backends.quantized.engine == before


def test_files_that_are_not_ours(tmp_path):
    with pytest.raises(ModelError, match=r"absent\.torchscript' does not exist"):
        load_torchscript(tmp_path / "absent.torchscript")
    (tmp_path / "bad.torchscript").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="not written by compress, or is truncated"):
        load_torchscript(tmp_path / "bad.torchscript")
    whole = save_torchscript(EngineModule(nn.Linear(3, 2), ENGINES[0]), tmp_path / "whole.torchscript", (1, 3))
    (tmp_path / "cut.torchscript").write_bytes(whole.read_bytes()[:-200])
    with pytest.raises(ModelError, match=r"cut\.torchscript"):
        load_torchscript(tmp_path / "cut.torchscript")


def test_the_command(tmp_path, residual):
    from compress.pipeline.inputs import DataSource, ModelSource, Settings
    from compress.pipeline.outputs import Output
    from compress.pipeline.quantize import quantize
    from compress.pipeline.quantize_options import QuantizeOptions

    x, y = torch.rand(60, 12, 12, 3).mul(255).byte().numpy(), torch.randint(0, 4, (60,)).numpy()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    report = quantize(
        ModelSource(residual),
        DataSource(str(tmp_path / "data.npz"), batch_size=10),
        output=Output(tmp_path / "out"),
        options=QuantizeOptions(method="static", runtime="torch"),
        settings=Settings(quiet=True),
    )
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {"Residual float32", "int8 (x86)"}
    row = rows["int8 (x86)"]
    assert row.size_bytes == (tmp_path / "out" / "model.torchscript").stat().st_size
    assert row.p50_ms is not None and row.top1 is not None and row.agreement is not None and row.parameters is None
    assert (tmp_path / "out" / "report.json").is_file()
    with pytest.raises(InputError, match="chooses no op_types with method static"):
        quantize(
            ModelSource(residual),
            DataSource(str(tmp_path / "data.npz")),
            output=Output(tmp_path / "none"),
            options=QuantizeOptions(method="static", runtime="torch", op_types=("Conv",)),
        )
    qat = quantize(
        ModelSource(residual),
        DataSource(str(tmp_path / "data.npz"), batch_size=10),
        output=Output(tmp_path / "qat"),
        options=QuantizeOptions(method="qat", runtime="torch", epochs=2),
        settings=Settings(quiet=True),
    )
    assert any("trained for 2 epochs" in note for note in qat.notes)
    graph_message = "is an ONNX graph, which PyTorch cannot quantize; use runtime onnx"
    from compress.graph.exporting import export

    with pytest.raises(InputError, match=graph_message):
        quantize(
            ModelSource(export(residual, torch.randn(2, 3, 12, 12)).model),
            DataSource(str(tmp_path / "data.npz")),
            output=Output(tmp_path / "other"),
            options=QuantizeOptions(method="static", runtime="torch"),
        )
