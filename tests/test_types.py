"""The type checker's settings stay strict, and each line that it is told to pass over says why."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_ignored_error_is_named_and_has_a_reason():
    bare = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / "compress").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if "# type: ignore" in line and not re.search(r"# type: ignore\[[a-z, -]+\]  # \S", line)
    ]
    assert not bare, "write # type: ignore[code]  # why"


def test_the_settings_are_strict():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    assert settings["mypy"].getboolean("strict")
    loosened = {
        (section, name)
        for section in settings.sections()
        if section.startswith("mypy-compress")
        for name in settings[section]
    }
    assert {name for _, name in loosened} == {"warn_return_any"}
