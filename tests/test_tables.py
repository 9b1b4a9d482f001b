"""Tables of what can be extended: each row loads, says in a line what it is and what it needs; commands list the rows."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.main import main
from compress.measures.homes import HOMES
from compress.measures.tasks import MEASURES, TASKS
from compress.pruning.score_table import SCORES
from compress.quantization.range_table import RANGES
from compress.quantization.repairs.bench import Repair
from compress.quantization.repairs.levels import LEVELS
from compress.quantization.repairs.passes import REPAIRS
from compress.quantization.rewrites import REWRITES
from compress.runtimes.runtime import RUNTIMES
from compress.training.loss_table import LOSSES

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("table", [SCORES, RANGES, LOSSES, REWRITES], ids=["scores", "ranges", "losses", "rewrites"])
def test_every_row_loads_and_says_what_it_is(table):
    for name, entry in table.items():
        assert callable(entry.load()), name
        assert entry.help and "\n" not in entry.help and not entry.help.endswith("."), name


def test_rows_of_the_other_tables_say_what_they_are():
    assert all(repair.action and callable(repair.run) for repair in REPAIRS.values())
    assert all(runtime.help and runtime.package for runtime in RUNTIMES.values())
    assert all(figure.help and figure.needs and callable(figure.compute) for figure in MEASURES.values())
    assert list(HOMES) == list(TASKS)


def one_found(calibrated, bench):
    return calibrated, [bench]


def test_a_repair_may_be_named_by_its_place():
    for run in (one_found, "test_tables:one_found"):
        assert Repair("nothing", run).on("calibrated", "bench") == ("calibrated", ["bench"])


def test_repairs_without_a_list_run_them_all():
    assert all(LEVELS[level].runs(name) for level in ("balanced", "best") for name in REPAIRS)
    assert not any(LEVELS["fast"].runs(name) for name in REPAIRS)


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("prune", "--method", SCORES),
        ("quantize", "--ranges", RANGES),
        ("quantize", "--accuracy", LEVELS),
        ("quantize", "--runtime", RUNTIMES),
        ("evaluate", "--task", HOMES),
        ("evaluate", "--runtime", RUNTIMES),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_help_lists_the_rows(command, option, names):
    text = re.sub(r"\s+", " ", CliRunner().invoke(main, [command, "--help"], terminal_width=200).output)
    about = text[text.index(f"{option} ") :].split(" --")[0]
    assert all(name in about for name in names), about


def test_a_score_that_needs_data_says_so_in_the_help_and_before_the_work():
    text = CliRunner().invoke(main, ["prune", "--help"], terminal_width=200).output
    assert "taylor (needs data with labels)" in re.sub(r"\s+", " ", text)


def test_the_page_that_says_how_to_extend_names_files_that_are_there():
    page = (ROOT / "docs" / "extend.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    assert len(table) == 7
    for line in table:
        folder = next(re.finditer(r"`(compress/[a-z_/]+/)`", line))[1]
        assert (ROOT / folder).is_dir(), line
        for file in re.findall(r"`([a-z_/]+\.py)`", line):
            assert (ROOT / file).exists() or (ROOT / folder / file).exists(), line
        name = re.search(r"`([A-Z]+)`", line)[1]
        assert name in globals(), f"no table {name}"
