"""Losses of one's own work wherever something is trained, and are tried before the work."""

import json
from pathlib import Path

import pytest

from cli.main import main

MY = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
    )

def data():
    torch.manual_seed(1)
    x, y = torch.randn(96, 1, 8, 8), torch.arange(96) % 4
    return {"train": TensorDataset(x[:64], y[:64]), "test": TensorDataset(x[64:], y[64:])}

def smooth(o, t):
    with open("called", "a") as file: file.write("x")
    return nn.functional.cross_entropy(o, t, label_smoothing=0.1)

def broken(o, t): return o["boxes"].sum()
"""
RECIPE = """
[model]
spec = "my.py:build"
[data]
spec = "my.py:data"
[prune]
amount = 0.5
[finetune]
epochs = 1
loss = "my.py:{loss}"
"""


@pytest.fixture
def compress(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my.py").write_text(MY)
    for loss in ("smooth", "broken", "none"):
        Path(f"{loss}.recipe.toml").write_text(RECIPE.format(loss=loss))
        Path(f"{loss}.toml").write_text(f'loss = "my.py:{loss}"\n')

    def run(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(item) for item in arguments])
        shown = capsys.readouterr()
        return stop.value.code, shown.out, shown.err

    return run


def commands(loss):
    common = ("my.py:build", "--data", "my.py:data")
    return {
        "recipe": ("run", f"{loss}.recipe.toml", "-o", "out"),
        "dry run": ("run", f"{loss}.recipe.toml", "-o", "out", "--dry-run"),
        "prune": ("prune", *common, "--finetune-epochs", 1, "--config", f"{loss}.toml", "-o", "out"),
        "qat": (
            "quantize",
            *common,
            "--method",
            "qat",
            "--epochs",
            1,
            "--device",
            "cpu",
            "--loss",
            f"my.py:{loss}",
            "-o",
            "out",
        ),
        "train": ("train", *common, "--epochs", 1, "--loss", f"my.py:{loss}", "-o", "out"),
    }


@pytest.mark.parametrize("name", ["recipe", "prune", "qat"])
def test_an_own_loss_is_used(compress, name):
    code, _, err = compress(*commands("smooth")[name], "--quiet")
    assert (code, err) == (0, "")
    assert len(Path("called").read_text()) > 3  # more than the trial alone


@pytest.mark.parametrize("name", ["recipe", "dry run", "prune", "qat", "train"])
@pytest.mark.parametrize(
    ("loss", "text"),
    [("broken", "the loss fails: too many indices"), ("none", "has no 'none'")],
)
def test_a_loss_that_fails_is_told_before_the_work(compress, name, loss, text):
    code, out, err = compress(*commands(loss)[name], "--quiet")
    assert (code, out) == (2, "") and err.count("\n") == 1 and text in err
    assert not Path("out").exists()


def test_qat_refuses_a_device_that_is_not_there(compress):
    code, _, err = compress(
        "quantize", "my.py:build", "--data", "my.py:data", "--method", "qat", "--device", "tpu9", "-o", "out"
    )
    assert code == 2 and "unknown device 'tpu9'" in err and not Path("out").exists()


def test_the_report_of_pruning_says_what_training_did(compress):
    code, out, _ = compress(
        "prune",
        "my.py:build",
        "--data",
        "my.py:data",
        "--finetune-epochs",
        1,
        "--lr",
        1e9,
        "-o",
        "out",
        "--quiet",
        "--json",
    )
    assert code == 0
    notes = json.loads(out)["notes"]
    assert any("training stopped" in note or "training did not help" in note for note in notes)
