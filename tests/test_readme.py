"""README is short and true: its commands parse, its Python runs, its tables are those of the code and of the measurements."""

import re
import shlex
import sys
from pathlib import Path

import click
import pytest

from cli.main import INTERNAL_ERROR, INTERRUPTED, main
from compress.errors import CompressError, GateError

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


@pytest.fixture(scope="module")
def picture():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import picture

        return picture
    finally:
        sys.path.pop(0)


def test_it_is_short():
    assert len(README.splitlines()) <= 140


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_its_commands_parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [line.partition("  #")[0] for block in blocks("sh") for line in block.splitlines()]
    lines = [line for line in found if line.startswith("compress ")]
    assert len(lines) == 4
    for line in lines:
        verb, *arguments = shlex.split(line)[1:]
        command = main.get_command(None, verb)
        assert command is not None, line
        command.make_context(verb, arguments)


def test_options_and_verbs_in_the_text_exist():
    commands = {name: main.get_command(None, name) for name in main.list_commands(click.Context(main))}
    known = {
        option for item in commands.values() for part in item.params for option in (*part.opts, *part.secondary_opts)
    }
    for option in re.findall(r"`(?:\w+ )?(--[a-z0-9-]+)", README):
        assert option in known, option
    table = README.partition("## What there is")[2].partition("\n## ")[0]
    for verb in re.findall(r"^\| [^|]* \| `([a-z]+)", table, flags=re.M):
        assert verb in commands, verb
    assert (
        not set(commands)
        - set(re.findall(r"`(?:compress )?([a-z]+)", README))
        - set(re.findall(r"compress ([a-z]+)", README))
    )


@pytest.mark.slow
def test_its_python_block_runs(tmp_path, monkeypatch, capsys):
    """On a network and images of a few pixels, with the names that the block has."""
    import numpy as np
    import torch
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    code = (
        "import torch\nfrom torch import nn\n\ndef build():\n    return nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(),\n"
        "        nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2))\n"
    )
    (tmp_path / "my.py").write_text(code)
    names = {}
    exec(code, names)
    torch.save(names["build"]().state_dict(), "best.pth")
    rng = np.random.default_rng(0)
    for part in ("train", "calibration", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / part / name).mkdir(parents=True)
            for index in range(4):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / part / name / f"{index}.jpg")
    (block,) = blocks("python")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert "top-1" in capsys.readouterr().out


def test_exit_codes_are_those_of_the_command():
    table = README.partition("| exit code |")[2]
    found = dict(re.findall(r"^\| (\d+) \| ([^|]*) \|", table, flags=re.M))
    codes = {0, INTERNAL_ERROR, CompressError.exit_code, GateError.exit_code, INTERRUPTED}
    assert {int(code) for code in found} == codes
    assert "--max-drop" in found[str(GateError.exit_code)]


def test_six_rows_are_the_measured_ones(picture):
    found = picture.rows(README)
    assert len(found) == 6 and found == picture.rows(MEASURED)
    table = README.partition(picture.HEAD)[2].split("\n\n")[0]
    assert table in MEASURED


def test_prices_are_the_measured_ones():
    """Each row of "What there is" that names seconds and gains has them as docs/measured.md does."""
    measured = dict(re.findall(r"^\| ([^|]+) \| (\d+ s \| [\d.]+× \| [\d.]+× \| [−+\d.]+) \|$", MEASURED, flags=re.M))
    assert len(measured) == 6
    seconds = {value.split(" | ")[0] for value in measured.values()}
    section = README.partition("## What there is")[2].partition("\n## ")[0]
    named = re.findall(r"(\d+ s), ([\d.]+× smaller), ([\d.]+× faster)", section)
    assert len(named) >= 5
    for item in named:
        assert item[0] in seconds
        assert any(
            value.startswith(f"{item[0]} | {item[1].split()[0]} | {item[2].split()[0]} |")
            for value in measured.values()
        ), item


def test_the_picture_is_that_of_the_table(picture):
    assert picture.PICTURE.read_text(encoding="utf-8") == picture.draw(picture.rows(MEASURED))


def test_the_picture_draws_shares(picture):
    drawn = picture.draw([picture.Row("a <b>", 4.0, 1.0, 2.0, "−0.10")])
    widths = re.findall(r'class="(size|time)" [^>]* width="([\d.]+)"', drawn)
    assert widths == [("size", f"{picture.FULL / 4:.1f}"), ("time", f"{picture.FULL / 2:.1f}")]
    assert "a &lt;b&gt;" in drawn and "4.0× smaller" in drawn and "2.00× faster" in drawn and "−0.10 points" in drawn


def test_every_folder_is_named_once():
    section = README.partition("## Where things are")[2]
    assert len(re.search(r"```text\n(.*?)```", section, flags=re.S)[1].splitlines()) == 12
    named = re.findall(r"((?:cli|compress/\w+)/)", section)
    assert len(named) == len(set(named))
    folders = {f"compress/{path.parent.name}/" for path in ROOT.glob("compress/*/__init__.py")}
    assert folders | {"cli/"} <= set(named), folders - set(named)
