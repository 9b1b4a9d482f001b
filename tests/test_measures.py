"""Figures of every task against a hand-written evaluation, own metrics with their direction, intervals by sample."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import compress.loading.torchvision_ops  # noqa: F401  torchmetrics imports torchvision, whose wheel may be another torch's
from compress.errors import DataError, InputError
from compress.evaluation.accuracy import evaluate, evaluate_all
from compress.measures.opening import open_measures
from compress.measures.own import Metric
from compress.measures.tasks import MEASURES, TASKS

R = np.random.default_rng(0)


def tensors(*arrays):
    return [torch.as_tensor(array) for array in arrays]


def scored(outputs, target, sizes=(7, 8, 5), **options):
    """The measures of given outputs, in batches of several sizes."""
    outputs, target = tensors(outputs, target)
    parts = zip(outputs.split(sizes), target.split(sizes))
    row = evaluate(nn.Identity(), list(parts), **options)
    return {item.name: item.value for item in row.measures}, row


def test_classification():
    outputs, y = R.normal(size=(20, 7)).astype("f"), R.integers(0, 7, 20)
    found, row = scored(outputs, y)
    p = outputs.argmax(1)
    assert found["top-1"] == row.top1 == (p == y).mean()
    assert found["top-5"] == np.mean([y[i] in outputs[i].argsort()[-5:] for i in range(20)])
    assert found["macro F1"] == pytest.approx(sk.f1_score(y, p, average="macro"), abs=1e-12)
    assert found["balanced accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, p), abs=1e-12)
    assert row.extra["task"] == "classification" and "(N, 7)" in row.extra["task_reason"]


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 2)])
@pytest.mark.parametrize("kind", ["int64", "float32"])
def test_binary(shape, kind):
    pytest.importorskip("torchmetrics")
    outputs, y = (3 * R.normal(size=shape)).astype("f"), R.integers(0, 2, 20).astype(kind)
    found, row = scored(outputs, y, task="binary")
    score = outputs[:, 1] - outputs[:, 0] if shape[-1] == 2 else outputs.reshape(-1)
    assert found["accuracy"] == row.top1 == ((score > 0) == y).mean()
    assert found["AUC"] == pytest.approx(sk.roc_auc_score(y, score), abs=1e-6)
    assert found["F1"] == pytest.approx(sk.f1_score(y, score > 0), abs=1e-12)
    if shape[-1] != 2:
        assert scored(outputs, y)[1].extra["task"] == "binary"


def test_large_logits_are_ranked_as_they_are():
    pytest.importorskip("torchmetrics")
    logits = (20 + 20 * R.normal(size=300)).astype("f")
    y = (logits + 20 * R.normal(size=300) > 20).astype("int64")
    assert scored(logits, y, sizes=300)[0]["AUC"] == pytest.approx(sk.roc_auc_score(y, logits), abs=1e-6)


def test_one_column_of_probabilities_is_cut_at_one_half():
    outputs = R.random((20, 1)).astype("f")
    found, row = scored(outputs, (outputs[:, 0] > 0.5).astype("int64"), sizes=(12, 8))
    assert found["accuracy"] == 1.0 and "probabilities" in row.extra["task_reason"]


def test_multilabel():
    pytest.importorskip("torchmetrics")
    outputs, y = (9 * R.normal(size=(20, 4))).astype("f"), (R.random((20, 4)) < 0.4).astype("int64")
    found, _ = scored(outputs, y)
    expected = np.mean([sk.average_precision_score(y[:, c], outputs[:, c]) for c in range(4)])
    assert found["mAP"] == pytest.approx(expected, abs=1e-6)
    assert found["micro F1"] == pytest.approx(sk.f1_score(y, outputs > 0, average="micro"), abs=1e-12)


def test_segmentation_with_a_label_that_no_figure_counts():
    outputs, y = R.normal(size=(20, 5, 6, 6)).astype("f"), R.integers(0, 5, (20, 6, 6))
    y[:, :2] = 255
    found, row = scored(outputs, y, ignore_label=255)
    p, kept = outputs.argmax(1), y != 255
    expected = np.mean([((p == c) & (y == c))[kept].sum() / ((p == c) | (y == c))[kept].sum() for c in range(5)])
    assert found["mIoU"] == pytest.approx(expected, abs=1e-15)
    assert found["pixel accuracy"] == row.top1 == (p == y)[kept].mean()
    assert (row.samples, row.extra["positions"], row.measures[0].name) == (20, int(kept.sum()), "mIoU")
    with pytest.raises(DataError, match=r"label 255 is out of range.*ignore_label 255"):
        scored(outputs, y)


@pytest.mark.parametrize("last", [True, False])
def test_tokens(last):
    outputs, y = R.normal(size=(20, 9, 4)).astype("f"), R.integers(0, 4, (20, 9))
    y[:, 7:] = -100
    found, row = scored(outputs if last else outputs.transpose(0, 2, 1).copy(), y)
    p, kept = outputs.argmax(2), y != -100
    assert found["token accuracy"] == (p == y)[kept].mean()
    assert found["macro F1"] == pytest.approx(sk.f1_score(y[kept], p[kept], average="macro"), abs=1e-12)
    assert row.samples == 20 and row.extra["position"] == "token"


@pytest.mark.parametrize("shape", [(20,), (20, 1), (20, 3), (20, 2, 4, 4)])
def test_regression(shape):
    outputs, y = R.normal(size=shape).astype("f"), R.normal(size=shape if shape != (20, 1) else (20,)).astype("f")
    found, row = scored(outputs, y)
    o, t = outputs.reshape(20, -1).astype("d"), y.reshape(20, -1).astype("d")
    assert found["MAE"] == pytest.approx(np.abs(o - t).mean(), rel=1e-14)
    assert found["RMSE"] == pytest.approx(np.sqrt(((o - t) ** 2).mean()), rel=1e-14)
    columns = (t, o) if len(shape) < 4 else (t.reshape(-1), o.reshape(-1))
    assert found["R²"] == pytest.approx(sk.r2_score(*columns), rel=1e-9)
    assert row.measures[0].better == "lower" and row.agreement is None and row.top1 is None


def test_embedding():
    x = torch.as_tensor(R.normal(size=(20, 6)).astype("f"))
    y = torch.arange(20) // 2
    net = nn.Linear(6, 6)
    rows = evaluate_all(
        {"a": nn.Identity(), "b": net}, [(x, y)], baseline="a", measures=open_measures(task="embedding")
    )
    found = {item.name: item.value for item in rows["b"].measures}
    assert found["cosine"] == pytest.approx(float(torch.cosine_similarity(net(x), x).mean()), abs=1e-6)
    v = nn.functional.normalize(net(x)).detach().numpy()
    angles = v @ v.T - 9 * np.eye(20)
    assert found["recall@1"] == np.mean(y.numpy()[angles.argmax(1)] == y.numpy())
    assert rows["b"].agreement is None
    (alone,) = evaluate(net, [x], baseline=nn.Identity(), task="embedding").measures
    assert alone.name == "cosine" and alone.value == pytest.approx(found["cosine"])


def test_agreement_is_of_class_scores_only():
    torch.manual_seed(0)
    a, b, x = nn.Linear(8, 1), nn.Linear(8, 1), torch.randn(256, 8)
    row = evaluate(b, [(x, (a(x)[:, 0] > 0).long())], baseline=a)
    assert row.agreement == float(((a(x) > 0) == (b(x) > 0)).float().mean())
    assert evaluate(b, [(x, a(x).detach())], baseline=a).agreement is None
    a, b = nn.Linear(8, 3), nn.Linear(8, 3)
    assert evaluate(b, [(x, torch.randn(256, 3))], baseline=a).agreement is None
    assert evaluate(nn.Conv1d(8, 9, 1), [torch.randn(2, 8, 5)], baseline=nn.Conv1d(8, 9, 1)).agreement is None


def test_differences_of_every_output_without_labels():
    class Two(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.by = by

        def forward(self, x):
            return x, 10 * x + self.by

    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    same, moved = evaluate(Two(0.5), [x[:4], x[4:]], baseline=Two(0.0)).differences
    assert (same.snr_db, same.largest) == (None, 0.0)
    expected = 10 * math.log10(float((10 * x.double()).square().sum()) / (24 * 0.25))
    assert moved.snr_db == pytest.approx(expected, abs=1e-5) and moved.largest == pytest.approx(0.5, abs=1e-5)


def test_an_image_is_one_sample_however_many_pixels_it_has():
    class Net(nn.Module):
        def __init__(self, flip):
            super().__init__()
            self.flip = flip

        def forward(self, x):
            s = torch.cat([-x, x], 1)
            wrong = x.flatten(1).sum(1).view(-1, 1, 1, 1) > 20.0
            return torch.where(wrong, -s, s) if self.flip else s

    x = torch.randn(40, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    row = evaluate(Net(True), [(x, y)], baseline=Net(False))
    wrong = (x.flatten(1).sum(1) > 20).float()
    spread = 1.96 * float(wrong.std()) / math.sqrt(40)
    low, high = row.extra["top1_interval"]
    assert row.samples == 40 and (high - low) / 2 == pytest.approx(spread, rel=0.03) and spread > 0.1
    (miou, _) = row.measures
    assert miou.interval[1] - miou.interval[0] > 0.2
    assert miou.change_interval[0] < miou.value - 1.0 < miou.change_interval[1] < 0


def rmse(outputs, target):
    return float(((outputs - target) ** 2).mean() ** 0.5)


def test_a_function_is_called_once_on_the_whole_data_unless_marked():
    batches = [(torch.full((n, 1), float(n)), torch.zeros(n, 1)) for n in (1, 3)]
    whole = evaluate(nn.Identity(), batches, metric=Metric(rmse, better="lower"))
    assert whole.metric == pytest.approx(math.sqrt((1 + 27) / 4), rel=1e-6) and whole.measures[0].better == "lower"

    def by_batch(outputs, target):
        return rmse(outputs, target)

    by_batch.per_batch, by_batch.higher_is_better = True, False
    assert evaluate(nn.Identity(), batches, metric=by_batch).metric == pytest.approx((1 * 1 + 3 * 3) / 4)


def test_lists_of_targets_are_put_end_to_end():
    seen = []

    def boxes(outputs, target):
        seen.append((tuple(outputs.shape), len(target)))
        return 0.5

    batches = [(torch.zeros(2, 5, 9), [{"boxes": torch.zeros(n, 4)} for n in (1, 2)]) for _ in range(3)]
    row = evaluate(nn.Identity(), batches, metric=boxes)
    assert (row.metric, row.top1) == (0.5, None) and seen[0] == ((6, 5, 9), 6)
    batches[1] = (torch.zeros(2, 5, 8), batches[1][1])
    with pytest.raises(InputError, match=r"outputs cannot be put together.*per_batch = True"):
        evaluate(nn.Identity(), batches, metric=boxes)


@pytest.mark.parametrize("text", ["min:{}:rmse", "max:{}:rmse", "{}:rmse"])
def test_direction_in_front(text, tmp_path):
    (tmp_path / "my.py").write_text("def rmse(o, t):\n    return float(((o - t) ** 2).mean() ** 0.5)\n")
    (metric,) = open_measures(text.format(tmp_path / "my.py")).metrics
    assert (metric.name, metric.direction) == ("rmse", "lower" if text.startswith("min") else "higher")
    assert metric.direction_is_stated is (text[0] == "m")


def test_torchmetrics_by_class_object_and_name():
    torchmetrics = pytest.importorskip("torchmetrics")
    outputs, y = R.normal(size=(20, 1)).astype("f"), R.normal(size=20).astype("f")
    expected = np.sqrt(((outputs[:, 0] - y) ** 2).mean())
    used = torchmetrics.MeanSquaredError(squared=False)
    used.update(torch.zeros(3), torch.ones(3))
    for metric in (used, "torchmetrics:MeanSquaredError"):
        _, row = scored(outputs, y, metric=metric)
        assert row.measures[0].better == "lower"
        assert row.metric == pytest.approx(expected ** (1 if metric is used else 2), rel=1e-6)
    assert float(used.compute()) == 1.0  # the user's own object is not touched
    logits, labels = R.normal(size=(20, 5)).astype("f"), R.integers(0, 5, 20)
    _, row = scored(logits, labels, metric="torchmetrics.classification:MulticlassF1Score")
    assert row.metric == pytest.approx(sk.f1_score(labels, logits.argmax(1), average="macro"), abs=1e-6)
    assert row.measures[0].unit == "%" and row.measures[1].name == "top-1"


def test_labels_never_veto_a_metric_of_the_users_own():
    outputs, y = R.normal(size=(20, 5, 4, 4)).astype("f"), R.integers(0, 5, (20, 4, 4))
    y[12:, :2] = 255  # after the first batch
    _, row = scored(outputs, y, metric=lambda o, t: float((o.argmax(1) == t)[t != 255].float().mean()))
    assert row.metric == (outputs.argmax(1) == y)[y != 255].mean() and row.top1 is None
    assert "label 255" in row.extra["no_figures"]


def test_several_metrics_and_a_figure_of_the_task_by_name():
    outputs, y = R.normal(size=(20, 1)).astype("f"), R.normal(size=20).astype("f")

    def first(o, t):
        return 1.0

    _, row = scored(outputs, y, metric=[first, Metric(rmse, name="second", better="lower")])
    assert [item.name for item in row.measures] == ["first", "second", "MAE", "RMSE", "R²"]
    assert scored(outputs, y, metric="rmse")[1].measures[0].name == "RMSE"
    with pytest.raises(InputError, match=r"no figure is named 'RSME'.*RMSE"):
        open_measures("RSME")


@pytest.mark.parametrize(
    ("task", "outputs", "target"),
    [
        ("segmentation", (4, 3, 5, 5), (4,)),
        ("regression", (4, 3), (4,)),
        ("multilabel", (4, 3), (4,)),
        ("classification", (4, 3), (4, 5)),
        ("embedding", (4, 3), (4, 2)),
    ],
)
def test_targets_that_the_task_has_not(task, outputs, target):
    with pytest.raises(DataError, match=f"task {task} takes .*{target[-1]}"):
        evaluate(nn.Identity(), [(torch.zeros(outputs), torch.zeros(target, dtype=torch.int64))], task=task)


@pytest.mark.parametrize(
    ("outputs", "target", "task"),
    [
        ((9, 5), torch.arange(9) % 5, "classification"),
        ((9, 5), torch.arange(9).view(9, 1) % 5, "classification"),
        ((9, 5), nn.functional.one_hot(torch.arange(9) % 5, 5).float(), "classification"),
        ((9, 5), None, "classification"),
        ((9, 1), torch.arange(9) % 2, "binary"),
        ((9,), torch.arange(9) % 2 == 0, "binary"),
        ((9, 1), (torch.arange(9) % 2).float().view(9, 1), "binary"),
        ((9, 2), torch.tensor([[1, 1]] * 9), "multilabel"),
        ((9, 2), torch.tensor([[1.0, 1.0]] * 9), "multilabel"),
        ((9, 3, 4, 4), torch.zeros(9, 4, 4, dtype=torch.uint8), "segmentation"),
        ((9, 1, 4, 4), torch.zeros(9, 1, 4, 4), "segmentation"),
        ((9, 3, 4, 4, 4), torch.zeros(9, 4, 4, 4, dtype=torch.int64), "segmentation"),
        ((9, 6, 3), torch.zeros(9, 6, dtype=torch.int64), "tokens"),
        ((9, 3, 6), torch.zeros(9, 6, dtype=torch.int64), "tokens"),
        ((9, 1), torch.arange(9), "regression"),
        ((9, 3), torch.zeros(9, 3) + 0.5, "regression"),
        ((9, 3, 4, 4), torch.zeros(9, 3, 4, 4) + 0.5, "regression"),
        ((9, 7, 20), torch.zeros(9, 3, 4), "other"),
        ((9, 7, 20), [{"boxes": torch.zeros(2, 4)}] * 9, "other"),
        ((9, 3, 4, 4), None, "other"),
    ],
)
def test_auto_reads_the_task_and_says_from_what(outputs, target, task):
    scores = torch.randn(outputs, generator=torch.Generator().manual_seed(0))
    reading = open_measures().read((scores,), target)
    assert reading.task.name == task and str(("N", *outputs[1:])).replace("'", "") in reading.reason


def test_two_numbers():
    with pytest.raises(InputError, match=r"returned 2 numbers \(Tensor\); return one number"):
        evaluate(nn.Identity(), [(torch.zeros(2, 2), None)], metric=lambda o, t: o[0])


def test_the_tables_say_what_each_needs():
    assert all(task.help and task.needs for task in TASKS.values())
    assert all(figure.help and figure.needs and figure.better in ("higher", "lower") for figure in MEASURES.values())
