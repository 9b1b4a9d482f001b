"""`compress prune` from a shell: files that reload anywhere, figures, budgets, refusals."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

import compress
from cli.main import main
from compress.errors import InputError, PruningError, WeightsError
from compress.graph.sparse_storage import store_sparse
from compress.loading.fitting import fit_to_state_dict
from compress.pipeline.inputs import ModelSource
from compress.pipeline.outputs import Output
from compress.pipeline.prune import prune
from compress.pipeline.prune_options import PruneOptions
from compress.reporting.report import Report
from compress.runtimes.onnxruntime import Session
from compress.steps import Measurement

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.fixture
def place(tmp_path):
    (tmp_path / "net.py").write_text(SOURCE)
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 96)
    x = rng.integers(0, 50, (96, 8, 8)).astype(np.uint8) + (20 * y[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "data.npz", x_train=x[:64], y_train=y[:64], x_test=x[64:], y_test=y[64:])
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["prune", *map(str, arguments)], catch_exceptions=False)


def test_files_reload_and_agree(place):
    out = place / "out"
    done = run(
        f"{place}/net.py:build", "--data", place / "data.npz", "-o", out, "--finetune-epochs", 1, "--distill", "--json"
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    assert [name for name in rows if "pruned" in name] == ["pruned, not fine-tuned"]
    assert rows["model.onnx"]["macs"] < 0.4 * next(iter(rows.values()))["macs"]
    model = compress.load(f"{place}/net.py:build", weights=str(out / "weights.pt")).eval()
    assert model.a.out_channels == 16 and type(model).__name__ == "Net"
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        assert torch.allclose(torch.export.load(out / "model.pt2").module()(x), wanted, atol=1e-5)
    assert np.allclose(Session(out / "model.onnx").run(x)[0], wanted.numpy(), atol=1e-4)
    again = compress.prune(model, x[:2], amount=0.5).model
    assert again.a.out_channels == 8


def test_masks_schedule_and_sparse_storage(place):
    out = place / "out"
    done = run(
        f"{place}/net.py:build", "--data", place / "data.npz", "-o", out, "--masks", "--amount", 0.9,
        "--schedule", "agp", "--steps", 2, "--finetune-epochs", 2, "--sparse-storage", "--verbose",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "zeros alone do not speed up dense kernels" in done.stdout + done.stderr
    assert "the file is smaller and not faster" in done.stdout + done.stderr
    state = torch.load(out / "weights.pt", weights_only=True)
    assert (state["b.weight"] == 0).float().mean() == pytest.approx(0.9, abs=0.005)
    assert len(onnx.load(out / "model.onnx").graph.sparse_initializer) >= 1
    float32, stored = json.loads((out / "report.json").read_text())["rows"][::2]
    assert stored["parameters"] == float32["parameters"] and stored["macs"] == float32["macs"]
    assert stored["sparsity"] > 0.8 and "sparse_initializer" not in done.stderr


def test_latency_target_measures_the_exported_file(place, monkeypatch):
    """The clock is replaced by the size of the files: a small net's true latency is mostly the machine's noise."""

    def by_size(files, inputs, **options):
        assert inputs.samples == 1
        seen.append({name: file.stat().st_size for name, file in files.items()})
        return {name: Measurement(name, p50_ms=float(size)) for name, size in seen[-1].items()}

    seen = []
    monkeypatch.setattr("compress.pipeline.prune.benchmark", by_size)
    report = prune(
        f"{place}/net.py:build",
        f"{place}/data.npz",
        output=place / "out",
        options=PruneOptions(amount=0.3, target="latency"),
    )
    before, after = (row.size_bytes for row in report.rows)
    assert {sizes["before"] for sizes in seen} == {before} and after in {sizes["after"] for sizes in seen}
    assert after <= 0.7 * 1.03 * before and report.rows[-1].macs < report.rows[0].macs


def test_the_runtime_that_will_run_it_is_timed(place, monkeypatch):
    """Latency target and report both by the runtime that is asked for; in the others, one row more for each result."""
    seen = []

    def by_size(files, inputs, **options):
        seen.append(files)
        return {name: Measurement(name, p50_ms=float(item.model.stat().st_size)) for name, item in files.items()}

    monkeypatch.setattr("compress.pipeline.prune.benchmark", by_size)
    monkeypatch.setattr("compress.pipeline.for_runtime.crash_of", lambda runtime, path: "")
    monkeypatch.setattr("compress.pipeline.for_runtime.others_installed", lambda runtime: ["onnxruntime"])
    monkeypatch.setattr("compress.pipeline.prune.check_runtime", lambda *given: None)
    rows = []
    monkeypatch.setattr(
        "compress.pipeline.prune.closing_report", lambda job, made: rows.append(made.targets) or Report()
    )
    options = PruneOptions(amount=0.3, target="latency", runtime="openvino")
    prune(f"{place}/net.py:build", f"{place}/data.npz", output=place / "out", options=options)
    assert {item.runtime for files in seen for item in files.values()} == {"openvino"}
    assert [getattr(item, "runtime", "") for item in rows[0].values()] == ["openvino", "openvino", "onnxruntime"]
    assert list(rows[0])[1:] == ["model.onnx", "model.onnx in onnxruntime"]


def test_auto_is_the_faster_runtime_of_the_float_file(place, monkeypatch):
    from compress.pipeline import for_runtime

    monkeypatch.setattr(for_runtime, "others_installed", lambda: ["openvino"])
    times = {"onnxruntime": 2.0, "openvino": 1.0}
    monkeypatch.setattr(
        for_runtime, "benchmark", lambda targets, *_, **__: {n: Measurement(n, p50_ms=times[n]) for n in targets}
    )
    opened = compress.pipeline.inputs.open_inputs(ModelSource(f"{place}/net.py:build", input_shape=(2, 1, 8, 8)))
    best, said = for_runtime.settled_runtime("auto", place / "float.onnx", opened, 1)
    assert best == "openvino" and "onnxruntime 2 ms, openvino 1 ms" in said[0]
    assert for_runtime.settled_runtime("onnx", place / "float.onnx", opened, 1) == ("onnxruntime", ())


METRIC = """
def share(outputs, target):
    return float((outputs.argmax(1) == target).double().mean())
"""


def test_the_users_metric_chooses_the_epoch(place, monkeypatch):
    from compress.training.loop import fit

    seen = []

    def watched(*arguments, metric=None, **named):
        seen.append(metric)
        result = fit(*arguments, metric=metric, **named)
        seen.append(result.final)
        return result

    monkeypatch.setattr("compress.pipeline.prune.fit", watched)
    (place / "metric.py").write_text(METRIC)
    options = PruneOptions(finetune_epochs=1)
    source, data = f"{place}/net.py:build", f"{place}/data.npz"
    prune(source, data, output=place / "own", options=options, metric=f"max:{place}/metric.py:share")
    assert seen[0].metrics[0].name == "share" and "eval/share" in seen[1]
    prune(source, data, output=place / "plain", options=options)
    assert seen[2] is None and "eval/share" not in seen[3]


def test_verbose_lists_every_layer(place):
    done = run(f"{place}/net.py:build", "--data", place / "data.npz", "-o", place / "out", "--verbose")
    assert "32 → 16 channels" in done.stdout + done.stderr and "output of the model" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--amount", "1.5"], "amount 1.5 is outside [0, 1)"),
        (["--exclude", "heat"], "no layer is named 'heat'; did you mean 'head'?"),
        (["--macs", "0.999"], "cannot be removed: the closest reached is"),
        (["--method", "l9"], "pruning score 'l9' is unknown"),
        (["--latency", "0.5", "--macs", "0.5"], "--latency and --macs are two targets"),
        (["--macs", "0.5", "--amount", "0.3"], "--macs says target and amount at once; leave --amount out"),
        (["--macs", "0.5", "--target", "blocks"], "--macs says target and amount at once; leave --target out"),
        (["--masks", "--macs", "0.5"], "masks remove no macs"),
        (["--macs", "0.5,half"], "'half' in '0.5,half' is no number; write 0.4, or several as 0.8,0.6,0.4"),
        (["--macs", "0.5,0.5"], "amount 0.5 is given twice; give each size once"),
        (["--macs", "0.5,1.5"], "amount 1.5 is outside [0, 1)"),
        (["--amount", "0.2,0.4", "--schedule", "agp"], "--schedule agp prunes one model in steps"),
        (["--distill"], "give --finetune-epochs as well"),
        (["--lr", "0.1"], "--lr says how to fine-tune; give --finetune-epochs as well"),
        (["--steps", "3"], "pruning option steps changes nothing with schedule one-shot; leave it out"),
        (["--schedule", "lineal", "--steps", "2"], "pruning schedule 'lineal' is unknown; did you mean 'linear'?"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(place, arguments, text):
    done = run(f"{place}/net.py:build", "--data", place / "data.npz", "-o", place / "out", *arguments)
    assert done.exit_code == 2 and text in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (place / "out").exists()


def test_data_is_asked_for_where_needed(place):
    source = ModelSource(f"{place}/net.py:build", input_shape=(2, 1, 8, 8))
    for options, text in (
        (PruneOptions(finetune_epochs=1), "fine-tuning needs data"),
        (PruneOptions(method="taylor"), "score 'taylor' needs data"),
        (PruneOptions(recalibrate=True), "recalibration needs data"),
    ):
        with pytest.raises(InputError, match=text):
            prune(source, output=Output(place / "out"), options=options)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"steps": 0}, "pruning option steps must be at least 1, got 0"),
        ({"finetune_epochs": -1}, "pruning option finetune_epochs must be at least 0, got -1"),
    ],
)
def test_counts_out_of_range(values, text):
    with pytest.raises(InputError, match=text):
        PruneOptions(**values)


def test_the_command_has_an_option_for_each_field():
    """Made from the fields: what a recipe can say, the command can, with the same default."""
    from cli.prune import command as prune_command

    options = {option.name: option for option in prune_command.params}
    for field in dataclasses.fields(PruneOptions):
        assert field.name == "train" or field.name in options, field.name


def test_an_onnx_file_is_refused(place):
    model = compress.load(f"{place}/net.py:build").eval()
    compress.export(model, (torch.randn(2, 1, 8, 8),), path=place / "net.onnx")
    with pytest.raises(InputError, match=r"pruning works before export; give the PyTorch model that"):
        prune(str(place / "net.onnx"), output=place / "out")


def test_a_folder_that_exists_is_left_alone(place):
    (place / "out").mkdir()
    (place / "out" / "mine.txt").write_text("x")
    done = run(f"{place}/net.py:build", "-o", place / "out", "--input-shape", "2,1,8,8")
    assert done.exit_code == 2 and "exists already" in done.stderr


def test_recalibration_measures_statistics_of_the_data():
    from compress.pruning.recalibration import recalibrate_batchnorm

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)).eval()
    batches = [torch.randn(8, 3, 5, 5) + shift for shift in (0.0, 2.0)]
    again = recalibrate_batchnorm(module, batches)
    means = torch.stack([module[0](x).mean((0, 2, 3)) for x in batches]).mean(0)
    spread = torch.stack([module[0](x).transpose(0, 1).flatten(1).var(1) for x in batches]).mean(0)
    assert torch.allclose(again[1].running_mean, means, atol=1e-5)
    assert torch.allclose(again[1].running_var, spread, atol=1e-4)
    assert again[1].momentum == 0.1 and not again.training and not again[1].training
    assert (module[1].running_mean == 0).all()
    with pytest.raises(PruningError, match="batch-norm statistics cannot be measured: the data is empty"):
        recalibrate_batchnorm(module, [])


# -- state dicts ------------------------------------------------------------------------------------------------
def test_larger_state_dicts_are_refused():
    small, large = torch.nn.Linear(4, 3), torch.nn.Linear(8, 3)
    with pytest.raises(
        WeightsError, match=r"'weight' is \(3, 8\) and the architecture has \(3, 4\): not a pruned version"
    ):
        fit_to_state_dict(small, large.state_dict())
    assert fit_to_state_dict(large, small.state_dict()) == ()
    assert large.in_features == 4 and large(torch.randn(1, 4)).shape == (1, 3)


def widths(width, classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.ConvTranspose2d(width, width, 2), torch.nn.Flatten(),
        torch.nn.Linear(width * 49, classes),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "classes", "noted"), [(8, 1000, False), (4, 1000, False), (8, 10, True), (4, 10, True)]
)
def test_fewer_outputs_are_told_and_fewer_channels_are_not(width, classes, noted):
    """Pruning takes channels and leaves the outputs: a checkpoint with fewer of those may be the wrong one."""
    notes = fit_to_state_dict(widths(8, 1000), widths(width, classes).state_dict())
    assert len(notes) == noted
    if noted:
        assert notes[0].startswith("layer 4 has 10 outputs in the checkpoint and 1000 in the architecture: cut to fit")


def test_the_last_layer_may_lose_channels_where_a_transposed_one_reads_them():
    def decoder(width):
        return torch.nn.Sequential(torch.nn.Conv2d(3, width, 1), torch.nn.ConvTranspose2d(width, 2, 2))

    assert fit_to_state_dict(decoder(8), decoder(4).state_dict()) == ()


def test_a_checkpoint_of_fewer_classes_is_told_in_the_report_and_by_load(place):
    (place / "net.py").write_text(SOURCE.replace("nn.Linear(32, 10)", "nn.Linear(32, 40)"))
    wide = compress.load(f"{place}/net.py:build").state_dict()
    few = {name: value[:10] if name.startswith("head") else value for name, value in wide.items()}
    torch.save(few, place / "few.pt")
    done = CliRunner().invoke(
        main, ["evaluate", f"{place}/net.py:build", "--weights", f"{place}/few.pt", "--data", f"{place}/data.npz"]
    )
    assert done.exit_code == 0, done.stderr
    assert "layer head has 10 outputs in the checkpoint and 40 in the architecture" in done.stdout
    with pytest.warns(UserWarning, match="few.pt': layer head has 10 outputs"):
        compress.load(f"{place}/net.py:build", weights=f"{place}/few.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_t", "shufflenet_v2_x0_5"])
def test_torchvision_architectures_reload(name, tmp_path):
    from compress.loading.torchvision_ops import torchvision

    x = torch.randn(2, 3, 64, 64)
    model = compress.prune(torchvision.models.get_model(name).eval(), x).model
    torch.save(model.state_dict(), tmp_path / "pruned.pt")
    again = compress.load(name, weights=str(tmp_path / "pruned.pt")).eval()
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


# -- sparse storage ---------------------------------------------------------------------------------------------
def test_sparse_storage_is_smaller_and_computes_the_same(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(8, 64, 3), torch.nn.Flatten(), torch.nn.Linear(64 * 36, 32)).eval()
    pruned = compress.prune(model, amount=0.9, remove_channels=False).model
    x = torch.randn(2, 8, 8, 8)
    path = tmp_path / "model.onnx"
    compress.export(pruned, (x,), path=path)
    before = Session(path).run(x)[0]
    stored = store_sparse(path)
    assert path.stat().st_size == stored.after_bytes < 0.5 * stored.before_bytes
    assert np.array_equal(Session(path).run(x)[0], before)
    onnx.checker.check_model(onnx.load(path))
    saved = sum(change.values["saved_bytes"] for change in stored.changes)
    assert stored.before_bytes - stored.after_bytes == pytest.approx(saved, abs=600)


def test_sparse_storage_leaves_what_would_grow(tmp_path):
    model = compress.prune(torch.nn.Linear(64, 64), amount=0.5, remove_channels=False).model
    path = tmp_path / "model.onnx"
    compress.export(model, (torch.randn(2, 64),), path=path)
    held = path.read_bytes()
    stored = store_sparse(path)
    assert path.read_bytes() == held and stored.changes[0].reason == "50% zeros: smaller dense"


def test_unreachable_targets_are_named():
    with pytest.raises(PruningError, match="the closest reached is"):
        compress.prune(
            torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Linear(32, 4)),
            torch.randn(2, 4),
            amount=0.99,
            target="macs",
        )
