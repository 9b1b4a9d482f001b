"""Arguments of torch's own classes (optimizers, schedulers), held to the class's signature before anything starts."""

from __future__ import annotations

import inspect
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compress.errors import InputError, nearest

RESERVED = ("self", "params", "optimizer", "last_epoch", "verbose")  # what the training loop says itself


def accepted(kind: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class that a user may give, by name."""
    found = inspect.signature(kind).parameters
    return {name: parameter for name, parameter in found.items() if name not in RESERVED}


def check_arguments(kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hold `given` to the names and types of `kind`'s signature; lists become tuples where it wants them.

    Raises:
        InputError: an argument that `kind` does not have (the nearest is given), or one of another type.
    """
    known = accepted(kind)
    taken: dict[str, Any] = {}
    for key, value in given.items():
        name = next((own for own in known if own.lower() == key.replace("-", "_").lower()), None)  # T_max as t_max
        if name is None:
            raise InputError(f"{kind.__name__} has no argument {key!r}; {nearest(key, known)}")
        taken[name] = _converted(kind, known[name], value)
    return taken


def call(kind: type, *first: Any, **arguments: Any) -> Any:
    """Make a `kind`; what it refuses (a beta of 1.5) is one line.

    Raises:
        InputError: its own reason.
    """
    missing = [
        name
        for name, parameter in accepted(kind).items()
        if parameter.default is parameter.empty and name not in arguments
    ]
    if missing:
        raise InputError(f"{kind.__name__} needs {' and '.join(missing)}; give it as an argument of {kind.__name__}")
    try:
        return kind(*first, **arguments)
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{kind.__name__} refuses its arguments: {reason}") from error


def _converted(kind: type, parameter: inspect.Parameter, value: Any) -> Any:
    words = str(parameter.annotation).replace("typing.", "")
    if value is None and "None" in words:
        return None
    if choices := re.findall(r"'([^']+)'", _inside(words, "Literal")):
        if value not in choices:
            raise InputError(f"{kind.__name__} has no {parameter.name} {value!r}; {nearest(str(value), choices)}")
        return value
    wanted, fits = _wanted(words, parameter.default)
    if not fits(value):
        raise InputError(f"argument {parameter.name} of {kind.__name__} must be {wanted}, got {value!r}")
    return tuple(value) if isinstance(value, list) and "tuple" in words else value


def _inside(words: str, outer: str) -> str:
    return words[words.index(outer) :] if outer in words else ""


def _wanted(words: str, default: Any) -> tuple[str, Any]:
    """What an annotation asks for, in words and as a test."""
    if "Callable" in words:
        return "a function", lambda value: callable(value) or _all(value, callable)
    if "tuple" in words:
        count = len(default) if isinstance(default, tuple) else None
        test = _number_or_none if "None" in words else _number
        return f"{count or 'several'} numbers", lambda value: _all(value, test) and count in (None, len(value))
    if "Iterable[int]" in words or "list[int]" in words:
        return "a list of whole numbers", lambda value: _all(value, _whole)
    if "bool" in words:
        return "true or false", lambda value: isinstance(value, bool)
    if "float" in words:
        several = "list[float]" in words
        return "a number", lambda value: _number(value) or (several and _all(value, _number))
    if "int" in words:
        return "a whole number", _whole
    return "text", lambda value: isinstance(value, str)


def _all(value: Any, test: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(test(item) for item in value)


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _number_or_none(value: Any) -> bool:
    return value is None or _number(value)


def _whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def named(what: str, name: str, known: Mapping[str, str], refused: Mapping[str, str]) -> str:
    """The class name of torch that an option's name stands for.

    Raises:
        InputError: there is none (the nearest is given), or it cannot be used; says why.
    """
    if name in refused:
        raise InputError(f"{what} {name!r} {refused[name]}")
    if name not in known:
        raise InputError(f"unknown {what} {name!r}; {nearest(name, known)}")
    return known[name]
