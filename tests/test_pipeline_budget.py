"""`quantize --max-drop`: calibration samples choose the float layers, the test part judges."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from compress.graph.exporting import to_graph
from compress.loading.callables import import_callable
from compress.onnx_files import read_onnx, save_onnx
from compress.quantization.static import quantize_static
from compress.runtimes.onnxruntime import Session

# One channel between `first` and `bad` is a thousand times the others, and `bad` makes nothing of it: in int8 the
# steps of that tensor are set by this channel, and what the others say is rounded away.
FACTORY = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.bad, self.last = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)
        self.out = nn.Linear(8, 4)
        with torch.no_grad():
            self.first.weight[0] *= 1000
            self.first.bias[0] = 1000.0
            self.bad.weight[:, 0] = 0

    def forward(self, x):
        x = self.last(torch.relu(self.bad(torch.relu(self.first(x)))))
        return self.out(torch.relu(x).mean((2, 3)))


def build():
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.out.bias -= net(torch.randn(512, 1, 8, 8)).mean(0)  # about as many samples of each class
    return net
"""
METRIC = "def right(outputs, target):\n    return (outputs.argmax(1) == target.argmax(1)).float().mean()\n"


class Case:
    """A folder with net.py, and samples labelled with the float network's own answers: its top-1 is 1."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "net.py").write_text(FACTORY)
        net = import_callable(f"{folder / 'net.py'}:build")()
        save_onnx(to_graph(net, (torch.zeros(2, 1, 8, 8),)), folder / "net.onnx")  # exported once for all commands
        self.x = np.random.default_rng(0).standard_normal((600, 1, 8, 8)).astype(np.float32)
        with torch.no_grad():
            self.scores = net(torch.from_numpy(self.x)).numpy()
        self.y = self.scores.argmax(1)
        self.write("data.npz")

    def write(self, name, calibration=slice(300), test=slice(300, 600), targets=None, labelled=True):
        y = self.y if targets is None else targets
        parts = {"x_calibration": self.x[calibration], "x_test": self.x[test], "y_test": y[test]}
        if labelled:
            parts["y_calibration"] = y[calibration]
        np.savez(self.folder / name, **parts)

    def right(self, out):
        """Which samples the saved file gets right."""
        (scores,) = Session(self.folder / out / "model.onnx", threads=1).run(self.x)
        return scores.argmax(1) == self.y

    def quantize(self, out, *given, data="data.npz", code=0):
        """(the report, the note on the budget) of one command."""
        arguments = ["--data", self.folder / data, "-o", self.folder / out, "--json", "--threads", "1"]
        arguments += ["--accuracy", "fast", *given]  # the network is broken on purpose, and repairs would mend it
        spoken = ["quantize", self.folder / "net.onnx", *arguments]
        result = CliRunner().invoke(main, [str(argument) for argument in spoken])
        assert result.exit_code == code, result.stderr
        report = json.loads(result.stdout)
        return report, " ".join(note for note in report["notes"] if "budget" in note or "--max-drop" in note)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("budget"))


@pytest.fixture(scope="module")
def within(case):
    return case.quantize("within", "--max-drop", "2")


def test_the_fewest_layers_stay_float_each_with_its_error(case, within):
    report, note = within
    left = {
        change["layer"]: change["reason"]
        for step in report["steps"]
        for change in step["changes"]
        if "for accuracy" in change.get("reason", "")
    }
    assert set(left) == {"first", "bad"} and all(reason.endswith("dB SQNR") for reason in left.values())
    assert "layers left in float for it: 2 (" in note and "300 calibration samples (the test part had no say)" in note
    nodes = [node for node in read_onnx(case.folder / "within" / "model.onnx").graph if node.op_type == "Conv"]
    assert [node.inputs[1].is_initializer() for node in nodes] == [True, True, False]  # the last one's are int8
    # Fewer do not do, by hand: neither none nor one of the two.
    for exclude in ([], ["first"], ["bad"]):
        graph = read_onnx(case.folder / "net.onnx")
        int8 = quantize_static(graph, [torch.from_numpy(case.x[:300])], exclude=exclude, threads=1).model
        (scores,) = Session(int8, threads=1).run(case.x[:300])
        assert (scores.argmax(1) == case.y[:300]).mean() < 0.98
    assert case.right("within")[:300].mean() >= 0.98


def test_the_test_part_has_no_say_and_the_gate_judges_by_it(case, within):
    wrong = np.flatnonzero(~case.right("within"))
    assert 0 < len(wrong) < 20
    case.write("hard.npz", test=np.concatenate([wrong, np.arange(300, 320)]))
    report, note = case.quantize("hard", "--max-drop", "2", data="hard.npz", code=3)
    assert note.startswith("inside the accuracy budget") and report["gates"][0]["value"] > 2
    same = [(case.folder / out / "model.onnx").read_bytes() for out in ("within", "hard")]
    assert same[0] == same[1]


def test_a_budget_that_the_plain_file_meets_costs_no_layer(case):
    _, note = case.quantize("generous", "--max-drop", "90")
    assert "layers left in float for it: 0; variants tried: 1" in note


@pytest.mark.parametrize(
    ("limit", "says"), [("-1", "would ask for a gain"), ("100", "can never fail"), ("100%", "can never fail")]
)
def test_a_limit_that_is_none_is_refused_before_the_work(case, limit, says):
    arguments = ["--data", case.folder / "data.npz", "-o", case.folder / "never", "--max-drop", limit]
    result = CliRunner().invoke(main, ["quantize", str(case.folder / "net.onnx"), *map(str, arguments)])
    assert result.exit_code == 2 and says in result.stderr and not (case.folder / "never").exists()


@pytest.mark.parametrize(
    ("options", "arguments", "reason"),
    [
        ({"labelled": False}, [], "the calibration part has no labels"),
        ({"calibration": slice(50)}, [], "the calibration part has 50 samples, and choosing takes 100"),
        ({}, ["--tune-latency"], "--tune-latency chooses the layers by their speed"),
    ],
    ids=["no labels", "few samples", "tuned"],
)
def test_what_cannot_choose_is_only_checked(case, monkeypatch, options, arguments, reason):
    def untimed(*args, only_under_s, **rest):
        assert only_under_s is None  # asked for: whatever it takes
        return quantize_static(*args, **rest)

    monkeypatch.setattr("compress.quantization.tuned.quantize_tuned", untimed)
    case.write("other.npz", **options)
    report, note = case.quantize("other", "--overwrite", "--max-drop", "2", *arguments, data="other.npz", code=3)
    assert note == f"--max-drop could only be checked, no layer was chosen for it: {reason}"
    assert report["gates"][0]["value"] > 20 and (case.folder / "other" / "model.onnx").exists()


def test_the_budget_of_a_metric_is_in_its_own_unit(case):
    (case.folder / "own.py").write_text(METRIC)
    case.write("scores.npz", targets=case.scores)
    metric = f"{case.folder / 'own.py'}:right"
    report, note = case.quantize("metric", "--max-drop", "0.02", "--metric", metric, data="scores.npz")
    assert report["rows"][1]["top1"] is None and report["rows"][1]["metric"] >= 0.98
    assert "against 1 in float, 0.02 allowed; layers left in float for it: 2 (" in note


def test_a_metric_of_which_less_is_better_is_searched_for_and_judged_the_right_way(case):
    (case.folder / "wrong.py").write_text(METRIC.replace("def right", "def wrong").replace("==", "!="))
    case.write("scores.npz", targets=case.scores)
    metric = f"min:{case.folder / 'wrong.py'}:wrong"
    report, note = case.quantize("less", "--max-drop", "0.02", "--metric", metric, data="scores.npz")
    assert "wrong 0.0" in note and "against 0 in float, 0.02 allowed; layers left in float for it: 2 (" in note
    assert report["gates"][0]["passed"] is True and 0 <= report["rows"][1]["metric"] <= 0.02


def test_embeddings_without_labels_are_held_to_their_cosine(case):
    np.savez(case.folder / "bare.npz", x_calibration=case.x[:300], x_test=case.x[300:])
    report, note = case.quantize("cosine", "--max-drop", "0.001", "--task", "embedding", data="bare.npz")
    assert note.startswith("inside the accuracy budget") and ": cosine 0.99" in note
    row = report["rows"][1]
    assert (
        report["gates"][0]["measure"] == "cosine" and row["agreement"] is None and row["differences"][0]["snr_db"] > 20
    )


def test_outputs_are_set_beside_on_calibration_samples_where_there_is_no_test_part(case):
    np.savez(case.folder / "only.npz", x_calibration=case.x[:70], y_calibration=case.y[:70])
    report, _ = case.quantize("only", "--no-tune-latency", data="only.npz")
    row = report["rows"][1]
    assert row["top1"] is None and row["differences"] and row["agreement"] > 0.2
    assert any("beside" in note and "on 70 calibration samples" in note for note in report["notes"])


def test_the_command_lists_the_broken_layer_first(case, tmp_path):
    arguments = ["--data", case.folder / "data.npz", "--threads", "1", "--report", tmp_path / "layers.html", "--json"]
    result = CliRunner().invoke(main, ["sensitivity", str(case.folder / "net.onnx"), *map(str, arguments)])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    layers = report["details"]["layers"]
    assert [layer["name"] for layer in layers[:2]] in (["first", "bad"], ["bad", "first"]) and len(layers) == 4
    worst = layers[0]
    assert worst["activations_noise"] > 10 * worst["weights_noise"] and worst["lost"] > 5
    assert {"own_noise", "bytes_saved", "milliseconds_saved", "agreement"} <= set(worst)
    page = (tmp_path / "layers.html").read_text()
    assert "Sensitivity by layer, activations alone" in page and page.count('class="bars"') >= 4
    shown = CliRunner().invoke(
        main, ["sensitivity", str(case.folder / "net.onnx"), *map(str, arguments[:4]), "--samples", "8"]
    )
    assert shown.exit_code == 0 and shown.stdout.splitlines()[2].startswith(worst["name"])


def test_the_command_without_labels_tells_layers_apart_by_noise(case):
    case.write("plain.npz", calibration=slice(20), labelled=False)
    arguments = [
        "sensitivity",
        case.folder / "net.onnx",
        "--data",
        case.folder / "plain.npz",
        "--threads",
        "1",
        "--json",
    ]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    report = json.loads(result.stdout)
    assert result.exit_code == 0 and "lost" not in report["details"]["layers"][0]
    assert any("no labels" in note for note in report["notes"]) and any(
        "20 calibration samples are few" in note for note in report["notes"]
    )


def test_limits_that_cannot_be_met_together_leave_the_best_file_and_name_it(case):
    out = case.folder / "together"
    arguments = ["--data", case.folder / "data.npz", "-o", out, "--threads", "1", "--accuracy", "fast"]
    limits = ["--max-drop", "2", "--max-size", "1kB"]  # the float layers that the drop takes do not fit
    result = CliRunner().invoke(main, ["quantize", str(case.folder / "net.onnx"), *map(str, arguments), *limits])
    assert result.exit_code == 3, result.stderr
    assert f"the best file found is saved: {out / 'model.onnx'}" in result.stderr.splitlines()[-1]
    assert (out / "model.onnx").exists() and "--max-size: with 8 bits" in result.stdout
