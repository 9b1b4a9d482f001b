"""Files that are written: whole or not at all, one writer a place, nothing left by the dead, the cause in one line."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from cli.main import main
from compress.errors import OutputError
from compress.files import check_file_writable, check_space, check_writable, native_file, written_beside
from compress.locking import claimed, locked_folder
from compress.pipeline.outputs import output_folder

FACTORY = """
import torch, time
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        return super().forward(x)

def build(width=8):
    torch.manual_seed(0)
    return Net(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4))

def wide():
    return build(400)

class Slow:
    def __len__(self):
        return 64
    def __getitem__(self, index):
        time.sleep(0.05)
        return torch.ones(3, 8, 8) * (index % 4), index % 4

def data():
    return {"train": Slow(), "test": Slow()}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    images, target = rng.integers(0, 255, (60, 8, 8, 3), dtype=np.uint8), rng.integers(0, 4, 60)
    np.savez("data.npz", x_train=images[:40], y_train=target[:40], x_test=images[40:], y_test=target[40:])
    return tmp_path


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--quiet"])
    said = capsys.readouterr()
    assert said.err.count("\n") <= 1 and "Traceback" not in said.err
    return stop.value.code, said.err


def hidden(folder):
    return sorted(item.name for item in folder.rglob(".*"))


@contextlib.contextmanager
def files_end_at(size_bytes):
    """Every write past `size_bytes` of a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("command", [("prune", "--amount", "0.1"), ("quantize", "--method", "dynamic"), ("export",)])
def test_a_full_disk_is_one_line_and_leaves_nothing(place, capsys, command):
    before = sorted(place.iterdir())
    verb, *options = command
    out = "out.onnx" if verb == "export" else "out"
    with files_end_at(20_000):
        code, said = run(capsys, verb, "my.py:wide", "--data", "data.npz", "-o", out, *options)
    assert code == 2 and "File too large" in said
    assert sorted(place.iterdir()) == sorted({*before, *place.glob("__pycache__")})


def test_torch_never_sees_the_disk_fail(tmp_path):
    """Its archive writer, a destructor in C++, would end the process."""
    path = tmp_path / "w.pt"
    with files_end_at(5_000), pytest.raises(OSError, match="too large"), native_file(path) as file:
        torch.save(nn.Linear(100, 100).state_dict(), file)
    with native_file(path) as file:
        torch.save(torch.arange(3), file)
    assert torch.equal(torch.load(path, weights_only=True), torch.arange(3))


def test_space_is_checked_before_writing(tmp_path):
    with pytest.raises(OutputError, match=r"takes 1e\+15|takes 1000000000000.0 MB and the disk has"):
        check_space(tmp_path / "x", 10**18)
    check_space(tmp_path / "x", 10)


def test_places_that_cannot_be_written_are_refused_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file, no folder"):
        check_writable(tmp_path / "file" / "below" / "out")
    with pytest.raises(OutputError, match="File name too long"):
        check_writable(tmp_path / ("n" * 300))
    with pytest.raises(OutputError, match="is a folder and a file is needed"):
        check_file_writable(tmp_path, overwrite=True)


def test_a_report_that_cannot_be_written_is_said_before_the_work(place, capsys):
    (place / "report.md").mkdir()
    code, said = run(capsys, "quantize", "my.py:build", "--data", "data.npz", "-o", "out", "--report", "report.md")
    assert code == 2 and "is a folder" in said and not (place / "out").exists()


def test_one_place_has_one_writer(tmp_path):
    with claimed(tmp_path / "out"):
        with pytest.raises(OutputError, match="another command is writing"), claimed(tmp_path / "out"):
            pass
        with claimed(tmp_path / "other"):
            pass
    with claimed(tmp_path / "out"):
        pass
    assert hidden(tmp_path) == []


def child(code, cwd):
    """A Python process that prints a line when `code` has run, and then waits to be killed."""
    text = f"from pathlib import Path\n{code}\nprint('ready', flush=True)\nimport time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", text], cwd=cwd, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


HOLD = """
import contextlib; from compress.locking import *; stack = contextlib.ExitStack()
stack.enter_context(claimed(Path('out'))); stack.enter_context(locked_folder(Path('.'), '.out.writing-'))
"""


def test_the_lock_of_the_living_counts_and_that_of_the_dead_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    process = child(HOLD, tmp_path)
    try:
        with pytest.raises(OutputError, match="another command is writing"), output_folder("out"):
            pass
        assert len(list(tmp_path.glob(".out.writing-*"))) == 1  # not taken for a leftover
    finally:
        process.kill()
        process.wait()
    with output_folder("out") as folder:
        (folder.path / "model.onnx").write_text("x")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out"]


def test_the_dead_leave_no_temporary_folders(tmp_path, monkeypatch):
    process = child(
        f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\nfrom compress.scratch import *; s = scratch_folder()",
        tmp_path,
    )
    process.kill()
    process.wait()
    left = list(tmp_path.iterdir())
    (tmp_path / "compress-scratch-mine").mkdir()  # another length: nobody's
    with locked_folder(tmp_path, "compress-scratch-") as own:
        assert left and not left[0].exists() and own.is_dir()
    assert [item.name for item in tmp_path.iterdir()] == ["compress-scratch-mine"]


def test_leftovers_of_a_single_file_go_with_the_next_writing(tmp_path):
    process = child(
        "from compress.locking import *; f = locked_folder(Path('.'), '.last.pt.writing-'); f.__enter__()", tmp_path
    )
    process.kill()
    process.wait()
    with written_beside(tmp_path / "last.pt") as beside:
        beside.write_text("x")
    assert [item.name for item in tmp_path.iterdir()] == ["last.pt"]


def test_threads_do_not_write_one_place(tmp_path):
    started, results = threading.Barrier(2), []

    def write():
        started.wait()
        try:
            with output_folder(tmp_path / "out") as folder:
                (folder.path / "model.onnx").write_text("x")
                time.sleep(0.2)
            results.append("written")
        except OutputError as error:
            results.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result == "written" for result in results) == [False, True]
    assert any("another command is writing" in result or "exists already" in result for result in results)


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_signals_unwind_the_command(place, number):
    command = [sys.executable, "-m", "cli.main", "quantize", "my.py:build", "--data", "my.py:data", "-o", "out", "-q"]
    code = "from cli.main import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command[3:]],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    )
    for _ in range(400):
        if list(place.glob(".out.writing-*")):
            break
        time.sleep(0.05)
    process.send_signal(number)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and said == "compress: stopped\n"
    left = {item.name for item in place.iterdir()} - {"__pycache__", ".ses"}  # the latter is ONNX Runtime's
    assert left == {"my.py", "data.npz"}


def train(capsys, *more):
    return run(capsys, "train", "my.py:build", "--data", "data.npz", "-o", "out", "--epochs", "1", *more)


def test_training_that_overwrites_keeps_the_old_result_until_the_new_one_is_whole(place, capsys, monkeypatch):
    assert train(capsys)[0] == 0
    old = {item.name: item.read_bytes() for item in (place / "out").rglob("*") if item.is_file()}
    assert {"model.onnx", "history.json", "last.pt"} <= set(old)
    from compress.pipeline import train as room

    with monkeypatch.context() as patched:  # stopped when everything is trained, before the result is there
        patched.setattr(room, "closing_report", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert train(capsys, "--overwrite", "--seed", "3")[0] == 130
    kept = {item.name: item.read_bytes() for item in (place / "out").iterdir() if item.is_file()}
    assert kept == {name: content for name, content in old.items() if name in kept} and "model.onnx" in kept
    assert (place / "out" / "checkpoints" / "last.pt").read_bytes() == old["last.pt"]
    assert train(capsys, "--resume", "--seed", "3")[0] == 0  # goes on with the new run, not with the old one
    assert (place / "out" / "model.onnx").read_bytes() != old["model.onnx"]
    assert (place / "out" / "checkpoints" / "last.pt").is_file() and hidden(place / "out") == []


def test_overwrite_counts_where_the_recipe_names_the_folder(place, capsys):
    (place / "r.toml").write_text(
        'out = "out"\n[model]\nspec = "my.py:build"\n[data]\nspec = "data.npz"\n[quantize]\nmethod = "static"\n'
    )
    assert run(capsys, "run", "r.toml")[0] == 0
    assert run(capsys, "run", "r.toml")[0] == 2
    assert run(capsys, "run", "r.toml", "--overwrite")[0] == 0
