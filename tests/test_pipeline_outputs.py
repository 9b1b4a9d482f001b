"""The output folder: everything there, or nothing; and the module form reloads anywhere."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.errors import OutputError
from compress.pipeline.outputs import Output, export_program, output_folder
from compress.reporting.report import Report
from compress.steps import Measurement


def test_a_new_folder_appears_whole_with_final_paths(tmp_path):
    final = tmp_path / "deep" / "out"
    with output_folder(final) as folder:
        assert not final.exists()
        (folder.path / "model.onnx").write_text("x")
        row = Measurement("int8", path=str(folder.onnx))
        assert list(folder.listed()) == ["model", "page"]
        folder.save_module(nn.Linear(3, 2), (torch.randn(2, 3),))
        report = folder.save_report(Report(rows=(row,), files=folder.listed()))
    assert {item.name for item in final.iterdir()} >= {"model.onnx", "report.json", "report.md"}
    assert json.loads((final / "report.json").read_text())["rows"][0]["path"] == str(final / "model.onnx")
    names = {"model": "model.onnx", "weights": "weights.pt", "page": "report.html"}
    assert report.files == {kind: str(final / name) for kind, name in names.items()}
    assert all((final / name).is_file() for name in names.values())
    assert [item.name for item in final.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_not_even_parents(tmp_path, error):
    with pytest.raises(error), output_folder(tmp_path / "deep" / "out") as folder:
        (folder.path / "model.onnx").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_overwrite_replaces_ours_removes_what_is_stale_and_spares_the_rest(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.onnx", "weights.pt", "notes.txt"):
        (out / name).write_text("old")
    with (
        pytest.raises(OutputError, match="exists already; choose another output, or pass overwrite=True"),
        output_folder(out),
    ):
        raise AssertionError
    with output_folder(out, overwrite=True) as folder:
        (folder.path / "model.onnx").write_text("new")
        assert (out / "model.onnx").read_text() == "old"
    assert (out / "model.onnx").read_text() == "new"
    assert (out / "notes.txt").read_text() == "old"
    assert not (out / "weights.pt").exists()


def test_a_failure_leaves_the_old_folder_as_it_was(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.onnx").write_text("old")
    with pytest.raises(ValueError), output_folder(out, overwrite=True) as folder:
        (folder.path / "model.onnx").write_text("new")
        raise ValueError
    assert (out / "model.onnx").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_a_file_where_a_folder_is_needed(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is a file and a folder is needed"):
        Output(tmp_path / "out", overwrite=True).check_folder()


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [
        ("quantize", ("net.onnx",)),
        ("quickstart", ()),
        ("train", (nn.Linear(2, 2), "digits")),
        ("finetune", (nn.Linear(2, 2), "digits")),
    ],
)
@pytest.mark.parametrize("kind", [str, Path, compress.Output])
def test_verbs_take_a_text_a_path_or_an_output(tmp_path, verb, arguments, kind):
    (tmp_path / "out").write_text("x")
    with pytest.raises(OutputError, match="is a file and a folder is needed"):
        getattr(compress, verb)(*arguments, output=kind(str(tmp_path / "out")))
    assert compress.Output("out") == Output(Path("out"))


def test_one_call_from_python_quantizes_and_trains_on(tmp_path):
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data, once = compress.open_data("digits", test_samples=20), compress.Settings(threads=1)
    report = compress.quantize(
        module, data, output=str(tmp_path / "int8"), options=compress.QuantizeOptions(method="dynamic"), settings=once
    )
    assert [row.path for row in report.rows] == [None, str(tmp_path / "int8" / "model.onnx")]
    options = compress.TrainOptions(epochs=1, batch_size=256)
    report = compress.finetune(module, data, output=str(tmp_path / "tuned"), options=options, settings=once)
    before, after = report.rows
    assert after.loss < before.loss and before.path is None and Path(after.path).is_file()
    report = compress.train(module, data, output=tmp_path / "trained", options=options, settings=once)
    assert [row.name for row in report.rows] == ["model.onnx"]


def test_weights_and_program_give_the_module_again(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    inputs = (torch.randn(2, 3),)
    with output_folder(tmp_path / "out") as folder:
        assert folder.save_module(module, inputs) == ()
    assert module.training
    state = torch.load(tmp_path / "out" / "weights.pt", weights_only=True)
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    other.load_state_dict(state)
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    several = torch.randn(5, 3)
    assert torch.allclose(program(several), other(several), atol=1e-6)


def test_a_module_that_cannot_be_exported_is_refused_with_the_reason(tmp_path):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else x

    with output_folder(tmp_path / "out") as folder:
        (refusal,) = folder.save_module(Branches(), (torch.ones(2, 2),))
    assert refusal.skipped and refusal.layer == "model.pt2" and "torch.export" in refusal.reason
    assert (tmp_path / "out" / "weights.pt").exists()


def test_a_program_whose_batch_cannot_vary_keeps_the_batch_of_the_example():
    class Two(nn.Module):
        def forward(self, x):
            return x.reshape(2, 3) + torch.zeros(2, 1)

    from compress.runtimes.torch import exported_batch

    assert exported_batch(export_program(Two(), (torch.ones(2, 3),)).module()) == 2
    assert exported_batch(export_program(nn.Linear(3, 3), (torch.ones(2, 3),)).module()) is None
