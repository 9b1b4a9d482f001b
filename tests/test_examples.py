"""Every example runs, on small inputs, and does what it says."""

import contextlib
import importlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def run(name, *arguments):
    sys.path.insert(0, str(FOLDER))
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            result = importlib.import_module(name).main([str(argument) for argument in arguments])
    finally:
        sys.path.remove(str(FOLDER))
    return result, shown.getvalue()


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.slow
def test_shrink_classifier_and_deploy(tmp_path):
    files, shown = run("shrink_classifier", "squeezenet1_1", "--side", 64, "--rounds", 5, "--out", tmp_path)
    assert files["int8"].stat().st_size < 0.4 * files["float"].stat().st_size
    assert "operators run in int8" in shown and "×1.00" in shown

    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.save(tmp_path / "photo.npy", pixels)
    best, shown = run("deploy", files["int8"], tmp_path / "photo.npy", "--side", 64)
    assert 0 <= best < 1000 and len(shown.splitlines()) == 5


@pytest.mark.parametrize(
    ("name", "epochs", "measure", "better"),
    [
        ("regression", 3, "RMSE", "lower"),
        ("segmentation", 3, "mIoU", "higher"),
        ("detection", 4, "AveragePrecision", "higher"),
    ],
)
def test_tasks_that_are_no_classification(name, epochs, measure, better, tmp_path):
    report, shown = run(name, "--epochs", epochs, "--out", tmp_path / name)
    base, row = report.rows
    decides = row.measures[0]
    assert (decides.name, decides.better) == (measure, better) and not report.failed
    assert row.differences[0].snr_db > 20 and row.size_bytes < 0.6 * base.size_bytes
    assert "inside the accuracy budget on 1" in shown and f"{measure} " in report.gates[0].sentence
    learned = {"RMSE": decides.value < 1.5, "mIoU": decides.value > 0.45, "AveragePrecision": decides.value > 0.1}
    assert learned[measure], decides.value


def test_deployment_needs_neither_torch_nor_compress(tmp_path):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import deploy; print({'torch', 'compress', 'onnx'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code, str(FOLDER)], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


@pytest.mark.slow
def test_prune_distil_quantize(tmp_path):
    top1, shown = run("prune_distil_quantize", "--epochs", 4, "--out", tmp_path)
    assert top1["trained"] > 0.9 and top1["distilled"] > 0.9 and abs(top1["int8"] - top1["distilled"]) < 0.03
    assert (tmp_path / "int8.onnx").stat().st_size < 0.5 * (tmp_path / "trained.onnx").stat().st_size
    assert "channels" in shown


@pytest.mark.slow
def test_qat_own_loop(tmp_path):
    top1, shown = run("qat_own_loop", "--epochs", 2, "--out", tmp_path / "qat.onnx")
    assert top1 > 0.85 and "loss" in shown
    assert "QuantizeLinear" in operators(tmp_path / "qat.onnx")


@pytest.mark.slow
def test_lstm_dynamic(tmp_path):
    (found, sizes), shown = run("lstm_dynamic", "--width", 32, "--out", tmp_path)
    assert "DynamicQuantizeLSTM" in found and "LSTM" not in found
    assert sizes[1] < 0.35 * sizes[0] and "% of the classes are the same" in shown


@pytest.mark.slow
def test_text_encoder(tmp_path):
    similarity, _ = run("text_encoder", "--layers", 1, "--sentences", 32, "--out", tmp_path)
    assert similarity["dynamic"] > 0.99 and similarity["static"] > 0.95


def test_foreign_onnx(tmp_path):
    (before, after), shown = run("foreign_onnx", "--out", tmp_path)
    assert operators(before)[0] == "Conv" and "QuantizeLinear" in operators(after)
    assert "operators in int8" in shown and "opset 11 was raised to 17" in shown


def test_text_folder(tmp_path):
    pytest.importorskip("transformers")
    report, shown = run("text_folder", "--out", tmp_path / "int8")
    base, row = report.rows
    assert row.size_bytes < 0.8 * base.size_bytes and abs(row.top1 - base.top1) < 0.1
    assert "inputs of the file: input_ids, attention_mask" in shown


@pytest.mark.slow
def test_own_score():
    top1, _ = run("own_score", "--epochs", 2)
    assert set(top1) == {"unpruned", "spread", "l1", "random"}


@pytest.mark.slow
def test_multi_output(tmp_path):
    scores, shown = run("multi_output", "--epochs", 3, "--out", tmp_path)
    assert scores["float"] > 0.7 and abs(scores["int8"] - scores["float"]) < 0.05
    assert "intersection over union" in shown


def test_every_example_is_run_here():
    tested = Path(__file__).read_text()
    for path in FOLDER.glob("*.py"):
        assert f'"{path.stem}"' in tested or path.stem == "digit_net", f"{path.name} has no test"
