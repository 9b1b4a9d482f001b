"""Two reports side by side: what is better, worse or noise; and files that are no reports, or of another model."""

import json
import math
from dataclasses import replace

import pytest
from click.testing import CliRunner
from sample_report import FLOAT, GATES, INT8, sample

import compress
from cli.main import main
from compress.errors import InputError
from compress.reporting.changes import compare_reports
from compress.reporting.reading import read_report
from compress.reporting.report import Gate
from compress.steps import Measure, Measurement

STEADY = {"p90_ms": 4.04, "extra": {**INT8.extra, "timed_runs": 400}}


def top1(value, half=0.01, change=None):
    return (Measure("top-1", "%", "higher", value, (value - half, value + half), change),)


def verdicts(change, row="int8"):
    return {item.figure: item.verdict for item in change.figures if item.row == row}


def test_a_report_is_read_as_it_was_written(report, tmp_path):
    step = replace(report.steps[0], faults=("the outputs are not to be trusted",))
    report = replace(report, steps=(step, *report.steps[1:]))
    found = read_report(report.write(tmp_path / "r.json"))
    assert found.as_dict() == report.as_dict()
    assert found.base == report.base and found.failed == report.failed
    assert found.text() == report.text()


def test_a_report_beside_itself_has_not_changed(report):
    change = compare_reports(report, report)
    assert {item.verdict for item in change.figures} == {"same"}
    assert change.summary == "0 better, 0 worse, 9 the same, within noise or not judged"


@pytest.mark.parametrize(
    ("p50", "verdict"),
    [(4.0, "same"), (4.1, "within noise"), (3.9, "within noise"), (4.2, "worse"), (3.8, "better")],
)
def test_latency_counts_beyond_its_noise(p50, verdict):
    before = sample(rows=(FLOAT, replace(INT8, **STEADY)))
    after = sample(rows=(FLOAT, replace(INT8, **{**STEADY, "p50_ms": p50, "p90_ms": p50 * 1.01})))
    assert verdicts(compare_reports(before, after))["p50"] == verdict


def test_the_noise_of_a_median_follows_its_quantiles():
    rough = {"p90_ms": 8.0, "extra": {**INT8.extra, "timed_runs": 100}}
    before = sample(rows=(FLOAT, replace(INT8, **rough)))
    after = sample(rows=(FLOAT, replace(INT8, **{**rough, "p50_ms": 4.5, "p90_ms": 8.5})))
    (found,) = [item for item in compare_reports(before, after).figures if (item.row, item.figure) == ("int8", "p50")]
    one = 1.96 * 1.2533 * (4 / 1.2816) / math.sqrt(100)
    assert found.noise == f"± {100 * math.hypot(one / 4.0, one / 4.5):.0f} %"
    assert found.verdict == "within noise" and found.change == "+12.5 %"


def test_latencies_of_two_machines_are_not_judged(report):
    other = replace(report, environment=replace(report.environment, cpu="another", command="x"))
    slower = replace(other, rows=(FLOAT, replace(INT8, p50_ms=9.0, size_bytes=2_000_000)))
    change = compare_reports(report, slower)
    assert verdicts(change)["p50"] == "not judged" and verdicts(change)["size"] == "worse"
    assert any("two machines" in note for note in change.notes)


@pytest.mark.parametrize(
    ("better", "value", "verdict"),
    [
        ("higher", 0.90, "better"),
        ("higher", 0.70, "worse"),
        ("lower", 0.90, "worse"),
        ("higher", 0.805, "within noise"),
    ],
)
def test_what_decides_is_judged_its_own_way(better, value, verdict):
    def rows(number):
        measures = (Measure("own", "", better, number, (number - 0.02, number + 0.02)),)
        return (replace(FLOAT, measures=measures), replace(INT8, measures=measures))

    change = compare_reports(sample(rows=rows(0.8)), sample(rows=rows(value)))
    figure = "own ↓" if better == "lower" else "own"
    assert verdicts(change)[figure] == verdict


def test_accuracy_is_paired_through_one_baseline():
    base = replace(FLOAT, measures=top1(0.9))
    before = sample(rows=(base, replace(INT8, measures=top1(0.895, change=(-0.006, -0.004)))))
    after = sample(rows=(base, replace(INT8, measures=top1(0.890, change=(-0.011, -0.009)))))
    change = compare_reports(before, after)
    (found,) = [item for item in change.figures if (item.row, item.figure) == ("int8", "top-1")]
    assert (found.verdict, found.change, found.noise) == ("worse", "−0.50 points", "± 0.2 points, paired")

    other = sample(rows=(replace(base, measures=top1(0.91)), after.rows[1]))
    change = compare_reports(before, other)
    (found,) = [item for item in change.figures if (item.row, item.figure) == ("int8", "top-1")]
    assert (found.verdict, found.noise) == ("within noise", "± 1.4 points")
    assert any("not paired" in note for note in change.notes)


def test_limits_that_hold_no_longer_are_worse():
    after = sample(gates=(replace(GATES[0], passed=False), replace(GATES[1], passed=True)))
    change = compare_reports(sample(), after)
    assert (verdicts(change)["--max-drop"], verdicts(change)["--require-speedup"]) == ("worse", "better")


def test_a_file_that_runs_otherwise_than_written_is_worse(report):
    fault = Gate("runs-as-written", "int8", None, 0.0, "", False, fault="conv1 runs in int8")
    after = sample(gates=(*GATES, fault))
    assert verdicts(compare_reports(report, after))["runs as written"] == "worse"
    assert verdicts(compare_reports(after, report))["runs as written"] == "better"
    assert verdicts(compare_reports(after, after))["runs as written"] == "same"


def test_rows_of_one_report_only_are_named(report):
    more = replace(report, rows=(*report.rows, replace(INT8, name="int4")))
    assert compare_reports(report, more, names=("a", "b")).notes == ("only in b: int4",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"rows": (replace(FLOAT, macs=5), INT8)},
            "b is a report of another model: float has 5 multiply-accumulates there",
        ),
        ({"rows": (Measurement("x"),)}, "no model is in both reports: a has float, int8; b has x"),
        ({"rows": ()}, "b has no rows to compare"),
    ],
)
def test_reports_of_other_models_are_refused(report, changed, message):
    with pytest.raises(InputError, match=message):
        compare_reports(report, sample(**changed), names=("a", "b"))


def edited(report, change):
    data = report.as_dict()
    change(data)
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "is no report of compress"),
        ('{"rows": []}', "is no report of compress"),
        (lambda report: edited(report, lambda data: data.update(schema_version=99)), "schema version 99"),
        (lambda report: edited(report, lambda data: data["rows"][1].update(p50_ms="4")), "p50_ms of a row is '4'"),
        (lambda report: edited(report, lambda data: data.update(baseline="x")), "baseline 'x' is none of its rows"),
        (lambda report: edited(report, lambda data: data.update(rows=5)), "its rows are no list"),
        (lambda report: edited(report, lambda data: data["rows"].append(3)), "a row is a int"),
        (lambda report: edited(report, lambda data: data["rows"][0].pop("name")), "a row has no name"),
        (lambda report: edited(report, lambda data: data["rows"].append(data["rows"][0])), "have one name"),
        (lambda report: edited(report, lambda data: data["gates"][0].update(limit=None)), None),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_files_that_are_no_reports_are_one_line(report, tmp_path, text, message):
    path = tmp_path / "r.json"
    path.write_text(text if isinstance(text, str) else text(report))
    if message is None:  # NaN is written as null
        assert math.isnan(read_report(path).gates[0].limit)
        return
    result = CliRunner().invoke(main, ["report", str(path)])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_file_that_is_not_there(tmp_path):
    result = CliRunner().invoke(main, ["report", str(tmp_path / "none.json")])
    assert result.exit_code == 2 and "cannot read" in result.stderr and len(result.stderr.splitlines()) == 1


def test_the_command_marks_and_fails_where_asked(report, tmp_path):
    first = report.write(tmp_path / "a.json")
    second = sample(rows=(FLOAT, replace(INT8, size_bytes=2_000_000))).write(tmp_path / "b.json")
    run = CliRunner().invoke(main, ["report", str(first), str(second)])
    assert run.exit_code == 0 and "✗ worse" in run.stdout and "+100.0 %" in run.stdout
    forms = [f"--report={tmp_path / name}" for name in ("c.md", "c.html", "c.json")]
    run = CliRunner().invoke(main, ["report", str(first), str(second), "--fail-if-worse", *forms])
    assert run.exit_code == 3 and "worse than before: int8: size 1 MB → 2 MB" in run.stderr
    assert "| int8 " in (tmp_path / "c.md").read_text()
    assert json.loads((tmp_path / "c.json").read_text())["worse"] == 1
    page = (tmp_path / "c.html").read_text()
    assert "✗ worse" in page and 'style="width:25.0%"' in page  # 1 MB of the float file's 4
    run = CliRunner().invoke(main, ["report", str(second), str(first), "--fail-if-worse"])
    assert run.exit_code == 0 and "✓ better" in run.stdout
    run = CliRunner().invoke(main, ["report", str(first), "--fail-if-worse"])
    assert run.exit_code == 2 and "name the later one too" in run.stderr


def test_one_report_is_printed_in_any_form(report, tmp_path):
    path = report.write(tmp_path / "a.json")
    run = CliRunner().invoke(main, ["report", str(path), f"--report={tmp_path / 'a.html'}"])
    assert run.exit_code == 0 and run.stdout.strip() == report.text().strip()
    assert (tmp_path / "a.html").read_text() == report.html()


def test_names_are_text_never_markup(tmp_path):
    hostile = sample(rows=(replace(FLOAT, name="f <b>"), replace(INT8, name="i <i>|x")), gates=(), baseline="f <b>")
    change = compare_reports(hostile, hostile, names=("<u>a", "b"))
    assert not any(tag in change.html() for tag in ("<b>f", "f <b>", "<i>|", "<u>"))
    assert "&lt;i&gt;" in change.markdown() and "\\|x" in change.markdown()
    assert compress.compare_reports is compare_reports
