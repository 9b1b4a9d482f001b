"""Two gloo processes train as one does with the same global batch; failures are shown, files written once."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import distributed_training
import pytest
import torch
from tiny_training import TinyData, distance, perceptron
from torch import distributed, nn
from torch.utils.data import DataLoader

from compress.errors import InputError, TrainingError
from compress.training import launching
from compress.training.distributed import World, joined
from compress.training.launching import available_processes, check_nproc, launch
from compress.training.loaders import open_batches
from compress.training.metrics import Tally
from compress.training.options import TrainOptions
from compress.training.sampling import EpochSampler, ShareSampler

WORKER = str(Path(distributed_training.__file__))
BASE = {"epochs": 2, "batch_size": 16, "lr": 0.1}
CASES = {
    # 101 samples: the last global batch has 5, one process has 3 of them and the other 2.
    "plain": {"options": BASE, "files": True},
    "accumulated": {"options": {**BASE, "accumulate": 2}},
    "dropped": {"options": {**BASE, "drop_last": True}},
    # 97 samples: the last global batch has one sample, the second process only pads.
    "padded": {"options": BASE, "train": 97},
    "adam-ema-clip": {"options": {**BASE, "optimizer": "adamw", "lr": 0.01, "ema_decay": 0.9, "clip_norm": 0.1}},
    "not finite": {"options": {**BASE, "lr": 1e30}, "finetune": True},  # both give the start back
    "zeros": {"options": {**BASE, "keep": "last"}, "zeros": True},
    "distilled": {"options": BASE, "distill": True},
    "norm": {"options": {**BASE, "sync_batchnorm": True}, "norm": True},
    "norm-images": {"options": {**BASE, "sync_batchnorm": True}, "norm": True, "image": True},
    "norm-padded": {"options": {**BASE, "sync_batchnorm": True}, "norm": True, "image": True, "train": 97},
    "norm-recomputed": {"options": {**BASE, "sync_batchnorm": True, "recompute": ["0"]}, "norm": True, "image": True},
    "norm-alone": {"options": BASE, "norm": True},
}
needs_two = pytest.mark.skipif(available_processes() < 2, reason="needs two CPU cores")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Run every case in two processes, once."""
    if available_processes() < 2:
        pytest.skip("needs two CPU cores")
    folder = tmp_path_factory.mktemp("together")
    (folder / "cases.json").write_text(json.dumps(CASES))
    launch(2, [WORKER, str(folder / "cases.json"), str(folder)])
    return folder


@pytest.mark.parametrize("name", [name for name in CASES if name != "norm-alone"])
def test_two_processes_equal_one(together, name):
    alone = distributed_training.run(CASES[name])
    first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in (0, 1))
    assert first["size"] == 2
    assert distance(first["state"], second["state"]) == 0
    assert distance(first["state"], alone.module) < (1e-5 if "norm" in name else 1e-6)
    for mine, theirs in zip(first["history"], alone.history):
        for key in ("train/loss", "eval/loss"):
            assert mine[key] == pytest.approx(theirs[key], abs=1e-5)
        # Counted exactly, so not even rounding may differ: 101 does not divide, nor does 51.
        assert (mine["train/top1"], mine["eval/top1"]) == (theirs["train/top1"], theirs["eval/top1"])


def test_without_synchronized_batchnorm_the_result_differs(together):
    """The comparison above must be able to fail."""
    alone = distributed_training.run(CASES["norm-alone"])
    assert distance(torch.load(together / "norm-alone-0.pt")["state"], alone.module) > 1e-4


def test_both_processes_return_the_same_statistics(together):
    first, second = (torch.load(together / f"norm-alone-{rank}.pt")["state"] for rank in (0, 1))
    assert distance(first, second) == 0


def test_files_are_written_once(together):
    assert {item.name for item in (together / "plain").iterdir()} == {"checkpoints", "history.json", "curves.png"}
    state = torch.load(together / "plain" / "checkpoints" / "last.pt", weights_only=True)
    assert len(state["random"]) == 2  # of each process


def test_the_error_of_the_failing_process_is_raised(capfd):
    if available_processes() < 2:
        pytest.skip("needs two CPU cores")
    with pytest.raises(TrainingError, match="process 1 failed: ValueError: rank one gives up") as caught:
        launch(2, [WORKER, "fail-error"])
    assert caught.value.exit_code == 1
    shown = capfd.readouterr().err
    assert shown.count("ValueError: rank one gives up") == 1
    assert "in callback" in shown  # the traceback, once


@pytest.mark.slow
def test_a_killed_process_ends_the_job(tmp_path, monkeypatch):
    if available_processes() < 2:
        pytest.skip("needs two CPU cores")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(TrainingError, match=r"process 1 failed with exit code -9: Signal 9 \(SIGKILL\)"):
        launch(2, [WORKER, "fail-kill"])
    assert not list(tmp_path.glob("torchelastic*"))  # the launcher's folder for logs


def test_of_several_failures_the_cause_is_told():
    def failure(exitcode, when, own=None):
        message = {"message": "lost", "extraInfo": {"time": own}} if own is not None else "Signal"
        return SimpleNamespace(exitcode=exitcode, timestamp=when, message=message)

    killed, ended = failure(-9, 101), failure(-15, 101)
    first, later = failure(1, 100, own=100.2), failure(1, 100, own=100.9)
    assert sorted([later, first, ended, killed], key=launching._order) == [killed, first, later, ended]
    early = failure(-15, 100)  # the launcher's moments are whole seconds
    assert sorted([early, first], key=launching._order) == [first, early]


def test_more_processes_than_the_machine_has():
    with pytest.raises(InputError, match=rf"nproc 9999 is not between 1 and {available_processes()}"):
        check_nproc(9999)
    with pytest.raises(InputError, match="nproc 0 is not between 1"):
        check_nproc(0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_process_group_is_left_on_every_exit(monkeypatch, error):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    made, ended = mock.Mock(), mock.Mock()
    group = {
        "init_process_group": made,
        "destroy_process_group": ended,
        "get_rank": lambda: 0,
        "get_world_size": lambda: 2,
    }
    with mock.patch.multiple(distributed, **group), pytest.raises(error), joined("cpu") as world:
        assert (world.size, made.call_args.args) == (2, ("gloo",))
        assert not ended.called
        raise error
    assert ended.call_count == 1


def test_the_group_of_the_user_is_left_to_the_user():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(KeyError), joined("cpu"):
            raise KeyError
        assert distributed.is_initialized()
    finally:
        distributed.destroy_process_group()


# Samplers: arithmetic, without processes


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [1, 2, 7, 48, 97, 101])
def test_global_batches_do_not_depend_on_the_number_of_processes(world, size):
    batch = 12
    alone = EpochSampler(range(size), seed=3)
    alone.set_epoch(5)
    order = list(alone)
    assert sorted(order) == list(range(size))
    shares = []
    for rank in range(world):
        sampler = EpochSampler(range(size), world=world, rank=rank, seed=3)
        sampler.set_epoch(5)
        assert len(list(sampler)) == len(sampler) == -(-size // world)
        shares.append(list(sampler)[: sampler.counted])
    local = batch // world
    for index in range(0, size, batch):
        start = index // world
        found = [sample for share in shares for sample in share[start : start + local]]
        assert sorted(found) == sorted(order[index : index + batch])


def test_drop_last_leaves_whole_global_batches():
    samplers = [EpochSampler(range(50), world=2, rank=rank, multiple=16) for rank in (0, 1)]
    assert [(len(sampler), sampler.counted) for sampler in samplers] == [(24, 24), (24, 24)]


def test_evaluation_shares_every_sample_once():
    found = [index for rank in range(3) for index in ShareSampler(range(10), world=3, rank=rank)]
    assert sorted(found) == list(range(10))


def test_uneven_batches_are_averaged_over_samples():
    tally = Tally()
    tally.add(1.0, 3, torch.eye(3), torch.tensor([0, 1, 0]))
    tally.add(5.0, 1, torch.eye(3)[:1], torch.tensor([0]))
    figures = tally.over(World(0, 1, torch.device("cpu")), "eval")
    assert figures == {"eval/loss": 2.0, "eval/top1": 0.75}


def test_loaders_that_every_process_would_read_in_full():
    world = World(0, 2, torch.device("cpu"))
    with pytest.raises(
        TrainingError, match="2 processes would each read the whole training loader; give it a DistributedSampler"
    ):
        open_batches((DataLoader(TinyData().train), None), TrainOptions(), world)
    with pytest.raises(InputError, match="batch_size 15 cannot be split over 2 processes × 1 accumulated batches"):
        open_batches(TinyData(), TrainOptions(batch_size=15), world)


def test_the_module_keeps_its_batchnorm_classes(together):
    state = torch.load(together / "norm-0.pt")["state"]
    assert state.keys() == perceptron(norm=True).state_dict().keys()
    assert isinstance(perceptron(norm=True)[1], nn.BatchNorm1d)


@needs_two
@pytest.mark.slow
def test_under_torchrun(tmp_path, together):
    cases = {"plain": CASES["plain"]}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", WORKER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path / "cases.json"), str(tmp_path)], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    same = [torch.load(folder / "plain-0.pt")["state"] for folder in (tmp_path, together)]
    assert distance(*same) == 0
