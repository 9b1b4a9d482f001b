"""Losses: what targets each takes, the forms of a loss of one's own, the model's own loss."""

import pytest
import torch
from tiny_training import TinyData, distance, perceptron
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from compress.errors import InputError, TrainingError
from compress.training.loop import fit
from compress.training.loss_table import LOSSES
from compress.training.losses import refusal
from compress.training.options import TrainOptions

PLAIN = {"epochs": 2, "batch_size": 16, "lr": 0.05, "scheduler": "none", "keep": "last"}
SCORES, ONE, FLAT = torch.randn(6, 4), torch.randn(6, 1), torch.randn(6)
CLASSES, YES, REAL = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 1, 0, 0, 1]), torch.randn(6)


@pytest.mark.parametrize(
    ("loss", "output", "target", "text"),
    [
        ("cross_entropy", SCORES, CLASSES, ""),
        ("cross_entropy", SCORES, functional.one_hot(CLASSES, 4).float(), ""),
        ("cross_entropy", SCORES, SCORES.softmax(1), ""),
        ("cross_entropy", torch.randn(2, 3, 5), torch.zeros(2, 5, dtype=torch.long), ""),
        ("cross_entropy", FLAT, REAL, "the targets are floats of shape (6,); give loss mse"),
        ("cross_entropy", ONE, REAL[:, None], "the targets are floats of shape (6, 1); give loss mse"),
        ("cross_entropy", ONE, YES.float(), "floats of shape (6,); give loss bce"),
        ("cross_entropy", ONE, YES, "the model gives one number of shape (6, 1); give loss bce"),
        ("cross_entropy", SCORES, torch.ones(6, 4), "give loss bce"),
        ("cross_entropy", SCORES, torch.ones(6, 4, dtype=torch.bool), "a yes or no for each class of shape (6, 4); give loss bce"),
        ("bce", ONE, YES, ""),
        ("bce", FLAT, YES.bool(), ""),
        ("bce", SCORES, torch.ones(6, 4), ""),
        ("bce", SCORES, CLASSES, "give loss cross_entropy"),
        ("bce", ONE, CLASSES, "targets from 0 to 1 and there is 3; give loss cross_entropy or mse"),
        ("mse", ONE, REAL, ""),
        ("mae", SCORES, CLASSES, "gives of shape (6, 4) for targets of shape (6,); give loss cross_entropy"),
        ("huber", SCORES, REAL, "gives of shape (6, 4) for targets of shape (6,)"),
    ],
)  # fmt: skip
def test_targets_that_a_loss_takes(loss, output, target, text):
    """What is taken gives a number, what is refused names the loss that fits."""
    assert text in refusal(loss, output, target) and bool(text) == bool(refusal(loss, output, target))
    if not text:
        assert LOSSES[loss].load()(TrainOptions())(output, target).isfinite()


@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        ("bce", functional.binary_cross_entropy_with_logits),
        ("mse", functional.mse_loss),
        ("mae", functional.l1_loss),
        ("huber", functional.huber_loss),
    ],
)
def test_losses_of_a_column_do_not_broadcast(loss, wanted):
    found = LOSSES[loss].load()(TrainOptions())(ONE, YES)
    assert found.item() == pytest.approx(wanted(ONE[:, 0], YES.float()).item())


def binary(integer=True):
    torch.manual_seed(0)
    x = torch.randn(200, 16)
    y = (x.sum(1) > 0).long()
    loader = DataLoader(TensorDataset(x, y if integer else y.float()), 32)
    return x, y, (loader, loader)


@pytest.mark.parametrize("integer", [True, False])
def test_one_logit(integer):
    x, y, loaders = binary(integer)
    result = fit(nn.Linear(16, 1), loaders, TrainOptions(epochs=8, loss="bce", lr=0.5))
    assert result.watched == "eval/top1"
    with torch.no_grad():
        wanted = ((result.module(x)[:, 0] > 0).long() == y).float().mean().item()
    assert result.final["eval/top1"] == pytest.approx(wanted) and wanted > 0.9
    with pytest.raises(TrainingError, match=r"loss cross_entropy takes.*give loss bce"):
        fit(nn.Linear(16, 1), loaders, TrainOptions(epochs=1))


def test_an_own_loss_may_take_any_labels():
    """Two classes and one output: the loss knows what they mean, and no check of ours stops it."""
    _, _, loaders = binary()
    own = lambda output, target: functional.binary_cross_entropy_with_logits(output[:, 0], target.float())  # noqa: E731
    result = fit(nn.Linear(16, 1), loaders, TrainOptions(epochs=3, lr=0.5), loss=own)
    assert result.watched == "eval/loss" and result.final["eval/loss"] < result.start["eval/loss"]


def test_float_targets_are_refused_before_the_first_step():
    x = torch.randn(40, 16)
    loader = DataLoader(TensorDataset(x, x.sum(1)), 20)
    seen = []
    with pytest.raises(
        TrainingError, match=r"loss cross_entropy takes class numbers and the targets are floats.*give loss mse"
    ):
        fit(nn.Linear(16, 1), (loader, loader), TrainOptions(epochs=1), after_step=[seen.append])
    assert not seen
    assert fit(nn.Linear(16, 1), (loader, loader), TrainOptions(epochs=2, loss="mse")).watched == "eval/loss"


def plain(outputs, target):
    return functional.cross_entropy(outputs, target)


def of_batch(outputs, batch):
    return functional.cross_entropy(outputs, batch[1])


def of_model(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


class Marked:
    takes = "outputs, batch"

    def __call__(self, scores, everything):
        return functional.cross_entropy(scores, everything[1])


@pytest.mark.parametrize("loss", [of_batch, of_model, Marked(), nn.CrossEntropyLoss, nn.CrossEntropyLoss()])
def test_forms_of_an_own_loss(loss):
    wanted = fit(perceptron(), TinyData(), TrainOptions(**PLAIN), loss=plain)
    result = fit(perceptron(), TinyData(), TrainOptions(**PLAIN), loss=loss)
    assert distance(result.module, wanted.module) == 0
    assert result.final["eval/loss"] == wanted.final["eval/loss"]


def test_forms_that_do_not_go_together():
    with pytest.raises(TrainingError, match="runs the model itself, so a teacher cannot see its outputs"):
        fit(perceptron(), TinyData(), TrainOptions(), loss=of_model, teacher=perceptron(seed=1))
    with pytest.raises(TrainingError, match="mixup blends targets, and this loss reads them itself"):
        fit(perceptron(), TinyData(), TrainOptions(mixup=1.0), loss=of_batch)
    with pytest.raises(InputError, match=r"a loss is a function \(outputs, target\) -> tensor, got int"):
        fit(perceptron(), TinyData(), TrainOptions(), loss=3)
    odd = Marked()
    odd.takes = "everything"
    with pytest.raises(InputError, match="the loss says that it takes 'everything'; known: outputs, target"):
        fit(perceptron(), TinyData(), TrainOptions(), loss=odd)


class Labelled(nn.Module):
    """Works its loss out itself where it is given labels, as transformers' models do."""

    def __init__(self):
        super().__init__()
        self.inner = perceptron()

    def forward(self, x, labels=None):
        logits = self.inner(x)
        return {"loss": None if labels is None else functional.cross_entropy(logits, labels), "logits": logits}


def test_the_models_own_loss():
    wanted = fit(perceptron(), TinyData(), TrainOptions(**PLAIN))
    result = fit(Labelled(), TinyData(), TrainOptions(**PLAIN, loss="model"))
    assert distance(result.module.inner, wanted.module) == 0
    with pytest.raises(
        TrainingError, match="loss model needs a model whose forward takes labels; that of Sequential takes input"
    ):
        fit(perceptron(), TinyData(), TrainOptions(loss="model"))


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_a_teacher_of_numbers(loss):
    """Where outputs are no class scores, a softmax over one column would say nothing at all."""
    x, _, loaders = binary()
    teacher = nn.Linear(16, 1)
    options = TrainOptions(epochs=10, loss=loss, lr=0.1, distill_weight=1.0, keep="last")
    result = fit(nn.Linear(16, 1), loaders, options, teacher=teacher)
    with torch.no_grad():
        gap = (result.module(x) - teacher(x)).square().mean() / teacher(x).var()
    assert gap < 0.1


class Detector(torch.nn.Module):
    """As torchvision's: losses in training mode, boxes in eval mode; statistics and dropout inside."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.head = torch.nn.Linear(8, 1)

    def forward(self, x, targets=None):
        found = self.head(self.body(x))
        if not self.training:
            return [{"boxes": row} for row in found]
        return {"loss_box": (found - targets).square().mean()}


def summed(model, batch):
    x, y = batch
    return sum(model(x, y).values())


def test_losses_that_exist_in_training_mode_only_are_judged_there():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    batches = [(x[i : i + 16], x[i : i + 16, :1] * 3) for i in range(0, 64, 16)]
    module = Detector().eval()
    options = TrainOptions(epochs=2, lr=0.05, seed=0)
    first = fit(module, (batches, batches), options, loss=summed, device="cpu")
    again = fit(module, (batches, batches), options, loss=summed, device="cpu")
    assert first.history[-1]["eval/loss"] < first.start["eval/loss"]
    assert [record["eval/loss"] for record in first.history] == [record["eval/loss"] for record in again.history]
    first.module.eval()
    with torch.no_grad():  # batch-norm and dropout as in eval: what is judged is what ships
        expected = torch.stack(
            [(first.module.head(first.module.body(a)) - b).square().mean() for a, b in batches]
        ).mean()
    assert first.final["eval/loss"] == pytest.approx(float(expected), rel=1e-4)
