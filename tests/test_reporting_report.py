"""The report in each of its forms: what a reader and a script rely on."""

import json
import math
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from sample_report import FLOAT, INT8

from compress.errors import InputError, OutputError
from compress.reporting import table
from compress.reporting.environment import command_line, cpu, describe
from compress.reporting.record import TIMINGS, plain
from compress.reporting.report import Gate, Report, check_suffix
from compress.steps import Measurement


def test_table_has_the_promised_columns(report):
    lines = report.table().splitlines()
    assert lines[0].split() == ["model", "size", "ratio", "p50", "ms", "speed-up", "top-1", "change", "agreement"]
    assert lines[2].split() == ["float", "4", "MB", "1.00×", "10", "1.00×", "91.95", "%", "–", "–"]
    assert lines[3].split() == ["✗", "int8", "1", "MB", "0.25×", "4", "2.50×", "91.70", "%", "−0.25", "99.00", "%"]


def test_columns_without_figures_are_left_out():
    text = Report(rows=(Measurement("a", size_bytes=10), Measurement("b", size_bytes=20))).table()
    assert text.splitlines()[0].split() == ["model", "size", "ratio"]


def test_one_model_alone_is_compared_with_nothing():
    assert Report(rows=(Measurement("a", size_bytes=10, speedup=1.0),)).table().splitlines()[0].split() == [
        "model",
        "size",
    ]


def test_sizes_of_a_gate_read_as_sizes():
    gate = Gate("max-size", "int8", 331_400, 5_000_000, " bytes", True)
    assert gate.sentence == "int8: 331 kB is within --max-size 5 MB"


def test_zero_is_a_figure_and_none_is_not():
    text = Report(rows=(Measurement("a", top1=0.0, agreement=None), Measurement("b", top1=0.0, agreement=0.0))).table()
    assert text.splitlines()[3].split() == ["b", "0.00", "%", "0.00", "0.00", "%"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (46_827_520, "46.8 MB"),
        (999_900, "1 MB"),
        (2.5e9, "2.5 GB"),
        (None, None),
    ],
)
def test_sizes(value, text):
    assert table.size(value) == text


def test_no_change_never_reads_as_minus_zero():
    assert table.points(0.5, 0.5 + 1e-9) == "0.00"


def test_baseline_may_be_any_row():
    report = Report(rows=(INT8, FLOAT), baseline="float")
    assert report.base is FLOAT
    assert report.table().splitlines()[2].split()[3] == "0.25×"
    with pytest.raises(InputError, match="no row 'x'; it has int8, float"):
        report.row("x")


def test_text_ends_with_notes_gates_and_files(report):
    text = report.text()
    assert "a note" in text and "model: out/model.onnx" in text
    assert "int8: 2.5× fails --require-speedup 3×" in text
    assert "int8: 0.25 points is within --max-drop 0.5 points" in text
    assert "gru" not in text
    assert "gru (quantized): the runtime has no int8 GRU" in report.text(verbose=True)


def test_markdown_lists_decisions_reasons_and_command(report):
    text = report.markdown()
    assert "| model" in text and "✗ int8" in text
    assert "* 2 × quantized" in text
    assert "`gru` (quantized): the runtime has no int8 GRU" in text
    assert "* weights keep to 7 bits" in text
    assert "int8: top-1 between 90.40 and 92.90 % (95 %, 2000 samples)" in text
    assert report.environment.command in text


def test_json_schema(report):
    data = json.loads(json.dumps(report.as_dict()))
    assert data["schema_version"] == 1
    assert set(data) == {
        *("schema_version", "title", "baseline", "rows", "steps", "gates", "passed"),
        *("notes", "files", "details", "environment"),
    }
    assert set(data["rows"][0]) == {field.name for field in fields(Measurement)}
    assert data["rows"][1]["top1"] == 0.917 and data["rows"][0]["agreement"] is None
    assert data["steps"][0]["changes"][3] == {
        "layer": "gru",
        "action": "quantized",
        "skipped": True,
        "reason": "the runtime has no int8 GRU",
    }
    assert data["passed"] is False and data["baseline"] == "float"
    environment = data["environment"]
    assert {"command", "cpu", "cores", "features", "packages", "threads", "seed", "when"} <= set(environment)
    assert {"torch", "onnxruntime"} <= set(environment["packages"])
    assert set(TIMINGS) < set(data["rows"][0])


def test_json_has_no_nan_and_no_foreign_numbers():
    import numpy as np

    assert plain({"a": math.nan, "b": np.float32(1.5), "c": (np.arange(2),), 3: Path("x")}) == {
        "a": None,
        "b": 1.5,
        "c": [[0, 1]],
        "3": "x",
    }


def test_written_files_and_unknown_suffix(report, tmp_path):
    assert json.loads(report.write(tmp_path / "r.json").read_text())["title"] == report.title
    assert report.write(tmp_path / "r.md").read_text() == report.markdown()
    with pytest.raises(InputError, match=r"suffix '.pdf'; use one of .md, .json, .html"):
        check_suffix(tmp_path / "r.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        report.write(tmp_path / "file" / "r.md")


def test_paths_follow_the_files_when_the_folder_is_renamed(report):
    moved = report.relocated(Path("out"), Path("final"))
    assert [row.path for row in moved.rows] == ["final/float.onnx", "final/model.onnx"]
    assert moved.files == {"model": "final/model.onnx"}
    assert moved.rows[0] == replace(FLOAT, path="final/float.onnx")


def test_environment_names_machine_and_command(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/compress", "compare", "a b.onnx"])
    assert command_line() == "compress compare 'a b.onnx'"
    found = describe(threads=1, seed=3)
    assert "1 thread;" in found.sentence and found.seed == 3 and found.cores >= 1
    assert found.cpu == cpu()[0]


def test_environment_counts_the_threads_that_nobody_asked_for():
    code = (
        "import os, onnxruntime as ort, onnx.helper as h, sys\n"
        "x, y = (h.make_tensor_value_info(n, 1, [1]) for n in 'xy')\n"
        "model = h.make_model(h.make_graph([h.make_node('Relu', ['x'], ['y'])], 'g', [x], [y]), ir_version=8,\n"
        "    opset_imports=[h.make_opsetid('', 17)])\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "session = ort.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])\n"
        "print(1 + len(os.listdir('/proc/self/task')) - before)\n"
    )
    if not Path("/proc/self/task").is_dir():
        pytest.skip("threads are counted in /proc, which this system has not")
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = describe()
    assert found.threads == int(shown.stdout) and found.torch_threads == torch.get_num_threads()
    assert "default" not in found.sentence
    assert (describe(threads=5).threads, describe(threads=5).torch_threads) == (5, 5)
    assert "5 threads (PyTorch: 1);" in replace(found, threads=5, torch_threads=1).sentence
