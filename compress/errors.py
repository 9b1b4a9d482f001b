"""The errors that a user can cause, each with the exit code that the command returns for it."""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import re
from collections.abc import Iterable, Iterator

# Options that take no value: in Python they are set to True.
_FLAGS = ("trust-pickle", "overwrite", "resume", "masks", "reconstruct", "recalibrate", "verbose", "distill")
_COMMAND_LINE: contextvars.ContextVar[bool] = contextvars.ContextVar("on the command line", default=False)


@contextlib.contextmanager
def on_the_command_line() -> Iterator[None]:
    """Let messages name options as the command does."""
    before = _COMMAND_LINE.set(True)
    try:
        yield
    finally:
        _COMMAND_LINE.reset(before)


def in_python(text: str) -> str:
    """A message that names options of the command, with the names that they have in Python.

    >>> in_python("give --input-shape, or pass --trust-pickle; choose another -o")
    'give input_shape, or pass trust_pickle=True; choose another output'
    """

    def name(found: re.Match[str]) -> str:
        return found[1].replace("-", "_") + ("=True" if found[1] in _FLAGS else "")

    text = re.sub(r"(?<![\w-])--([a-z][a-z0-9]*(?:-[a-z0-9]+)*)", name, text)
    return re.sub(r"(?<![\w-])-o(?=[\s,;.)]|$)", "output", text)


class CompressError(Exception):
    """Base of every error that `compress` raises on purpose.

    The message is one line: what is wrong, with which value, and what to do about it.
    The command line prints it without a traceback and exits with `exit_code`.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message in the caller's words: `--input-shape` on the command line, `input_shape` in Python."""
        text = super().__str__()
        return text if _COMMAND_LINE.get() else in_python(text)


class InputError(CompressError):
    """A value given by the user that cannot be used: an option, a name, a shape, a path."""


class ModelError(InputError):
    """A model that cannot be found, built, loaded or executed."""


class WeightsError(ModelError):
    """A checkpoint that cannot be read, or that does not belong to the architecture."""


class DataError(InputError):
    """Data that is missing, empty, malformed, out of range or not finite."""


class OutputError(InputError):
    """A place that cannot be written: it exists already, or is not writable."""


class ExportError(ModelError):
    """A module that `torch.export` or the ONNX exporter cannot take, with their reason."""


class UnsupportedOperatorError(ModelError):
    """An ONNX operator, or an opset, that a stage cannot handle; names the node."""


class ParityError(CompressError):
    """Two forms of one model that should agree and do not; names the worst output."""


class QuantizationError(InputError):
    """A quantization request that cannot be carried out."""


class PruningError(InputError):
    """A pruning request that cannot be carried out."""


class TrainingError(InputError):
    """A training run that cannot start, or had to stop (a loss that is not finite)."""


class GateError(CompressError):
    """A budget or gate given by the user was not met; whatever was made has been saved."""

    exit_code = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for a name that is not among `known`: the nearest one, else the list.

    >>> nearest("renset18", ["resnet18", "vgg11"])
    "did you mean 'resnet18'?"
    >>> nearest("zebra", ["l1", "l2"])
    'known: l1, l2'
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (f", … ({len(names)} in all)" if len(names) > 12 else "")
    return f"known: {shown}"


def first_line(error: BaseException) -> str:
    """An exception of others as one line, with its type: the text alone often says little.

    >>> first_line(KeyError("x")), first_line(ValueError("no such file\\nmore")), first_line(RuntimeError())
    ("KeyError: 'x'", 'ValueError: no such file', 'RuntimeError')
    """
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def first_words(error: BaseException) -> str:
    """What an exception of others says first, without its type, as part of a longer sentence.

    >>> first_words(ValueError("\\nno such file.\\nmore")), first_words(RuntimeError())
    ('no such file', 'RuntimeError')
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(". ")
