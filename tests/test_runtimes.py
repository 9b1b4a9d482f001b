"""Runtimes: one interface, a table, files made for one that give the right answers in the other."""

import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gated_block import GatedBlock
from torch import nn

import compress
from compress.batches import Batch
from compress.errors import InputError, ModelError
from compress.loading.torchscript import save_torchscript
from compress.quantization import torch_native
from compress.quantization.executed import _error_db
from compress.runtimes.runtime import RUNTIMES, Runtime, find_runtime, names, others_installed

ROOT = Path(__file__).parents[1]
OF_GRAPHS = [name for name, runtime in RUNTIMES.items() if runtime.reads_graphs]
installed = pytest.mark.skipif(not RUNTIMES["openvino"].installed(), reason="OpenVINO is not installed")


# What OpenVINO fuses when it is left whole.
Block = functools.partial(GatedBlock, nn.functional.silu)


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 12, 12)
    return compress.export(Block().eval(), x[:2]).model, x


def test_unknown_runtimes_are_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'openvino'"):
        find_runtime("openvno")
    assert find_runtime("onnx").name == "onnxruntime"


def test_a_runtime_that_is_not_there_names_what_installs_it():
    absent = Runtime("absent", "compress.runtimes.absent", "no_such_package", "absent", "none")
    with pytest.raises(InputError, match=r"pip install 'torch-compress\[absent\]'"):
        absent.open("model.onnx")


def test_every_runtime_is_one_module_with_the_same_small_interface():
    """What the table promises of a door: opened by name, run by one batch, timed, its precisions told."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.randn(2, 3, 6, 6)
    graph = compress.export(module, x).model
    for name, runtime in RUNTIMES.items():
        if not runtime.installed():
            continue
        model = graph if runtime.reads_graphs else module
        session = runtime.open(model, threads=1, profile=True)
        batch = Batch.of(x)
        assert np.allclose(session.run(batch)[0], module(x).detach().numpy(), atol=1e-5), name
        assert len(session.in_order(batch)) == len(session.input_names) == len(session.output_names) == 1
        assert session.fixed_batch is None
        rows = session.profile()
        assert any("conv" in row["op_type"].lower() and row["microseconds"] > 0 for row in rows), (name, rows)
        assert "f32" in runtime.precisions(model).values(), name
        assert runtime.version() and runtime.title


def test_torch_is_a_row_that_runs_modules_and_their_files(tmp_path):
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    x = torch.randn(3, 4)
    step = torch_native.quantize_dynamic(module, engine=torch.backends.quantized.supported_engines[-1])
    path = save_torchscript(step.model, tmp_path / "m.torchscript", x)
    torchs = find_runtime("torch")
    assert np.allclose(torchs.open(path).run(x)[0], step.model(x).detach().numpy(), atol=1e-5)
    assert set(torchs.precisions(step.model).values()) == {"i8"}
    assert "torch" not in others_installed() and "torch" not in names(graphs_only=True)
    with pytest.raises(InputError, match=r"runs modules, .pt2 and .torchscript files, not 'm.onnx'"):
        torchs.open("m.onnx")
    onnx = compress.save_onnx(compress.export(module, x).model, tmp_path / "m.onnx")
    settings = compress.Settings(runtime="torch", threads=1)
    source = compress.ModelSource(path, input_shape=(3, 4))
    assert [row.extra["runtime"] for row in compress.compare([source], rounds=5, settings=settings).rows] == ["torch"]
    with pytest.raises(InputError, match="is an ONNX graph"):
        compress.compare([onnx], rounds=5, settings=settings)


@installed
def test_both_runtimes_give_the_float_models_outputs(block):
    graph, x = block
    first, second = (find_runtime(name).open(graph, threads=1) for name in OF_GRAPHS)
    assert first.input_names == second.input_names and first.output_names == second.output_names
    assert first.fixed_batch is second.fixed_batch is None
    assert np.allclose(first.run(x)[0], second.run(x)[0], atol=1e-5)


@installed
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_made_for_one_runs_right_in_both(block, runtime):
    graph, x = block
    step = compress.quantize_static(graph, [x], target="any", runtime=runtime, accuracy="fast")
    wanted = find_runtime("onnxruntime").open(graph).run(x)
    for name in OF_GRAPHS:
        assert _error_db(wanted, find_runtime(name).open(step.model, threads=1).run(x)) > 25, name


@installed
def test_openvinos_placement_leaves_whole_what_it_fuses(block):
    graph, x = block
    step = compress.quantize_static(graph, [x], target="any", runtime="openvino", accuracy="fast")
    for node in step.model.graph:
        if node.op_type in ("Sigmoid", "Mul"):  # between a convolution and its activation stands no pair
            assert all(value.producer().op_type != "DequantizeLinear" for value in node.inputs)
    (add,) = [node for node in step.model.graph if node.op_type == "Add"]
    makers = [value.producer().op_type for value in add.inputs]
    assert makers == ["DequantizeLinear"] * 2  # behind one convolution alone: in float there it would not be part of it
    session = find_runtime("openvino").open(step.model, threads=1)
    kinds = {
        name: kind
        for name, kind in session.precisions().items()
        if name.partition("/")[0] in ("stem", "first", "second") and "Conv" in name
    }
    assert kinds and set(kinds.values()) <= {"u8", "i8"}


class Residual(torch.nn.Module):
    """A stem with its pool, an identity block, a block with a convolution on the skip, a gate, a mean: what OpenVINO fuses."""

    def __init__(self):
        super().__init__()
        names = ("stem", "a", "b", "c", "d", "side", "gate", "last")
        for name in names:
            wide, kernel = (3 if name == "stem" else 16), (1 if name in ("side", "gate") else 3)
            setattr(self, name, torch.nn.Conv2d(wide, 16, kernel, padding=kernel // 2))
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.stem(x)), 2)
        x = torch.relu(self.b(torch.relu(self.a(x))) + x)
        x = self.d(torch.relu(self.c(x))) + self.side(x)
        x = torch.nn.functional.silu(self.last(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    return Residual().eval(), torch.randn(8, 3, 24, 24, generator=torch.Generator().manual_seed(1))


@installed
@pytest.mark.parametrize("target", ["any", "x86-vnni"])
def test_no_convolution_of_openvino_hands_on_floats_that_are_quantized_behind_it(residual, target):
    module, x = residual
    step = compress.quantize_static(module, [x], target=target, runtime="openvino", accuracy="fast")
    session = find_runtime("openvino").open(step.model, threads=1)
    ran = {
        node.get_friendly_name(): node
        for node in session._request.get_compiled_model().get_runtime_model().get_ordered_ops()
    }
    kinds = {name: str(node.get_rt_info()["layerType"].astype(str)) for name, node in ran.items()}
    written = {
        name.partition("/")[0]: ran[name].output(0).get_element_type().get_type_name()
        for name, kind in kinds.items()
        if kind in ("Convolution", "Pooling", "Reduce")
    }
    assert {written[name] for name in ("stem", "a", "b", "c", "d", "side", "last")} <= {"u8", "i8"}, written
    alone = [name for name, kind in kinds.items() if kind in ("Eltwise", "Subgraph") and "Add" in name]
    assert not alone  # every addition is part of a convolution
    wanted = module(x).detach().numpy()
    assert _error_db((wanted,), session.run(x)) > 28


def test_tensors_that_are_nearly_even_about_zero_have_no_zero_point_for_openvino(residual):
    module, x = residual
    kinds = {}
    for target in ("any", "x86-vnni"):
        step = compress.quantize_static(module, [x], target=target, runtime="openvino", accuracy="fast")
        first = next(node for node in step.model.graph if node.op_type == "QuantizeLinear")
        codes = {n.inputs[2].const_value.numpy().dtype.name for n in step.model.graph if n.op_type == "QuantizeLinear"}
        kinds[target] = (first.inputs[2].const_value.numpy(), codes)
    assert kinds["any"][0].dtype == np.uint8 and kinds["any"][1] == {"uint8"}
    assert kinds["x86-vnni"][0] == 0 and kinds["x86-vnni"][1] == {"int8", "uint8"}  # what a Relu leaves stays unsigned


@installed
def test_products_along_both_axes_of_their_weights_run_in_int8_in_openvino():
    """Weights that share one initializer of zero points along different axes ran in float."""
    torch.manual_seed(0)

    class Products(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.first, self.second = (
                torch.nn.Conv2d(3, 32, 4, 4),
                *(torch.nn.Linear(32, 32) for _ in "12"),
            )

        def forward(self, x):
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.second(torch.relu(self.first(tokens)).mean(1))

    module, x = Products().eval(), torch.randn(8, 3, 16, 16)
    step = compress.quantize_static(module, [x], target="x86-vnni", runtime="openvino", accuracy="fast")
    zeros = [n for n in step.model.graph if n.op_type == "DequantizeLinear" and n.inputs[0].is_initializer()]
    assert zeros and all(len(n.inputs) == 2 or n.inputs[2] is None for n in zeros)
    wanted = module(x).detach().numpy()
    for name in ("onnxruntime", "openvino"):
        assert _error_db((wanted,), find_runtime(name).open(step.model, threads=1).run(x)) > 25, name
    found = find_runtime("openvino").open(step.model, threads=1).precisions()
    layers = {name: kind for name, kind in found.items() if "MatMul" in name or "Gemm" in name}
    assert layers and set(layers.values()) <= {"u8", "i8"}, layers


@installed
def test_profiles_name_the_layers(block):
    graph, x = block
    session = find_runtime("openvino").open(graph, threads=1, profile=True)
    session.run(x)
    assert any("Conv" in row["op_type"] for row in session.profile())
    with pytest.raises(InputError, match="profile=True"):
        find_runtime("openvino").open(graph).profile()


@installed
def test_what_openvino_cannot_read_is_one_line(tmp_path, block):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"not a model")
    with pytest.raises(ModelError) as caught:
        find_runtime("openvino").open(bad)
    assert "\n" not in str(caught.value) and "bad.onnx" in str(caught.value)
    with pytest.raises(InputError, match="takes 1 input"):
        find_runtime("openvino").open(block[0]).run(*block)


@installed
@pytest.mark.parametrize("runtime", ["openvino", "auto"])
def test_quantize_for_a_runtime_says_what_ran(tmp_path, block, runtime):
    graph, x = block
    compress.save_onnx(graph, tmp_path / "f.onnx")
    np.savez(tmp_path / "d.npz", x=x.repeat(4, 1, 1, 1).numpy(), y=np.arange(64) % 4)
    done = subprocess.run(
        [sys.executable, "-m", "cli", "quantize", "f.onnx", "--data", "d.npz", "--runtime", runtime, "-o", "q", "-q"],
        cwd=tmp_path,
        env={**__import__("os").environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "q" / "report.json").read_text())["rows"]
    assert {row["extra"]["runtime"] for row in rows} == {"onnxruntime", "openvino"} and len(rows) == 3
    assert "runtime" in done.stdout.splitlines()[0] and "openvino" in done.stdout


@installed
def test_compare_in_both_runtimes(tmp_path, block):
    path = compress.save_onnx(block[0], tmp_path / "f.onnx")
    settings = compress.Settings(runtime="auto", threads=1)
    report = compress.compare([path], rounds=5, settings=settings)
    assert [row.extra["runtime"] for row in report.rows] == ["onnxruntime", "openvino"]
    source = compress.ModelSource(Block(), input_shape=(2, 3, 12, 12))
    with pytest.raises(InputError, match="openvino runs ONNX files"):
        compress.compare([source], rounds=5, settings=compress.Settings(runtime="openvino"))


@installed
def test_float_layers_in_another_precision_by_option_and_said_in_every_row(tmp_path, block, monkeypatch):
    from compress.runtimes import openvino

    path = compress.save_onnx(block[0], tmp_path / "f.onnx")
    asked = []
    start = openvino.Session.__init__

    def noted(self, model, *, float_precision="float32", **options):
        asked.append(float_precision)
        start(self, model, float_precision=float_precision, **options)

    monkeypatch.setattr(openvino.Session, "__init__", noted)
    monkeypatch.setattr(openvino, "float_precisions", lambda: ("float32", "bf16"))
    settings = compress.Settings(runtime="auto", threads=1, float_precision="bf16")
    report = compress.compare([path], rounds=5, settings=settings)
    told = [(row.extra["runtime"], row.extra["float_precision"]) for row in report.rows]
    assert told == [("onnxruntime", "float32"), ("openvino", "bf16")] and set(asked) == {"bf16"}
    assert "openvino, bf16" in report.table()
    with pytest.raises(InputError, match="float_precision fp16 is not offered by runtime openvino: this processor"):
        compress.compare([path], settings=compress.Settings(runtime="openvino", float_precision="fp16"))
    with pytest.raises(InputError, match=r"float_precision bf16 is not offered by runtime onnxruntime: .* ARM"):
        compress.compare([path], settings=compress.Settings(float_precision="bf16"))
    with pytest.raises(InputError, match="float_precision fp16 is not offered by"):
        compress.quantize(path, output=tmp_path / "q", settings=compress.Settings(float_precision="fp16"))
    with pytest.raises(InputError, match="did you mean 'bf16'"):
        compress.Settings(float_precision="b16")


@installed
def test_openvino_computes_in_the_precision_that_is_asked_for(block):
    graph, x = block
    runtime = find_runtime("openvino")
    exact = runtime.open(graph, threads=1).run(x)
    for precision, kind in (("bf16", "bf16"), ("fp16", "f16")):
        if runtime.offers(precision):
            session = runtime.open(graph, threads=1, float_precision=precision)
            assert kind in session.precisions().values() and 25 < _error_db(exact, session.run(x)) < 90


@installed
def test_openvinos_own_files(tmp_path, block):
    from compress.pipeline.export_openvino import export_openvino

    graph, x = block
    step = compress.quantize_static(graph, [x], target="any", accuracy="fast")
    path = compress.save_onnx(step.model, tmp_path / "int8.onnx")
    report = export_openvino(path, output=tmp_path / "int8.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["int8.bin", "int8.onnx", "int8.xml"]
    assert "OpenVINO and ONNX Runtime agree" in report.notes[-1]
    wanted = find_runtime("onnxruntime").open(path).run(x)
    assert _error_db(wanted, find_runtime("openvino").open(tmp_path / "int8.xml").run(x)) > 25
    with pytest.raises(InputError, match=r"does not end in \.xml"):
        export_openvino(path, output=tmp_path / "int8.onnx")
    with pytest.raises(InputError, match="exists already"):
        export_openvino(path, output=tmp_path / "int8.xml")


@installed
def test_a_recipe_holds_its_file_to_the_runtime_that_it_is_made_for(tmp_path):
    from compress.loading.data import open_data
    from compress.pipeline.pipeline import Pipeline
    from compress.pipeline.quantize_options import QuantizeOptions
    from compress.pipeline.stages import Export, Quantize

    np.savez(tmp_path / "data.npz", x=torch.randn(40, 3, 12, 12).numpy(), y=np.arange(40) % 4)
    data = open_data(str(tmp_path / "data.npz"), calibration_samples=16)
    pipeline = Pipeline((Export(), Quantize(QuantizeOptions(runtime="openvino", accuracy="fast", target="any"))))
    settings = compress.Settings(threads=1, runtime="openvino")
    report = pipeline.run(Block().eval(), data, output=tmp_path / "out", settings=settings)
    step = report.steps[-1]
    actions = {str(c.values["node"]): c.action for c in step.changes if not c.skipped and "node" in c.values}
    # ONNX Runtime runs `first` in float: no pair stands between it and what OpenVINO fuses behind it.
    assert actions["stem/Conv"] == actions["first/Conv"] == "runs in int8", actions
    assert not any("ONNX Runtime runs" in note for note in step.notes)


@installed
def test_openvino_gets_shapes_fixed_until_there_are_many_and_answers_the_same(block):
    graph, x = block
    session, wanted = (
        find_runtime("openvino").open(graph, threads=1),
        find_runtime("onnxruntime").open(graph, threads=1),
    )
    for samples in (2, 1, 3, 2, 4, 5, 1):
        part = x.repeat(4, 1, 1, 1)[:samples]
        assert _error_db(wanted.run(part), session.run(part)) > 90
    fixed = [shapes for shapes in session._requests if shapes]
    assert [shapes[0][0] for shapes in fixed] == [1, 2, 3] and () in session._requests
    assert session.fixed_batch is None and _error_db(wanted.run(x), session.run_free(Batch.of(x))) > 90


@installed
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="signals of Unix")
def test_signals_arrive_after_models_went_in_any_order(block, tmp_path):
    """With a core for each model, the CPU plugin left the thread a signal stack that was freed: the next signal was SIGSEGV."""
    path = compress.save_onnx(block[0], tmp_path / "m.onnx")
    code = (
        "import faulthandler, signal, sys, time\n"
        "faulthandler.enable()\n"  # handlers of Python's run on the thread's signal stack, where it has one
        "from compress.runtimes.openvino import Session\n"
        "first = Session(sys.argv[1]); second = Session(sys.argv[1]); del first; del second\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('arrived', flush=True))\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(0.2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "arrived"), done.stderr
