"""A recipe as TOML: what is not a default, so that `compress run` makes the same file again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.pipeline.recipe import ELSEWHERE, TABLES, Recipe


def recipe_text(recipe: Recipe, *, heading: str = "") -> str:
    """The text of a recipe that `read_recipe` reads back to the same value."""
    lines = [f"# {line}" for line in heading.splitlines()]
    lines += [
        f"{key} = {_value(value)}" for key in ("out", "seed", "threads") if (value := getattr(recipe, key)) is not None
    ]
    for table, kind in TABLES.items():
        value = getattr(recipe, table, None)
        if value is None:
            continue
        rows = _rows(value, kind, ELSEWHERE.get(table, set()))
        if table == "finetune" and recipe.distill:
            rows.append("distill = true")
        if rows or table in ("model", "prune", "finetune", "quantize"):
            lines += ["", f"[{table}]", *rows]
    return "\n".join(lines) + "\n"


def _rows(value: Any, kind: type, skipped: set[str]) -> list[str]:
    rows = []
    for field in dataclasses.fields(kind):
        found = getattr(value, field.name)
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in skipped or found is None or found == default:
            continue
        rows.append(f"{field.name} = {_value(found)}")
    return rows


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(str(key))} = {_value(item)}" for key, item in value.items()) + " }"
    # JSON's strings are TOML's basic strings, but for DEL.
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False).replace("\x7f", "\\u007F")
