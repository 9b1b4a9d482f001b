"""Checkpoints: resumed runs continue to the bit, old files survive whatever happens to the new."""

import copy
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import TinyData, distance, perceptron
from torch.utils.data import DataLoader

from compress.errors import OutputError, TrainingError, WeightsError
from compress.training import checkpoints
from compress.training.loop import fit
from compress.training.options import TrainOptions
from compress.training.weight_files import save_weights

OPTIONS = {"epochs": 4, "batch_size": 16, "ema_decay": 0.9, "patience": 10, "warmup_epochs": 1, "optimizer": "adamw"}


class Stopped(Exception):
    pass


def stop_after(epochs):
    def stop(run):
        if run.epoch == epochs:
            raise Stopped

    return stop


def same_history(first, second):
    def plain(rows):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]

    return plain(first) == plain(second)


@pytest.mark.parametrize("scheduler", ["cosine", "plateau", "step", "onecycle", "cyclic", "lambda"])
def test_resumed_run_is_the_same_to_the_bit(tmp_path, scheduler):
    data, module = TinyData(), perceptron(dropout=0.3, norm=True)
    given = {"cyclic": {"step_size_up": 3}, "lambda": {"lr_lambda": lambda epoch: 0.5**epoch}}.get(scheduler, {})
    own = {**OPTIONS, "warmup_epochs": 0} if scheduler in ("onecycle", "cyclic") else OPTIONS
    options = TrainOptions(**own, scheduler=scheduler, step_size=1, plateau_patience=0, scheduler_args=given)
    straight = fit(module, data, options, output=tmp_path / "straight")
    with pytest.raises(Stopped):  # in the third epoch, after the checkpoint of the second
        fit(module, data, options, output=tmp_path / "cut", before_epoch=[stop_after(2)])
    resumed = fit(module, data, options, output=tmp_path / "cut", resume=True)
    assert distance(straight.module, resumed.module) == 0
    assert same_history(straight.history, resumed.history)
    assert (straight.best_epoch, straight.steps) == (resumed.best_epoch, resumed.steps)
    for name in ("last.pt", "best.pt"):
        first, second = (
            torch.load(tmp_path / run / "checkpoints" / name, weights_only=True) for run in ("straight", "cut")
        )
        assert distance(first["model"], second["model"]) == distance(first["raw_model"], second["raw_model"]) == 0
        for mine, theirs in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values()):
            assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
        assert torch.equal(first["random"][0]["torch"], second["random"][0]["torch"])


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    import torch
    from tiny_training import TinyData, perceptron
    from compress.training.loop import fit
    from compress.training.options import TrainOptions
    torch.set_num_threads(1)
    slow = [lambda run: time.sleep({pause})]
    result = fit(perceptron(dropout=0.3), TinyData(), TrainOptions(epochs=4, batch_size=16), output={output!r},
                 resume={resume}, after_step=slow)
    torch.save(result.module.state_dict(), {output!r} + "/result.pt")
"""


def script(output, *, pause=0.0, resume=False):
    code = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent), output=str(output), pause=pause, resume=resume
    )
    return [sys.executable, "-c", code]


def test_killed_with_signal_9_and_resumed(tmp_path):
    subprocess.run(script(tmp_path / "straight"), check=True)
    process = subprocess.Popen(script(tmp_path / "killed", pause=0.02))
    history = tmp_path / "killed" / "history.json"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # into the third epoch
        if history.exists() and len(json.loads(history.read_text())["epochs"]) == 2:
            break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "result.pt").exists()
    subprocess.run(script(tmp_path / "killed", resume=True), check=True)
    first, second = (torch.load(tmp_path / name / "result.pt") for name in ("straight", "killed"))
    assert distance(first, second) == 0


def test_finished_run_resumed_does_nothing_more(tmp_path):
    options = TrainOptions(**OPTIONS)
    done = fit(perceptron(), TinyData(), options, output=tmp_path)
    again = fit(perceptron(), TinyData(), options, output=tmp_path, resume=True)
    assert distance(done.module, again.module) == 0
    assert again.history == done.history


def test_killed_after_the_last_checkpoint_before_the_curves(tmp_path):
    options = TrainOptions(epochs=1, batch_size=16)
    fit(perceptron(), TinyData(), options, output=tmp_path)
    written = ("history.json", "curves.png")
    for name in written:
        (tmp_path / name).unlink()
    left = tmp_path / ".curves.png.writing-abcd1234"  # as a killed process leaves it
    left.mkdir()
    fit(perceptron(), TinyData(), options, output=tmp_path, resume=True)
    assert all((tmp_path / name).exists() for name in written) and not left.exists()


def test_more_epochs_of_a_finished_run(tmp_path):
    few = TrainOptions(epochs=2, batch_size=16, scheduler="none")
    many = TrainOptions(epochs=4, batch_size=16, scheduler="none")
    fit(perceptron(), TinyData(), few, output=tmp_path)
    resumed = fit(perceptron(), TinyData(), many, output=tmp_path, resume=True)
    assert distance(resumed.module, fit(perceptron(), TinyData(), many).module) == 0


@pytest.mark.parametrize("step", [3, 10])  # within the first epoch, within the second
def test_resumed_within_an_epoch_is_the_same_to_the_bit(tmp_path, step):
    """Dropout and the order of the samples go on where they were; figures of the whole epoch come out."""
    data, module = TinyData(), perceptron(dropout=0.3, norm=True)
    options = TrainOptions(**OPTIONS, checkpoint_minutes=1e-9)
    straight = fit(module, data, options, output=tmp_path / "straight")

    def stop(run):
        if run.step == step:
            raise Stopped

    with pytest.raises(Stopped):
        fit(module, data, options, output=tmp_path / "cut", after_step=[stop])
    saved = torch.load(tmp_path / "cut" / "checkpoints" / "last.pt", weights_only=True)
    assert (saved["step"], saved["epoch"]) == (step - 1, (step - 1) // 7)
    resumed = fit(module, data, options, output=tmp_path / "cut", resume=True)
    assert any(f"resumed after epoch {(step - 1) // 7} and {(step - 1) % 7} steps" in note for note in resumed.notes)
    assert distance(straight.module, resumed.module) == 0
    assert same_history(straight.history, resumed.history)


def test_own_loader_resumed_within_an_epoch(tmp_path):
    """Its order comes from the global random state: that of the epoch's start is put back before it is opened again."""
    module, set_ = perceptron(dropout=0.3), TinyData().train
    options = TrainOptions(epochs=2, lr=0.05, checkpoint_minutes=1e-9)

    def loaders():
        return DataLoader(set_, 16, shuffle=True), None

    straight = fit(module, loaders(), options, output=tmp_path / "straight")

    def stop(run):
        if run.step == 12:
            raise Stopped

    with pytest.raises(Stopped):
        fit(module, loaders(), options, output=tmp_path / "cut", after_step=[stop])
    resumed = fit(module, loaders(), options, output=tmp_path / "cut", resume=True)
    assert distance(straight.module, resumed.module) == 0


@pytest.mark.parametrize("scheduler", ["cosine", "onecycle", "polynomial"])
def test_more_epochs_than_were_planned(tmp_path, scheduler):
    """The falling rate goes on as it would over the new number of epochs, and the run says so."""
    data, module = TinyData(), perceptron()
    common = {"batch_size": 16, "lr": 0.1, "scheduler": scheduler}
    short = fit(module, data, TrainOptions(epochs=2, **common), output=tmp_path)
    longer = fit(module, data, TrainOptions(epochs=6, **common), output=tmp_path, resume=True)
    assert len(longer.history) == 6 and longer.history[:2] == short.history
    whole = fit(module, data, TrainOptions(epochs=6, **common))
    assert [row["lr"] for row in longer.history[2:]] == pytest.approx([row["lr"] for row in whole.history[2:]])
    assert any("planned for 2 epochs: the learning rate goes on as for 6" in note for note in longer.notes)


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path):
    result = fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    assert "started from the beginning" in " ".join(result.notes)


def test_files(tmp_path):
    fit(perceptron(), TinyData(), TrainOptions(epochs=2), output=tmp_path, tensorboard=True)
    rows = json.loads((tmp_path / "history.json").read_text())["epochs"]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/top1", "eval/loss", "eval/top1", "train/lr"} <= set(tags["scalars"])
    assert [event.value for event in events.Scalars("eval/loss")] == pytest.approx([row["eval/loss"] for row in rows])
    assert tags["graph"]
    summary = events.summary_metadata
    assert "_hparams_/experiment" in summary and "_hparams_/session_start_info" in summary


def test_looking_does_not_change_the_run(tmp_path):
    module = perceptron(dropout=0.3)
    looked_at = fit(module, TinyData(), TrainOptions(epochs=2), output=tmp_path, tensorboard=True)
    assert distance(looked_at.module, fit(module, TinyData(), TrainOptions(epochs=2)).module) == 0


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_alone(tmp_path, ending):
    module = perceptron(norm=True)
    path = save_weights(module, tmp_path / f"weights.{ending}")
    state = load_file(path) if ending == "safetensors" else torch.load(path, weights_only=True)
    assert distance(state, module) == 0


# Bad input


def test_weights_with_another_ending(tmp_path):
    with pytest.raises(OutputError, match=r"weights file 'weights\.bin' must end in \.pt, \.pth or \.safetensors"):
        save_weights(perceptron(), tmp_path / "weights.bin")


def test_checkpoint_of_another_model(tmp_path):
    fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path)
    other = perceptron()
    other[4] = torch.nn.Linear(24, 6)
    with pytest.raises(
        TrainingError, match=r"of another model: '4.weight' is \(5, 24\) in the checkpoint, \(6, 24\) in the model"
    ):
        fit(other, TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    with pytest.raises(TrainingError, match=r"'1.weight' is only in the model.*\(5 in all\)"):
        fit(perceptron(norm=True), TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)


def test_other_options(tmp_path):
    fit(perceptron(), TinyData(), TrainOptions(epochs=2, lr=0.1), output=tmp_path)
    wanted = r"written with other options: batch_size was 128, is 64; lr was 0.1, is 0.2\. Resume with"
    with pytest.raises(TrainingError, match=wanted):
        fit(perceptron(), TinyData(), TrainOptions(epochs=3, lr=0.2, batch_size=64), output=tmp_path, resume=True)


def test_damaged_checkpoint(tmp_path):
    fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path)
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match=r"last.pt' cannot be read as a checkpoint"):
        fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    torch.save(perceptron().state_dict(), path)
    with pytest.raises(WeightsError, match="is not a training checkpoint"):
        fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    with pytest.raises(WeightsError, match=r"no checkpoint .* to resume from"):
        checkpoints.read(tmp_path / "none.pt")


def test_resume_needs_a_folder():
    with pytest.raises(TrainingError, match="resume needs the output folder"):
        fit(perceptron(), TinyData(), TrainOptions(), resume=True)


def test_no_space_left_keeps_the_old_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk: the write fails half-way through."""
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        import torch
        from compress.errors import OutputError
        from compress.training import checkpoints
        path = Path({str(tmp_path / "last.pt")!r})
        checkpoints.save({{"optimizer": None, "model": torch.zeros(1000)}}, path)
        old = path.read_bytes()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            checkpoints.save({{"optimizer": None, "model": torch.zeros(1_000_000)}}, path)
        except OutputError as error:
            print(error)
        assert path.read_bytes() == old and len(list(path.parent.iterdir())) == 1
    """
    shown = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "cannot write checkpoint" in shown.stdout and "File too large" in shown.stdout
    assert shown.stdout.strip().endswith("the checkpoint before it is intact")


def test_checkpoint_does_not_alias_the_module(tmp_path):
    module = perceptron()
    before = copy.deepcopy(module.state_dict())
    fit(module, TinyData(), TrainOptions(epochs=1), output=tmp_path)
    fit(module, TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    assert distance(module.state_dict(), before) == 0
