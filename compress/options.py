"""Fields of option dataclasses: each with the help text of the command's option, and the values that it may take."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Collection, Mapping
from typing import Any, TypedDict, TypeVar, Unpack

from compress.errors import InputError, nearest

Options = TypeVar("Options")


class OnTheCommandLine(TypedDict, total=False):
    """How a field looks as an option of a command; see `cli.fields.option_of`."""

    metavar: str  # in the help, in place of the type
    off: str  # the flag that switches a field off which is True by default: "per-tensor"
    only_on: bool  # no --no-… form
    pairs: bool  # K=V, repeatable
    several: bool  # one number, or several with commas between them
    commas: bool  # names with commas between them
    words: tuple[str, ...]  # that may stand in place of a number


def option(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    idle: Mapping[str, tuple[Any, ...]] | None = None,
    **command: Unpack[OnTheCommandLine],
) -> Any:
    """A field with its help text and its range: `low` and `high` belong to it, `above` does not.

    `idle` names other fields, each with the values beside which this one would change nothing: it is refused there.
    `command` says how the option looks on the command line.
    """
    limits = {"low": low, "above": above, "high": high}
    metadata = {"help": text, **limits, "idle": idle or {}, **command}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def choice(
    default: str,
    text: str,
    choices: Collection[str],
    *,
    or_own: bool = False,
    idle: Mapping[str, tuple[Any, ...]] | None = None,
    **command: Unpack[OnTheCommandLine],
) -> Any:
    """A field that takes one of `choices` (names, or a table of `compress.tables`); with `or_own` also the user's own, written module:function; `idle` as above."""
    metadata = {"help": text, "choices": choices, "or_own": or_own, "idle": idle or {}, **command}
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(options: Any, what: str) -> None:
    """Hold every field of `options` to its type, range and choices; `what` ("training") names them in messages.

    Raises:
        InputError: a value of the wrong type, out of range, unknown (the nearest is given), or without effect here.
    """
    for field in dataclasses.fields(options):
        if "help" not in field.metadata:
            continue
        value = getattr(options, field.name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(options, field.name, value)  # frozen, and still being made
        _check_type(field, value, what)
        _check_range(field, value, what)
        choices = field.metadata.get("choices")
        if choices and value not in choices and not (field.metadata["or_own"] and ":" in value):
            raise InputError(f"unknown {field.name} {value!r}; {nearest(str(value), choices)}")
    for field in dataclasses.fields(options):
        _check_effect(field, options, what)


def _check_type(field: dataclasses.Field[Any], value: Any, what: str) -> None:
    kind = str(field.type)
    if value is None and "None" in kind:
        return
    if value in field.metadata.get("words", ()) and isinstance(value, str):
        return
    wanted = kind.removesuffix(" | None").removesuffix(" | str")
    fits = {
        "int": isinstance(value, numbers.Integral) and not isinstance(value, bool),
        "float": _is_real(value),
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "float | tuple[float, ...]": _is_real(value) or (isinstance(value, tuple) and all(map(_is_real, value))),
        "tuple[str, ...]": isinstance(value, tuple) and all(isinstance(item, str) for item in value),
        "Mapping[str, Any]": isinstance(value, Mapping) and all(isinstance(key, str) for key in value),
    }[wanted]
    if not fits:
        words = "".join(f" or {word!r}" for word in field.metadata.get("words", ()))
        raise InputError(f"{what} option {field.name} must be {wanted}{words}, got {value!r}")


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_range(field: dataclasses.Field[Any], value: Any, what: str) -> None:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return
    limits: Mapping[str, Any] = field.metadata
    low, above, high = limits.get("low"), limits.get("above"), limits.get("high")
    if (
        value != value
        or (low is not None and value < low)
        or (above is not None and value <= above)
        or (high is not None and value > high)
    ):
        parts = [f"at least {low:g}"] if low is not None else []
        parts += [f"above {above:g}"] if above is not None else []
        parts += [f"at most {high:g}"] if high is not None else []
        raise InputError(f"{what} option {field.name} must be {' and '.join(parts) or 'a number'}, got {value!r}")


def _check_effect(field: dataclasses.Field[Any], options: Any, what: str) -> None:
    value = getattr(options, field.name)
    switched_off = value is False and field.default is None
    if value == field.default or switched_off or not field.metadata.get("idle"):
        return
    name = field.metadata.get("off", field.name) if value is False else field.name
    for other, values in field.metadata.get("idle", {}).items():
        found = getattr(options, other)
        if found not in values:
            continue
        beside = f"with {other} {found}" if not isinstance(found, bool) else f"with{'' if found else 'out'} {other}"
        raise InputError(f"{what} option {name} changes nothing {beside}; leave it out")


def spelled_out(kind: type[Options], options: Options | None, fields: Mapping[str, object], verb: str) -> Options:
    """`options` (None: the defaults of `kind`) with the fields that the caller of `verb` spelled out put in.

    Raises:
        InputError: a name that is no field; the nearest one is given.
    """
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]  # any dataclass
    for name in fields:
        if name not in known:
            raise InputError(f"{verb} has no option {name!r}; {nearest(name, known)}")
    if options is not None and not isinstance(options, kind):
        raise InputError(f"{verb} takes its options as {kind.__name__}, got {type(options).__name__}")
    base = kind() if options is None else options
    return dataclasses.replace(base, **fields) if fields else base  # type: ignore[type-var]  # any dataclass
