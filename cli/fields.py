"""Options made from the fields of a dataclass, so that the command and the value it fills cannot drift apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import click

from cli.help import completing
from cli.options import key_values

KINDS: dict[str, click.ParamType] = {"int": click.INT, "float": click.FLOAT, "str": click.STRING}
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class NumberOrWord(click.ParamType):
    """A number, or one of a few words: 0.01, auto."""

    name = "FLOAT"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value in self.words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {' or '.join(self.words)}", param, ctx)


class Amounts(click.ParamType):
    """A number, or several with commas between them: 0.4, or 0.8,0.6,0.4."""

    name = "F[,F]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | tuple[float, ...]:
        if not isinstance(value, str):
            typed: float | tuple[float, ...] = value
            return typed
        parts = [part.strip() for part in value.split(",")]
        try:
            numbers = tuple(map(float, parts))
        except ValueError:
            wrong = next(part for part in parts if not _is_number(part))
            self.fail(f"{wrong!r} in {value!r} is no number; write 0.4, or several as 0.8,0.6,0.4", param, ctx)
        return numbers[0] if len(numbers) == 1 else numbers


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Names(click.ParamType):
    """Comma-separated names: Conv,Gemm."""

    name = "A,B"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(name.strip() for name in value.split(",") if name.strip())


def own_fields(cls: type, skipped: Sequence[str] = ()) -> list[dataclasses.Field]:
    """The fields that become options: those with a help text, without the skipped ones."""
    return [field for field in dataclasses.fields(cls) if "help" in field.metadata and field.name not in skipped]


def with_options(command: Callable[..., Any], fields: Sequence[dataclasses.Field]) -> Callable[..., Any]:
    """Add an option for each field, in their order."""
    for field in reversed(fields):
        command = option_of(field)(command)
    return command


def given(rest: dict[str, Any], fields: Sequence[dataclasses.Field]) -> dict[str, Any]:
    """Take out of a command's arguments the fields' values that the user typed."""
    values = {field.name: rest.pop(field.name) for field in fields}
    return {name: value for name, value in values.items() if value not in (None, (), {})}


def option_of(field: dataclasses.Field) -> Decorator:
    """The option of one field. Its default stays None, so that a file's value can be distinguished from one typed."""
    name = field.name.replace("_", "-")
    text = field.metadata["help"][0].upper() + field.metadata["help"][1:]
    kind = str(field.type).removesuffix(" | None")
    if off := field.metadata.get("off"):  # the flag that a field which is True by default is switched off by
        return click.option(f"--{off}", field.name, flag_value=False, default=None, type=click.BOOL, help=f"{text}.")
    if kind == "bool":
        both = "" if field.metadata.get("only_on") else f"/--no-{name}"
        return click.option(f"--{name}{both}", field.name, is_flag=True, default=None, help=f"{text}.")
    if field.metadata.get("pairs"):  # `optimizer_args` is filled by --optimizer-arg K=V, one by one
        flag = f"--{name.removesuffix('s')}"
        return click.option(
            flag, field.name, multiple=True, metavar="K=V", callback=key_values, help=f"{text} (repeatable)."
        )
    if field.metadata.get("several"):
        return click.option(f"--{name}", field.name, type=Amounts(), help=f"{text}. [default: {field.default}]")
    if field.metadata.get("commas"):
        return click.option(f"--{name}", field.name, type=Names(), metavar=field.metadata["metavar"], help=f"{text}.")
    if kind.startswith("tuple"):
        return click.option(f"--{name}", field.name, multiple=True, metavar="NAME", help=f"{text} (repeatable).")
    choices = field.metadata.get("choices") or ()
    metavar = field.metadata.get("metavar") or ("|".join(choices) if 0 < len(choices) < 5 else None)
    notes = "; ".join(filter(None, ["" if field.default is None else f"default: {field.default}", _limits(field)]))
    shown = f"{text}. [{notes}]" if notes else f"{text}."
    type_ = _type_of(field, kind)
    return click.option(f"--{name}", field.name, type=type_, metavar=metavar, help=shown)


def _type_of(field: dataclasses.Field, kind: str) -> Any:
    if choices := field.metadata.get("choices"):
        return completing(choices)
    if words := field.metadata.get("words"):
        return NumberOrWord(words)
    return KINDS[kind]


def _limits(field: dataclasses.Field) -> str:
    """The range of a number, as click writes it."""
    low, above, high = (field.metadata.get(name) for name in ("low", "above", "high"))
    left = f"{low:g}<=" if low is not None else f"{above:g}<" if above is not None else ""
    if high is not None:
        return f"{left}x<={high:g}"
    return f"x>={low:g}" if low is not None else f"x>{above:g}" if above is not None else ""
