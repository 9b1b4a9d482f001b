"""A runtime whose library crashes on a file ends a process of its own, never the job."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import compress
import compress.runtimes.first_try as first_try
from compress.runtimes.first_try import RuntimeCrashError
from compress.runtimes.runtime import RUNTIMES, Runtime

DOOR = '''
"""A runtime that runs what ONNX Runtime runs, but aborts on every quantized file, and counts how often it is opened."""
import os
from pathlib import Path
VERSION = "1.0"

class Session:
    def __init__(self, model, *, threads=None, profile=False):
        with open(os.environ["FRAGILE_LOG"], "a") as log:
            print(os.getpid(), file=log)
        data = Path(model).read_bytes() if isinstance(model, (str, Path)) else None
        if data is None or b"QuantizeLinear" in data:
            os.abort()
        if data == b"for ever":
            import time
            time.sleep(600)
        if data == b"nothing":
            raise RuntimeError("this is no model")
        self._inner, self._given = None, (model, threads, profile)

    def zeros(self):
        return None

    def __getattr__(self, name):  # not before it is asked for: the child of a first try need not load it
        if self._inner is None:
            from compress.runtimes.onnxruntime import Session
            model, threads, profile = self._given
            self._inner = Session(model, threads=threads, profile=profile)
        return getattr(self._inner, name)

def precisions(model):
    Session(model)
    return {}
'''


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    """In OpenVINO's place, whose name the options know: a runtime that aborts on quantized files."""
    (tmp_path / "fragile_door.py").write_text(DOOR)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FRAGILE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(first_try, "_verdicts", {})
    runtime = Runtime("openvino", "fragile_door", "json", None, "for a test", "Fragile", tried_apart=True)
    monkeypatch.setitem(RUNTIMES, "openvino", runtime)
    return runtime


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4)).eval()
    x = torch.randn(16, 3, 6, 6)
    graph = compress.export(net, x[:2]).model
    return graph, x, compress.quantize_static(graph, [x], target="any", accuracy="fast").model


def test_a_crash_is_one_line_and_this_process_lives(fragile, model, tmp_path):
    graph, x, quantized = model
    path = compress.save_onnx(quantized, tmp_path / "int8.onnx")
    for given in (quantized, path):
        with pytest.raises(RuntimeCrashError, match=r"^Fragile crashed on .*\(SIGABRT\), in a process of its own$"):
            fragile.open(given)
    assert len((tmp_path / "log").read_text().split()) == 1  # the graph and its file are the same bytes
    plain = compress.save_onnx(graph, tmp_path / "f.onnx")
    for _ in range(2):
        assert fragile.open(plain, threads=1).run(x)[0].shape == (16, 4)
    assert len((tmp_path / "log").read_text().split()) == 4  # one try of its own for the file, then here


def test_what_a_runtime_only_refuses_is_no_crash(fragile, tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nothing")
    with pytest.raises(RuntimeError, match="this is no model"):  # the runtime's own words, from this process
        fragile.open(bad)


def test_auto_goes_on_without_the_runtime_that_crashes(fragile, model, tmp_path):
    graph, x, _ = model
    np.savez(tmp_path / "d.npz", x=x.repeat(4, 1, 1, 1).numpy(), y=np.arange(64) % 4)
    options = {"runtime": "auto", "target": "any", "accuracy": "fast"}
    report = compress.quantize(graph, str(tmp_path / "d.npz"), output=tmp_path / "out", options=options)
    assert not report.failed and (tmp_path / "out" / "model.onnx").exists()
    assert {row.extra["runtime"] for row in report.rows} == {"onnxruntime"}
    (left_out,) = [note for note in report.notes if "it is left out" in note]
    assert left_out.startswith("Fragile crashed on graph ")
    compared = compress.compare(
        [tmp_path / "out" / "model.onnx"], rounds=5, settings=compress.Settings(runtime="auto", threads=1)
    )
    assert len(compared.rows) == 1 and any("Fragile crashed" in note for note in compared.notes)


def test_a_file_made_for_the_runtime_that_crashes_on_it_is_saved_and_not_called_good(fragile, model, tmp_path):
    graph, x, _ = model
    np.savez(tmp_path / "d.npz", x=x.repeat(4, 1, 1, 1).numpy(), y=np.arange(64) % 4)
    options = {"runtime": "openvino", "target": "any", "accuracy": "fast"}
    report = compress.quantize(graph, str(tmp_path / "d.npz"), output=tmp_path / "out", options=options)
    (gate,) = report.failed
    assert "Fragile crashed on" in gate.sentence and (tmp_path / "out" / "model.onnx").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["passed"] is False
    assert [row.extra["runtime"] for row in report.rows] == ["openvino", "onnxruntime"]  # float runs there


def test_openvino_is_tried_apart_by_a_light_door():
    """It is imported anew for each first try: torch would make that ten times as long."""
    assert RUNTIMES["openvino"].tried_apart
    pytest.importorskip("openvino")
    code = "import sys, compress.runtimes.openvino; print([m for m in ('torch', 'onnx_ir') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_runtime_that_hangs_is_one_line_too(fragile, tmp_path, monkeypatch):
    monkeypatch.setattr(first_try, "MOST_SECONDS", 1.0)
    path = tmp_path / "hangs.onnx"
    path.write_bytes(b"for ever")
    with pytest.raises(
        RuntimeCrashError, match=r"^Fragile did not come back from .*hangs.onnx' within 1 seconds, in a"
    ):
        fragile.open(path)
