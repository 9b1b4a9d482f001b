"""Imports run downwards only, heavy libraries have one door each, and `import compress` stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Lower number: nearer the user. A file may import its own stage, or any stage with a greater number.
LEVELS = [
    {"cli"},
    {"pipeline"},
    {"reporting", "evaluation", "quantization"},
    {"graph", "pruning", "training", "fusion"},
    {"measures"},
    {"runtimes"},
    {"loading"},
    {
        "steps",
        "counting",
        "errors",
        "escaping",
        "batches",
        "children",
        "decibels",
        "given",
        "files",
        "locking",
        "metadata",
        "onnx_files",
        "options",
        "progress",
        "scratch",
        "shapes",
        "state",
        "tables",
        "taking",
        "tracing",
    },
]
DOORS = {  # library → where it may be imported
    "click": ("cli/",),
    "tabulate": ("compress/reporting/",),
    "torchvision": ("compress/loading/",),
    "onnxruntime": ("compress/runtimes/onnxruntime.py",),
    "openvino": ("compress/runtimes/openvino.py",),
    "optuna": ("compress/pipeline/search/study.py",),
    "torchmetrics": ("compress/measures/ranked.py",),
    "transformers": ("compress/loading/transformers_models.py",),
    "torch.ao": ("compress/quantization/torch_native.py",),
    "tensorboard": ("compress/training/",),
    "torch.utils.tensorboard": ("compress/training/",),
    "matplotlib": ("compress/reporting/", "compress/training/"),
}
FILES = sorted([*ROOT.glob("compress/**/*.py"), *ROOT.glob("cli/**/*.py")])


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def stage(parts):
    return "cli" if parts[0] == "cli" else parts[1].removesuffix(".py")


def level(name):
    found = [index for index, names in enumerate(LEVELS) if name in names]
    assert found, f"{name!r} has no level in tests/test_layers.py"
    return found[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = path.relative_to(ROOT).parts
    if own == ("compress", "__init__.py"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] not in ("compress", "cli"):
            continue
        if name == "compress":
            # The package's own version is the one thing a file may take from the root, and only above the stages.
            assert stage(own) in ("cli", "pipeline", "reporting"), f"{path} imports the package root"
            continue
        if name == "compress.__version__":
            continue
        if parts[0] == "cli":
            assert own[0] == "cli", f"{path} imports {name}"
            continue
        theirs = stage(parts)
        same_stage = own[0] == "compress" and stage(own) == theirs
        bottom = level(theirs) == len(LEVELS) - 1 and level(stage(own)) == len(LEVELS) - 1
        assert same_stage or bottom or level(theirs) > level(stage(own)), f"{path} imports {name}: not downwards"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_libraries_have_one_door(path):
    where = str(path.relative_to(ROOT))
    for name in imports(path):
        for library, doors in DOORS.items():
            if name == library or name.startswith(library + "."):
                assert where.startswith(doors), f"{where} imports {name}; only {doors} may"


def modules_read():
    """Each module of ours with those that it imports when it runs, at the top or inside a function; not those of types alone."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    for name, path in names.items():
        tree = ast.parse(path.read_text())
        types = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ]
        skipped = {id(node) for block in types for node in ast.walk(block)}
        read = set()
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                read |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                read |= {full if full in names else str(node.module) for full in whole}
        yield name, {other for other in read if other in names and other != name}


def test_no_import_leads_back_to_where_it_started():
    """Imports inside functions hide a circle from Python, not from a reader: none is left."""
    edges = dict(modules_read())
    assert any("onnxruntime" in name for name in edges["compress.reporting.environment"])  # inside a function: is seen
    left = set(edges)
    while free := {name for name in left if not edges[name] & left}:
        left -= free
    assert not left, f"these import each other: {sorted(left)}"


def test_import_compress_is_light():
    code = "import compress, sys; print([m for m in ('torch', 'onnx', 'onnxruntime', 'torchvision', 'click') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
