"""`compress train`, `compress finetune`: files, figures, and one line for each bad input."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import distance

from cli.main import main
from cli.training_options import SHARED
from compress.pipeline.train import train
from compress.training.launching import available_processes
from compress.training.options import TrainOptions

FACTORY = """
import torch
from torch import nn

def build(width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * width, 4),
    )

def focal(output, target):
    chance = output.log_softmax(1).gather(1, target[:, None])
    return -((1 - chance.exp()) ** 2 * chance).mean()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model's factory and 120 images of 4 classes, told apart by colour."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "my.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 120)
    colours = np.array([[40, 200, 40], [200, 40, 40], [40, 40, 200], [200, 200, 40]])
    images = np.clip(colours[target][:, None, None] + rng.normal(0, 30, (120, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(folder / "data.npz", x_train=images[:90], y_train=target[:90], x_test=images[90:], y_test=target[90:])
    return folder


@pytest.fixture
def compress(place, monkeypatch, capsys):
    """Run a command line in the folder; return (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as stop:
            main([str(item) for item in arguments])
        shown = capsys.readouterr()
        return stop.value.code, shown.out, shown.err

    return run


COMMON = ("my.py:build", "--data", "data.npz", "--batch-size", "16", "--quiet")


@pytest.fixture(scope="module")
def trained(place):
    """One trained folder that the tests of `finetune` start from."""
    here = os.getcwd()
    os.chdir(place)
    try:
        train("my.py:build", "data.npz", output="base", options=TrainOptions(epochs=4, batch_size=16, lr=0.1))
    finally:
        os.chdir(here)
    return place / "base"


def test_every_option_is_a_flag_of_both_commands():
    from cli import finetune
    from cli import train as training

    for module in (training, finetune):
        flags = {option for parameter in module.command.params for option in parameter.opts}
        for field in dataclasses.fields(TrainOptions):
            name = field.name.removesuffix("s") if field.metadata.get("pairs") else field.name  # one K=V a flag
            assert f"--{name.replace('_', '-')}" in flags
    assert set(SHARED) <= {field.name for field in dataclasses.fields(TrainOptions)}


def test_train_leaves_the_files_and_says_what_it_measured(compress, place):
    code, out, err = compress(
        "train", *COMMON, "--epochs", 4, "--lr", 0.1, "--weights-format", "safetensors", "-o", "out", "--json"
    )
    assert (code, err) == (0, "")
    found = {item.name for item in (place / "out").iterdir()}
    assert found >= {"model.onnx", "model.pt2", "weights.pt", "weights.safetensors", "report.json", "report.md"}
    assert found >= {"checkpoints", "history.json", "curves.png"}
    report = json.loads(out)
    assert [row["name"] for row in report["rows"]] == ["model.onnx"]
    history = json.loads((place / "out" / "history.json").read_text())["epochs"]
    # The ONNX file scores what the last epoch's evaluation of the module said.
    assert report["rows"][0]["top1"] == pytest.approx(history[-1]["eval/top1"])
    state = torch.load(place / "out" / "weights.pt", weights_only=True)
    assert distance(state, load_file(place / "out" / "weights.safetensors")) == 0


@pytest.mark.slow
def test_same_seed_same_weights(compress, place):
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        assert compress("train", *COMMON, "--epochs", 1, "--seed", seed, "-o", name)[0] == 0
    states = [torch.load(place / name / "weights.pt", weights_only=True) for name in ("one", "two", "three")]
    assert distance(states[0], states[1]) == 0
    assert distance(states[0], states[2]) > 0


def test_options_from_a_file_and_the_command_line(compress, place):
    (place / "options.toml").write_text(
        '[train]\nepochs = 2\noptimizer = "adamw"\nlr = 0.01\nflip = true\nseed = 5\n[train.optimizer_args]\nbetas = [0.9, 0.98]\n'
    )
    assert compress("train", *COMMON, "--config", "options.toml", "--lr", 0.02, "-o", "filed")[0] == 0
    state = torch.load(place / "filed" / "checkpoints" / "last.pt", weights_only=True)
    wanted = TrainOptions(
        epochs=2, batch_size=16, optimizer="adamw", lr=0.02, flip=True, seed=5, optimizer_args={"betas": [0.9, 0.98]}
    )
    assert TrainOptions.from_mapping(state["options"]) == wanted


def test_own_loss(compress, place):
    code, _, err = compress("train", *COMMON, "--epochs", 1, "--loss", "my.py:focal", "-o", "focal")
    assert (code, err) == (0, "")
    history = json.loads((place / "focal" / "history.json").read_text())["epochs"]
    assert history[0]["train/loss"] < 1.2  # (1 − p)² · ln 4 is 0.78 at the start, where cross-entropy is 1.39


def test_finetune_with_distillation_reports_before_and_after(compress, trained):
    code, out, _ = compress(
        "finetune", *COMMON, "--weights", trained / "weights.pt", "--distill", trained / "weights.pt",
        "--epochs", 1, "--lr", 0.001, "-o", "tuned", "--json",
    )  # fmt: skip
    assert code == 0
    assert [row["name"] for row in json.loads(out)["rows"]] == ["build before", "model.onnx"]


def test_a_factory_that_loads_its_own_weights(compress, trained, place):
    """As from_pretrained does: fine-tuned and distilled without --weights, and the report says from what."""
    (place / "own.py").write_text(
        "import torch\nfrom my import build\ndef ready():\n    model = build()\n"
        "    model.load_state_dict(torch.load('base/weights.pt'))\n    return model\n"
        "def errors(outputs, target): return float((outputs.argmax(1) != target).float().mean())\n"
    )
    rest = ("--data", "data.npz", "--batch-size", 16, "--epochs", 1, "--lr", 1e-6, "--quiet", "--json")
    code, out, err = compress("finetune", "own.py:ready", *rest, "--metric", "min:own.py:errors", "-o", "own")
    report = json.loads(out)
    assert (code, err) == (0, "")
    assert any("started from those that own.py:ready makes" in note for note in report["notes"])
    assert any("eval/errors" in note for note in report["notes"])
    assert report["rows"][0]["top1"] > 0.9
    code, _, err = compress("train", "my.py:build", *rest, "--teacher", "own.py:ready", "-o", "taught")
    assert (code, err) == (0, "")


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_finetune_files_that_carry_their_weights(compress, trained, place, ending):
    code, _, err = compress(
        "finetune", trained / f"model.{ending}", "--data", "data.npz", "--batch-size", 16, "--epochs", 1, "--lr", 0.001,
        "--teacher", "my.py:build", "--distill", trained / "weights.pt", "-o", f"tuned-{ending}", "--quiet",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert (place / f"tuned-{ending}" / "model.onnx").read_bytes() != (trained / "model.onnx").read_bytes()


@pytest.mark.slow
def test_resume_finishes_what_was_cut(compress, place):
    long = ("train", *COMMON, "--epochs", 3, "--lr", 0.1)
    assert compress(*long, "-o", "whole")[0] == 0
    code = (
        "import sys; from cli.main import main; from compress.training.run_state import Run; save = Run.save\n"
        "def stop(run, **rest):\n"
        "    save(run, **rest)\n"
        "    if run.epoch == 2: import os; os.kill(os.getpid(), 9)\n"
        "Run.save = stop; main()"
    )
    arguments = [str(item) for item in (*long, "-o", "cut")]
    assert subprocess.run([sys.executable, "-c", code, *arguments], cwd=place).returncode == -signal.SIGKILL
    assert not (place / "cut" / "weights.pt").exists()
    done, _, err = compress(*long, "-o", "cut", "--resume")
    assert (done, err) == (0, "")
    states = [torch.load(place / name / "weights.pt", weights_only=True) for name in ("whole", "cut")]
    assert distance(*states) == 0


@pytest.mark.slow
@pytest.mark.skipif(available_processes() < 2, reason="needs two CPU cores")
def test_two_processes(compress, place):
    code, out, err = compress("train", *COMMON, "--epochs", 2, "--nproc", 2, "--sync-batchnorm", "-o", "both", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["rows"][0]["name"] == "model.onnx"
    assert compress("train", *COMMON, "--epochs", 2, "-o", "alone")[0] == 0
    states = [torch.load(place / name / "weights.pt", weights_only=True) for name in ("both", "alone")]
    assert distance(*states) < 1e-5


@pytest.mark.slow
@pytest.mark.skipif(available_processes() < 2, reason="needs two CPU cores")
def test_ctrl_c_ends_every_process(place):
    command = [
        sys.executable,
        "-c",
        "from cli.main import main; main()",
        "train",
        *COMMON,
        "--epochs",
        "5000",
        "--nproc",
        "2",
    ]
    process = subprocess.Popen(
        [*command, "-o", "stopped"],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    history = place / "stopped" / "history.json"
    deadline = time.monotonic() + 120
    while not history.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)  # a shell shows 130 for both
    assert err.strip() in ("compress: stopped", "compress: stopped; the same command with --resume goes on")


def test_ctrl_c_while_a_process_imports_torch_says_nothing():
    code = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, *rest):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupt())
from compress.pipeline.training_process import main
main("job", "report")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


# Bad input: one line each, exit code 2, nothing left behind


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train", *COMMON, "--optimizer", "adm"), "unknown optimizer 'adm'; did you mean 'adam'?"),
        (("train", *COMMON, "--scheduler", "cosin"), "unknown scheduler 'cosin'; did you mean 'cosine'?"),
        (("train", *COMMON, "--loss", "cross_entrpy"), "unknown loss 'cross_entrpy'; did you mean 'cross_entropy'?"),
        (("train", *COMMON, "--loss", "my.py:fokal"), "fokal"),
        (("train", *COMMON, "--optimizer", "adam", "--optimizer-arg", "beta=0.9,0.98"), "Adam has no argument 'beta'; did you mean 'betas'?"),
        (("train", *COMMON, "--scheduler", "plateau", "--scheduler-arg", "cooldown=x"), "argument cooldown of ReduceLROnPlateau must be a whole number, got 'x'"),
        (("train", *COMMON, "--lr", "-1"), "training option lr must be above 0, got -1.0"),
        (("train", *COMMON, "--nproc", "999"), "nproc 999 is not between 1 and"),
        (("train", *COMMON, "--accumulate", "3"), "batch_size 16 cannot be split over 1 processes × 3 accumulated batches"),
        (("train", *COMMON, "--weights-format", "bin"), "unknown weights format 'bin'; known: pt, safetensors"),
        (("train", *COMMON, "--config", "none.toml"), "configuration 'none.toml' does not exist"),
        (("train", *COMMON, "--config", "my.py"), "configuration 'my.py' is not TOML"),
        (("train", *COMMON, "--recompute", "layer"), "recompute: the model has no layer 'layer'"),
        (("train", "my.py:build", "--data", "data.npz", "--batch-size", "256", "--drop-last"), "drop_last with batch_size 256 leaves no batch"),
        (("train", "my.py:build"), "training needs data; give it with --data"),
        (("finetune", "resnet18", *COMMON[1:]), "finetune starts from weights; give --weights FILE for 'resnet18'"),
        (("train", *COMMON, "--metric", "my.py:nothing"), "nothing"),
        (("train", *COMMON, "--loss", "mse"), "loss mse takes a target for each output and the model gives of shape (16, 4)"),
        (("finetune", "model.pt2", "--data", "data.npz", "--distill", "x.pt"), "name the teacher's architecture with --teacher"),
    ],
)  # fmt: skip
def test_one_line(compress, place, arguments, text):
    code, out, err = compress(*arguments, "-o", "bad")
    assert (code, out) == (2, "")
    assert text in err and err.startswith("compress: error: ") and err.count("\n") == 1
    assert not (place / "bad").exists()


def test_unknown_key_in_the_file(compress, place):
    (place / "typo.toml").write_text("epoch = 3\n")
    code, _, err = compress("train", *COMMON, "--config", "typo.toml", "-o", "bad")
    assert code == 2 and "'typo.toml': unknown training option 'epoch'; did you mean 'epochs'?" in err


def test_too_few_classes(compress, place):
    data = dict(np.load(place / "data.npz"))
    np.savez(place / "nine.npz", **{**data, "y_train": data["y_train"] * 2})
    code, _, err = compress("train", "my.py:build", "--data", "nine.npz", "-o", "bad")
    assert code == 2 and "7" in err and "classes" in err


def test_folder_that_exists(compress, trained, place):
    code, _, err = compress("train", *COMMON, "-o", "base")
    assert code == 2 and "exists already" in err
    (place / "other").mkdir(exist_ok=True)
    (place / "other" / "letter.txt").write_text("")
    code, _, err = compress("train", *COMMON, "-o", "other", "--resume")
    assert code == 2 and "'other' holds no run to resume" in err


def test_resume_with_other_options(compress, trained):
    code, _, err = compress("train", *COMMON, "--epochs", 4, "--lr", 0.3, "-o", "base", "--resume")
    assert code == 2 and "was written with other options: lr was 0.1, is 0.3" in err


@pytest.mark.slow
def test_overwrite_starts_anew(compress, place):
    assert compress("train", *COMMON, "--epochs", 2, "-o", "again")[0] == 0
    assert compress("train", *COMMON, "--epochs", 1, "-o", "again", "--overwrite")[0] == 0
    assert len(json.loads((place / "again" / "history.json").read_text())["epochs"]) == 1
