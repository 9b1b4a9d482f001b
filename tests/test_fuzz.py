"""A few of the cases of benchmarks/fuzz.py: no traceback, one line, the known exit codes, nothing half-written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import fuzz


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    fuzz.make_seeds(folder)
    fuzz.prepare(texts=True)
    return folder


@pytest.mark.skipif(not hasattr(fuzz.os, "fork"), reason="cases run in forked children")
@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("onnx", 20),
        ("onnx-evaluate", 20),
        ("pt", 24),
        ("pt-zip", 24),
        ("pt2-zip", 16),
        ("npz-zip", 20),
        ("npz", 20),
        ("safetensors", 20),
        ("recipe", 3),
        ("image", 6),
        ("onnx-doctor", 8),
        ("csv", 4),
        ("tokenizer", 4),
        ("text-settings", 8),
    ],
)
def test_mutated_inputs(kind, cases, seeds):
    if kind in fuzz.OF_TEXTS and not fuzz.has_transformers():
        pytest.skip("transformers is not installed")
    counts, lost = fuzz.fuzz(list(range(cases)), 7, kind, seeds=seeds)
    assert not lost, "\n".join(lost)
    assert counts[kind] == cases


def test_a_case_that_is_lost_is_told(tmp_path):
    (tmp_path / "tmp").mkdir()
    for code, said, seconds in ((1, "", 0), (2, "a\nb\n", 0), (2, "Traceback", 0), (0, "", 99), (-11, "", 0)):
        assert fuzz._why_lost(code, said, seconds, tmp_path)
    assert not fuzz._why_lost(2, "one line", 1, tmp_path)
    (tmp_path / ".out.writing-abc").mkdir()
    assert fuzz._why_lost(2, "", 0, tmp_path)
