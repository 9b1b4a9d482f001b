"""Distillation against its formula, with hooks that come and go."""

import pytest
import torch
from tiny_training import TinyData, by_hand, convolutional, distance, perceptron
from torch import nn
from torch.nn import functional

from compress.batches import Batch
from compress.errors import InputError, TrainingError
from compress.training.criterion import Fed, make_criterion
from compress.training.distillation import distilled, feature_loss, soft_target_loss
from compress.training.loop import fit
from compress.training.options import TrainOptions


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_targets_by_brute_force(temperature):
    torch.manual_seed(0)
    student, teacher = torch.randn(6, 5, dtype=torch.double), torch.randn(6, 5, dtype=torch.double)
    total = 0.0
    for row in range(6):
        p = [torch.exp(v / temperature).item() for v in teacher[row]]
        q = [torch.exp(v / temperature).item() for v in student[row]]
        for a, b in zip(p, q):
            total += a / sum(p) * (torch.log(torch.tensor(a / sum(p) * sum(q) / b))).item()
    found = soft_target_loss(student, teacher, temperature).item()
    assert found == pytest.approx(temperature**2 * total / 6, rel=1e-5)
    kl = functional.kl_div(
        (student / temperature).log_softmax(1), (teacher / temperature).softmax(1), reduction="batchmean"
    )
    assert found == pytest.approx(temperature**2 * kl.item())


def test_gradient_of_a_hot_temperature_is_that_of_matching_logits():
    """Hinton 2015, section 2.1: for large T, zero-mean logits, the gradient is (z − v) / N."""
    torch.manual_seed(0)
    student = torch.randn(1, 5, dtype=torch.double, requires_grad=True)
    teacher = torch.randn(1, 5, dtype=torch.double)
    soft_target_loss(student - student.mean(), teacher - teacher.mean(), 1e4).backward()
    wanted = ((student - student.mean()) - (teacher - teacher.mean())) / 5
    torch.testing.assert_close(student.grad, wanted, rtol=1e-3, atol=1e-5)


def test_fit_minimizes_the_formula():
    data, student, teacher = TinyData(), perceptron(), perceptron(seed=1).eval()
    inputs = data.train.tensors[0]
    with torch.no_grad():
        wanted_output = {tuple(row.tolist()): out for row, out in zip(inputs, teacher(inputs))}
    seen = []
    student.register_forward_pre_hook(lambda module, args: seen.append(args[0]))

    def formula(output, labels):
        soft = torch.stack([wanted_output[tuple(row.tolist())] for row in seen[-1]])
        kl = functional.kl_div((output / 3).log_softmax(1), (soft / 3).softmax(1), reduction="batchmean")
        return 0.3 * functional.cross_entropy(output, labels) + 0.7 * 9 * kl

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    options = TrainOptions(epochs=2, batch_size=16, lr=0.05, scheduler="none", distill_weight=0.7, temperature=3.0)
    result = fit(student, data, options, teacher=teacher)
    wanted = by_hand(student, data, epochs=2, batch_size=16, optimizer=sgd, loss=formula)
    assert distance(result.module, wanted) < 1e-5


def test_a_student_taught_without_labels_agrees_with_its_teacher():
    data = TinyData()
    teacher = fit(perceptron(seed=1), data, TrainOptions(epochs=10, batch_size=16)).module
    wrong = TinyData()
    wrong.train.tensors[1].zero_()  # labels that teach nothing
    result = fit(perceptron(), wrong, TrainOptions(epochs=20, batch_size=16, distill_weight=1.0), teacher=teacher)
    assert result.final["eval/top1"] > 0.9


def test_features_of_equal_shape():
    first, second = torch.randn(2, 4), torch.randn(2, 4)
    assert feature_loss(first, second, "x").item() == pytest.approx(((first - second) ** 2).mean().item())


def test_features_with_fewer_channels_compare_attention_maps():
    torch.manual_seed(0)
    teacher = torch.randn(2, 8, 3, 3)
    student = teacher.repeat(1, 2, 1, 1) * 3  # the same places matter: other channels, other size
    assert feature_loss(student, teacher, "x").item() == pytest.approx(0, abs=1e-6)
    assert feature_loss(torch.randn(2, 4, 3, 3), teacher, "x").item() > 0.01


def test_feature_term_pulls_the_layer_and_leaves_no_hooks():
    data, teacher = TinyData(image=True), convolutional(seed=1)
    options = {"epochs": 3, "batch_size": 20, "distill_weight": 0.0}

    def gap(module):
        inputs = data.test.tensors[0]
        with torch.no_grad():
            return feature_loss(module.eval()[0](inputs), teacher.eval()[0](inputs), "0").item()

    plain = fit(convolutional(), data, TrainOptions(**options), teacher=teacher).module
    pulled = fit(
        convolutional(), data, TrainOptions(**options, feature_layers=("0",), feature_weight=10.0), teacher=teacher
    ).module
    assert gap(pulled) < 0.5 * gap(plain)
    assert not any(part._forward_hooks for module in (pulled, teacher) for part in module.modules())


def test_pairs_of_names():
    """The student's layer 0 follows the teacher's layer 2: both (N, 24)."""
    student, teacher = perceptron(), perceptron(seed=1)
    options = TrainOptions(feature_layers=("0=2",), distill_weight=0.0, feature_weight=2.0)
    inputs, target = TinyData().train[:4]
    with distilled(student, teacher, make_criterion(options), options) as objective:
        _, found = objective(student, Fed(None, Batch.of(inputs, target), 4))
    plain = functional.cross_entropy(student(inputs), target)
    wanted = plain + 2 * functional.mse_loss(student[0](inputs), teacher[:3].eval()(inputs))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("01", "feature layer '01' is not in the student; did you mean '1'"),
        ("0=9", "feature layer '9' is not in the teacher; known: 0, 1"),
    ],
)
def test_unknown_layers(name, text):
    with pytest.raises(InputError, match=text):
        fit(perceptron(), TinyData(), TrainOptions(feature_layers=(name,)), teacher=perceptron(seed=1))


def test_teacher_of_other_classes():
    with pytest.raises(TrainingError, match=r"the teacher's output is \(101, 7\), the student's \(101, 5\)"):
        fit(perceptron(), TinyData(), TrainOptions(), teacher=nn.Linear(16, 7))


def test_features_that_cannot_be_matched():
    with pytest.raises(
        TrainingError, match=r"features of '0' cannot be matched: student \(101, 24\), teacher \(101, 5\)"
    ):
        fit(perceptron(), TinyData(), TrainOptions(feature_layers=("0=4",)), teacher=perceptron(seed=1))
