"""The user's own functions, named as `package.module:name` or `file.py:name`."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from compress.errors import InputError, first_line, nearest


def import_callable(spec: str) -> Callable[..., Any]:
    """Return the function or class that `spec` names: `package.module:name` or `file.py:name`.

    A file is imported once per process, under a name of its own; while it is imported its folder comes first on
    `sys.path`, as if Python had been started with it. Modules are looked up in the current folder too.

    Raises:
        InputError: the file, the module or the name does not exist, or importing it failed.
    """
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise InputError(f"{spec!r} names no function; write package.module:name or file.py:name")
    module = _imported(source)
    return _attribute(module, source, name)


def _imported(source: str) -> ModuleType:
    """Import it; where a torchvision wheel of another torch stops that, once more with torchvision opened by our door."""

    def find() -> ModuleType:
        return _import_file(Path(source)) if source.endswith(".py") else _import_module(source)

    try:
        return find()
    except InputError as error:
        if "torchvision::" not in str(error):
            raise
    import compress.loading.torchvision_ops  # noqa: F401

    for name in [name for name in sys.modules if name == "torchmetrics" or name.startswith("torchmetrics.")]:
        del sys.modules[name]  # half imported
    return find()


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"file {str(path)!r} does not exist; check the path before the colon")
    path = path.resolve()
    # The digest keeps two files of one name apart; the module stays in sys.modules, where pickle looks for it.
    name = f"compress_user_{path.stem}_{hashlib.sha1(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise InputError(f"importing {path.name!r} failed: {first_line(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        with _on_path(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        hint = f"; did you mean '{name}.py:…'?" if Path(f"{name}.py").is_file() else "; install it, or name a file.py"
        raise InputError(f"module {error.name!r} cannot be imported{hint}") from error
    except Exception as error:
        raise InputError(f"importing {name!r} failed: {first_line(error)}") from error


def _attribute(module: ModuleType, source: str, name: str) -> Callable[..., Any]:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            public = [key for key, item in vars(module).items() if callable(item) and not key.startswith("_")]
            raise InputError(f"{source!r} has no {name!r}; {nearest(name, public)}")
        value = getattr(value, part)
    if not callable(value):
        raise InputError(f"{source}:{name} is a {type(value).__name__}, not a function or class")
    found: Callable[..., Any] = value
    return found


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))
