"""The learning rate of every step, against closed forms."""

import math

import pytest
import torch
from tiny_training import TinyData, by_hand, distance, perceptron

from compress.errors import InputError
from compress.training.loop import fit
from compress.training.options import TrainOptions
from compress.training.schedulers import Schedule

STEPS = 5


def rates(scores=None, known=STEPS, **options):
    """The learning rate of each step over all epochs."""
    chosen = TrainOptions(lr=0.8, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=chosen.lr)
    schedule = Schedule(optimizer, chosen, known, rising=False)
    found = []
    for epoch in range(chosen.epochs):
        for _ in range(STEPS):
            schedule.before_step()
            found.append(schedule.lr)
            optimizer.step()
        schedule.after_epoch(epoch, 1.0 if scores is None else scores[epoch])
    return found


def cosine(epoch, epochs, low=0.0):
    return low + (0.8 - low) * (1 + math.cos(math.pi * epoch / epochs)) / 2


@pytest.mark.parametrize("low", [0.0, 0.1])
def test_cosine(low):
    wanted = [cosine(step, 6 * STEPS, low) for step in range(6 * STEPS)]
    assert rates(epochs=6, scheduler="cosine", min_lr=low) == pytest.approx(wanted)


def test_cosine_goes_by_epochs_where_their_length_is_not_known():
    wanted = [cosine(epoch, 6) for epoch in range(6) for _ in range(STEPS)]
    assert rates(epochs=6, scheduler="cosine", known=None) == pytest.approx(wanted)


def test_cosine_does_not_rise_again_when_an_epoch_is_longer_than_it_said():
    found = rates(epochs=2, scheduler="cosine", known=STEPS - 1)
    assert found[2 * STEPS - 2 :] == pytest.approx([0, 0], abs=1e-9) and found == sorted(found, reverse=True)


def test_step():
    wanted = [0.8 * 0.5 ** (epoch // 2) for epoch in range(6) for _ in range(STEPS)]
    assert rates(epochs=6, scheduler="step", step_size=2, gamma=0.5) == pytest.approx(wanted)


def test_plateau():
    scores = [1.0, 0.9, 0.9, 0.9, 0.8, 0.8]  # two epochs without improvement end with the fourth
    wanted = [0.8] * 4 + [0.08] * 2
    found = rates(scores, epochs=6, scheduler="plateau", plateau_patience=1)
    assert found == pytest.approx([rate for rate in wanted for _ in range(STEPS)])


def test_none():
    assert rates(epochs=2, scheduler="none") == [0.8] * (2 * STEPS)


@pytest.mark.parametrize("scheduler", ["none", "cosine", "step"])
def test_warm_up_rises_step_by_step_then_hands_over(scheduler):
    found = rates(epochs=6, scheduler=scheduler, warmup_epochs=2, step_size=1, gamma=0.5)
    assert found[: 2 * STEPS] == pytest.approx([0.8 * (step + 1) / (2 * STEPS) for step in range(2 * STEPS)])
    after = {
        "none": lambda step: 0.8,
        "cosine": lambda step: cosine(step, 4 * STEPS),
        "step": lambda step: 0.8 * 0.5 ** (step // STEPS),
    }[scheduler]
    assert found[2 * STEPS :] == pytest.approx([after(step) for step in range(4 * STEPS)])


def test_fit_follows_the_schedule():
    data, module = TinyData(), perceptron()
    made = []

    def optimizer(parameters):
        made.append(torch.optim.SGD(parameters, lr=0.1, momentum=0.9))
        return made[-1]

    steps = 4 * -(-len(data.train) // 16)
    counter = iter(range(steps))

    def fall(module):
        made[-1].param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * next(counter) / steps)) / 2

    wanted = by_hand(module, data, epochs=4, batch_size=16, optimizer=optimizer, after_backward=fall)
    result = fit(module, data, TrainOptions(epochs=4, batch_size=16, lr=0.1, scheduler="cosine", keep="last"))
    assert distance(result.module, wanted) < 1e-6


def test_warm_up_needs_a_length():
    class Endless:
        def __iter__(self):
            return iter([(torch.randn(4, 16), torch.zeros(4, dtype=torch.long))])

    from compress.errors import TrainingError

    with pytest.raises(TrainingError, match="warmup_epochs needs a training loader that knows its length"):
        fit(perceptron(), Endless(), TrainOptions(warmup_epochs=1))


@pytest.mark.parametrize("name", ["onecycle", "cyclic"])
def test_schedulers_that_go_step_by_step(name):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8, momentum=0.9)
    total = 4 * STEPS
    make = {
        "onecycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.8, total_steps=total),
        "cyclic": lambda: torch.optim.lr_scheduler.CyclicLR(optimizer, 0.08, 0.8, step_size_up=3),
    }
    scheduler, wanted = make[name](), []
    for step in range(total):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < total - 1:
            scheduler.step()
    given = {} if name == "onecycle" else {"scheduler_args": {"step_size_up": 3}}
    assert rates(epochs=4, scheduler=name, **given) == pytest.approx(wanted)


def test_exponential_by_epochs():
    wanted = [0.8 * 0.5**epoch for epoch in range(3) for _ in range(STEPS)]
    assert rates(epochs=3, scheduler="ExponentialLR", scheduler_args={"gamma": 0.5}) == pytest.approx(wanted)


def test_plateau_as_torch_has_it():
    """Relative threshold, cooldown, factor: the rate of each epoch is that of torch's scheduler by itself."""
    scores = [1.0, 0.99, 0.985, 0.5, 0.5, 0.499, 0.498, 0.497]
    given = {"factor": 0.2, "threshold": 0.05, "threshold_mode": "rel", "cooldown": 1, "patience": 0}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    scheduler, wanted = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **given), []
    for score in scores:
        wanted += [optimizer.param_groups[0]["lr"]] * STEPS
        scheduler.step(score)
    assert rates(scores, epochs=8, scheduler="plateau", scheduler_args=given) == pytest.approx(wanted)
    assert len(set(wanted)) > 2


def test_plateau_follows_the_direction_of_what_is_monitored():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)
    assert Schedule(optimizer, TrainOptions(scheduler="plateau"), 5, rising=True).scheduler.mode == "max"
    with pytest.raises(InputError, match="mode 'min': of what is monitored the greater is better; leave mode out"):
        Schedule(optimizer, TrainOptions(scheduler="plateau", scheduler_args={"mode": "min"}), 5, rising=True)
