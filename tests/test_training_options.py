"""Training options: ranges, names, nearest names, TOML."""

import dataclasses
import subprocess
import sys
import tomllib

import pytest
from torch import optim
from torch.optim import lr_scheduler

from compress.errors import InputError
from compress.training.criterion import make_criterion
from compress.training.loss_table import LOSSES
from compress.training.names import OPTIMIZERS, SCHEDULERS, own_name
from compress.training.options import TrainOptions


def test_frozen_with_help_for_every_field():
    options = TrainOptions()
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.lr = 1.0
    for field in dataclasses.fields(options):
        assert field.metadata["help"], field.name


def test_names_are_those_of_the_tables():
    assert all(entry.help and entry.needs for entry in LOSSES.values())


def test_every_class_of_torch_has_a_name():
    """Those of a newer torch too: this fails where it brings one that the table lacks."""
    for module, base, names in (
        (optim, optim.Optimizer, OPTIMIZERS),
        (lr_scheduler, lr_scheduler.LRScheduler, SCHEDULERS),
    ):
        classes = {
            name
            for name, kind in vars(module).items()
            if isinstance(kind, type) and issubclass(kind, base) and kind is not base and not name.startswith("_")
        }
        assert classes == set(names.values())
        assert {own_name(name, names) for name in classes} == set(names)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"optimizer": "nadm"}, "unknown optimizer 'nadm'; did you mean 'nadam'"),
        ({"optimizer": "adam", "optimizer_args": {"beta": [0.9, 0.9]}}, "Adam has no argument 'beta'; did you mean 'betas'"),
        ({"optimizer": "adam", "optimizer_args": {"betas": 0.9}}, "argument betas of Adam must be 2 numbers, got 0.9"),
        ({"optimizer": "adam", "optimizer_args": {"eps": "small"}}, "argument eps of Adam must be a number, got 'small'"),
        ({"optimizer": "adam", "optimizer_args": {"amsgrad": 1}}, "argument amsgrad of Adam must be true or false, got 1"),
        ({"optimizer": "adam", "optimizer_args": {"betas": [1.5, 0.9]}}, "Adam refuses its arguments: Invalid beta"),
        ({"optimizer": "sgd", "nesterov": True, "optimizer_args": {"dampening": 0.1}}, "zero dampening"),
        ({"optimizer": "sgd", "momentum": 0.5, "optimizer_args": {"momentum": 0.6}}, "momentum is given twice: 0.5, and 0.6"),
        ({"optimizer": "sparseadam"}, "optimizer 'sparseadam' takes sparse gradients alone"),
        ({"optimizer_args": {"eps": 1e-6}}, "optimizer_args need the optimizer that takes them"),
        ({"scheduler": "onecyle"}, "unknown scheduler 'onecyle'; did you mean 'onecycle'"),
        ({"scheduler": "plateau", "scheduler_args": {"facto": 0.2}}, "ReduceLROnPlateau has no argument 'facto'; did you mean 'factor'"),
        ({"scheduler": "plateau", "scheduler_args": {"cooldown": 1.5}}, "argument cooldown of ReduceLROnPlateau must be a whole number"),
        ({"scheduler": "plateau", "scheduler_args": {"threshold_mode": "ab"}}, "has no threshold_mode 'ab'; did you mean 'abs'"),
        ({"scheduler": "plateau", "scheduler_args": {"factor": 2.0}}, "ReduceLROnPlateau refuses its arguments: Factor should be < 1"),
        ({"scheduler": "exponential"}, "ExponentialLR needs gamma"),
        ({"scheduler": "multistep", "scheduler_args": {"milestones": 3}}, "argument milestones of MultiStepLR must be a list of whole numbers"),
        ({"scheduler": "sequential"}, "scheduler 'sequential' is made of other schedulers"),
        ({"scheduler": "constant", "warmup_epochs": 1}, "scheduler 'constant' starts at a rate of its own"),
        ({"scheduler": "none", "scheduler_args": {"gamma": 0.5}}, "scheduler_args change nothing with scheduler 'none'"),
        ({"lr": "fast"}, "training option lr must be float or 'auto', got 'fast'"),
    ],
)  # fmt: skip
def test_arguments_that_torch_would_refuse_later(values, text):
    with pytest.raises(InputError, match=text):
        TrainOptions.from_mapping(values)


def test_names_as_torch_writes_them():
    options = TrainOptions(optimizer="NAdam", scheduler="ReduceLROnPlateau", optimizer_args={"betas": [0.8, 0.9]})
    assert (options.optimizer, options.scheduler) == ("nadam", "plateau")
    assert TrainOptions(optimizer="sgd", optimizer_args={"momentum": 0.5}).momentum == 0.5


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


def test_own_loss_is_looked_up():
    assert make_criterion(TrainOptions(loss="torch.nn:SmoothL1Loss")).function.beta == 1.0
    with pytest.raises(InputError, match=r"'none\.py' does not exist"):
        make_criterion(TrainOptions(loss="none.py:loss"))


def test_reading_options_does_not_import_torch():
    code = "import compress.training.options, sys; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
