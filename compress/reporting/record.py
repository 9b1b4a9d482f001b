"""The report as JSON: a schema version, stable keys, plain values."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from compress.steps import Measurement, Step

if TYPE_CHECKING:
    from compress.reporting.report import Report

SCHEMA_VERSION = 1
# Figures that differ from run to run on the same machine; all others repeat exactly with the same seed and versions.
TIMINGS = ("p50_ms", "p90_ms", "p99_ms", "speedup", "throughput", "peak_memory_bytes")


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values.

    Keys: `schema_version`, `title`, `baseline` (a row's name), `rows` (every field of `Measurement`; null is
    "not measured"; sizes in bytes, latencies in ms, accuracies as fractions; of `measures` the first decides), `steps` (`name`, `notes`, `faults` where there are any, `changes`
    with `layer`, `action`, `skipped`, `reason`, `values`), `gates`, `notes`, `files`, `details`, `environment`.
    """
    values: dict[str, Any] = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "title": report.title,
            "baseline": report.base.name if report.rows else None,
            "rows": [row_dict(row) for row in report.rows],
            "steps": [step_dict(step) for step in report.steps],
            "gates": [gate.as_dict() for gate in report.gates],
            "passed": not report.failed,
            "notes": list(report.notes),
            "files": dict(report.files),
            "details": dict(report.details),
            "environment": report.environment.as_dict(),
        }
    )
    return values


def row_dict(row: Measurement) -> dict[str, Any]:
    found = {field.name: getattr(row, field.name) for field in fields(row)}
    return {**found, "measures": list(map(vars, row.measures)), "differences": list(map(vars, row.differences))}


def step_dict(step: Step) -> dict[str, Any]:
    found = {"name": step.name, "notes": list(step.notes), "changes": [change.as_dict() for change in step.changes]}
    return found | ({"faults": list(step.faults)} if step.faults else {})


def dumps(report: Report) -> str:
    return json.dumps(as_dict(report), indent=2, allow_nan=False) + "\n"


def figures(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a report's JSON without what a clock decides: equal for equal work.

    Two runs of one recipe, one of them killed and resumed, agree on these exactly.
    """
    rows = []
    for row in data["rows"]:
        kept = {key: value for key, value in row.items() if key not in TIMINGS}
        extra = {key: value for key, value in row["extra"].items() if key != "timed_runs"}
        rows.append({**kept, "extra": extra})
    return rows


def plain(value: Any) -> Any:
    """Turn mappings, tuples and numbers of other libraries into JSON's own; NaN and infinity become null."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, (int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # NumPy and torch
        return plain(value.tolist())
    return str(value)
