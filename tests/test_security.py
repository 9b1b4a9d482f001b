"""SECURITY.md: each promise names the tests that hold it, and they exist; where Python objects are read is counted."""

import ast
import re
from pathlib import Path

import pytest
import torch
from tiny_training import TinyData, perceptron

import compress
from compress.errors import WeightsError
from compress.training.loop import fit
from compress.training.options import TrainOptions

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(compress.__file__).parent
# What a job hands to processes of its own, in a private folder: SECURITY.md, "Not promised".
UNPICKLED = {"pipeline/train.py", "pipeline/training_process.py"}


def promises():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## Promised")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return rows[1:]  # the head


def test_each_promise_is_held_by_tests_that_exist():
    rows = promises()
    assert len(rows) > 10
    for promise, *held_by in rows:
        names = re.findall(r"`(tests/\w+\.py)::(\w+)`", held_by[-1])
        assert names, f"no test holds: {promise}"
        for file, name in names:
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def calls_of(tree, ending):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(ending)]


def test_every_checkpoint_is_read_as_tensors_alone():
    found = 0
    for path in PACKAGE.rglob("*.py"):
        tree, name = ast.parse(path.read_text(encoding="utf-8")), path.relative_to(PACKAGE).as_posix()
        for call in calls_of(tree, "torch.load"):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("weights_only") in ("True", "not trust_pickle"), f"{name} line {call.lineno}"
            found += 1
        for ending in ("pickle.load", "pickle.loads", "Unpickler"):
            assert not calls_of(tree, ending) or name in UNPICKLED, f"{ending} in {name}"
    assert found >= 4


class Bomb:
    fired = False

    def __reduce__(self):
        return (setattr, (Bomb, "fired", True))


def test_a_checkpoint_that_is_resumed_runs_no_code(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    torch.save({"model": Bomb()}, tmp_path / "checkpoints" / "last.pt")
    with pytest.raises(WeightsError, match="cannot be read as a checkpoint"):
        fit(perceptron(), TinyData(), TrainOptions(epochs=1), output=tmp_path, resume=True)
    assert not Bomb.fired
