"""The picture of README, drawn from the table of docs/measured.md that benchmarks/headline.py printed.

python scripts/picture.py            # writes docs/measured.svg
python scripts/picture.py --check    # exit code 1 where the picture is not that of the table
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE, PICTURE = ROOT / "docs" / "measured.md", ROOT / "docs" / "measured.svg"
HEAD = "| model | float | int8 | points [95 %] | size | speed-up | made in |"
WIDTH, ROW, TOP = 860, 58, 46
NAME, LEFT, FULL, POINTS = (
    16,
    250,
    330,
    700,
)  # where the names start, the bars, how long 100 % is, where the points stand
STYLE = """
text { font: 14px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1d2126; }
.soft { fill: #5d6670; font-size: 13px; } .all { fill: #c9d3dc; } .size { fill: #5b8fc7; } .time { fill: #3f9b77; }
@media (prefers-color-scheme: dark) { text { fill: #e6e9ec; } .soft { fill: #9aa4ae; } .all { fill: #3d464e; } }
""".strip()


@dataclass(frozen=True)
class Row:
    """One model: sizes in MB, how much faster int8 is, the change of accuracy as printed."""

    model: str
    before_mb: float
    after_mb: float
    speedup: float
    points: str


def rows(text: str) -> list[Row]:
    """Read the table whose heading is HEAD.

    Raises:
        ValueError: it is not there, or a line of it is not readable.
    """
    _, found, rest = text.partition(HEAD + "\n")
    if not found:
        raise ValueError("the page has no table of benchmarks/headline.py")
    lines = rest.split("\n\n")[0].splitlines()[1:]
    return [_row([cell.strip() for cell in line.strip("|").split("|")]) for line in lines]


def _row(cells: list[str]) -> Row:
    sizes = re.fullmatch(r"([\d.]+) → ([\d.]+) MB", cells[4])
    speedup = re.fullmatch(r"([\d.]+)×", cells[5])
    if not sizes or not speedup:
        raise ValueError(f"not readable: {cells}")
    return Row(cells[0], float(sizes[1]), float(sizes[2]), float(speedup[1]), cells[3].split(" [")[0])


def draw(found: list[Row]) -> str:
    """The picture as SVG: for each model the int8 file's size and latency as shares of the float file's."""
    height = TOP + ROW * len(found) + 26
    words = "Size and latency of int8 files as shares of float, and the change of accuracy"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{words}">',
        f"<style>{STYLE}</style>",
        f'<text class="soft" x="{LEFT}" y="24">int8 as a share of float: size (blue), latency (green)</text>',
        f'<text class="soft" x="{POINTS}" y="24">accuracy</text>',
    ]
    for place, item in enumerate(found):
        y = TOP + ROW * place
        parts.append(f'<text x="{NAME}" y="{y + 24}">{escape(item.model)}</text>')
        for offset, kind, share, label in (
            (2, "size", item.after_mb / item.before_mb, f"{item.before_mb / item.after_mb:.1f}× smaller"),
            (24, "time", 1 / item.speedup, f"{item.speedup:.2f}× faster"),
        ):
            parts.append(f'<rect class="all" x="{LEFT}" y="{y + offset}" width="{FULL}" height="16" rx="3"/>')
            parts.append(
                f'<rect class="{kind}" x="{LEFT}" y="{y + offset}" width="{FULL * min(1.0, share):.1f}" height="16" rx="3"/>'
            )
            parts.append(f'<text class="soft" x="{LEFT + FULL + 10}" y="{y + offset + 13}">{label}</text>')
        parts.append(f'<text x="{POINTS}" y="{y + 24}">{escape(item.points)} points</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    drawn = draw(rows(TABLE.read_text(encoding="utf-8")))
    if "--check" in sys.argv[1:]:
        return int(not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != drawn)
    PICTURE.write_text(drawn, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
