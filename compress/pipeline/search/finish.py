"""The end of a search: survivors measured for real, once; the winner under the limits, or the nearest to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compress.counting import counted
from compress.decibels import EQUAL_DB
from compress.evaluation.runners import Runnable, Target
from compress.locking import locked_folder
from compress.measures import deciding
from compress.pipeline.closing import closing_report, of_metrics
from compress.pipeline.gates import Gates
from compress.pipeline.job import Delivery, Timing
from compress.pipeline.search.candidate import Candidate, beats, front_of
from compress.pipeline.search.clock import words
from compress.pipeline.search.folder import MODEL, Front
from compress.pipeline.search.session import Session, recipe_text_of
from compress.pipeline.search.space import is_plain, runtime_of
from compress.pipeline.search.study import INTERRUPTED
from compress.reporting.report import Report
from compress.reporting.words import how_read, plain_words
from compress.steps import Measurement

HARDLY = 0.01  # share of the figure that decides which an unlimited search gives away for speed
HARDLY_DB = 20.0  # the same, where nothing decides but the outputs' distance
ROUNDS = 200


@dataclass(frozen=True)
class Verdict:
    """Which files stay on the front as measured, which of them wins, or is nearest to the limits; why others fell out."""

    front: tuple[str, ...]
    winner: str | None
    nearest: str
    fell: Mapping[str, str]


def close(session: Session, tried: Sequence[Candidate]) -> Report:
    """Measure the survivors, leave the front and its winner in the folder, and report.

    Survivors whose file is not there (it was beaten in an earlier run, as measured) are made again from their recipe.
    """
    survivors = session.survivors(tried)
    for item in survivors:
        _ensure(session, item)
    report = _measured(session, survivors)
    names = {item.name: item for item in survivors}
    verdict = judge_rows(report.rows, report.base, session.job.limits, session.options.objective)
    front = session.front
    for name in front.names():
        if name not in verdict.front:
            front.set_aside(name)
    front.choose(verdict.winner)
    report = _with_verdict(report, session, verdict, tried, names)
    for suffix in ("json", "md", "html"):
        report.write(front.root / f"report.{suffix}")
    return report


def _ensure(session: Session, candidate: Candidate) -> None:
    if session.front.bring_back(candidate.name):
        return
    with locked_folder(session.front.root, ".making-") as folder:
        path = session.maker.file(candidate.choices, folder / MODEL)
        session.front.keep(candidate.name, path, recipe_text_of(session, candidate))


def _measured(session: Session, survivors: Sequence[Candidate]) -> Report:
    """One pass over the test part, and latencies in turns, of all survivors beside the model as it came."""
    ordered = sorted(survivors, key=lambda item: not is_plain(item.choices))
    targets: dict[str, Target] = {}
    for item in ordered:
        path = session.front.model(item.name)
        runtime = runtime_of(item.choices)
        targets[item.name] = path if "runtime" not in item.choices else Runnable(path, runtime)
    timing = Timing(ROUNDS, session.recipe.evaluate.batch, max_seconds=session.timing_s)
    job = replace(session.job, limits=Gates(), timing=timing, output=None, measures=session.job.measures.forgiving())
    title = f"{session.opened.name}: search, {words(session.clock.elapsed)}"
    return closing_report(job, Delivery(targets, title, gated=[]))


def judge_rows(rows: Sequence[Measurement], base: Measurement, limits: Gates, objective: str) -> Verdict:
    """Find the front of what was measured, and the winner among those that keep to the limits."""
    figures = {row.name: _figures(row) for row in rows}
    fell: dict[str, str] = {}
    for row in rows:
        better = [other.name for other in rows if other is not row and beats(figures[other.name], figures[row.name])]
        if better:
            fell[row.name] = f"beaten by {better[0]} as measured"
    front = tuple(row.name for row in rows if row.name not in fell)
    passing = [row for row in rows if row.name in front and keeps_to(row, base, limits)]
    key = _order(objective, limits, base)
    winner = min(passing, key=key).name if passing else None
    standing = [row for row in rows if row.name in front]
    nearest = min(standing, key=lambda row: (excess(row, base, limits), key(row))).name
    for row in standing:
        missed = [gate.name for gate in limits.check([row], base) if gate.passed is False]
        if missed:
            fell.setdefault(row.name, "")
            fell[row.name] = f"on the front; not within --{' and --'.join(missed)}"
    return Verdict(front, winner, nearest, fell)


def _figures(row: Measurement) -> tuple[float, float, float]:
    return quality(row), float(row.size_bytes or 0), row.p50_ms or 0.0


def quality(row: Measurement) -> float:
    """What decides, more is better; the decibels of the outputs where nothing does."""
    if deciding.deciding(row) is not None:
        return deciding.score(row)
    found = [EQUAL_DB if item.snr_db is None else item.snr_db for item in row.differences]
    return min(found, default=EQUAL_DB)


def keeps_to(row: Measurement, base: Measurement, limits: Gates) -> bool:
    return not any(gate.passed is False for gate in limits.check([row], base))


def excess(row: Measurement, base: Measurement, limits: Gates) -> float:
    """By how much a row misses the limits: the sum of the shares by which each is overrun."""
    total = 0.0
    for gate in limits.check([row], base):
        if gate.passed is not False:
            continue
        if gate.value is None:
            return float("inf")
        low, high = sorted((abs(gate.value), abs(gate.limit)))
        total += (high - low) / max(low, 1e-9) if gate.name != "max-drop" else gate.value - gate.limit
    return total


def _order(objective: str, limits: Gates, base: Measurement) -> Any:
    """The key by which the best comes first."""
    by: dict[str, Any] = {
        "accuracy": lambda row: (-quality(row), row.p50_ms or 0.0, row.size_bytes or 0),
        "latency": lambda row: (row.p50_ms or 0.0, row.size_bytes or 0, -quality(row)),
        "size": lambda row: (row.size_bytes or 0, row.p50_ms or 0.0, -quality(row)),
    }
    if objective != "auto":
        return by[objective]
    if limits.drop is not None:
        return by["latency"]
    if any(limit is not None for limit in (limits.max_size, limits.max_latency, limits.require_speedup)):
        return by["accuracy"]
    return lambda row: (not _hardly_worse(row, base), *by["latency"](row))


def _hardly_worse(row: Measurement, base: Measurement) -> bool:
    figure, lost = deciding.deciding(base), deciding.loss(row, base)
    if figure is None or lost is None:
        return quality(row) >= HARDLY_DB
    return lost <= HARDLY * abs(figure.value)


def _with_verdict(
    report: Report, session: Session, verdict: Verdict, tried: Sequence[Candidate], names: Mapping[str, Candidate]
) -> Report:
    """The report with its winner, its limits, its table of candidates, its files."""
    limits, shown = session.job.limits, verdict.winner or verdict.nearest
    gates = limits.check([report.row(shown)], report.base)
    root = session.front.root
    files = {name: str(session.front.model(name)) for name in verdict.front} | {"page": str(root / "report.html")}
    rows = [row if row.name in verdict.front else replace(row, path=None) for row in report.rows]
    rows.sort(key=lambda row: (row.name != report.base.name, row.name == shown))  # the page is about the last
    if verdict.winner is not None:
        files = {"model": str(root / MODEL), **files}
        rows = [replace(row, path=files["model"]) if row.name == verdict.winner else row for row in rows]
    details = {
        "search": {
            "winner": verdict.winner,
            "nearest": verdict.nearest,
            "limits": _limits(limits, report),
            "candidates": [_line(item, verdict, names, tried, session.front) for item in tried],
        }
    }
    notes = [_winner_note(verdict, session, report), *_kind_notes(session, tried, report), *session.opened.notes]
    notes += [*of_metrics(session.job), *how_read(rows), *plain_words((report.base, report.row(shown)), report.base)]
    title = f"{session.opened.name}: search, {counted(len(tried), 'candidate')} in {words(session.clock.elapsed)}"
    return replace(
        report,
        rows=tuple(rows),
        gates=gates,
        files=files,
        details=details,
        notes=tuple(dict.fromkeys(notes)),
        title=title,
    )


def _limits(limits: Gates, report: Report) -> dict[str, float]:
    """The limits in the units of the page's picture: the least figure that decides, as a fraction; ms."""
    found: dict[str, float] = {}
    figure = deciding.deciding(report.base)
    if limits.drop is not None and figure is not None:
        sign = -1 if figure.better != "lower" else 1
        found["figure"] = figure.value + sign * limits.drop.allowed(figure)
    if limits.max_latency is not None:
        found["latency_ms"] = limits.max_latency
    if limits.require_speedup is not None and report.base.p50_ms is not None:
        found["latency_ms"] = min(report.base.p50_ms / limits.require_speedup, found.get("latency_ms", float("inf")))
    return found


def _why_unmeasured(item: Candidate, tried: Sequence[Candidate]) -> str:
    """Why a candidate that was judged to the end is not among those that were measured."""
    mine, runtime = item.values, runtime_of(item.choices)
    for other in tried:
        if other.stands and other.number != item.number and runtime_of(other.choices) == runtime and mine:
            assert other.values is not None
            if beats(other.values, mine) or (other.values == mine and other.number < item.number):
                return f"beaten by {other.name} in outputs, size and work"
    return "not measured: no time was left; --resume with more --minutes measures it"


def _line(
    item: Candidate, verdict: Verdict, names: Mapping[str, Candidate], tried: Sequence[Candidate], front: Front
) -> dict[str, Any]:
    """One candidate as plain values: what it was, what it came to, why it fell out."""
    why = item.reason
    if item.stands and item.name in names:
        why = verdict.fell.get(item.name, "")
    elif item.stands:
        why = _why_unmeasured(item, tried)
    state = "winner" if item.name == verdict.winner else "front" if item.name in verdict.front else "out"
    return {
        "number": item.number,
        "name": item.name,
        "state": state,
        "reason": why,
        "choices": dict(item.choices),
        "recipe": str(front.recipe(item.name)) if item.name in verdict.front else None,
        "snr_db": item.snr_db if item.snr_db is not None else item.early_db,
        "size_bytes": item.size_bytes,
        "seconds": round(item.seconds, 3),
    }


def _winner_note(verdict: Verdict, session: Session, report: Report) -> str:
    if verdict.winner is None:
        return f"no candidate keeps to all limits; the nearest is {verdict.nearest}"
    row = report.row(verdict.winner)
    figure = deciding.deciding(row)
    value = f", {figure.name} {deciding.value(row)}" if figure is not None else ""
    return f"the winner is {verdict.winner}{value}: {session.front.root / MODEL}"


def _kind_notes(session: Session, tried: Sequence[Candidate], report: Report) -> list[str]:
    """What the reader must know of how the candidates were judged."""
    notes = [
        f"{counted(len(tried), 'candidate')} judged by their outputs on {counted(session.judge.samples, 'sample')} without labels, "
        f"{len(front_of(tried))} of them beaten by none; those that were measured saw the test part once"
    ]
    if deciding.deciding(report.base) is None:
        where = "calibration samples, for there is no test part" if session.opened.test is None else "the test part"
        notes.append(f"no labels: files are told apart by how far their outputs moved, in decibels, on {where}")
    cut = sum(item.reason == INTERRUPTED for item in tried)
    if cut:
        notes.append(f"{counted(cut, 'candidate was', 'candidates were')} cut off by the end of the time")
    return notes
