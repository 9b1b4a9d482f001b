"""Help: options in groups, each once; rare ones behind --help-all; values completed in the shell."""

import re

import click
import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner

from cli.help import GROUPS, RARE
from cli.main import COMMANDS, main


def help_of(name, option="--help"):
    return CliRunner().invoke(main, [name, option], standalone_mode=False).output


def command_of(name):
    return main.get_command(click.Context(main), name)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_all_shows_each_option_once(name):
    command = command_of(name)
    wide = help_of(name, "--help-all" if any(item.name in RARE for item in command.params) else "--help")
    wide = re.split(r"^(?:Options|Model):$", wide, maxsplit=1, flags=re.MULTILINE)[1]  # without the description
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            option = max(parameter.opts, key=len)
            rows = re.findall(rf"^  (?:-\w, )?{re.escape(option)}(?![\w-])", wide, flags=re.MULTILINE)
            assert len(rows) == 1, f"{option} of {name}: {len(rows)} rows"


@pytest.mark.parametrize("name", ["train", "finetune"])
def test_help_is_grouped_and_leaves_the_rare_out(name):
    short, wide = help_of(name), help_of(name, "--help-all")
    titles = re.findall(r"^(\w[\w ]*):$", short, flags=re.MULTILINE)
    assert titles[:5] == ["Options", "Model", "Data", "Training", "Distillation"]
    assert "--drop-last" not in short and "--drop-last" in wide
    assert "--epochs" in short and "--epochs" in wide


def test_a_parameter_stands_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert len(names) == len(set(names))


def test_the_tables_name_parameters_that_there_are():
    there = {item.name for name in COMMANDS for item in command_of(name).params}
    assert {name for group in GROUPS.values() for name in group} | RARE <= there


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["quantize", "m.onnx", "--method"], {"static", "dynamic", "qat"}),
        (["train", "m.py:f", "--scheduler"], {"step"}),
    ],
)
def test_values_complete_in_the_shell(words, wanted):
    found = {item.value for item in BashComplete(main, {}, "compress", "_COMPRESS").get_completions(words, "")}
    assert wanted <= found


@pytest.mark.parametrize("short", ["-q", "-v"])
def test_short_flags(short):
    assert short in {option for item in command_of("quantize").params for option in item.opts}
