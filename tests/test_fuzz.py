"""A few of the cases of benchmarks/fuzz.py: no traceback, one line, the known exit codes, nothing half-written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import fuzz


@pytest.mark.skipif(not hasattr(fuzz.os, "fork"), reason="cases run in forked children")
@pytest.mark.parametrize(
    ("kind", "cases"),
    [("onnx", 6), ("pt", 12), ("pt-zip", 12), ("pt2-zip", 8), ("npz-zip", 8), ("recipe", 4), ("image", 2)],
)
def test_mutated_inputs(kind, cases):
    fuzz.prepare()
    counts, lost = fuzz.fuzz(list(range(cases)), 7, kind)
    assert not lost, "\n".join(lost)
    assert counts[kind] == cases


def test_a_case_that_is_lost_is_told(tmp_path):
    (tmp_path / "tmp").mkdir()
    for code, said, seconds in ((1, "", 0), (2, "a\nb\n", 0), (2, "Traceback", 0), (0, "", 99), (-11, "", 0)):
        assert fuzz._why_lost(code, said, seconds, tmp_path)
    assert not fuzz._why_lost(2, "one line", 1, tmp_path)
    (tmp_path / ".out.writing-abc").mkdir()
    assert fuzz._why_lost(2, "", 0, tmp_path)
