"""What the user must not overlook in a table, as sentences: only what the figures bear out."""

from __future__ import annotations

from collections.abc import Sequence

from compress.measures import deciding
from compress.measures.figure import HIGHER, amount, scale_of
from compress.steps import Difference, Measure, Measurement

NOISE = 0.03  # share by which medians differ by chance
UNSTEADY = 2.0  # times the median that the slowest tenth of the runs takes at least where others use the machine
FEW = 200  # test samples of which one is half a point of accuracy
OUTPUTS = 4  # listed one by one
COUNTED = ("top-1", "accuracy")  # figures of which one sample is one answer


def plain_words(rows: Sequence[Measurement], base: Measurement) -> list[str]:
    """Timings disturbed, slower than the baseline here, worse beyond chance, outputs moved, made for another processor."""
    words = [*_unsteady(rows), *_few(base), *_foreign(rows)]
    last = rows[-1]
    for row in rows[1:-1]:
        if row.name != base.name and row.p50_ms and last.p50_ms and row.p50_ms < (1 - NOISE) * last.p50_ms:
            words.append(
                f"{row.name} is faster than {last.name} here: {row.p50_ms:.3g} ms against {last.p50_ms:.3g} ms"
            )
    for row in rows:
        words += _by_sample(row)
        if row.name != base.name:
            words += [*_slower(row, base), *_larger(row, base), *_worse(row, base), *_moved(row, base)]
    return words


def _by_sample(row: Measurement) -> list[str]:
    """Say how a file of fixed batch was timed beside models that take any."""
    if "fixed_batch" not in row.extra:
        return []
    fixed, batch = row.extra["fixed_batch"], row.extra["batch_size"]
    return [
        f"{row.name} takes batches of exactly {fixed}; its latency is that of a run divided by {fixed}, times {batch}, so that "
        "models compare by sample"
    ]


def how_read(rows: Sequence[Measurement]) -> list[str]:
    """How outputs and targets were read where the user did not set it, and which figures are missing and why."""
    if not rows:
        return []
    extra = rows[0].extra
    words = []
    if "task_reason" in extra and rows[0].measures:
        words.append(f"task {extra['task']}, from {extra['task_reason']}; --task (in Python task) sets another")
    if "no_figures" in extra:
        words.append(f"no figures of task {extra['task']}: {extra['no_figures']}")
    return [*words, *extra.get("left_out", ())]


def interval(row: Measurement) -> str:
    """How sure the figure that decides is; nothing where that is not known."""
    found, known = deciding.deciding(row), deciding.interval(row)
    if found is None or known is None:
        return ""
    return f"{row.name}: {found.name} between {between(known, found)} (95 %, {samples_of(row)})"


def between(interval: tuple[float, float], measure: Measure) -> str:
    """Both ends of an interval in the measure's unit.

    >>> between((0.904, 0.929), Measure("top-1", "%", "higher", 0.917))
    '90.40 and 92.90 %'
    """
    low, high = interval
    if measure.unit == "%":
        return f"{100 * low:.2f} and {100 * high:.2f} %"
    return f"{low:.4g} and {high:.4g}{' ' + measure.unit if measure.unit else ''}"


def from_to(interval: tuple[float, float], measure: Measure) -> str:
    """The same for a cell, where no "between" comes before it: 90.40 to 92.90 %."""
    return between(interval, measure).replace(" and ", " to ")


def samples_of(row: Measurement) -> str:
    """How many samples a figure stands on; an image is one, however many pixels it has.

    >>> samples_of(Measurement("a", samples=75, extra={"sample": "image", "position": "pixel", "positions": 307200}))
    '75 images (307,200 pixels)'
    """
    noun = _plural(row.extra.get("sample", "sample"), row.samples or 0)
    if "positions" not in row.extra:
        return f"{row.samples} {noun}"
    return f"{row.samples} {noun} ({row.extra['positions']:,} {_plural(row.extra['position'], row.extra['positions'])})"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _unsteady(rows: Sequence[Measurement]) -> list[str]:
    """Say that the machine was busy: a median of disturbed runs can be ten times off, either way."""
    spread = {row.name: row.p90_ms / row.p50_ms for row in rows if row.p90_ms and row.p50_ms}
    worst = max(spread, key=lambda name: spread[name], default="")
    if not worst or spread[worst] < UNSTEADY:
        return []
    return [
        f"latencies are unsteady: the slowest tenth of the runs of {worst} took {spread[worst]:.1f} times the median or more; "
        "other work seems to use this machine, so time again when it is quiet"
    ]


def _few(base: Measurement) -> list[str]:
    """Say how coarse a figure on few samples is: a drop of less than one of them cannot be seen."""
    found = deciding.deciding(base)
    if found is None or not base.samples or base.samples >= FEW:
        return []
    each = f", {100 / base.samples:.1f} points each" if found.name in COUNTED else ""
    noun = _plural(base.extra.get("sample", "sample"), base.samples)
    return [f"{found.name} is of {base.samples} test {noun}{each}"]


def _foreign(rows: Sequence[Measurement]) -> list[str]:
    return [
        f"{row.name}: {row.extra['foreign']}; its speed here says nothing, time it there"
        for row in rows
        if row.p50_ms and "foreign" in row.extra
    ]


def _slower(row: Measurement, base: Measurement) -> list[str]:
    if row.speedup is None or row.speedup >= 1 - NOISE or "foreign" in row.extra:
        return []
    return [
        f"{row.name} is slower than {base.name} on this machine: {row.p50_ms:.3g} ms against {base.p50_ms:.3g} ms "
        f"({row.speedup:.2f}×)"
    ]


def _larger(row: Measurement, base: Measurement) -> list[str]:
    if not row.size_bytes or not base.size_bytes or row.size_bytes <= base.size_bytes:
        return []
    return [
        f"{row.name} is larger than {base.name}: {row.size_bytes:,} bytes against {base.size_bytes:,}; "
        "the network is so small that what is added weighs more than what is saved"
    ]


def _worse(row: Measurement, base: Measurement) -> list[str]:
    mine, lost = deciding.deciding(row), deciding.loss(row, base)
    if mine is None or lost is None or mine.change_interval is None:
        return []
    low, high = mine.change_interval if mine.better == HIGHER else (-mine.change_interval[1], -mine.change_interval[0])
    if high >= 0:
        return []
    scale = scale_of(mine.unit)
    form = ".2f" if mine.unit == "%" else ".4g"
    much = (
        f"{scale * lost:{form}} points of {mine.name}"
        if mine.unit == "%"
        else f"{amount(lost, mine.unit)} of {mine.name}"
    )
    verb = "loses" if mine.better == HIGHER else "adds"
    return [
        f"{row.name} {verb} {much}, more than chance explains (95 %: {-scale * high:{form}} to {-scale * low:{form}})"
    ]


def _moved(row: Measurement, base: Measurement) -> list[str]:
    """How far each output is from the baseline's, labels or not."""
    if not row.differences:
        return []
    ordered = sorted(row.differences, key=lambda item: float("inf") if item.snr_db is None else item.snr_db)
    listed = "; ".join(_difference(item) for item in ordered[:OUTPUTS])
    more = f"; {len(ordered) - OUTPUTS} more outputs are nearer" if len(ordered) > OUTPUTS else ""
    where = f" on {row.extra['compared_on']}" if "compared_on" in row.extra else ""
    return [f"outputs of {row.name} beside {base.name}{where}: {listed}{more}"]


def _difference(item: Difference) -> str:
    if item.snr_db is None:
        return f"{item.output} equal"
    return f"{item.output} {item.snr_db:.1f} dB signal to noise, at most {item.largest:.3g} apart"
