"""The user's own functions are found by name, or the message says which part of the name is wrong."""

import pickle
import sys

import pytest

from compress.errors import InputError
from compress.loading.callables import import_callable


@pytest.fixture
def script(tmp_path):
    (tmp_path / "sibling_of_mine.py").write_text("WIDTH = 7\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from sibling_of_mine import WIDTH\n"
        "def build(width=WIDTH):\n    return width\n"
        "class Box:\n    @staticmethod\n    def make():\n        return Box()\n"
        "size = 3\n"
    )
    return path


def test_function_of_a_file(script):
    before = list(sys.path)
    assert import_callable(f"{script}:build")() == 7
    assert sys.path == before
    assert import_callable(f"{script}:build") is import_callable(f"{script}:build")


def test_name_inside_a_class_and_pickling(script):
    box = import_callable(f"{script}:Box.make")()
    assert type(pickle.loads(pickle.dumps(box))) is type(box)


def test_function_of_a_module():
    import math

    assert import_callable("math:sqrt") is math.sqrt


def test_module_in_the_current_folder(script, monkeypatch):
    monkeypatch.chdir(script.parent)
    try:
        assert import_callable("mine:build")() == 7
    finally:
        sys.modules.pop("mine", None)


def test_two_files_of_one_name(tmp_path):
    for folder, value in (("a", 1), ("b", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.py").write_text(f"def get():\n    return {value}\n")
    assert [import_callable(f"{tmp_path}/{folder}/same.py:get")() for folder in "ab"] == [1, 2]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("build", "'build' names no function; write package.module:name or file.py:name"),
        ("{}:biuld", r"has no 'biuld'; did you mean 'build'\?"),
        ("{}:size", r"mine\.py:size is a int, not a function or class"),
        ("{}x.py:build", r"mine\.pyx\.py' does not exist; check the path before the colon"),
        ("no_such_package.deep:build", "module 'no_such_package' cannot be imported; install it, or name a file.py"),
    ],
)
def test_bad_names(script, spec, message):
    with pytest.raises(InputError, match=message):
        import_callable(spec.format(script))


def test_a_file_that_fails(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import math\nmath.no_such_thing\n")
    for _ in range(2):  # the failure is not remembered as a success
        with pytest.raises(InputError, match=r"importing 'broken\.py' failed: AttributeError: .*no_such_thing"):
            import_callable(f"{path}:build")
