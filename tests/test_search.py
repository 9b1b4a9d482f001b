"""A search: candidates in order, files that no other beats with recipes that give them again, limits, resumption."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_recipe import prepare

import compress
from cli.main import main
from compress.errors import InputError, OutputError
from compress.pipeline.cache import StageCache
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import DataSource, ModelSource, Settings, open_inputs
from compress.pipeline.pipeline import start_key
from compress.pipeline.recipe import EvaluateOptions, Recipe, parse_recipe
from compress.pipeline.run import plan, run
from compress.pipeline.search.candidate import Candidate, beaten_early, front_of, spread
from compress.pipeline.search.clock import TimeIsUp, ending_at
from compress.pipeline.search.finish import judge_rows
from compress.pipeline.search.folder import Front
from compress.pipeline.search.making import Maker
from compress.pipeline.search.options import SearchOptions
from compress.pipeline.search.searching import join, search
from compress.pipeline.search.session import STOP_AT
from compress.pipeline.search.space import Space, name_of, recipe_of, space_of
from compress.pipeline.search.study import INTERRUPTED, JOURNAL, Study
from compress.pipeline.search.writing import recipe_text
from compress.reporting.report import Report
from compress.steps import Measure, Measurement

pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parent.parent
DATA = DataSource("data.npz", calibration_samples=16)
QUICK = Settings(threads=1, quiet=True)
SMALL = Space(kind=("float32", "int8", "dynamic"), removed=(0.0, 0.25, 0.5), accuracy=("fast",))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A search of a few candidates: its folder, its report. The current folder stays what it was."""
    folder = tmp_path_factory.mktemp("search")
    prepare(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder, search("net.py:build", DATA, output="front", options=SearchOptions(5, trials=7), settings=QUICK)
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tmp_path)
    return tmp_path


def judged(number, choices, quality, size=100, cost=10.0):
    return Candidate(number, choices, early_db=quality, snr_db=quality, size_bytes=size, cost=cost)


def play(study, count, space=SMALL):
    """Ask for candidates and tell made-up figures that depend on the choices alone."""
    drawn = []
    for _ in range(count):
        asked = study.ask(space)
        if asked is None:
            break
        trial, choices = asked
        drawn.append(choices)
        quality = 60.0 - 80 * choices.get("removed", 0.0) - 10 * (choices["kind"] == "int8")
        study.tell(trial, judged(trial.number, choices, quality, 400 if choices["kind"] == "float32" else 100))
    return drawn


def test_each_file_of_the_front_has_a_recipe_that_gives_it_again(found, monkeypatch, tmp_path):
    folder, report = found
    monkeypatch.chdir(folder)
    names = [item["name"] for item in report.details["search"]["candidates"] if item["state"] != "out"]
    assert names and sorted(names) == sorted(p.parent.name for p in (folder / "front").glob("*/recipe.toml"))
    # the least like the float model: pruned where such a one is left, else quantized
    name = max(names, key=lambda one: ("macs" in one, "int" in one))
    run(folder / "front" / name / "recipe.toml", output=tmp_path / "again", settings=QUICK)
    made, again = folder / "front" / name / "model.onnx", tmp_path / "again" / "model.onnx"
    assert made.read_bytes() == again.read_bytes()


def test_a_pruned_and_healed_candidate_is_what_its_recipe_gives(here):
    base = Recipe(ModelSource("net.py:build"), DATA, threads=1)
    opened = open_inputs(base.model, base.data, QUICK)
    key = start_key(base.model, base.data, opened, QUICK)
    maker = Maker(opened, base, StageCache(here / "front"), key)
    for removed in (0.3, 0.5):  # the second with the first one's analysis
        choices = {"kind": "int8", "removed": removed, "heal": 20}
        made = maker.file(choices, here / f"{removed}.onnx")
    (here / "recipe.toml").write_text(recipe_text(recipe_of(choices, base)))
    report = run("recipe.toml", output=here / "again", settings=QUICK)
    assert made.read_bytes() == (here / "again" / "model.onnx").read_bytes()
    assert any("healed without labels in" in note for step in report.steps for note in step.notes)


def test_the_report_says_why_each_candidate_fell_out(found):
    folder, report = found
    told = report.details["search"]
    assert len(told["candidates"]) == 7
    assert all(item["reason"] for item in told["candidates"] if item["state"] == "out")
    winner = folder / "front" / told["winner"] / "model.onnx"
    assert (folder / "front" / "model.onnx").read_bytes() == winner.read_bytes()
    rows = json.loads((folder / "front" / "report.json").read_text())["rows"]
    assert {row["name"] for row in rows} >= {"float32", told["winner"]} and all(row["p50_ms"] for row in rows)


def test_going_on_tries_more_and_draws_nothing_twice(found, monkeypatch):
    folder, _ = found
    monkeypatch.chdir(folder)
    options = SearchOptions(5, trials=9, resume=True)
    again = search("net.py:build", DATA, output="front", options=options, settings=QUICK)
    tried = [json.dumps(item["choices"], sort_keys=True) for item in again.details["search"]["candidates"]]
    assert len(tried) == len(set(tried)) == 9
    with pytest.raises(OutputError, match="another model, other data or another seed"):
        search("net.py:build", DATA, output="front", options=options, settings=replace(QUICK, seed=1))
    with pytest.raises(OutputError, match="holds a search; add resume=True"):
        search("net.py:build", DATA, output="front", settings=QUICK)


def test_the_same_seed_draws_the_same_candidates_in_the_same_order(tmp_path):
    one, other, third = (tmp_path / name for name in "abc")
    for folder in (one, other, third):
        folder.mkdir()
    drawn = play(Study(one, seed=3), 12)
    assert drawn == play(Study(other, seed=3), 5) + play(Study(other, seed=3), 7)  # reopened in between
    assert drawn != play(Study(third, seed=4), 12)
    assert len({json.dumps(choices) for choices in drawn}) == 12


def test_what_a_killed_process_left_is_drawn_again_first(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    drawn = play(Study(whole, seed=3), 6)
    play(Study(cut, seed=3), 3)
    _, left = Study(cut, seed=3).ask(SMALL)  # and the process is gone
    with (cut / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 5, "wor')  # in the middle of a line
    study = Study(cut, seed=3)
    study.give_up_dead()
    assert left == drawn[3] and play(study, 3) == drawn[3:]
    assert [item.reason for item in study.tried()].count(INTERRUPTED) == 1


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
def test_every_candidate_is_drawn_once_and_then_none(tmp_path, sampler):
    study = Study(tmp_path, seed=0, sampler=sampler)
    drawn = play(study, 100)
    names = [name_of(choices) for choices in drawn]
    assert len(names) == len(set(names)) == len(SMALL.all()) == 15
    if sampler == "grid":
        assert drawn == SMALL.all()


def test_a_space_has_what_the_model_and_the_data_allow():
    graph = space_of(is_module=False, calibrates=True)
    assert graph.removed == (0.0,) and "int8" in graph.kind
    assert not {"int8", "int4"} & set(space_of(is_module=True, calibrates=False).kind)
    whole = space_of(is_module=True, calibrates=True)
    assert all(choices in whole.all() for choices in whole.first())
    names = [name_of(choices) for choices in whole.all()]
    assert len(names) == len(set(names))


def test_the_front_and_what_is_beaten_early():
    a = judged(0, {"kind": "float32"}, 120.0, 400, 20.0)
    b = judged(1, {"kind": "int8"}, 30.0, 100, 10.0)
    c = judged(2, {"kind": "dynamic"}, 25.0, 100, 10.0)
    d = judged(3, {"kind": "dynamic", "runtime": "openvino"}, 20.0, 100, 10.0)
    fell = replace(judged(4, {"kind": "int4"}, 50.0, 50, 5.0), reason="could not be made: no")
    assert [item.number for item in front_of([a, b, c, d, fell])] == [0, 1, 3]
    assert beaten_early(c, [a, b]) is b and beaten_early(b, [a, c]) is None
    assert beaten_early(replace(c, early_db=29.5), [a, b]) is None  # too near to tell on few samples
    assert beaten_early(d, [a, b]) is None
    line = [judged(i, {"kind": "int8", "removed": i / 10}, 60.0 - i, 100 - i, 50.0 - i) for i in range(9)]
    kept = spread(line, 3)
    assert len(kept) == 3 and line[0] in kept and line[-1] in kept


def test_an_alarm_ends_what_takes_longer():
    start = time.monotonic()
    with pytest.raises(TimeIsUp), ending_at(time.time() + 0.2):
        while time.monotonic() - start < 30:
            with contextlib.suppress(Exception):  # code that takes any failure for its own
                time.sleep(0.01)
    assert time.monotonic() - start < 20
    with pytest.raises(TimeIsUp), ending_at(time.time() - 1):
        raise AssertionError("nothing begins after the end")


def row(name, top1, p50, size):
    return Measurement(name, size_bytes=size, p50_ms=p50, measures=(Measure("top-1", "%", "higher", top1),))


ROWS = (row("float32", 0.90, 4.0, 400), row("int8", 0.895, 2.0, 100), row("small", 0.80, 1.0, 50))


@pytest.mark.parametrize(
    ("limits", "objective", "winner", "nearest"),
    [
        (Gates(), "auto", "int8", "int8"),
        (Gates(max_drop=1.0), "auto", "int8", "int8"),
        (Gates(max_drop=20.0), "auto", "small", "small"),
        (Gates(max_size=200), "auto", "int8", "int8"),
        (Gates(max_latency=1.5), "accuracy", "small", "small"),
        (Gates(), "accuracy", "float32", "float32"),
        (Gates(max_size=40), "auto", None, "small"),
        (Gates(max_drop=0.1, max_latency=3.0), "auto", None, "float32"),
    ],
    ids=["none", "drop", "wide-drop", "size", "latency", "accuracy", "too-small", "both"],
)
def test_the_winner_and_the_nearest(limits, objective, winner, nearest):
    verdict = judge_rows(ROWS, ROWS[0], limits, objective)
    assert (verdict.winner, verdict.nearest) == (winner, nearest)
    assert verdict.front == ("float32", "int8", "small")


def test_what_is_beaten_as_measured_falls_out():
    rows = (*ROWS, row("worse", 0.85, 3.0, 150))
    verdict = judge_rows(rows, rows[0], Gates(), "auto")
    assert verdict.fell["worse"] == "beaten by int8 as measured" and "worse" not in verdict.front


def test_recipes_as_text_read_back_the_same():
    base = Recipe(
        ModelSource("a.py:b", weights='x"y.pt', model_args={"width": 3, "name": "é"}, input_shape=(2, 3, 8, 8)),
        DataSource("d.npz", mean=(0.1, 0.2), classes=Path("c.txt")),
        evaluate=EvaluateOptions(metric=("min:m.py:f",), task="regression"),
        gates=Gates(max_drop="1%", max_size=1000, max_latency=2.5),
        seed=7,
        threads=1,
    )
    for choices in space_of(is_module=True, calibrates=True).all()[::7]:
        made = recipe_of(choices, base)
        assert parse_recipe(recipe_text(made, heading="one\ntwo")) == made
    searches = replace(base, search=SearchOptions(3.0, trials=4))
    assert parse_recipe(recipe_text(searches)) == searches


def test_a_recipe_may_search(here):
    text = '[model]\nspec = "net.py:build"\n[data]\nspec = "data.npz"\n[search]\nminutes = 5.0\ntrials = 2\n'
    (here / "search.toml").write_text(text)
    assert plan("search.toml", output=here / "out")[0].stage == "search"
    report = run("search.toml", output=here / "out", settings=QUICK)
    assert len(report.details["search"]["candidates"]) == 2
    with pytest.raises(InputError, match=r"leave \[prune\] out"):
        run(parse_recipe(text + "[prune]\namount = 0.3\n"), output=here / "other")


def test_limits_that_none_keeps_to_exit_3_with_the_nearest(here):
    words = ["search", "net.py:build", "--data", "data.npz", "--trials", "2", "-o", "front", "--threads", "1", "--json"]
    result = CliRunner().invoke(main, [*words, "--max-size", "1kB"])
    assert result.exit_code == 3
    told = json.loads(result.stdout)["details"]["search"]
    assert told["winner"] is None and told["nearest"] in {item["name"] for item in told["candidates"]}
    assert "--max-size" in result.stderr and not (here / "front" / "model.onnx").exists()
    assert list((here / "front").glob("*/model.onnx"))


def test_data_without_labels_is_searched_by_the_outputs_and_said(here):
    held = np.load("data.npz")
    np.savez("bare.npz", x_train=held["x_train"], x_test=held["x_test"])
    report = search("net.py:build", "bare.npz", output="front", options=SearchOptions(5, trials=3), settings=QUICK)
    assert any(
        note.startswith("no labels: files are told apart by how far their outputs moved") for note in report.notes
    )
    page = (here / "front" / "report.html").read_text()
    assert "Outputs against latency" in page and page.count("<circle") == 2 * 2  # wide and narrow
    with pytest.raises(InputError, match=r"max.drop has no figure"):
        search("net.py:build", "bare.npz", output="other", gates=Gates(max_drop=1), settings=QUICK)


def test_the_page_draws_the_limits_and_names_the_recipes():
    told = {
        "limits": {"figure": 0.89, "latency_ms": 3.0},
        "candidates": [
            {
                "number": place,
                "name": item.name,
                "state": "front",
                "reason": "",
                "choices": {"kind": "<b>"},
                "recipe": f"front/{item.name}/recipe.toml",
                "snr_db": 30.0,
                "size_bytes": 100,
                "seconds": 1.0,
            }
            for place, item in enumerate(ROWS)
        ],
    }
    report = Report(rows=ROWS, details={"search": told})
    page = report.html()
    assert page.count('class="limit"') == 2 * 2 and "at most 3 ms" in page and "least, by --max-drop" in page
    assert "front/int8/recipe.toml</title>" in page and "&lt;b&gt;" in page and "<b>;" not in page
    assert "small" in report.markdown().partition("## Candidates")[2]


@pytest.mark.parametrize(
    ("options", "gates", "text"),
    [
        (SearchOptions(0.001), Gates(), "too short to try one candidate.*give minutes"),
        (SearchOptions(), Gates(max_size=10), "max_size 10 B excludes everything"),
        (SearchOptions(), Gates(max_latency=1e-6), "max_latency 1e-06 ms excludes everything"),
    ],
    ids=["time", "size", "latency"],
)
def test_what_cannot_be_is_said_before_the_search(here, options, gates, text):
    with pytest.raises(InputError, match=text):
        search("net.py:build", DATA, output="front", options=options, gates=gates, settings=QUICK)
    assert not (here / "front").exists()


def test_without_optuna_one_line_names_the_extra(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"needs optuna.*torch-compress\[search\]"):
        search("net.py:build", DATA, output="front", settings=QUICK)


def test_places_and_processes_that_cannot_be(here):
    with pytest.raises(OutputError, match="holds no search to go on with"):
        search("net.py:build", DATA, output="front", options=SearchOptions(resume=True), settings=QUICK)
    with pytest.raises(InputError, match="leave workers at 1"):
        search(compress.load("net.py:build"), DATA, output="front", options=SearchOptions(workers=2), settings=QUICK)
    result = CliRunner().invoke(main, ["search", "--join", "front"])
    assert result.exit_code == 2 and "holds no search to join" in result.stderr
    result = CliRunner().invoke(main, ["search", "net.py:build"])
    assert result.exit_code == 2 and "a search needs -o FRONT" in result.stderr


def test_ctrl_c_says_what_is_there_and_how_to_go_on(here, monkeypatch):
    from compress.pipeline.search import session

    real = session.judged

    def stopped(number, *given):
        if number == 1:
            raise KeyboardInterrupt
        return real(number, *given)

    monkeypatch.setattr(session, "judged", stopped)
    words = ["search", "net.py:build", "--data", "data.npz", "-o", "front", "--threads", "1"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130
    assert "1 file in 'front', each with its recipe; --resume goes on" in result.stderr
    assert (here / "front" / "float32" / "model.onnx").exists()
    monkeypatch.setattr(session, "judged", real)
    result = CliRunner().invoke(main, [*words, "--resume", "--trials", "2", "--json"])
    told = json.loads(result.stdout)["details"]["search"]["candidates"]
    assert result.exit_code == 0 and [item["reason"] for item in told].count(INTERRUPTED) == 1


def test_another_process_takes_part_until_the_first_stops(here):
    search("net.py:build", DATA, output="front", options=SearchOptions(5, trials=1), settings=QUICK)
    toml = here / "front" / "search.toml"
    toml.write_text(toml.read_text().replace("trials = 1", "trials = 3"))
    study = Study(here / "front", seed=0)
    study.set(STOP_AT, time.time() - 1)
    with pytest.raises(InputError, match="is over; go on with"):
        join("front", settings=QUICK)
    study.set(STOP_AT, time.time() + 300)
    assert join("front", settings=QUICK) == 3
    assert [item.reason for item in study.tried()] == ["", "", ""]
    assert {item.parent.name for item in (here / "front").glob("*/recipe.toml")} >= {study.tried()[-1].name}


@pytest.mark.parametrize("target", ["{front}/study.journal", "front/study.journal"], ids=["dead", "moved"])
def test_a_lock_that_a_dead_process_left_is_taken(tmp_path, monkeypatch, target):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("compress.pipeline.search.study.LOCKED", 3)
    front = tmp_path / "front"
    front.mkdir()
    Study(Path("front"), seed=0)
    (front / "study.journal.lock").symlink_to(target.format(front=front))
    Study(Path("front"), seed=0)
    assert not (front / "study.journal.lock").is_symlink()


def test_a_kill_leaves_whole_files_and_the_search_goes_on(here):
    words = [
        sys.executable,
        "-m",
        "cli",
        "search",
        "net.py:build",
        "--data",
        "data.npz",
        "-o",
        "front",
        "--threads",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*words, "--minutes", "10"], env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not list((here / "front").glob("*/recipe.toml")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for recipe in (here / "front").glob("*/recipe.toml"):
        parse_recipe(recipe.read_text())
        compress.read_onnx(recipe.parent / "model.onnx")
    options = SearchOptions(5, trials=3, resume=True)
    report = search("net.py:build", "data.npz", output="front", options=options, settings=QUICK)
    assert report.details["search"]["winner"]
    assert not list((here / "front").glob(".making-*")) and not list((here / "front").glob(".*.writing-*"))


def test_what_a_kill_left_of_a_recipe_is_no_file_of_the_front(tmp_path):
    """A hidden folder with half a recipe was taken for a file, and moved where nothing cleans it up."""
    front = Front(tmp_path)
    for name in ("int8", ".recipe.toml.writing-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.toml").write_text("")
    assert front.names() == ["int8"]
