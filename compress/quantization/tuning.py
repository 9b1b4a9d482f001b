"""Decisions taken by the clock: both forms timed inside the model, the faster kept.

The same operator can be faster in int8 or in float, depending on the processor, its shape and its neighbours (a lone
float layer costs conversions on both sides), so that no table could tell. Each candidate is therefore built, run
interleaved with the best graph so far, and kept only where the ratio of times says so by more than noise. Ranges play
no part in speed: candidates are calibrated on one sample, the graph that ships on all of them, afterwards.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import onnx_ir as ir

from compress.batches import example_batch
from compress.counting import counted
from compress.errors import GateError, InputError, QuantizationError
from compress.graph.constants import is_constant
from compress.progress import track
from compress.quantization.kernels import HEAVY, LIGHT, ON_REQUEST, QUANTIZABLE
from compress.quantization.rewrites import REWRITES
from compress.runtimes.onnxruntime import Session
from compress.steps import Change

clock = time.perf_counter  # tests put their own here
NOISE = 0.03  # speed-ups nearer to 1 count as none
MARGIN = 0.985  # a candidate must take less than this share of the time; the rest is noise
_ROUNDS = (7, 60)  # fewest and most timed runs of each graph in one comparison
_SECONDS = 4.0  # what one comparison takes where the runs allow it
_PREFIXES = (1, 2, 3, 5, 8)  # so many layers from the input, which have no neighbour in int8 before them


@dataclass(frozen=True)
class Choices:
    """What `quantize_static` takes: the nodes left in float, the rewrites, the operator types."""

    exclude: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = tuple(REWRITES)
    op_types: frozenset[str] = QUANTIZABLE - ON_REQUEST

    def options(self) -> dict[str, Any]:
        return {"exclude": self.exclude, "rewrites": self.rewrites, "op_types": sorted(self.op_types)}


@dataclass(frozen=True)
class Candidate:
    """One thing that may be worth changing: `question` names it, `answer` says what was done if it pays."""

    question: str
    answer: str
    exclude: tuple[str, ...] = ()
    drop_rewrites: tuple[str, ...] = ()
    drop_types: frozenset[str] = frozenset()
    add_types: frozenset[str] = frozenset()


HERE = "on this machine: "  # what a sentence with the speed of both forms is known by


@dataclass(frozen=True)
class Speed:
    """Two graphs timed in turns on the same input: typical milliseconds of each, and their ratio."""

    float_ms: float
    int8_ms: float

    @property
    def speedup(self) -> float:
        return self.float_ms / self.int8_ms

    def sentence(self) -> str:
        """What to tell the user, plainly."""
        figures = f"{self.int8_ms:.3g} ms against {self.float_ms:.3g} ms in float, {self.speedup:.2f}×"
        if abs(self.speedup - 1) < NOISE:
            return f"int8 is as fast as float {HERE}{figures}"
        if self.speedup > 1:
            return f"int8 is faster {HERE}{figures}"
        return f"int8 is NOT faster {HERE}{figures}; it saves memory, not time"


@dataclass(frozen=True)
class Tuned:
    """The choices that won, the final comparison with float (None: not tuned), and one change for each decision."""

    choices: Choices
    speed: Speed | None
    changes: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def compare_speed(
    float_graph: ir.Model,
    int8_graph: ir.Model,
    inputs: Any,
    *,
    threads: int | None = None,
    seconds: float = 5.0,
) -> Speed:
    """Time two graphs in turns for about `seconds`."""
    medians = _interleave(
        [Session(float_graph, threads=threads), Session(int8_graph, threads=threads)], inputs, seconds
    )
    return Speed(*medians)


def require_speedup(speed: Speed, minimum: float) -> None:
    """Hold the user to the speed-up asked for.

    Raises:
        GateError: int8 is less than `minimum` times as fast as float.
        InputError: `minimum` is not positive.
    """
    if not minimum > 0:
        raise InputError(f"--require-speedup takes a positive number, got {minimum:g}")
    if speed.speedup < minimum:
        raise GateError(f"speed-up {speed.speedup:.2f}× is below the {minimum:g}× required ({speed.sentence()})")


def tune_latency(
    float_graph: ir.Model,
    build: Callable[[Choices], tuple[ir.Model, Sequence[Change]]],
    inputs: Any,
    *,
    threads: int | None = None,
    budget_s: float = 60.0,
    only_under_s: float | None = None,
    start: Choices | None = None,
) -> Tuned:
    """Find the choices whose int8 graph runs fastest on this machine.

    Args:
        float_graph: what int8 has to beat.
        build: makes the int8 graph for some choices, with one change for each node (as `quantize_static` reports them).
        inputs: what to time on, the batch as it will be used.
        budget_s: stop trying after so many seconds; what was found until then is returned.
        only_under_s: try nothing where all comparisons together would take longer, by the time of one build and of the
            float graph; a note then says how long. And leave layers in float only where that makes the whole faster
            than float: who did not ask for speed keeps the small file.
        start: the choices to start from, kept wherever nothing else pays.
    """
    tuner = _Tuner(float_graph, build, inputs, threads, time.monotonic() + budget_s, start or Choices())
    return tuner.tune(only_under_s)


@dataclass
class _Tuner:
    float_graph: ir.Model
    build: Callable[[Choices], tuple[ir.Model, Sequence[Change]]]
    inputs: Any
    threads: int | None
    deadline: float
    choices: Choices
    changes: list[Change] = field(default_factory=list)
    slowest_build_s: float = 0.0

    def tune(self, only_under_s: float | None = None) -> Tuned:
        graph, nodes = self._built(self.choices)
        candidates, untried = list(_candidates(graph, nodes, self.choices)), 0
        self.float_session = Session(self.float_graph, threads=self.threads)
        if only_under_s is not None:
            cost_s = self._cost_s(len(candidates))
            if cost_s > only_under_s:
                return Tuned(self.choices, None, notes=(_too_long(len(candidates), cost_s),))
        self.session = Session(graph, threads=self.threads)
        plain = self.choices, self.session
        for candidate in track(candidates, "tuning", unit="form"):
            if time.monotonic() + 1.5 * self.slowest_build_s > self.deadline:
                untried += 1
            else:
                self._try(candidate)
        speed = self._verdict()
        if speed.speedup < 1.0:
            speed = self._rescue(nodes)
        if only_under_s is not None and speed.speedup < 1 / MARGIN:
            speed = self._undone(*plain, speed)
        notes = [speed.sentence()]
        if untried:
            notes.append(
                f"{counted(untried, 'decision was left as it stands', 'decisions were left as they stand')}, untimed: the time for tuning was up"
            )
        return Tuned(self.choices, speed, tuple(self.changes), tuple(notes))

    def _built(self, choices: Choices) -> tuple[ir.Model, Sequence[Change]]:
        start = time.monotonic()
        made = self.build(choices)
        self.slowest_build_s = max(self.slowest_build_s, time.monotonic() - start)
        return made

    def _try(self, candidate: Candidate) -> bool:
        """Time one candidate against the best so far; keep it if it pays, and record the decision either way."""
        choices = _merged(self.choices, candidate)
        if choices == self.choices:
            return False
        try:
            graph, _ = self._built(choices)
        except QuantizationError:  # nothing would be left in int8
            return False
        session = Session(graph, threads=self.threads)
        best_ms, ms = _interleave([self.session, session], self.inputs, self._seconds())
        kept = ms < MARGIN * best_ms
        values = {"ms": round(ms, 3), "before_ms": round(best_ms, 3)}
        reason = f"{ms:.2f} ms against {best_ms:.2f} ms"
        self.changes.append(Change(candidate.question, candidate.answer, reason, skipped=not kept, values=values))
        if kept:
            self.choices, self.session = choices, session
        return kept

    def _cost_s(self, candidates: int) -> float:
        """Seconds that `candidates` builds and comparisons would take, the last one with float included."""
        round_s = 2e-3 * _interleave([self.float_session], self.inputs, seconds=0.0)[0]
        comparison_s = min(_ROUNDS[1] * round_s, max(_ROUNDS[0] * round_s, self._seconds()))
        return candidates * self.slowest_build_s + (candidates + 1) * comparison_s

    def _seconds(self) -> float:
        return min(_SECONDS, max(0.5, (self.deadline - time.monotonic()) / 6))

    def _verdict(self) -> Speed:
        return Speed(*_interleave([self.float_session, self.session], self.inputs, _SECONDS))

    def _rescue(self, nodes: Sequence[Change]) -> Speed:
        """Int8 as a whole does not pay: try each quarter, then each eighth of the layers in float, keep what helps."""
        heavy = [name for name, op_type in _int8_nodes(nodes) if op_type in HEAVY]
        for parts in (4, 8):
            for piece in _pieces(heavy, parts):
                if time.monotonic() > self.deadline:
                    break
                question = f"{piece[0]} … {piece[-1]}" if len(piece) > 1 else piece[0]
                self._try(Candidate(question, "left in float", exclude=tuple(piece)))
        return self._verdict()

    def _undone(self, choices: Choices, session: Session, speed: Speed) -> Speed:
        """Take back what was kept: it costs size, and the whole is not faster than float all the same."""
        if self.choices == choices:
            return speed
        self.choices, self.session = choices, session
        self.changes = [
            change
            if change.skipped
            else replace(change, skipped=True, reason=f"{change.reason}; not enough to beat float as a whole")
            for change in self.changes
        ]
        return self._verdict()


def _too_long(candidates: int, cost_s: float) -> str:
    forms = "one int8 form" if candidates == 1 else f"{candidates} int8 forms"
    return f"not tuned for this machine: timing {forms} would take about {cost_s:.0f} s; --tune-latency does it"


def _merged(current: Choices, candidate: Candidate) -> Choices:
    """What has been decided, and the candidate on top of it."""
    return Choices(
        exclude=(*current.exclude, *(name for name in candidate.exclude if name not in current.exclude)),
        rewrites=tuple(name for name in current.rewrites if name not in candidate.drop_rewrites),
        op_types=(current.op_types - candidate.drop_types) | candidate.add_types,
    )


def _candidates(graph: ir.Model, nodes: Sequence[Change], base: Choices) -> Iterator[Candidate]:
    """What may be worth trying on this graph, the likeliest to pay first."""
    int8 = _int8_nodes(nodes)
    types = {op_type for _, op_type in int8}
    heavy = [name for name, op_type in int8 if op_type in HEAVY]
    if any("padded" in change.values for change in nodes):
        yield Candidate("channel padding", "left out", drop_rewrites=("padding",))
    if "Conv" in types:
        for count in _PREFIXES:
            if count >= len(heavy):
                break
            question = "first layer" if count == 1 else f"first {count} layers"
            yield Candidate(question, "left in float", exclude=tuple(heavy[:count]))
    floats = {str(change.values.get("op_type")) for change in nodes if change.skipped}
    if "Softmax" in floats:
        yield Candidate("softmax", "computed in int8", add_types=frozenset({"Softmax"}))
    products = tuple(name for name, op_type in int8 if op_type == "MatMul" and not _has_weight(graph, name))
    if products:
        yield Candidate("attention products", "left in float", exclude=products)
    if types & LIGHT and "MatMul" in types:
        yield Candidate("element-wise operators", "left in float", drop_types=base.op_types & LIGHT)


def _has_weight(graph: ir.Model, name: str) -> bool:
    """Whether an input of that node of an int8 graph is constant, behind its DequantizeLinear."""
    node = next((node for node in graph.graph if node.name == name), None)
    makers = [value.producer() for value in node.inputs if value is not None] if node is not None else []
    return any(maker is not None and is_constant(maker.inputs[0]) for maker in makers)


def _int8_nodes(nodes: Iterable[Change]) -> list[tuple[str, str]]:
    """(name, operator) of the nodes that run in int8, in order."""
    return [
        (str(change.values["node"]), str(change.values["op_type"]))
        for change in nodes
        if not change.skipped and change.values.get("op_type") in QUANTIZABLE
    ]


def _pieces(names: Sequence[str], count: int) -> Iterator[Sequence[str]]:
    size = max(1, -(-len(names) // count))
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _interleave(sessions: Sequence[Session], inputs: Any, seconds: float) -> list[float]:
    """Milliseconds of each session, run in turns for about `seconds` in all, in both orders alternately.

    The lower quartile, because whatever else the machine is doing only ever adds time.
    """
    batch = example_batch(inputs)
    arrays = [[value.detach().cpu().numpy() for value in session.in_order(batch)] for session in sessions]
    times: list[list[float]] = [[] for _ in sessions]
    for session, given in zip(sessions, arrays):
        session.run(*given)
    end = time.monotonic() + seconds
    order = list(range(len(sessions)))
    for count in range(_ROUNDS[1]):
        if count >= _ROUNDS[0] and time.monotonic() > end:
            break
        for index in order if count % 2 == 0 else order[::-1]:
            start = clock()
            sessions[index].run(*arrays[index])
            times[index].append(1e3 * (clock() - start))
    return [statistics.quantiles(values, n=4)[0] for values in times]
