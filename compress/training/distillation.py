"""Distillation: the student learns from the teacher's soft targets, on request from its features too.

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (2015), section 2:
    loss = (1 − w) · CE(student, target) + w · T² · KL(softmax(teacher / T) ‖ softmax(student / T))
T² keeps the size of the soft term's gradient independent of T. Features of equal shape are compared by mean
squared error; where the student has fewer channels, by attention maps (Zagoruyko, Komodakis 2017, section
3.1): the sum of squares over channels, scaled to length one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.batches import call
from compress.errors import InputError, TrainingError, nearest
from compress.training.criterion import MODEL, Criterion, Fed
from compress.training.main_output import find_tensor
from compress.training.options import TrainOptions

# (model, batch) → (outputs, scalar)
Objective = Callable[[nn.Module, Fed], tuple[Any, Tensor]]
NUMBERS = ("mse", "mae", "huber")  # losses of outputs that are no scores: the teacher's are imitated as they are


def soft_target_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T² · KL(teacher ‖ student) at `temperature`, a mean over the samples (dimension 1 is the classes)."""
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1)
    return divergence.mean() * temperature**2


def imitation(student: Tensor, teacher: Tensor, loss: str, temperature: float) -> Tensor:
    """How far the student's outputs are from the teacher's, as the kind of outputs asks: the name of the loss tells it.

    Logits of yes-or-no questions (bce) are the two-class softmax of (z, 0). A single column of anything else has no
    softmax; it is compared by squares, as numbers are.
    """
    if loss == "bce":
        pairs = [torch.stack([value, torch.zeros_like(value)], 1) for value in (student, teacher)]
        return soft_target_loss(pairs[0], pairs[1], temperature)
    if loss in NUMBERS or student.dim() == 1 or student.shape[1] == 1:
        return functional.mse_loss(student, teacher)
    return soft_target_loss(student, teacher, temperature)


def feature_loss(student: Tensor, teacher: Tensor, name: str) -> Tensor:
    """Return how far the student's features are from the teacher's.

    Raises:
        TrainingError: shapes that neither comparison takes.
    """
    if student.shape == teacher.shape:
        return functional.mse_loss(student, teacher)
    if student.dim() > 2 and student.dim() == teacher.dim() and student.shape[2:] == teacher.shape[2:]:
        maps = [functional.normalize(item.square().sum(1).flatten(1), dim=1) for item in (student, teacher)]
        return (maps[0] - maps[1]).square().sum(1).mean()
    raise TrainingError(
        f"features of {name!r} cannot be matched: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}; "
        "choose a layer whose shapes agree (channels may differ where there are positions)"
    )


@contextlib.contextmanager
def distilled(
    student: nn.Module, teacher: nn.Module, criterion: Criterion, options: TrainOptions
) -> Iterator[Objective]:
    """Yield the objective that combines `criterion` with the teacher; hooks are removed at the end of the block.

    `teacher` is copied to the student's device, put in eval mode and never touched.

    Raises:
        InputError: a feature layer that one of the two does not have.
        TrainingError: a loss that runs the model itself.
    """
    if criterion.form == MODEL:
        raise TrainingError(
            "this loss runs the model itself, so a teacher cannot see its outputs; leave the teacher out"
        )
    device = next(student.parameters()).device
    teacher = copy.deepcopy(teacher).to(device)
    for part in teacher.modules():
        part.training = False
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    theirs: dict[str, Tensor] = {}
    ours: dict[str, Tensor] = {}
    pairs = [_pair(name) for name in options.feature_layers]
    with contextlib.ExitStack() as hooks:
        for mine, other in pairs:
            hooks.callback(_keep_output(student, mine, ours, "student").remove)
            hooks.callback(_keep_output(teacher, other, theirs, "teacher").remove)

        def objective(module: nn.Module, fed: Fed) -> tuple[Any, Tensor]:
            with torch.no_grad():
                answer = call(teacher, fed.read)
            weight = options.distill_weight
            # With all the weight on the teacher no label is asked for.
            output, own = (call(module, fed.read), None) if weight == 1 else criterion(module, fed)
            ours_now, wanted = _scores(output, answer)
            value = imitation(ours_now, wanted, criterion.name, options.temperature) * weight
            if own is not None:
                value = value + own * (1 - weight)
            for mine, other in pairs:
                value = value + options.feature_weight * feature_loss(ours[mine], theirs[other], mine)
            return output, value

        yield objective


def _pair(name: str) -> tuple[str, str]:
    mine, _, other = name.partition("=")
    return mine, other or mine


def _keep_output(module: nn.Module, name: str, kept: dict[str, Tensor], who: str) -> Any:
    layers = dict(module.named_modules())
    if not name or name not in layers:
        raise InputError(f"feature layer {name!r} is not in the {who}; {nearest(name, [key for key in layers if key])}")

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept[name] = output

    return layers[name].register_forward_hook(hook)


def _scores(student: Any, teacher: Any) -> tuple[Tensor, Tensor]:
    """The tensors that are compared: the outputs, or the one that each holds."""
    mine, other = find_tensor(student), find_tensor(teacher)
    if mine is None or other is None:
        raise TrainingError("distillation needs models whose output is, or holds, one tensor")
    if mine.shape != other.shape:
        raise TrainingError(
            f"the teacher's output is {tuple(other.shape)}, the student's {tuple(mine.shape)}; "
            "a teacher must score the same classes"
        )
    return mine, other
