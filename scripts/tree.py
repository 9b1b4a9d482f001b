"""Write the file tree of docs/layout.md from each file's own first line, or say whether it is true."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- tree: scripts/tree.py -->\n", "<!-- end of tree -->\n"
OTHERS = {  # files that carry no docstring
    ".ci/run": "what CI does: a fresh virtual environment, then README's test command",
    "CHANGELOG.md": "what changed, in users' words",
    "CONTRIBUTING.md": "how to work on it",
    "LICENSE": "Apache 2.0",
    "LOG.md": "what was tried, what it gave, what was kept",
    "constraints.txt": "the exact versions we test with",
    "pyproject.toml": "build backend, lint rules",
    "setup.cfg": "the package: dependencies, extras, the console script",
    "scripts/check": "format, lint, types, this tree, tests",
}


def first_line(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    if name in OTHERS:
        return OTHERS[name]
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    if path.suffix in (".md", ".toml"):
        lines = [line.lstrip("# ") for line in path.read_text().splitlines() if line.startswith("#")]
        return lines[0] if lines else ""
    return ""


def tree() -> str:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    shown = [
        n
        for n in listed
        if n not in (".gitignore", "README.md", "docs/layout.md", "compress/py.typed") and (ROOT / n).is_file()
    ]
    lines, folder = ["```text"], None
    # Files of the root come last: a newcomer wants the packages first.
    for name in sorted(
        shown, key=lambda n: ("/" not in n, not n.startswith(("compress/", "cli/")), n.rpartition("/")[0], n)
    ):
        path = ROOT / name
        here = name.rpartition("/")[0]
        if here != folder:
            folder = here
            lines.append(f"{here}/" if here else "./")
        lines.append(f"    {path.name:<26} {first_line(path)}".rstrip())
    return "\n".join([*lines, "```"]) + "\n"


def main() -> int:
    page = ROOT / "docs" / "layout.md"
    text = page.read_text()
    new = re.sub(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: BEGIN + tree() + END, text, flags=re.S)
    if "--check" in sys.argv:
        if new != text:
            print("the tree of docs/layout.md is not true: run python scripts/tree.py", file=sys.stderr)
        return int(new != text)
    page.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
