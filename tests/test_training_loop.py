"""`fit` beside a hand-written loop: the same weights, and what it must leave alone."""

import copy
import random

import numpy as np
import pytest
import torch
from tiny_training import TinyData, by_hand, convolutional, distance, perceptron
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

import compress
from compress.errors import DataError, InputError, TrainingError
from compress.training.defaults import settled
from compress.training.loop import fit
from compress.training.options import FinetuneOptions, TrainOptions


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


PLAIN = {"epochs": 3, "batch_size": 16, "lr": 0.05, "scheduler": "none", "keep": "last"}  # as a loop by hand does


def test_same_weights_as_the_plain_loop_to_the_bit():
    data, module = TinyData(), perceptron(dropout=0.2, norm=True)
    result = fit(module, data, TrainOptions(**PLAIN))
    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=sgd)) == 0
    assert result.steps == 3 * 7
    assert [row["epoch"] for row in result.history] == [1, 2, 3]


def test_learns_and_reports_what_it_measured():
    data = TinyData()
    result = fit(perceptron(), data, TrainOptions(epochs=8, batch_size=16))
    inputs, target = data.test.tensors
    with torch.no_grad():
        output = result.module.eval()(inputs)
    assert result.final["eval/top1"] == pytest.approx((output.argmax(1) == target).float().mean().item())
    assert result.final["eval/loss"] == pytest.approx(functional.cross_entropy(output, target).item(), rel=1e-5)
    assert result.final["eval/top1"] > 0.9


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.8, nesterov=True, weight_decay=1e-3)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-3)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=1e-3)),
        ("rmsprop", lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.8, weight_decay=1e-3)),
    ],
)
def test_optimizers(name, make):
    data, module = TinyData(), perceptron()
    options = {"optimizer": name, "lr": 0.01, "momentum": 0.8, "weight_decay": 1e-3, "nesterov": name == "sgd"}
    result = fit(module, data, TrainOptions(**{**PLAIN, **options}))
    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=make)) == 0


@pytest.mark.parametrize(
    ("name", "arguments", "make"),
    [
        ("SGD", {"dampening": 0.3}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.3)),
        ("Adam", {"betas": (0.8, 0.98), "eps": 1e-4}, lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.98), eps=1e-4)),
        ("RMSprop", {"alpha": 0.9, "eps": 1e-4, "momentum": 0.0}, lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-4)),
        ("NAdam", {"momentum_decay": 0.01}, lambda p: torch.optim.NAdam(p, lr=0.01, momentum_decay=0.01)),
    ],
)  # fmt: skip
def test_arguments_of_optimizers(name, arguments, make):
    data, module = TinyData(), perceptron()
    options = {"optimizer": name, "lr": 0.01, "optimizer_args": arguments}
    result = fit(module, data, TrainOptions(**{**PLAIN, **options}))
    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=make)) == 0


@pytest.mark.parametrize(
    ("module", "optimizer", "rate"),
    [
        (perceptron(), "sgd", 0.01),
        (nn.Sequential(nn.TransformerEncoderLayer(16, 2, 16)), "adamw", 5e-5),
        (nn.Sequential(nn.Conv2d(8, 32, 3), nn.MultiheadAttention(8, 2)), "sgd", 0.01),  # the kernels carry it
    ],
)
def test_optimizer_and_rate_that_fit_the_network(module, optimizer, rate):
    options, notes = settled(FinetuneOptions(), module)
    assert (options.optimizer, options.lr) == (optimizer, rate)
    assert f"trained by {optimizer} at learning rate {rate:g}" in notes[0]
    assert settled(FinetuneOptions(optimizer="sgd", lr=0.3), module)[1] == ()


@pytest.mark.parametrize("kind", ["clip_norm", "clip_value"])
def test_clipping(kind):
    def clip(module):
        if kind == "clip_norm":
            nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        else:
            nn.utils.clip_grad_value_(module.parameters(), 0.01)

    data, module = TinyData(), perceptron()
    result = fit(module, data, TrainOptions(**PLAIN, **{kind: 0.05 if kind == "clip_norm" else 0.01}))
    wanted = by_hand(module, data, epochs=3, batch_size=16, optimizer=sgd, after_backward=clip)
    assert distance(result.module, wanted) == 0
    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=sgd)) > 1e-3


def test_label_smoothing():
    data, module = TinyData(), perceptron()
    result = fit(module, data, TrainOptions(**PLAIN, label_smoothing=0.2))

    def smoothed(output, target):  # the formula itself, not torch's argument
        wanted = functional.one_hot(target, 5) * 0.8 + 0.2 / 5
        return -(wanted * output.log_softmax(1)).sum(1).mean()

    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=sgd, loss=smoothed)) < 1e-6


def test_mean_squared_error_of_a_column_does_not_broadcast():
    torch.manual_seed(0)
    inputs, target = torch.randn(40, 4), torch.randn(40)
    loader = DataLoader(TensorDataset(inputs, target), batch_size=40)
    result = fit(nn.Linear(4, 1), (loader, loader), TrainOptions(epochs=1, loss="mse", lr=1e-9))
    assert result.watched == "eval/loss"
    assert "eval/top1" not in result.final
    with torch.no_grad():
        wanted = (result.module(inputs)[:, 0] - target).square().mean().item()
    assert result.final["eval/loss"] == pytest.approx(wanted, rel=1e-5)


def test_own_loss():
    data, module = TinyData(), perceptron()

    def margin(output, target):
        return functional.multi_margin_loss(output, target)

    result = fit(module, data, TrainOptions(**PLAIN), loss=margin)
    assert distance(result.module, by_hand(module, data, epochs=3, batch_size=16, optimizer=sgd, loss=margin)) == 0


@pytest.mark.parametrize("accumulate", [2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_accumulation_equals_the_large_batch(accumulate, drop_last):
    """101 samples in steps of 16: the last step has 5 samples, in uneven passes."""
    data, module = TinyData(), perceptron()
    once = fit(module, data, TrainOptions(**PLAIN, drop_last=drop_last))
    parts = fit(module, data, TrainOptions(**PLAIN, drop_last=drop_last, accumulate=accumulate))
    assert once.steps == parts.steps == 3 * (6 if drop_last else 7)
    assert distance(once.module, parts.module) < 1e-6
    for mine, theirs in zip(once.history, parts.history):
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-6)
        assert mine["train/top1"] == theirs["train/top1"]


def test_accumulated_gradients_are_those_of_one_pass():
    data, module = TinyData(train=37), perceptron()
    inputs, target = data.train.tensors
    reference = copy.deepcopy(module)
    functional.cross_entropy(reference(inputs), target).backward()
    # One SGD step without momentum at lr 1: the weights move by the gradient.
    options = TrainOptions(epochs=1, batch_size=40, accumulate=4, lr=1.0, momentum=0.0, scheduler="none")
    moved = fit(module, data, options).module
    for before, after, wanted in zip(module.parameters(), moved.parameters(), reference.parameters()):
        torch.testing.assert_close(before - after, wanted.grad, atol=1e-6, rtol=0)


def test_exponential_moving_average():
    data, module = TinyData(), perceptron()
    average = {}

    def follow(trained):
        for name, value in trained.named_parameters():
            old = average.setdefault(name, dict(module.named_parameters())[name].detach().clone())
            average[name] = 0.9 * old + 0.1 * value.detach()

    plain = copy.deepcopy(module)
    stepper = sgd(plain.parameters())
    inputs, target = data.train.tensors
    for epoch in range(3):
        for index in torch.randperm(101, generator=torch.Generator().manual_seed(epoch)).split(16):
            stepper.zero_grad()
            functional.cross_entropy(plain(inputs[index]), target[index]).backward()
            stepper.step()
            follow(plain)
    result = fit(module, data, TrainOptions(**PLAIN, ema_decay=0.9))
    assert distance(dict(result.module.named_parameters()), average) < 1e-6


def test_early_stopping_restores_the_best_epoch():
    data = TinyData(noise=1.5)
    seen = []

    def remember(run):
        seen.append({name: value.clone() for name, value in run.module.state_dict().items()})

    options = TrainOptions(epochs=40, batch_size=16, lr=0.3, patience=3, scheduler="none")
    result = fit(perceptron(), data, options, after_epoch=[remember])
    assert result.stopped_early
    assert len(result.history) == len(seen) == result.best_epoch + 3
    assert distance(result.module, seen[result.best_epoch - 1]) == 0
    assert result.best_score == max(row["eval/top1"] for row in result.history)


def test_min_delta_asks_for_more_than_a_little():
    options = TrainOptions(
        epochs=30, batch_size=101, lr=1e-4, patience=2, min_delta=0.5, monitor="loss", scheduler="none"
    )
    result = fit(perceptron(), TinyData(), options)
    assert (result.best_epoch, len(result.history)) == (1, 3)


def test_a_mask_applied_after_each_step_holds_at_the_end():
    module = perceptron()
    mask = (torch.rand(24, 16, generator=torch.Generator().manual_seed(0)) > 0.5).float()

    def keep_zeros(run):
        with torch.no_grad():
            run.module[0].weight.mul_(mask)

    result = fit(module, TinyData(), TrainOptions(**PLAIN, weight_decay=1e-3), after_step=[keep_zeros])
    assert torch.equal(result.module[0].weight != 0, mask.bool())


def test_callbacks_before_each_epoch_can_freeze():
    def freeze(run):
        if run.epoch == 1:
            run.module[0].requires_grad_(False)

    frozen = fit(perceptron(), TinyData(), TrainOptions(**PLAIN), before_epoch=[freeze]).module
    once = fit(perceptron(), TinyData(), TrainOptions(**{**PLAIN, "epochs": 1})).module
    assert torch.equal(frozen[0].weight, once[0].weight)
    assert not torch.equal(frozen[4].weight, once[4].weight)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision):
    seen = []
    module = perceptron()
    module[0].register_forward_hook(lambda part, inputs, output: seen.append(output.dtype))
    result = fit(module, TinyData(), TrainOptions(epochs=8, batch_size=16, precision=precision))
    assert set(seen) == {torch.bfloat16 if precision == "bf16" else torch.float16}
    assert result.module[0].weight.dtype == torch.float32
    assert result.final["eval/top1"] > 0.9


def test_the_input_is_not_touched():
    module = perceptron(norm=True).eval()
    before = copy.deepcopy(module.state_dict())
    teacher = perceptron(seed=1)
    theirs = copy.deepcopy(teacher.state_dict())
    options = TrainOptions(epochs=1, recompute=("0",), feature_layers=("0",))
    result = fit(module, TinyData(), options, teacher=teacher)
    assert distance(module.state_dict(), before) == 0
    assert distance(teacher.state_dict(), theirs) == 0
    assert not any(part.training for part in module.modules())
    assert all(part.training for part in teacher.modules())
    assert not any(
        part._forward_hooks or "forward" in vars(part) for part in [*teacher.modules(), *result.module.modules()]
    )
    assert all(parameter.grad is None and parameter.requires_grad for parameter in teacher.parameters())


def test_masks_of_torch_prune_survive_the_copy():
    module = perceptron()
    prune.l1_unstructured(module[0], "weight", 0.5)
    module(torch.randn(2, 16)).sum().backward()  # leaves a computed weight, which deepcopy refuses
    result = fit(module, TinyData(), TrainOptions(**PLAIN))
    assert torch.equal(result.module[0].weight == 0, module[0].weight_mask == 0)


@pytest.mark.parametrize("failing", [False, True])
def test_random_states_are_given_back(failing):
    module = perceptron()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    wanted = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)

    def fail(run):
        raise KeyError("on purpose")

    if failing:
        with pytest.raises(KeyError):
            fit(module, TinyData(), TrainOptions(epochs=1, deterministic=True), after_step=[fail])
    else:
        fit(module, TinyData(), TrainOptions(epochs=1, deterministic=True))
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == wanted
    assert not torch.are_deterministic_algorithms_enabled()


def test_seed_decides_everything():
    runs = [fit(perceptron(dropout=0.3), TinyData(), TrainOptions(**PLAIN, seed=seed)).module for seed in (1, 1, 2)]
    assert distance(runs[0], runs[1]) == 0
    assert distance(runs[0], runs[2]) > 0


def test_workers_see_the_same_samples():
    module = perceptron()
    alone = fit(module, TinyData(), TrainOptions(**PLAIN))
    helped = fit(module, TinyData(), TrainOptions(**PLAIN, workers=1))
    assert distance(alone.module, helped.module) == 0


def test_a_pair_of_loaders_or_one():
    data = TinyData()
    train, test = DataLoader(data.train, batch_size=20, shuffle=True), DataLoader(data.test, batch_size=20)
    result = fit(perceptron(), (train, test), TrainOptions(epochs=2))
    assert "eval/top1" in result.final
    result = fit(perceptron(), [batch for batch in train], TrainOptions(epochs=2))
    assert result.watched == "train/top1"


def test_exported_program_is_trained_too():
    program = torch.export.export(
        perceptron().eval(), (torch.randn(2, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    result = fit(program.module(), TinyData(), TrainOptions(epochs=4, batch_size=16))
    assert result.final["train/loss"] < result.history[0]["train/loss"]


def test_facade():
    assert compress.fit is fit
    assert compress.TrainOptions is TrainOptions


# Bad input


def test_nan_loss_names_the_step_and_the_checkpoint(tmp_path):
    def spoil(run):
        if run.step == 10:
            with torch.no_grad():
                run.module[0].weight.fill_(float("nan"))

    with pytest.raises(
        TrainingError, match=r"the loss is nan at step 11 \(epoch 2\).*last good checkpoint is '.*last.pt'"
    ):
        fit(perceptron(), TinyData(), TrainOptions(**PLAIN), output=tmp_path, after_step=[spoil])
    kept = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert kept["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in kept["model"].values())


def test_batch_larger_than_the_data_with_drop_last():
    with pytest.raises(TrainingError, match="drop_last with batch_size 128 leaves no batch of 101 training samples"):
        fit(perceptron(), TinyData(), TrainOptions(batch_size=128, drop_last=True))
    loader = DataLoader(TinyData().train, batch_size=128, drop_last=True)
    with pytest.raises(TrainingError, match="its batch is larger than the data and drop_last is set"):
        fit(perceptron(), loader, TrainOptions())


def test_too_few_classes():
    module = nn.Linear(16, 3)
    with pytest.raises(TrainingError, match="the model gives 3 classes, the data has 5"):
        fit(module, TinyData(), TrainOptions())
    with pytest.raises(TrainingError, match="label 4 is out of range: the model gives 3 classes"):
        fit(module, DataLoader(TinyData().train, batch_size=50), TrainOptions())
    negative = [(torch.randn(4, 16), torch.tensor([0, 1, 2, -1]))]
    with pytest.raises(TrainingError, match="the loss refuses a label: Target -1 is out of bounds"):
        fit(perceptron(), negative, TrainOptions())


def test_batch_that_does_not_divide():
    with pytest.raises(
        InputError, match="batch_size 16 cannot be split over 1 processes × 3 accumulated batches; use a multiple of 3"
    ):
        fit(perceptron(), TinyData(), TrainOptions(batch_size=16, accumulate=3))


def test_batchnorm_with_one_sample():
    with pytest.raises(TrainingError, match="a batch of 1 sample is too small for batch-norm"):
        fit(perceptron(norm=True), TinyData(train=33), TrainOptions(batch_size=16))


def test_loss_that_does_not_fit():
    loader = [(torch.randn(4, 16), torch.randn(4, 7))]
    with pytest.raises(
        TrainingError, match=r"takes class numbers and the targets are floats of shape \(4, 7\); give loss mse"
    ):
        fit(perceptron(), loader, TrainOptions())
    with pytest.raises(
        TrainingError, match=r"the loss does not take an output of \(4, 5\) with a target of \(4, 7\) float32"
    ):
        fit(perceptron(), loader, TrainOptions(), loss=functional.cross_entropy)
    with pytest.raises(TrainingError, match="the loss must return one number as a tensor"):
        fit(perceptron(), TinyData(), TrainOptions(), loss=lambda output, target: output)


def test_monitor_without_its_figure():
    loader = [(torch.randn(4, 16), torch.randn(4, 5))]
    with pytest.raises(TrainingError, match="monitor 'top1' asks for train/top1"):
        fit(perceptron(), loader, TrainOptions(epochs=1, loss="mse", monitor="top1"))


def test_no_data():
    data = TinyData()
    data.train = None
    with pytest.raises(DataError, match="the data has no training part"):
        fit(perceptron(), data, TrainOptions())
    with pytest.raises(TrainingError, match="the training loader gives no batch: it is empty"):
        fit(perceptron(), [], TrainOptions())
    with pytest.raises(DataError, match=r"training data must have \.loader"):
        fit(perceptron(), 3, TrainOptions())


def test_nothing_to_train():
    module = perceptron().requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter that wants a gradient"):
        fit(module, TinyData(), TrainOptions())


def test_device():
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        fit(perceptron(), TinyData(), TrainOptions(), device="gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device cuda:0 is not there: this machine has 0 GPUs"):
            fit(perceptron(), TinyData(), TrainOptions(), device="cuda")


def test_convolutional_network_learns():
    result = fit(convolutional(), TinyData(image=True), TrainOptions(epochs=6, batch_size=16, lr=0.1))
    assert result.final["eval/top1"] > 0.6  # chance is 0.2


class Named(nn.Module):
    """A network whose output is a dict, as a detector's or a transformer's."""

    def __init__(self, **extra):
        super().__init__()
        self.inner, self.extra = perceptron(), extra

    def forward(self, x):
        return {"scores": self.inner(x), **{name: function(x) for name, function in self.extra.items()}}


@pytest.mark.parametrize("teacher", [None, perceptron(seed=1), Named()])
def test_an_output_that_holds_one_tensor(teacher):
    """It trains as the tensor itself does, with a teacher too."""
    wanted = fit(perceptron(), TinyData(), TrainOptions(**PLAIN), teacher=teacher)
    result = fit(Named(), TinyData(), TrainOptions(**PLAIN), teacher=teacher)
    assert distance(result.module.inner, wanted.module) == 0
    assert result.final["eval/top1"] == wanted.final["eval/top1"]


class Outputs(Named):
    """Several tensors, of which `logits` are meant; a loss of its own where forward is given labels, as transformers has it."""

    def forward(self, x, labels=None):
        logits = self.inner(x)
        loss = None if labels is None else functional.cross_entropy(logits, labels)
        return {"loss": loss, "hidden": x, "logits": logits}


def test_an_output_that_holds_several():
    with pytest.raises(
        InputError, match=r"takes one tensor, and the model returns 2 tensors \(scores, sum\); give a loss of"
    ):
        fit(Named(sum=lambda x: x.sum(1)), TinyData(), TrainOptions(epochs=1, batch_size=16))
    wanted = fit(perceptron(), TinyData(), TrainOptions(**PLAIN))
    assert distance(fit(Outputs(), TinyData(), TrainOptions(**PLAIN)).module.inner, wanted.module) == 0
