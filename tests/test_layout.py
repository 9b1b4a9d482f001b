"""The tree of docs/layout.md names every file with that file's own first line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_tree_is_true():
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is made from git's list of files, and this is not a checkout")
    done = subprocess.run([sys.executable, "scripts/tree.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_module_says_what_it_is():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import tree
    finally:
        sys.path.pop(0)
    silent = [p for folder in ("compress", "cli") for p in ROOT.glob(f"{folder}/**/*.py") if not tree.first_line(p)]
    assert not silent
