"""What a search finds beside a plain grid and random draws at equal time: hypervolume of the measured front.

    python benchmarks/search.py --model resnet20 --minutes 3 --seeds 0
    python benchmarks/search.py --model resnet56 --minutes 10 --seeds 0,1,2

All three have the same space, the same shared stages, the same judge and the same measuring at the end; they differ in
what draws the candidates (`--sampler`), and in the list that a search tries first. The hypervolume is of the files measured,
in (share of the float figure kept, share of its bytes saved, share of its latency saved), each from 0 to 1: the float model is
the corner (1, 0, 0) and adds nothing, a point counts with how much it keeps beyond half of the float figure. "Without latency" is
the area of the first two, which other work on the machine does not move. Needs ../shared/data.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import compress
from compress.measures import deciding
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.search.options import SearchOptions
from compress.steps import Measurement

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SAMPLERS = ("tpe", "random", "grid")
FLOOR = 0.5  # share of the float figure below which a file is worth nothing
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Point = tuple[float, float, float]


def sources(name: str) -> tuple[ModelSource, DataSource]:
    """The checkpoint and its data."""
    models = f"{SHARED / 'models.py'}:"
    cifar = DataSource(str(SHARED / "cifar10.npz"), mean=MEAN, std=STD)
    known = {
        "resnet20": (ModelSource(models + "cifar_resnet20", weights=str(SHARED / "cifar_resnet20-12fca82f.th")), cifar),
        "resnet56": (ModelSource(models + "cifar_resnet56", weights=str(SHARED / "cifar_resnet56-4bfd9763.th")), cifar),
        "mobilenetv2": (
            ModelSource(models + "mobilenetv2_cifar128", weights=str(SHARED / "mobilenetv2_cifar128.pt")),
            DataSource(models + "cifar128"),
        ),
        "minilm": (ModelSource(models + "minilm_sst2"), DataSource(models + "sst2")),
    }
    return known[name]


def point(row: Measurement, base: Measurement) -> Point:
    """A file in the unit cube: what it keeps beyond the floor, what it saves in bytes, in latency."""
    kept = deciding.score(row) / deciding.score(base)
    bytes_saved = 1 - (row.size_bytes or 0) / (base.size_bytes or 1)
    time_saved = 1 - (row.p50_ms or 0.0) / (base.p50_ms or 1.0)
    return min(1.0, (kept - FLOOR) / (1 - FLOOR)), bytes_saved, time_saved


def hypervolume(points: Sequence[Point]) -> float:
    """The volume of all that lies below one of the points, from the origin; exact, by cells between their coordinates.

    >>> hypervolume([(1.0, 0.5, 0.5), (0.5, 1.0, 0.5)])
    0.375
    """
    real = [item for item in points if min(item) > 0]
    axes = [sorted({0.0, *(item[axis] for item in real)}) for axis in range(3)]
    total = 0.0
    for low in itertools.product(*(range(len(axis) - 1) for axis in axes)):
        high = [axes[axis][at + 1] for axis, at in enumerate(low)]
        if any(all(item[axis] >= high[axis] for axis in range(3)) for item in real):
            cell = 1.0
            for axis, at in enumerate(low):
                cell *= axes[axis][at + 1] - axes[axis][at]
            total += cell
    return total


def searched(name: str, sampler: str, seed: int, minutes: float, folder: Path) -> tuple[compress.Report, float]:
    """One search in a folder of its own; return its report and the minutes that it took."""
    model, data = sources(name)
    start = time.time()
    report = compress.search(
        model,
        data,
        output=folder / f"{sampler}-{seed}",
        options=SearchOptions(minutes=minutes, sampler=sampler),
        settings=Settings(threads=1, seed=seed, quiet=True),
    )
    return report, (time.time() - start) / 60


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    options = parser.parse_args()
    if not SHARED.is_dir():
        sys.exit("needs ../shared/data with the checkpoints")
    print("| sampler | seed | hypervolume | without latency | candidates | measured | minutes | winner |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for seed, sampler in itertools.product(options.seeds.split(","), options.samplers.split(",")):
            report, took = searched(options.model, sampler, int(seed), options.minutes, Path(name))
            told = report.details["search"]
            points = [point(row, report.base) for row in report.rows]
            volume, area = hypervolume(points), hypervolume([(kept, saved, 1.0) for kept, saved, _ in points])
            counts = f"{len(told['candidates'])} | {len(report.rows)} | {took:.2f} | {told['winner']}"
            print(f"| {sampler} | {seed} | {volume:.4f} | {area:.4f} | {counts} |", flush=True)
            for row in report.rows:
                print(
                    f"  {row.name}: {deciding.value(row)}, {row.size_bytes} bytes, {row.p50_ms:.3g} ms", file=sys.stderr
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
