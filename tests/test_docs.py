"""The documentation tells the truth: links lead somewhere, commands parse, Python blocks run."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import compress
from cli.main import COMMANDS, main
from compress.measures.tasks import MEASURES, TASKS
from compress.pipeline.recipe import parse_recipe
from compress.pruning.score_table import SCORES
from compress.quantization.range_table import RANGES
from compress.quantization.repairs.passes import REPAIRS
from compress.quantization.rewrites import REWRITES
from compress.quantization.targets import TARGETS
from compress.runtimes.runtime import RUNTIMES
from compress.training.loss_table import LOSSES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
NO_BARS = ("compress init", "compress doctor")  # quiet anyway: without --quiet
MINE = """
import torch
from torch import nn

def build(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )
"""


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.M | re.S)


def commands(page):
    return [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("compress ")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, few_digits):
    """A folder with what the pages name: `quickstart/`, `my.py`, `photos/`, `images.npz`, `half.toml`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    (folder / "my.py").write_text(MINE)
    (folder / "classes.txt").write_text("cat\ncow\ndog\n")
    for part, count in (("train", 6), ("calibration", 4), ("test", 4)):
        for name in ("cat", "dog"):
            (folder / "photos" / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / part / name / f"{index}.jpg")
    x, y = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), rng.integers(0, 3, 60)
    np.savez(folder / "images.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])

    digits = compress.open_data("mnist5k", mean=0, std=1)
    few = next(iter(digits.loader("train", batch_size=300, shuffle=True)))
    np.savez(folder / "digits.npz", x=few[0].numpy(), y=few[1].numpy())
    if "COMPRESS_RUN_DOCS" in os.environ:  # seconds of imports, for commands alone
        from tiny_bert import save

        (folder / "bert").mkdir()
        save(folder / "bert")
        (folder / "reviews.csv").write_text((folder / "bert" / "reviews.csv").read_text())
    recipe = blocks(ROOT / "docs" / "recipes.md", "toml")[0]
    (folder / "half.toml").write_text(recipe.replace("mnist5k", "digits.npz"))  # what takes minutes takes seconds

    module = compress.load("compress.pipeline.quickstart:build")
    (folder / "quickstart").mkdir()
    torch.save(module.state_dict(), folder / "quickstart" / "weights.pt")
    float_graph = compress.export(module, torch.randn(2, 1, 28, 28), path=folder / "quickstart" / "float.onnx").model
    step = compress.quantize_static(float_graph, [torch.randn(8, 1, 28, 28)])
    compress.save_onnx(step.model, folder / "quickstart" / "model.onnx")
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    for page in PAGES:
        assert page.name == "README.md" or f"({page.name})" in index, f"{page.name} is not in the index"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for line in commands(page):
        verb, *arguments = shlex.split(line)[1:]
        assert verb in COMMANDS, f"{page.name}: {line}"
        command = main.get_command(None, verb)
        command.make_context(verb, arguments)  # raises a usage error for an option that is not there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_in_the_text_exist(page):
    known = set()
    for verb in COMMANDS:
        known |= {
            name for option in main.get_command(None, verb).params for name in (*option.opts, *option.secondary_opts)
        }
    for option in set(re.findall(r"`(--[a-z-]+)", page.read_text())):
        assert option in known, f"{page.name} names {option}, which no command has"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_are_recipes(page):
    for block in blocks(page, "toml"):
        parse_recipe(block)


@pytest.fixture
def own_tables():
    """What a page registers holds for this page alone."""
    tables = (TASKS, MEASURES, TARGETS, SCORES, RANGES, REWRITES, REPAIRS, RUNTIMES, LOSSES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.mark.slow
@pytest.mark.usefixtures("own_tables")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.syspath_prepend(workplace)
    names = {"__name__": page.stem}
    with contextlib.redirect_stdout(io.StringIO()):
        for block in blocks(page, "python"):
            if file := re.match(r"# (\w+\.py)\n", block):  # a file of the user's own
                (workplace / file[1]).write_text(block)
                continue
            exec(compile(block, page.name, "exec"), names)


@pytest.mark.skipif(
    "COMPRESS_RUN_DOCS" not in os.environ, reason="minutes of work; set COMPRESS_RUN_DOCS=1 to run every command"
)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run(page, workplace):
    for line in commands(page):
        if line == "compress quickstart":
            continue  # has its own test; the fixture stands for its folder
        done = subprocess.run(
            [sys.executable, "-m", "cli", *shlex.split(line)[1:], *([] if line.startswith(NO_BARS) else ["--quiet"])],
            cwd=workplace,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        # The fixture's network is untrained, its timings are another machine's: gates may fail, nothing else.
        assert done.returncode in ((0, 3) if re.search("--max-|--require-|--fail-if-worse", line) else (0,)), (
            f"{line}\n{done.stderr}"
        )
