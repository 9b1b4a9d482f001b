"""Training options: ranges, names, nearest names, TOML."""

import dataclasses
import subprocess
import sys
import tomllib

import pytest

from compress.errors import InputError
from compress.training.losses import LOSSES, make_loss
from compress.training.optimizers import OPTIMIZERS
from compress.training.options import LOSSES as LOSS_NAMES
from compress.training.options import OPTIMIZERS as OPTIMIZER_NAMES
from compress.training.options import SCHEDULERS as SCHEDULER_NAMES
from compress.training.options import TrainOptions
from compress.training.schedulers import SCHEDULERS


def test_frozen_with_help_for_every_field():
    options = TrainOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.lr = 1.0
    for field in dataclasses.fields(options):
        assert field.metadata["help"], field.name


def test_names_are_those_of_the_tables():
    assert set(OPTIMIZER_NAMES) == set(OPTIMIZERS)
    assert set(SCHEDULER_NAMES) == set(SCHEDULERS)
    assert set(LOSS_NAMES) == set(LOSSES)


def test_toml():
    table = tomllib.loads('epochs = 3\nlabel-smoothing = 0.1\noptimizer = "adamw"\nrecompute = ["layer1", "layer2"]\n')
    options = TrainOptions.from_mapping(table)
    assert (options.epochs, options.label_smoothing, options.optimizer) == (3, 0.1, "adamw")
    assert options.recompute == ("layer1", "layer2")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"optimizer": "adm"}, "unknown optimizer 'adm'; did you mean 'adam'?"),
        ({"scheduler": "cosin"}, "unknown scheduler 'cosin'; did you mean 'cosine'?"),
        ({"loss": "cross-entropy"}, "unknown loss 'cross-entropy'; did you mean 'cross_entropy'?"),
        ({"precision": "bfloat16"}, "unknown precision 'bfloat16'; did you mean"),
        ({"epochs": 0}, "training option epochs must be at least 1, got 0"),
        ({"lr": 0}, "training option lr must be above 0, got 0"),
        ({"lr": float("nan")}, "training option lr must be above 0, got nan"),
        ({"momentum": 1.5}, "training option momentum must be at least 0 and at most 1, got 1.5"),
        ({"epochs": "ten"}, "training option epochs must be int, got 'ten'"),
        ({"epochs": True}, "training option epochs must be int, got True"),
        ({"shuffle": "yes"}, "training option shuffle must be bool, got 'yes'"),
        ({"recompute": "layer1"}, r"training option recompute must be tuple\[str, ...\], got 'layer1'"),
        ({"nesterov": True, "optimizer": "adam"}, "nesterov needs optimizer 'sgd' and a momentum above 0"),
        ({"warmup_epochs": 10, "epochs": 10}, "warmup_epochs 10 must be below epochs 10"),
        ({"epoch": 3}, "unknown training option 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_refused(values, text):
    with pytest.raises(InputError, match=text):
        TrainOptions.from_mapping(values)


def test_own_loss_is_passed_as_function():
    with pytest.raises(InputError, match="pass the function itself as fit\\(loss=…\\)"):
        make_loss(TrainOptions(loss="my.py:loss"))


def test_reading_options_does_not_import_torch():
    code = "import compress.training.options, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
