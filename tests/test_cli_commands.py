"""The measuring and compressing commands on a tiny model: one JSON document on stdout, gates, files."""

import json
import re

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from tiny_recipe import prepare
from torch import nn

from cli.main import main
from compress.graph import exporting
from compress.reporting.words import plain_words
from compress.steps import Measurement


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a factory, data, and the factory's ONNX file."""
    import os

    folder, before = tmp_path_factory.mktemp("commands"), os.getcwd()
    prepare(folder)
    os.chdir(folder)
    try:
        result = CliRunner().invoke(main, ["export", "net.py:build", "--data", "data.npz", "-o", "net.onnx", "--json"])
    finally:
        os.chdir(before)
    assert result.exit_code == 0, result.stderr
    return folder, json.loads(result.stdout)


@pytest.fixture
def place(prepared, monkeypatch):
    monkeypatch.chdir(prepared[0])
    return prepared[0]


def spoken(*arguments, code=0):
    """Run a command with --json; its stdout is one document, its stderr at most a line."""
    result = CliRunner().invoke(main, [*(str(argument) for argument in arguments), "--json", "--threads", "1"])
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def test_export_writes_a_file_that_the_runtime_takes_at_any_batch(prepared, place):
    row = prepared[1]["rows"][0]
    assert row["size_bytes"] == (place / "net.onnx").stat().st_size and row["macs"] > 0
    session = onnxruntime.InferenceSession(str(place / "net.onnx"))
    (scores,) = session.run(None, {session.get_inputs()[0].name: np.zeros((5, 1, 8, 8), np.float32)})
    assert scores.shape == (5, 4)


def test_export_checks_with_the_threads_asked_for(place, monkeypatch):
    asked, opened = [], exporting.Session
    monkeypatch.setattr(
        exporting, "Session", lambda graph, **options: asked.append(options) or opened(graph, **options)
    )
    spoken("export", "net.py:build", "--data", "data.npz", "-o", "one_thread.onnx")
    assert asked and all(options == {"threads": 1} for options in asked)


def test_evaluate_a_module_beside_its_file(place):
    data = spoken("evaluate", "net.onnx", "--baseline", "net.py:build", "--data", "data.npz")
    base, row = data["rows"]
    assert row["top1"] == base["top1"] and row["agreement"] == 1.0 and row["samples"] == 40
    assert row["p50_ms"] is None
    assert data["environment"]["threads"] == 1
    assert ["95 %" in note for note in data["notes"]].count(True) == 2
    assert any(note.startswith("task classification, from outputs (N, 4) with targets (N,)") for note in data["notes"])


def test_the_baseline_takes_the_models_options(place):
    (place / "wide.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build(widths=(4, 4)):\n"
        "    return nn.Sequential(nn.Conv2d(1, widths[0], 3), nn.ReLU(), nn.Flatten(), nn.Linear(36 * widths[0], 4))\n"
    )
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))
    torch.save(module.state_dict(), "wide.pt")
    options = ["--weights", "wide.pt", "--model-arg", "widths=(6, 8)", "--data", "data.npz"]
    spoken("export", "wide.py:build", *options, "-o", "wide.onnx")
    _, row = spoken("evaluate", "wide.onnx", "--baseline", "wide.py:build", *options)["rows"]
    assert row["agreement"] == 1.0
    assert spoken("compare", "wide.onnx", "wide.py:build", *options, "--rounds", "5")["rows"][1]["agreement"] == 1.0


def test_evaluate_writes_each_interval_once(place):
    spoken("evaluate", "net.onnx", "--data", "data.npz", "--report", "interval.md")
    assert (place / "interval.md").read_text().count("top-1 between") == 1


def test_evaluate_with_a_metric_of_ones_own(place):
    (place / "own.py").write_text(
        "def right(outputs, target):\n    return (outputs.argmax(1) == target).float().mean()\n"
    )
    row = spoken("evaluate", "net.onnx", "--data", "data.npz", "--metric", "own.py:right")["rows"][0]
    assert row["metric"] == pytest.approx(row["top1"])


def test_benchmark_times_all_and_measures_files_memory(place):
    data = spoken("benchmark", "net.py:build", "net.onnx", "--data", "data.npz", "--rounds", "5", "--batch-size", "3")
    module, file = data["rows"]
    assert module["speedup"] == 1.0 and file["speedup"] == pytest.approx(module["p50_ms"] / file["p50_ms"])
    assert file["throughput"] == pytest.approx(3000 / file["p50_ms"])
    assert file["peak_memory_bytes"] > 0 and module["peak_memory_bytes"] is None
    assert module["top1"] is None


def test_compare_marks_the_rows_that_fail_a_gate(place):
    report = place / "gate.md"
    arguments = ["compare", "net.onnx", "net.py:build", "--data", "data.npz", "--rounds", "5"]
    data = spoken(*arguments, "--max-drop", "0.5")
    assert data["passed"] is True and [gate["passed"] for gate in data["gates"]] == [True]
    result = CliRunner().invoke(main, [*arguments, "--require-speedup", "1000", "--report", str(report)])
    assert result.exit_code == 3
    assert "✗ build" in result.stdout and "✗ net" not in result.stdout
    assert result.stderr.splitlines()[-1].startswith("compress: not met: build: ")
    assert "✗ **failed** build" in report.read_text()


def test_one_model_alone_is_held_to_its_size(place):
    data = spoken("compare", "net.onnx", "--data", "data.npz", "--rounds", "5", "--max-size", "1kB", code=3)
    assert [(gate["name"], gate["row"], gate["passed"]) for gate in data["gates"]] == [("max-size", "net", False)]
    assert spoken("compare", "net.onnx", "--data", "data.npz", "--rounds", "5", "--max-size", "1MB")["passed"] is True


def test_a_limit_on_what_cannot_be_measured_is_refused(place):
    arguments = ["compare", "net.onnx", "net.py:build", "--input-shape", "2,1,8,8", "--max-drop", "1"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "max-drop needs a test part of the data" in result.stderr


@pytest.mark.parametrize("method", ["static", "qat"])  # dynamic would leave this net's weights as large as they are
def test_quantize_leaves_the_file_that_it_measured(place, method):
    out = place / method
    more = {"qat": ["--epochs", "1"], "static": ["--no-tune-latency"]}.get(method, [])
    data = spoken("quantize", "net.py:build", "--data", "data.npz", "--method", method, "-o", out, *more)
    base, row = data["rows"]
    assert row["path"] == str(out / "model.onnx") and row["size_bytes"] == (out / "model.onnx").stat().st_size
    assert row["samples"] == 40 and row["agreement"] is not None and row["speedup"] is not None
    assert base["speedup"] == 1.0 and base["path"] is None  # a file that is gone when the job ends
    assert json.loads((out / "report.json").read_text())["rows"] == data["rows"]
    assert (out / "report.html").stat().st_size < 3_000_000 and "| model" in (out / "report.md").read_text()
    if row["speedup"] < 1:
        assert any("is slower than" in note for note in data["notes"])


def test_a_speedup_not_reached_is_exit_3_with_every_file_saved(place):
    options = ["--data", "data.npz", "--no-tune-latency", "--threads", "1", "--require-speedup", "1000"]
    result = CliRunner().invoke(main, ["quantize", "net.onnx", *options, "-o", "too_slow"])
    assert result.exit_code == 3
    assert re.search(r"not met: int8: \S+× fails --require-speedup 1000×", result.stderr)
    assert onnxruntime.InferenceSession(str(place / "too_slow" / "model.onnx"))
    report = json.loads((place / "too_slow" / "report.json").read_text())
    assert report["gates"][0]["passed"] is False and (place / "too_slow" / "report.html").exists()


def test_a_file_slower_than_float_is_said_to_be():
    base = Measurement("float", p50_ms=1.0, speedup=1.0)
    rows = [base, Measurement("int8", p50_ms=1.25, speedup=0.8)]
    assert plain_words(rows, base) == ["int8 is slower than float on this machine: 1.25 ms against 1 ms (0.80×)"]
    assert plain_words([base, Measurement("int8", p50_ms=0.5, speedup=2.0)], base) == []


def test_quantize_takes_an_onnx_file_from_elsewhere(place):
    data = spoken("quantize", "net.onnx", "--data", "data.npz", "--no-tune-latency", "-o", place / "from_file")
    assert data["rows"][0]["path"] == "net.onnx"  # the user's own file is the baseline, not a copy of it
