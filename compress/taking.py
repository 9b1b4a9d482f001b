"""What the public verbs take beyond their own types, and how they refuse the rest: in one line, before the work.

    @takes(graph=graph_of)
    def save_onnx(graph: ir.Model, path: str | Path, ...)

A reader (see `compress.given`) turns what is unambiguous into what the verb works on, and leaves that as it is. Parameters without a reader are held to their annotation where it is a plain type or a class of options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from compress.errors import CompressError, InputError, nearest

Verb = TypeVar("Verb", bound=Callable[..., Any])
Reader = Callable[[Any], Any]


def takes(**readers: Reader) -> Callable[[Verb], Verb]:
    """Read the arguments of a verb before it runs: those named by their reader, the others by their annotation."""

    def decorate(verb: Verb) -> Verb:
        names = list(inspect.signature(verb).parameters)

        @functools.wraps(verb)
        def read(*given: Any, **named: Any) -> Any:
            taken = [_read(verb, name, readers, value) for name, value in zip(names, given)]
            kept = {name: _read(verb, name, readers, value) for name, value in named.items()}
            return verb(*taken, *given[len(names) :], **kept)

        return cast(Verb, read)

    return decorate


def _read(verb: Callable[..., Any], name: str, readers: Mapping[str, Reader], value: Any) -> Any:
    parameter = inspect.signature(verb).parameters.get(name)
    reader = readers.get(name)
    where = f"{verb.__name__}: {name}"
    if value is None if parameter is None else value is parameter.default:
        return value
    if reader is not None:
        try:
            return reader(value)
        except CompressError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where} cannot be a {type(value).__name__} ({error})") from error
    if parameter is None:
        return value
    return _as_annotated(where, str(parameter.annotation), value, verb.__globals__)


def described_kind(value: Any) -> str:
    """A value as a message names it: text in quotes, the kind of anything else."""
    if value is None or isinstance(value, (str, os.PathLike, int, float)):
        return repr(str(value)) if isinstance(value, os.PathLike) else repr(value)[:80]
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biuf":
        return f"an array of {value.dtype}"
    return f"a {type(value).__name__}"


_PLAIN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda value: isinstance(value, numbers.Integral) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, numbers.Real) and not isinstance(value, bool)),
    "bool": ("True or False", lambda value: isinstance(value, (bool, np.bool_))),
    "str": ("text", lambda value: isinstance(value, str)),
    "Path": ("a path", lambda value: isinstance(value, (str, os.PathLike))),
    "None": ("None", lambda value: value is None),
}


def _as_annotated(where: str, annotation: str, value: Any, names: Mapping[str, Any]) -> Any:
    """The value, held to an annotation of plain types and classes of options; any other annotation says nothing.

    A mapping becomes the options, one text becomes a sequence of texts.
    """
    if annotation == "Sequence[str]":
        found = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
        if not all(isinstance(item, str) for item in found):
            raise InputError(f"{where} takes names, got {described_kind(value)}")
        return found
    words: list[str] = []
    owners: list[type] = []
    for kind in annotation.split(" | "):
        owner = names.get(kind)
        if kind in _PLAIN:
            kind_words, fits = _PLAIN[kind]
            if fits(value):
                return value
            words.append(kind_words)
        elif inspect.isclass(owner) and dataclasses.is_dataclass(owner):
            if isinstance(value, owner):
                return value
            owners.append(owner)
            words.append(f"{owner.__name__} or a mapping of its fields")
        else:
            return value
    if owners and isinstance(value, Mapping):
        return _options(where, owners[0], value)
    wanted = " or ".join(dict.fromkeys(word for word in words if word != "None" or len(words) == 1))
    raise InputError(f"{where} takes {wanted}, got {described_kind(value)}")


def _options(where: str, kind: type, values: Mapping[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise InputError(f"{where}: {kind.__name__} has no {name!r}; {nearest(str(name), known)}")
    return kind(**values)
