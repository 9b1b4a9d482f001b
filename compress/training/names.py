"""What optimizers and schedulers are called here and in torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Name of the option → class of torch.optim; the class's own name is taken too, in any case.
OPTIMIZERS = {
    "sgd": "SGD",
    "adam": "Adam",
    "adamw": "AdamW",
    "rmsprop": "RMSprop",
    "adadelta": "Adadelta",
    "adafactor": "Adafactor",
    "adagrad": "Adagrad",
    "adamax": "Adamax",
    "asgd": "ASGD",
    "lbfgs": "LBFGS",
    "muon": "Muon",
    "nadam": "NAdam",
    "radam": "RAdam",
    "rprop": "Rprop",
    "sparseadam": "SparseAdam",
}
# Name of the option → class of torch.optim.lr_scheduler; the class's own name is taken too, in any case.
SCHEDULERS = {
    "step": "StepLR",
    "plateau": "ReduceLROnPlateau",
    "cosine": "CosineAnnealingLR",
    "multistep": "MultiStepLR",
    "exponential": "ExponentialLR",
    "linear": "LinearLR",
    "constant": "ConstantLR",
    "polynomial": "PolynomialLR",
    "onecycle": "OneCycleLR",
    "cyclic": "CyclicLR",
    "cosineannealingwarmrestarts": "CosineAnnealingWarmRestarts",
    "lambda": "LambdaLR",
    "multiplicative": "MultiplicativeLR",
    "sequential": "SequentialLR",
    "chained": "ChainedScheduler",
}


def own_name(name: Any, classes: Mapping[str, str]) -> Any:
    """The option's name of what may be written as torch writes it: OneCycleLR, adamW."""
    if not isinstance(name, str):
        return name
    folded = {own.lower(): key for key, own in classes.items()} | {key: key for key in classes}
    return folded.get(name.lower(), folded.get(name.lower().replace("_", ""), name))
