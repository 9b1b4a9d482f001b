"""The figures of every epoch, as a JSON file, with a plot of the learning curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.files import written_beside

Record = dict[str, Any]  # {"epoch": 1, "step": 47, "lr": …, "train/loss": …, "eval/top1": …, "seconds": …}


def write_history(records: Sequence[Record], path: Path) -> None:
    with written_beside(path) as beside:
        beside.write_text(json.dumps({"schema": 1, "epochs": list(records)}, indent=1) + "\n")


def plot_history(records: Sequence[Record], path: Path) -> bool:
    """Draw loss, accuracy and learning rate against the epoch; return False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    panels = [("loss", "loss"), ("top1", "top-1 accuracy"), ("lr", "learning rate")]
    panels = [panel for panel in panels if any(key.split("/")[-1] == panel[0] for row in records for key in row)]
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axis, (ending, title) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for key in [key for key in records[-1] if key.split("/")[-1] == ending]:
            rows = [row for row in records if key in row]
            axis.plot([row["epoch"] for row in rows], [row[key] for row in rows], marker=".", label=key.split("/")[0])
        axis.set_title(title)
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        if ending != "lr":
            axis.legend()
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=110, format=path.suffix[1:])
    return True
