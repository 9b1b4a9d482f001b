"""A report read back from its JSON: every field held to its kind, so that what is drawn of it cannot fail later."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from compress.errors import InputError
from compress.reporting.environment import Environment
from compress.reporting.record import SCHEMA_VERSION
from compress.reporting.report import Gate, Report
from compress.steps import Change, Difference, Measure, Measurement, Step
from compress.taking import takes

MOST_BYTES = 200_000_000  # more than any report holds: another file was named


@takes()
def read_report(path: str | Path) -> Report:
    """Read a report that `--report FILE.json` or `Report.write` wrote.

    The models of its steps are not in it: they are None. Fields that this version does not know are left out.

    Raises:
        InputError: the file cannot be read, is no JSON or no report, or was written by a newer version.
    """
    path = Path(path)
    data = _json_of(path)
    if not isinstance(data, dict) or not {"schema_version", "rows", "environment"} <= set(data):
        raise InputError(f"{str(path)!r} is no report of compress; give the .json that --report wrote")
    version = data["schema_version"]
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise InputError(
            f"{str(path)!r} has schema version {version!r}, this compress reads up to {SCHEMA_VERSION}; update it"
        )
    try:
        return _report(data)
    except _Misfit as misfit:
        raise InputError(f"{str(path)!r} is no report of compress: {misfit}") from None


class _Misfit(Exception):
    """A value of another kind than its field."""


def _json_of(path: Path) -> Any:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{str(path)!r} is larger than any report")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise InputError(
            f"{str(path)!r} is no JSON ({' '.join(str(error).split())[:80]}); give a report's .json"
        ) from error


def _report(data: Mapping[str, Any]) -> Report:
    rows = _each(data, "rows", _row)
    names = [row.name for row in rows]
    baseline = data.get("baseline")
    if baseline is not None and baseline not in names:
        raise _Misfit(f"its baseline {baseline!r} is none of its rows")
    if len(set(names)) < len(names):
        raise _Misfit("two of its rows have one name")
    files = data.get("files") or {}
    details = data.get("details") or {}
    if not isinstance(files, dict) or not isinstance(details, dict):
        raise _Misfit("its files or details are no mapping")
    return Report(
        rows=rows,
        steps=_each(data, "steps", _step),
        notes=tuple(str(note) for note in data.get("notes") or ()),
        title=str(data.get("title", "Compression report")),
        baseline=baseline,
        gates=_each(data, "gates", lambda item: _value(Gate, item, "gate")),
        files={str(name): str(value) for name, value in files.items()},
        details=details,
        environment=_value(Environment, data["environment"], "environment"),
    )


def _each(data: Mapping[str, Any], name: str, read: Any) -> tuple[Any, ...]:
    found = data.get(name) or ()
    if not isinstance(found, list | tuple):
        raise _Misfit(f"its {name} are no list")
    return tuple(read(item) for item in found)


def _row(item: Any) -> Measurement:
    row: Measurement = _value(Measurement, item, "row", {"measures": Measure, "differences": Difference})
    return row


def _step(item: Any) -> Step:
    if not isinstance(item, dict):
        raise _Misfit(f"a step is a {type(item).__name__}")
    return Step(
        str(item.get("name", "")),
        None,
        _each(item, "changes", lambda change: _value(Change, change, "change")),
        tuple(str(note) for note in item.get("notes") or ()),
        tuple(str(fault) for fault in item.get("faults") or ()),
    )


def _value(kind: type, item: Any, what: str, parts: Mapping[str, type] | None = None) -> Any:
    """One frozen value from its mapping; `parts` says what the lists in it hold."""
    if not isinstance(item, dict):
        raise _Misfit(f"a {what} is a {type(item).__name__}")
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for field in fields(kind):
        if field.name in (parts or {}):
            found[field.name] = _each(
                item, field.name, lambda part, name=field.name: _value((parts or {})[name], part, name)
            )
        elif field.name in item:
            missing = item[field.name] is None and hints[field.name] is float  # JSON has no NaN
            if not missing and not _fits(item[field.name], hints[field.name]):
                raise _Misfit(f"{field.name} of a {what} is {item[field.name]!r:.60}")
            value = math.nan if missing else item[field.name]
            found[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Misfit(f"a {what} has no {field.name}")
    return kind(**found)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON is of the kind that a field has."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if hint is Any:
        return True
    if hint is NoneType:
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint in (int, float):
        return isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = [parts[0]] * len(value) if parts[-1:] == (Ellipsis,) else list(parts)
        return len(kinds) == len(value) and all(_fits(item, kind) for item, kind in zip(value, kinds))
    if origin in (Mapping, dict):
        return isinstance(value, dict)
    if origin is Sequence:
        return isinstance(value, list)
    return isinstance(value, hint)
