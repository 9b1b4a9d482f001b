"""What a run returns is never worse than what it was given: the start is judged, the best is kept, divergence stops."""

import pytest
import torch
from tiny_training import TinyData, convolutional, distance, perceptron
from torch import nn
from torch.utils.data import DataLoader

import compress
from compress.errors import TrainingError
from compress.training.loop import fit
from compress.training.options import FinetuneOptions, TrainOptions
from compress.training.range_test import chosen_rate

DATA = TinyData(noise=1.0)


def accuracy(module):
    inputs, target = DATA.test.tensors
    with torch.no_grad():
        return (module.eval()(inputs).argmax(1) == target).float().mean().item()


@pytest.fixture(scope="module")
def trained():
    return fit(perceptron(norm=True), DATA, TrainOptions(epochs=6, batch_size=16)).module.eval()


BAD = {
    "sgd, far too fast": {"optimizer": "sgd", "lr": 30.0},
    "not finite": {"optimizer": "sgd", "lr": 1e30},
    "adam, too fast": {"optimizer": "adam", "lr": 1.0},
    "decay": {"optimizer": "sgd", "lr": 0.1, "weight_decay": 5.0},
    "rmsprop": {"optimizer": "rmsprop", "lr": 0.5},
    "averaged": {"optimizer": "adam", "lr": 1.0, "ema_decay": 0.9},
    "by loss": {"optimizer": "sgd", "lr": 10.0, "monitor": "loss"},
    "early stopping": {"optimizer": "adam", "lr": 1.0, "patience": 1},
}


@pytest.mark.parametrize("kind", [FinetuneOptions, TrainOptions])
@pytest.mark.parametrize("name", [name for name in BAD])
def test_never_worse_than_what_came(trained, name, kind):
    before = accuracy(trained)
    assert before > 0.7
    options = kind(epochs=3, batch_size=16, **BAD[name])
    if name == "not finite" and kind is TrainOptions:  # nothing says that this network is worth keeping
        with pytest.raises(
            TrainingError, match=r"the loss is (nan|inf) at step 2 \(epoch 1\), learning rate 9\.\d+e\+29; lower lr"
        ):
            fit(trained, DATA, options)
        return
    result = fit(trained, DATA, options)
    assert accuracy(result.module) >= before
    assert result.start["eval/top1"] == pytest.approx(before)
    if result.best_epoch == 0:
        assert distance(result.module, trained) == 0
        assert "epoch 0: training did not help" in " ".join(result.notes) and "try lr" in " ".join(result.notes)
        assert result.final == result.start


def test_divergence_stops_and_names_the_rate(trained):
    result = fit(trained, DATA, FinetuneOptions(epochs=50, batch_size=16, lr=30.0, scheduler="none"))
    assert len(result.history) < 10
    assert any("training diverged" in note and "at learning rate 30" in note for note in result.notes)


def test_a_rate_that_recovers_is_let_go_on(trained):
    """A step back at the full rate, which the falling rate makes good, is no divergence."""
    result = fit(trained, DATA, FinetuneOptions(epochs=8, batch_size=16, lr=0.3))
    assert len(result.history) == 8
    assert not any("diverged" in note for note in result.notes)


def test_a_loss_that_is_not_finite_keeps_the_start(trained):
    result = fit(trained, DATA, FinetuneOptions(epochs=3, batch_size=16, lr=1e30))
    assert result.history == () and distance(result.module, trained) == 0
    assert any(note.startswith("training stopped: the loss is") and "learning rate 9." in note for note in result.notes)


def test_the_best_epoch_or_the_last():
    data, states = TinyData(noise=1.5), []

    def remember(run):
        states.append({name: value.clone() for name, value in run.module.state_dict().items()})

    options = {"epochs": 12, "batch_size": 16, "lr": 0.5, "scheduler": "none"}
    best = fit(perceptron(), data, TrainOptions(**options), after_epoch=[remember])
    assert best.best_epoch < 12 and best.best_score == max(row["eval/top1"] for row in best.history)
    assert distance(best.module, states[best.best_epoch - 1]) == 0
    assert best.final == best.history[best.best_epoch - 1]
    last = fit(perceptron(), data, TrainOptions(**options, keep="last"))
    assert distance(last.module, states[-1]) == 0
    assert last.final["epoch"] == 12
    assert any("saved: the last epoch" in note and f"epoch {best.best_epoch} was best" in note for note in last.notes)


def test_a_network_that_knows_nothing_is_not_kept():
    """Trained from scratch with little success, the random weights are not returned, lucky as they may be."""
    result = fit(convolutional(), TinyData(image=True), TrainOptions(epochs=1, batch_size=101, lr=1e-6))
    assert result.kept_epoch == 1


def test_best_of_a_cut_run_is_kept_when_it_goes_on(tmp_path, trained):
    options = FinetuneOptions(epochs=3, batch_size=16, lr=0.2)
    straight = fit(trained, DATA, options, output=tmp_path / "straight")

    class Stopped(Exception):
        pass

    def stop(run):
        if run.epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        fit(trained, DATA, options, output=tmp_path / "cut", before_epoch=[stop])
    resumed = fit(trained, DATA, options, output=tmp_path / "cut", resume=True)
    assert distance(straight.module, resumed.module) == 0
    assert (straight.kept_epoch, straight.start) == (resumed.kept_epoch, resumed.start)


def test_own_metric_decides_in_its_direction(trained):
    def errors(output, target):
        return float((output.argmax(1) != target).float().mean())

    errors.higher_is_better = False
    result = fit(trained, DATA, FinetuneOptions(epochs=3, batch_size=16, lr=30.0, scheduler="none"), metric=errors)
    assert result.watched == "eval/errors" and result.best_epoch == 0
    assert result.best_score == pytest.approx(1 - accuracy(trained)) and accuracy(result.module) == accuracy(trained)
    pair = (DataLoader(DATA.train, 16), None)
    with pytest.raises(TrainingError, match="a metric needs data to be judged on"):
        fit(trained, pair, FinetuneOptions(epochs=1), metric=errors)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_rate_found_by_a_range_test(optimizer):
    module, state = perceptron(), torch.get_rng_state()
    result = fit(module, DATA, TrainOptions(epochs=5, batch_size=16, optimizer=optimizer, lr="auto"))
    assert torch.equal(state, torch.get_rng_state())
    assert result.options.lr > 0 and any("found by" in note for note in result.notes)
    assert result.best_score > 0.7
    # The trial leaves no trace: the same run with that rate written out.
    again = fit(perceptron(), DATA, TrainOptions(epochs=5, batch_size=16, optimizer=optimizer, lr=result.options.lr))
    assert distance(result.module, again.module) == 0


def test_rate_of_a_curve():
    rates = [10.0**power for power in range(-6, 1)]
    assert chosen_rate(rates, [2.0, 2.0, 1.9, 1.5, 1.0, 1.6, 9.0]) == pytest.approx(1e-3)
    assert chosen_rate(rates, [0.10, 0.10, 0.10, 0.101, 0.12, 0.5, 9.0]) == pytest.approx(1e-4)  # trained already


def test_zeros_of_masks_stay_zero():
    inputs = DATA.train.tensors[0]
    masked = compress.prune(perceptron().eval(), inputs[:2], amount=0.7, remove_channels=False).model
    zeros = masked[0].weight == 0
    assert zeros.float().mean() > 0.5
    for options in ({"lr": 0.05}, {"lr": 0.01, "optimizer": "adam", "weight_decay": 0.1, "ema_decay": 0.9}):
        result = fit(masked, DATA, TrainOptions(epochs=2, batch_size=16, keep="last", **options))
        assert torch.equal(result.module[0].weight == 0, zeros)
        assert any(note.startswith("zeros stayed zero: 70") for note in result.notes)
    free = fit(masked, DATA, TrainOptions(epochs=1, batch_size=16, keep="last", hold_zeros=False))
    assert (free.module[0].weight == 0).float().mean() < 0.1


def test_zeros_that_are_no_masks_learn():
    module = perceptron()
    nn.init.eye_(module[0].weight)
    nn.init.zeros_(module[4].weight)
    result = fit(module, DATA, TrainOptions(epochs=1, batch_size=16, keep="last"))
    assert (result.module[0].weight == 0).float().mean() < 0.5 and bool((result.module[4].weight != 0).any())


def test_lbfgs():
    module, data = perceptron(), TinyData()
    result = fit(module, data, TrainOptions(epochs=3, batch_size=101, optimizer="lbfgs", lr=1.0, scheduler="none"))
    inputs, target = data.train.tensors
    wanted = perceptron()
    stepper = torch.optim.LBFGS(wanted.parameters(), lr=1.0)

    def closure():
        stepper.zero_grad()
        loss = nn.functional.cross_entropy(wanted(inputs), target)
        loss.backward()
        return loss

    for _ in range(result.kept_epoch):
        stepper.step(closure)
    assert distance(result.module, wanted) < 1e-3
    assert result.final["eval/top1"] > 0.9
