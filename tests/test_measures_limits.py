"""Limits by task, from the command to the exit code: which must fail, which must pass, what is refused before the work."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from cli.main import main
from compress.measures.tasks import TASKS
from compress.pipeline.gates import Gates
from compress.pipeline.job import Job
from compress.steps import Measure, Measurement

# Each kind of model as a good one and a bad one, with data of which the good one knows all answers but a few.
MODELS = """
import numpy as np
import torch
from torch import nn

class Seeded:                                # each data set is the same whenever it is made
    def __getattr__(self, name): return getattr(self.generator, name)
    def again(self): self.generator = np.random.default_rng(0)


G = Seeded()
G.again()


class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.by * x


class Shift(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by


class Mask(nn.Module):                       # the object where x > 0, or never
    def __init__(self, bias):
        super().__init__()
        self.bias = bias

    def forward(self, x):
        return torch.cat([-x, x + self.bias], 1)


class Boxes(nn.Module):                      # (N, 4 + 2, 10): boxes and class scores, as detectors give them
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return torch.cat([x[:, :4] + self.by, x[:, 4:]], 1)


class Turned(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, x):
        return x * (1 - self.by) + self.by * torch.sin(1000 * x)


def regressor(): return Shift(0.0)
def regressor_bad(): return Shift(5.0)
def logit(): return Shift(0.0)
def logit_bad(): return Scaled(-1.0)
def segmenter(): return Mask(0.0)
def segmenter_bad(): return Mask(-99.0)
def detector(): return Boxes(0.0)
def detector_bad(): return Boxes(30.0)
def embedder(): return Turned(0.0)
def embedder_bad(): return Turned(1.0)


def rows(n, *shape): return G.normal(size=(n, *shape)).astype("f")
def both(x, y):
    G.again()
    return {"train": (x, y), "calibration": (x, y), "test": (x, y)}
def of_regressor():
    x = rows(150, 1)
    return both(x, (x[:, 0] + 0.2 * G.normal(size=150)).astype("f"))
def of_logit():
    x = rows(150, 1)
    return both(x, ((x[:, 0] > 0) ^ (np.arange(150) % 15 == 0)).astype("int64"))
def of_segmenter():
    x = 3 * rows(120, 1, 8, 8) - 7
    y = (x[:, 0] > 0).astype("int64")
    y[:, :2] = 255
    return both(x, y)
def of_detector():
    x = 50 * rows(60, 6, 10)
    return both(x, x[:, :4].copy())
def of_embedder():                           # pairs differ a little in the two numbers that the bad one swaps for noise
    x = np.repeat(rows(75, 4), 2, 0) + 0.05 * rows(150, 4)
    return both(x.astype("f"), np.arange(150) // 2)


def near(outputs, target):                   # stands for mAP: the share of boxes that are found
    return float(((outputs[:, :4] - target).abs().amax(1) < 10).float().mean())
def rmse(outputs, target): return float(((outputs.flatten() - target.flatten()) ** 2).mean() ** 0.5)
rmse.higher_is_better = False
def two(outputs, target): return outputs.flatten()[:2]
def raising(outputs, target): return outputs["out"].mean()
def nan(outputs, target): return float("nan")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("limits")
    (folder / "my.py").write_text(MODELS)
    return folder


@pytest.fixture(autouse=True)
def _inside(place, monkeypatch):
    monkeypatch.chdir(place)


def compared(kind, limit, *more, model="", code):
    """One comparison of the good model with the bad one (or with itself)."""
    second = f"my.py:{kind}{model}"
    arguments = [
        "compare",
        f"my.py:{kind}",
        second,
        "--data",
        f"my.py:of_{kind}",
        "--rounds",
        "1",
        "--json",
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(main, [*arguments, "--max-drop", limit, *more])
    assert result.exit_code == code, result.stderr + result.stdout[-500:]
    return json.loads(result.stdout) if code != 2 else result.stderr


TABLE = [  # kind, options, what decides, limits that the bad model must fail
    ("regressor", (), "MAE", ["0.01", "1%", "2"]),
    ("regressor", ("--metric", "my.py:rmse"), "rmse", ["0.01", "1%", "2"]),
    ("regressor", ("--metric", "min:torchmetrics:MeanSquaredError"), "MeanSquaredError", ["0.5"]),
    ("regressor", ("--metric", "RMSE"), "RMSE", ["1"]),
    ("logit", (), "accuracy", ["1", "1%", "50"]),
    ("segmenter", ("--ignore-label", "255"), "mIoU", ["1", "5%"]),
    ("detector", ("--metric", "my.py:near"), "near", ["0.01", "1%", "0.9"]),
    ("embedder", ("--task", "embedding"), "recall@1", ["0.1"]),
    ("embedder", ("--task", "embedding", "--metric", "cosine"), "cosine", ["0.01", "1%"]),
]


@pytest.mark.parametrize(("kind", "options", "decides", "limits"), TABLE, ids=lambda value: str(value)[:40])
def test_limits_by_task(kind, options, decides, limits):
    for limit in limits:
        bad = compared(kind, limit, *options, model="_bad", code=3)
        assert [(gate["measure"], gate["passed"]) for gate in bad["gates"]] == [(decides, False)]
        assert bad["rows"][1]["measures"][0]["name"] == decides and bad["gates"][0]["value"] > bad["gates"][0]["limit"]
        good = compared(kind, limit, *options, code=0)
        assert good["gates"][0]["passed"] is True and good["gates"][0]["value"] == 0
        assert good["rows"][1]["differences"][0]["largest"] == 0 < bad["rows"][1]["differences"][0]["largest"]


def test_pixel_accuracy_has_no_say_beside_miou():
    """The bad segmenter keeps the accuracy of pixels, of which the object has few."""
    bad = compared("segmenter", "5", "--ignore-label", "255", model="_bad", code=3)
    base, row = bad["rows"]
    assert base["top1"] - row["top1"] < 0.02 and base["samples"] == 120 and row["agreement"] > 0.98
    assert any("120 images (5,760 pixels)" in note or "120 test images" in note for note in bad["notes"])


@pytest.mark.parametrize(
    ("kind", "limit", "options", "says"),
    [
        ("logit", "1", ("--metric", "my.py:two"), "returned 2 numbers"),
        ("logit", "1", ("--metric", "my.py:raising"), "metric 'my.py:raising' failed: IndexError"),
        ("logit", "1", ("--metric", "my.py:nan"), "gives nan on the float model's first samples"),
        ("logit", "-1", (), "would ask for a gain"),
        ("logit", "99", (), "can never fail: accuracy is 9"),
        ("logit", "a lot", (), "is not a number; write 1"),
        ("detector", "1", (), "max-drop has no figure to hold to (outputs (N, 6, 10) with targets (N, 4, 10)"),
        ("detector", "1", ("--metric", "my.py:near"), "max-drop 1 can never fail: near is 1 to begin with"),
        ("logit", "1", ("--task", "segmentation"), "task segmentation takes outputs (N, C, H, W)"),
        ("segmenter", "1", (), "leave that label out with --ignore-label 255"),
        ("logit", "1", ("--task", "binari"), "unknown task 'binari'"),
        ("logit", "1", ("--metric", "accurracy"), "no figure is named 'accurracy'; did you mean 'accuracy'"),
        ("logit", "1", ("--metric", "mIoU"), "mIoU is no figure of this data, whose task is binary"),
    ],
)
def test_refused_before_the_work(place, kind, limit, options, says, monkeypatch):
    monkeypatch.setattr("compress.pipeline.closing.benchmark", lambda *a, **k: pytest.fail("work had begun"))
    assert says in compared(kind, limit, *options, code=2)


@pytest.mark.parametrize("metric", ["raising", "two"])
def test_quantize_and_dry_run_try_the_metric_first(place, metric, monkeypatch):
    monkeypatch.setattr("compress.pipeline.quantize.to_graph", lambda *a, **k: pytest.fail("work had begun"))
    quantize = [
        "quantize",
        "my.py:segmenter",
        "--data",
        "my.py:of_segmenter",
        "-o",
        "out",
        "--metric",
        f"my.py:{metric}",
    ]
    (place / "r.toml").write_text(
        '[model]\nspec = "my.py:segmenter"\n[data]\nspec = "my.py:of_segmenter"\n[quantize]\n'
        f'[evaluate]\nmetric = ["my.py:{metric}"]\nignore_label = 255\n'
    )
    for arguments in (quantize, ["run", "r.toml", "--dry-run", "-o", "out"]):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2 and f"metric 'my.py:{metric}'" in result.stderr
        assert not (place / "out").exists()


def test_the_metric_governs_the_search_for_the_budget(place, monkeypatch):
    """What decides is handed to the search with its sign: less RMSE is a higher score."""
    from compress.pipeline import within_limits
    from compress.pipeline.inputs import open_inputs

    seen = {}
    monkeypatch.setattr(
        within_limits, "quantize_within", lambda *a, **k: seen.update(vars(a[2])) or type("R", (), {"step": 1})
    )
    opened = open_inputs("my.py:regressor", "my.py:of_regressor")
    from compress.measures.opening import open_measures
    from compress.pipeline.rehearsal import rehearsed

    job = rehearsed(Job(opened, limits=Gates("10%"), measures=open_measures("my.py:rmse")))
    assert within_limits.quantize_to_budget(opened.model, job, None) == 1
    assert seen["baseline"] == pytest.approx(-0.2, abs=0.04) and seen["measure"].name == "rmse"
    assert seen["max_drop"] == pytest.approx(-0.1 * seen["baseline"])
    from compress.loading.callables import import_callable

    assert seen["score"](import_callable("my.py:regressor_bad")()) == pytest.approx(-5, abs=0.1)


def test_what_was_made_for_another_processor_is_timed_in_those_words(place):
    row = Measurement("int8", p50_ms=9.0, speedup=0.1, extra={"foreign": "made for arm64, timed on x86-avx2"})
    base = Measurement("float", p50_ms=1.0, speedup=1.0)
    (gate,) = Gates(require_speedup=1.0).check([base, row], base, foreign={"int8": row.extra["foreign"]})
    assert gate.passed is None and "is not judged: made for arm64, timed on x86-avx2" in gate.sentence
    from compress.reporting.report import Report
    from compress.reporting.words import plain_words

    report = Report(rows=(base, row), gates=(gate,))
    assert not report.failed and "slower" not in report.html() and "0.10× the speed" not in report.html()
    assert plain_words([base, row], base) == [
        "int8: made for arm64, timed on x86-avx2; its speed here says nothing, time it there"
    ]


def test_quantize_says_what_its_file_was_made_for(place):
    np.savez(place / "d.npz", x=np.random.default_rng(0).normal(size=(60, 4)).astype("f"), y=np.arange(60) % 4)
    (place / "net.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))\n"
    )
    from compress.quantization.targets import detect

    other = "x86-vnni" if detect() == "arm64" else "arm64"
    arguments = [
        "quantize",
        "net.py:build",
        "--data",
        "d.npz",
        "--target",
        other,
        "-o",
        "q",
        "--require-speedup",
        "100",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert f"made for {other}, timed on" in result.stdout and "is not judged" in result.stdout


def test_a_label_that_shows_up_late_costs_no_result(place):
    """One of 200 masks has a label that the model has not; the 64 samples of the rehearsal do not hold it."""
    g = np.random.default_rng(0)
    x, y = g.normal(size=(200, 1, 6, 6)).astype("f"), g.integers(0, 2, (200, 6, 6))
    y[1] = 255
    np.savez(place / "late.npz", x_calibration=x[100:], y_calibration=y[100:], x_test=x, y_test=y)
    (place / "conv.py").write_text("from torch import nn\n\n\ndef build():\n    return nn.Conv2d(1, 2, 3, padding=1)\n")
    arguments = ["--data", "late.npz", "--no-tune-latency", "-o", "late", "--json", "--max-drop", "5"]
    result = CliRunner().invoke(main, ["quantize", "conv.py:build", *arguments])
    assert result.exit_code == 3 and (place / "late" / "model.onnx").exists(), result.stderr
    assert any("label 255 is out of range" in note for note in json.loads(result.stdout)["notes"])
    assert "label 255" in CliRunner().invoke(main, ["evaluate", "conv.py:build", "--data", "late.npz"]).stderr


def test_several_reports_and_each_failing_limit_once(place):
    names = ["a.html", "b.md", "c.json"]
    arguments = [
        "compare",
        "my.py:logit",
        "my.py:logit_bad",
        "--data",
        "my.py:of_logit",
        "--rounds",
        "1",
        "--max-drop",
        "1",
    ]
    result = CliRunner().invoke(main, [*arguments, *(part for name in names for part in ("--report", name))])
    assert result.exit_code == 3 and all((place / name).exists() for name in names)
    assert (result.stdout + result.stderr).count("fails --max-drop") == 1


def test_the_picture_shows_the_intervals_and_points_the_measures_way():
    from compress.reporting.report import Report

    rows = [
        Measurement(name, p50_ms=ms, measures=(Measure("MAE", "", "lower", value, (value - 0.5, value + 0.5)),))
        for name, ms, value in (("a", 1.0, 2.0), ("b", 2.0, 2.01), ("c", 3.0, 1.9))
    ]
    page = Report(rows=tuple(rows)).html()
    assert page.count('class="interval"') == 3 * 2 and "Down and to the left is better" in page and "MAE ↓" in page
    heights = [
        float(text)
        for text in re.findall(r'text-anchor="end">([\d.]+)</text>', page.partition('class="chart wide"')[2])
    ]
    assert max(heights) - min(heights) >= 0.8  # never below the intervals


def test_a_measure_by_hand():
    base, row = (
        Measurement(name, measures=(Measure("WER", "%", "lower", value),)) for name, value in (("a", 0.1), ("b", 0.125))
    )
    (gate,) = Gates(max_drop=2).check([base, row], base)
    assert (gate.passed, gate.value) == (False, pytest.approx(2.5))
    assert gate.sentence == "b: WER worse by 2.5 points, which fails --max-drop 2 points"
    (gate,) = Gates(max_drop="30%").check([base, row], base)
    assert (gate.passed, gate.value) == (True, pytest.approx(25.0)) and gate.sentence.endswith(
        "is within --max-drop 30%"
    )


def test_a_metric_by_hand_whose_direction_nobody_said_may_not_move():
    base, *rows = (Measurement(name, metric=value) for name, value in (("a", 0.2), ("b", 5.0), ("c", -5.0), ("d", 0.2)))
    assert [gate.passed for gate in Gates(max_drop=0.01).check([base, *rows], base)] == [False, False, True]


def test_the_command_knows_every_task():
    shown = "".join(CliRunner().invoke(main, ["quantize", "--help"]).stdout.split())  # lines break inside the list
    assert all(name in shown for name in TASKS)
