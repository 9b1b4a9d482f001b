"""A recipe run whole: files, figures, cached stages, kills, resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tiny_recipe import prepare

from cli.main import main
from compress.errors import InputError, OutputError
from compress.pipeline.inputs import ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.pipeline.pipeline import Pipeline
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.recipe import Recipe
from compress.pipeline.run import plan, run
from compress.pipeline.stages import Export, Finetune, Prune, Quantize
from compress.reporting.record import figures
from compress.runtimes.runtime import RUNTIMES
from compress.training.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A recipe that has run: its folder, its report."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = prepare(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return folder, run(recipe)
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return prepare(tmp_path)


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def test_the_folder_holds_the_deliverable_and_its_evidence(finished):
    folder, report = finished
    out = folder / "out"
    names = {"model.onnx", "weights.pt", "model.pt2", "report.json", "report.md", "report.html", ".stages"}
    assert {item.name for item in out.iterdir()} == names
    assert [row.name for row in report.rows] == [
        *("build float32", "pruned + finetuned + float32", "pruned + finetuned + int8"),
    ]
    base, _, final = report.rows
    assert final.size_bytes == (out / "model.onnx").stat().st_size < base.size_bytes
    assert final.path == str(Path("out") / "model.onnx")
    assert final.macs < base.macs and final.top1 is not None
    assert figures(report_of(out)) == figures(json.loads(json.dumps(report.as_dict())))
    assert {step.name.split()[0].rstrip(",") for step in report.steps} == {"prune", "finetune", "fuse", "quantize"}


def test_finished_stages_are_not_run_again(finished, monkeypatch):
    folder, report = finished
    monkeypatch.chdir(folder)

    def forbidden(self, work, working):
        raise AssertionError(f"{self.name} ran again")

    for stage in (Prune, Finetune, Export, Quantize):
        monkeypatch.setattr(stage, "run", forbidden)
    again = run(folder / "recipe.toml", resume=True)
    assert figures(again.as_dict()) == figures(report.as_dict())
    assert [(s.name, s.changes, s.notes) for s in again.steps] == [(s.name, s.changes, s.notes) for s in report.steps]
    with pytest.raises(AssertionError, match="quantize ran again"):  # only what changed, and what follows it
        run(folder / "recipe.toml", resume=True, overrides=["quantize.ranges=mse"])


def test_changed_content_is_another_stage(finished, monkeypatch, tmp_path):
    folder, _ = finished
    monkeypatch.chdir(folder)
    settings = Settings()
    assert [line.cached for line in plan(folder / "recipe.toml", settings=settings)] == [True] * 4 + [False]
    later = plan(folder / "recipe.toml", settings=settings, overrides=["finetune.lr=0.01"])
    assert [line.cached for line in later] == [True, False, False, False, False]
    assert not any(line.cached for line in plan(folder / "recipe.toml", overrides=["seed=4"]))
    monkeypatch.chdir(tmp_path)
    recipe = prepare(tmp_path)
    (tmp_path / "net.py").write_text((tmp_path / "net.py").read_text() + "\n# another version\n")
    assert not any(line.cached for line in plan(recipe, output=folder / "out"))


def test_dry_run_prints_costs_and_writes_nothing(here):
    result = CliRunner().invoke(main, ["run", str(here), "--dry-run"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == ["prune", "finetune", "export", "quantize", "evaluate"]
    assert "3 epochs of 80 samples" in lines[1]
    data = json.loads(CliRunner().invoke(main, ["run", str(here), "--dry-run", "--json"]).stdout)
    assert [stage["stage"] for stage in data["stages"]] == ["prune", "finetune", "export", "quantize", "evaluate"]
    assert not (here.parent / "out").exists()


def test_places_that_are_taken(finished, here, monkeypatch):
    with pytest.raises(InputError, match="no place to write to; give output DIR"):
        run(Recipe(model=ModelSource("net.py:build")))
    (here.parent / "out" / ".stages").mkdir(parents=True)
    with pytest.raises(OutputError, match="holds an interrupted run; add resume=True"):
        run(here)
    folder, _ = finished
    with pytest.raises(OutputError, match="exists already"):
        run(here, output=folder / "out")


def test_stages_as_values_on_a_module_in_hand(tmp_path):
    from compress.loading.data import open_data

    prepare(tmp_path)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16 * 36, 4)
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    pipeline = Pipeline((Prune(PruneOptions(amount=0.5)), Finetune(TrainOptions(epochs=1, batch_size=16)), Export()))
    data = open_data(str(tmp_path / "data.npz"), calibration_samples=16)
    report = pipeline.run(module, data, output=tmp_path / "out", settings=Settings(threads=1))
    assert [row.name for row in report.rows] == ["Sequential float32", "pruned + finetuned + float32"]
    assert report.rows[1].macs < report.rows[0].macs
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_gates_of_a_recipe_exit_3_with_the_files_there(here):
    arguments = ["run", str(here), "--set", "gates.max_size=1kB", "--set", "finetune.epochs=1", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 3
    data = json.loads(result.stdout)
    assert data["passed"] is False
    assert [gate["row"] for gate in data["gates"]] == [
        "pruned + finetuned + int8"
    ]  # the deliverable alone is held to it
    assert (here.parent / "out" / "model.onnx").exists()


def test_a_graph_cannot_be_pruned(here, finished):
    folder, _ = finished
    with pytest.raises(InputError, match="stage prune works on a PyTorch module"):
        run(here, overrides=[f"model.spec={folder / 'out' / 'model.onnx'}"], output=here.parent / "other")


def start(folder, *more):
    arguments = [sys.executable, "-m", "cli", "run", "recipe.toml", "--quiet", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_in_any_stage_a_resumed_run_gives_the_same_figures(finished, tmp_path):
    """kill -9 as each kind of trace appears: the baseline, a checkpoint of training, the graph."""
    prepare(tmp_path)
    stages = tmp_path / "out" / ".stages"
    for trace in ("baseline-*", "finetune-*.work/checkpoints/last.pt", "export-*/model.onnx"):
        process = start(tmp_path, "--resume")
        deadline = time.monotonic() + 120
        while not list(stages.glob(trace)) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "out" / "report.json").exists() or process.returncode == 0
    process = start(tmp_path, "--resume")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert figures(report_of(tmp_path / "out")) == figures(report_of(finished[0] / "out"))
    assert not list(stages.glob(".half-*")) and not list(stages.glob("*.work"))
    assert {p.name for p in tmp_path.iterdir() if p.name.startswith(".")} == set()


@pytest.mark.skipif(not RUNTIMES["openvino"].installed(), reason="OpenVINO is not installed")
@pytest.mark.parametrize("where", ["quantize", "evaluate"])
def test_the_result_is_measured_in_the_runtime_that_the_recipe_names(here, where):
    """Before, a recipe's result was measured in ONNX Runtime whatever it was made for, and `auto` meant ONNX Runtime."""
    quick = ["finetune.epochs=1", f'{where}.runtime="openvino"']
    rows = run(here, overrides=quick).rows
    assert [row.extra["runtime"] for row in rows] == ["openvino"] * 3 + ["onnxruntime"]
    assert rows[-1].name.endswith("int8 in onnxruntime")
    again = run(here, overrides=[quick[0], f'{where}.runtime="auto"'], output=Output.of("auto"))
    assert {row.extra["runtime"] for row in again.rows} == {"openvino", "onnxruntime"}
    assert any("the faster here of those installed" in note and "of the result" in note for note in again.notes)


def test_a_recipes_runtime_is_refused_before_the_work(here):
    for override, says in (
        ('evaluate.runtime="opnvino"', "unknown runtime 'opnvino'"),
        ('evaluate.runtime="torch"', "unknown runtime 'torch'"),
        ('evaluate.float_precision="bf16"', "float_precision bf16 is not offered by runtime onnxruntime"),
    ):
        with pytest.raises(InputError, match=says):
            run(here, overrides=[override])
        assert not Path("out").exists()
