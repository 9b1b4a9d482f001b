"""What each process of the distributed tests runs: every case of a file of cases, in one process group."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from tiny_training import TinyData, convolutional, perceptron
from torch import distributed

from compress.training.distributed import joined
from compress.training.launching import reporting_failure
from compress.training.loop import fit
from compress.training.options import FinetuneOptions, TrainOptions


def model(case):
    return (
        convolutional(norm=case.get("norm", False)) if case.get("image") else perceptron(norm=case.get("norm", False))
    )


def data(case):
    return TinyData(train=case.get("train", 101), test=51, image=case.get("image", False))


def run(case, output=None):
    teacher = perceptron(seed=1) if case.get("distill") else None
    start = model(case)
    if case.get("zeros"):
        with torch.no_grad():
            start[0].weight[:, ::2] = 0
    kind = FinetuneOptions if case.get("finetune") else TrainOptions
    return fit(start, data(case), kind.from_mapping(case["options"]), teacher=teacher, output=output)


def fail(how):
    def callback(run):
        if run.world.rank == 1 and run.step == 2:
            if how == "error":
                raise ValueError("rank one gives up")
            os.kill(os.getpid(), 9)

    fit(perceptron(), TinyData(), TrainOptions(epochs=2, batch_size=16), after_step=[callback])


def main(cases_path, folder="."):
    torch.set_num_threads(1)
    if cases_path.startswith("fail-"):
        return fail(cases_path.removeprefix("fail-"))
    with joined("cpu") as world:
        for name, case in json.loads(Path(cases_path).read_text()).items():
            files = Path(folder) / name if case.get("files") else None
            result = run(case, files)
            kept = {"state": result.module.state_dict(), "history": result.history, "size": world.size}
            torch.save(kept, Path(folder) / f"{name}-{world.rank}.pt")
    assert not distributed.is_initialized()
    return None


if __name__ == "__main__":
    with reporting_failure():
        main(*sys.argv[1:])
