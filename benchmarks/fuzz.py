"""Seeded mutations of every input and random options of every command: what must never happen, counted.

    python benchmarks/fuzz.py --cases 2000 --seed 0          # all kinds
    python benchmarks/fuzz.py --cases 50 --kind onnx --seed 3
    python benchmarks/fuzz.py --case 1234 --seed 0           # one case again, its command and words shown

Texts and tokenizers are among them where transformers is installed.

Each case runs the command line in a forked child of a process that has imported everything, so that most take a tenth of
a second. A case is lost where the exit code is none of 0, 2, 3, 130, more than one line is on stderr, a traceback is
shown, "bug in compress" is said, it takes more than 20 s of processor time, it dies of a signal, it leaves a half-written output or
temporary folder, or it changes anything outside its folder. Memory is limited to 6 GiB a case.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ALLOWED = (0, 2, 3, 130)
LONGEST_S = 20.0
MEMORY_BYTES = 6 << 30

PYTHON = """
import torch
from torch import nn

def build(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))

def metric(outputs, target):
    return float((outputs.argmax(1) == target).float().mean())
"""
RECIPE = """out = "out"
seed = 0
[model]
spec = "my.py:build"
weights = "good.pt"
[data]
spec = "good.npz"
calibration_samples = 12
[prune]
amount = 0.5
heal = 0.0
[quantize]
method = "static"
[gates]
max_drop = 50.0
"""
SEARCH_RECIPE = (
    RECIPE.split("[prune]")[0]
    + """[search]
minutes = 3
trials = 1
sampler = "random"
[gates]
max_drop = 50.0
"""
)
TEXTS_OF = {"csv": ",", "tsv": "\t"}  # the separators of the tables


@dataclass(frozen=True)
class Case:
    kind: str
    arguments: list[str]


@dataclass(frozen=True)
class Outcome:
    code: int
    said: str
    seconds: float
    lost: str  # why, or nothing


def make_seeds(folder: Path) -> None:
    """The good inputs that the cases mutate."""
    import numpy as np
    import torch
    from PIL import Image

    import compress
    from compress.loading.torchscript import save_torchscript
    from compress.quantization import torch_native
    from compress.training.weight_files import save_weights

    (folder / "my.py").write_text(PYTHON)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    (folder / "options.toml").write_text("epochs = 1\nlr = 0.01\n")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (24, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(24) % 4
    np.savez(folder / "good.npz", x_train=images[:16], y_train=labels[:16], x_test=images[16:], y_test=labels[16:])
    for index in range(8):
        place = folder / "images" / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index]).save(place / f"{index}.{'png' if index % 3 else 'jpg'}")
    namespace: dict[str, object] = {}
    exec(PYTHON, namespace)
    net = namespace["build"]()  # type: ignore[operator]
    x = torch.randn(2, 3, 8, 8)
    torch.save(net.state_dict(), folder / "good.pt")
    save_weights(net, folder / "good.safetensors")
    compress.export(net.eval(), x, path=folder / "good.onnx")
    program = torch.export.export(net.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, folder / "good.pt2")
    int8 = torch_native.quantize_dynamic(net).model
    save_torchscript(int8, folder / "good.torchscript", (x,))
    (folder / "search.toml").write_text(SEARCH_RECIPE)
    static = compress.quantize_static(str(folder / "good.onnx"), [(torch.rand(4, 3, 8, 8),)])
    compress.save_onnx(static, folder / "int8.onnx")
    if has_transformers():
        make_texts(folder)


def has_transformers() -> bool:
    import importlib.util

    return importlib.util.find_spec("transformers") is not None


def make_texts(folder: Path) -> None:
    """A tiny BERT with its tokenizer, and its reviews as .csv, .tsv and .jsonl."""
    import csv
    import json

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import tiny_bert

    (folder / "bert").mkdir()
    rows = tiny_bert.save(folder / "bert", texts=24)
    names = ("review", "other", "stars")
    for suffix, separator in TEXTS_OF.items():
        with open(folder / f"reviews.{suffix}", "w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows([names, *rows])
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (folder / "reviews.jsonl").write_text("\n".join(lines) + "\n")


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, a stretch removed, doubled, filled, or the end cut off."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if not data:
            return bytes(data)
        at, long = rng.randrange(len(data)), rng.choice((1, 4, 64))
        way = rng.randrange(6)
        if way == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[at : at + long] = bytes(rng.randrange(256) for _ in range(long))
        elif way == 2:
            del data[at : at + long]
        elif way == 3:
            data[at:at] = data[at : at + long]
        elif way == 4:
            data[at : at + long] = rng.choice((b"\x00", b"\xff")) * long
        else:
            del data[at:]
    return bytes(data)


def inside_zip(content: bytes, rng: random.Random) -> bytes:
    """An archive that is whole, with one entry damaged, gone, renamed or doubled: what checksums do not catch."""
    import io

    source, target = io.BytesIO(content), io.BytesIO()
    try:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
            names = old.namelist()
            chosen = rng.choice(names)
            for name in names:
                entry = old.read(name)
                if name == chosen:
                    way = rng.randrange(4)
                    if way == 0:
                        continue
                    entry = damaged(entry, rng) if way in (1, 2) else entry
                    name = name + "x" if way == 3 else name
                new.writestr(name, entry)
    except Exception:  # an archive that is damaged already
        return damaged(content, rng)
    return target.getvalue()


WORDS = (
    "0",
    "-1",
    "1",
    "2",
    "1e9",
    "nan",
    "inf",
    "",
    "true",
    "auto",
    "x",
    "é",
    "../..",
    "a\tb",
    "99999999999999999999",
    "0.5",
    "0.3,0.5",
    "0.5,,0.3",
    "0.2,0.9,1.5",
    ",",
    "onnxruntime",
    "openvino",
    "float16",
    "weight-only",
    "good.npz",
    "hf:x",
    "text:good.npz?text=a&label=b",
    "x" * 5000,
)
SETTINGS = ("text=", "label=", "test=", "tokenizer=", "length=", "text=review&text=", "&", "x=", "review", "%00", "#")
TEXTS = ("spec", "weights", "amount", "method", "calibration_samples", "seed", "max_drop", "out", "target")


def mutated_recipe(text: str, rng: random.Random) -> bytes:
    if rng.random() < 0.3:
        return damaged(text.encode(), rng)
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    key = lines[at].split("=")[0].strip() if "=" in lines[at] else rng.choice(TEXTS)
    values = (
        "0",
        "-1",
        "nan",
        "inf",
        "''",
        "'x'",
        "[]",
        "{}",
        "true",
        "1979-05-27",
        "[[1]]",
        "1e400",
        "9" * 30,
        "'../../x'",
    )
    lines[at] = f"{key} = {rng.choice(values)}"
    return "\n".join(lines).encode()


UNTIMED = ("--no-tune-latency", "-o", "out")


def _text(spec: str) -> list[str]:
    return ["evaluate", "hf:bert", "--data", f"text:{spec}"]


def _texts(name: str) -> list[str]:
    return _text(f"{name}?text=review&label=stars")


def settings_case(rng: random.Random) -> Case:
    """A table of texts that is whole, asked for in words that may be wrong."""
    known = {"text": "review", "label": "stars", "test": "reviews.tsv", "length": "16", "tokenizer": "bert"}
    names = rng.sample(sorted(known), rng.randint(1, 4))
    parts = [f"{name}={known[name] if rng.random() < 0.5 else rng.choice(WORDS)}" for name in names]
    parts += [rng.choice(SETTINGS) + rng.choice(WORDS)] if rng.random() < 0.3 else []
    file = rng.choice(("reviews.csv", "reviews.tsv", "reviews.jsonl", "good.npz", "bert", ""))
    return Case("text-settings", _text(f"{file}?{'&'.join(parts)}"))


def _model(name: str) -> list[str]:
    return ["evaluate", name, "--data", "good.npz"]


MUTATE: dict[str, tuple[str, Callable[[str], list[str]]]] = {  # kind → the file mutated, the commands that read it
    "onnx": ("good.onnx", lambda n: ["quantize", n, "--method", "dynamic", "--input-shape", "2,3,8,8", "-o", "out"]),
    "onnx-evaluate": ("good.onnx", _model),
    "pt": ("good.pt", lambda n: ["evaluate", "my.py:build", "--weights", n, "--data", "good.npz"]),
    "pt-zip": ("good.pt", lambda n: ["evaluate", "my.py:build", "--weights", n, "--data", "good.npz"]),
    "pt2": ("good.pt2", _model),
    "pt2-zip": ("good.pt2", _model),
    "safetensors": ("good.safetensors", lambda n: ["evaluate", "my.py:build", "--weights", n, "--data", "good.npz"]),
    "npz": ("good.npz", lambda n: ["evaluate", "good.onnx", "--data", n]),
    "npz-zip": ("good.npz", lambda n: ["evaluate", "good.onnx", "--data", n]),
    "image": ("images/a/0.jpg", lambda n: ["evaluate", "good.onnx", "--data", "imagefolder:images"]),
    "recipe": ("recipe.toml", lambda n: ["run", n]),
    "recipe-search": ("search.toml", lambda n: ["run", n]),
    "onnx-static": ("good.onnx", lambda n: ["quantize", n, "--data", "good.npz", *UNTIMED]),
    "onnx-half": ("good.onnx", lambda n: ["quantize", n, "--method", "float16", "--input-shape", "2,3,8,8", *UNTIMED]),
    "onnx-sensitivity": ("good.onnx", lambda n: ["sensitivity", n, "--data", "good.npz", "--samples", "4"]),
    "onnx-doctor": ("int8.onnx", lambda n: ["doctor", n, "--for", "tensorrt", "--for", "openvino"]),
    "onnx-int8": ("int8.onnx", lambda n: ["compare", "good.onnx", n, "--data", "good.npz"]),
    "torchscript": ("good.torchscript", _model),
    "torchscript-zip": ("good.torchscript", _model),
    "csv": ("reviews.csv", _texts),
    "tsv": ("reviews.tsv", _texts),
    "jsonl": ("reviews.jsonl", _texts),
    "tokenizer": ("bert/tokenizer.json", lambda n: _texts("reviews.csv")),
    "tokenizer-config": ("bert/tokenizer_config.json", lambda n: _texts("reviews.csv")),
    "model-config": ("bert/config.json", lambda n: _texts("reviews.csv")),
    "options": ("options.toml", lambda n: ["train", "my.py:build", "--data", "good.npz", "--config", n, "-o", "out"]),
    "classes": ("classes.txt", lambda n: ["evaluate", "good.onnx", "--data", "imagefolder:images", "--classes", n]),
}
IN_PLACE = ("image", "tokenizer", "tokenizer-config", "model-config")  # found by a folder's name, not by their own
OF_TEXTS = ("csv", "tsv", "jsonl", "tokenizer", "tokenizer-config", "model-config", "text-settings")
NOT_TRIED = ("help", "help_all", "nproc", "verbose", "json", "processes", "workers", "minutes")
# (other processes; tracebacks that were asked for; what would take as long as it is told)
# Words of commands on the seeds that `make_seeds` writes; other benchmarks use them too.
MINE, SHAPE = ["my.py:build", "--weights", "good.pt"], ["--input-shape", "2,3,8,8"]
DATA, OUT = ["--data", "good.npz"], ["-o", "out"]
COMMANDS: dict[str, list[str]] = {
    "evaluate": ["good.onnx", *DATA],
    "benchmark": ["good.onnx"],
    "compare": ["good.onnx", "good.onnx"],
    "export": ["my.py:build", *SHAPE, "-o", "o.onnx"],
    "quantize": ["good.onnx", *DATA, *OUT],
    "prune": [*MINE, *SHAPE, *OUT],
    "run": ["recipe.toml", "--dry-run"],
    "doctor": ["int8.onnx", "--for", "openvino"],
    "sensitivity": ["good.onnx", *DATA, "--samples", "4"],
    "search": [*MINE, *DATA, "--minutes", "3", "--trials", "1", *OUT],
    "init": ["-o", "new.toml"],
    "train": ["my.py:build", *DATA, "--epochs", "1", *OUT],
    "finetune": [*MINE, *DATA, "--epochs", "1", *OUT],
}


def options_case(rng: random.Random) -> Case:
    """A command with one to four options of its own, their values good or not."""
    import importlib

    import click

    from cli.main import COMMANDS as KNOWN

    name = rng.choice(sorted(COMMANDS))
    command: click.Command = importlib.import_module(KNOWN[name]).command
    arguments = [name, *COMMANDS[name]]
    options = [item for item in command.params if isinstance(item, click.Option) and item.name not in NOT_TRIED]
    for option in rng.sample(options, min(len(options), rng.randint(1, 4))):
        arguments.append(option.opts[0])
        if option.is_flag:
            continue
        choices = list(option.type.choices) if isinstance(option.type, click.Choice) else []
        arguments.append(str(rng.choice(choices)) if choices and rng.random() < 0.6 else rng.choice(WORDS))
    return Case(f"options of {name}", arguments)


def make_case(number: int, seed: int, kind: str | None, folder: Path) -> Case:
    """Case `number` in `folder`, which holds the good inputs: the same for the same number and seed."""
    rng = random.Random(f"{seed}/{number}")
    kinds = [item for item in [*MUTATE, "text-settings"] if has_transformers() or item not in OF_TEXTS]
    chosen = kind or rng.choice([*kinds, *["options"] * 8])
    if chosen == "options":
        return options_case(rng)
    if chosen == "text-settings":
        return settings_case(rng)
    name, command = MUTATE[chosen]
    path = folder / name
    content = path.read_bytes()
    if chosen in ("recipe", "recipe-search"):
        content = mutated_recipe(content.decode(), rng)
    else:
        content = inside_zip(content, rng) if chosen.endswith("-zip") else damaged(content, rng)
    bad = path if chosen in IN_PLACE else path.with_name("bad" + path.suffix)
    bad.write_bytes(content)
    return Case(chosen, command(bad.name))


def run_case(case: Case, folder: Path) -> Outcome:
    """Run one command line in a forked child with `folder` as its working and temporary folder."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        become(case.arguments, folder, writing)
    os.close(writing)
    words = b""
    while part := os.read(reading, 65536):
        words += part
    os.close(reading)
    _, status, used = os.wait4(child, 0)
    code, seconds = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime  # others may use this machine too
    said = words.decode("utf-8", "replace")
    return Outcome(code, said, seconds, _why_lost(code, said, seconds, folder))


LOUD = ("doctor", "init")  # they show no progress, so that they have no -q


def become(arguments: list[str], folder: Path, writing: int) -> None:
    """In the child: the command, with stderr into the pipe; never returns."""
    code = 97
    try:
        os.chdir(folder)
        tempfile.tempdir = str(folder / "tmp")
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        os.dup2(writing, 2)
        os.close(writing)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["compress", *arguments]
        signal.alarm(int(10 * LONGEST_S))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        from cli.main import main

        try:
            main([*arguments, *(["-q"] if arguments[0] not in LOUD else [])])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 98
        import compress.scratch as scratch

        for root in scratch._ROOT.values():  # what the interpreter's own end would do
            shutil.rmtree(root, ignore_errors=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _why_lost(code: int, said: str, seconds: float, folder: Path) -> str:
    if code not in ALLOWED:
        return f"exit code {code}"
    if "Traceback" in said or "bug in compress" in said:
        return "an unexpected error"
    if len(said.splitlines()) > 1:
        return f"{len(said.splitlines())} lines on stderr"
    if seconds > LONGEST_S:
        return f"{seconds:.0f} s"
    left = [
        p.name for p in folder.rglob(".*") if ".writing-" in p.name or p.name.endswith(".lock") or ".half-" in p.name
    ]
    left += [p.name for p in (folder / "tmp").iterdir() if p.name != ".ses"]  # ONNX Runtime's own
    if left:
        return f"left {left[0]}"
    out = folder / "out"
    if code in (0, 3) and out.is_dir() and not (out / "report.json").is_file():
        return "an output without its report"
    if code == 2 and (out / "report.json").is_file():
        return "a refusal with an output"
    return ""


def fuzz(
    cases: list[int], seed: int, kind: str | None, *, show: bool = False, seeds: Path | None = None
) -> tuple[Counter[str], list[str]]:
    """Run the cases; return how many of each kind ran, and a line for each that was lost.

    `seeds` is a folder that `make_seeds` has filled; without, one is made.
    """
    counts: Counter[str] = Counter()
    lost: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        root = Path(name)
        good = seeds or root / "good"
        if seeds is None:
            good.mkdir()
            make_seeds(good)
        for number in cases:
            folder = root / "outer" / "case"
            shutil.copytree(good, folder)
            (folder / "tmp").mkdir()
            case = make_case(number, seed, kind, folder)
            outcome = run_case(case, folder)
            outside = [item.name for item in (root / "outer").iterdir() if item.name != "case"]
            why = outcome.lost or (f"wrote {outside[0]!r} outside its folder" if outside else "")
            counts[case.kind] += 1
            counts[f"exit {outcome.code}"] += 1
            if why:
                lost.append(f"case {number}: {why}: compress {' '.join(case.arguments)}: {outcome.said.strip()[-400:]}")
                print("LOST", lost[-1], flush=True)
            if show:
                print(case, outcome, sep="\n")
            shutil.rmtree(root / "outer")
    return counts, lost


def unharmed(kinds: list[str]) -> list[str]:
    """What the commands say to inputs that nobody has changed: a line for each that is not taken, since its mutations
    would then be refused for another reason."""
    lost = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        good, folder = Path(name) / "good", Path(name) / "case"
        good.mkdir()
        make_seeds(good)
        cases = [Case(kind, MUTATE[kind][1](MUTATE[kind][0])) for kind in kinds if kind in MUTATE]
        cases += [Case(f"options of {verb}", [verb, *COMMANDS[verb]]) for verb in COMMANDS if "options" in kinds]
        for case in cases:
            shutil.copytree(good, folder)
            (folder / "tmp").mkdir()
            outcome = run_case(case, folder)
            if outcome.lost or outcome.code not in (0, 3):
                lost.append(f"{case.kind}: exit {outcome.code} {outcome.lost}: {outcome.said.strip()[-400:]}")
            shutil.rmtree(folder)
    return lost


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*MUTATE, "options", "text-settings"])
    parser.add_argument("--case", type=int, help="this one alone, shown")
    options = parser.parse_args()
    prepare(texts=True)
    numbers = list(range(options.cases)) if options.case is None else [options.case]
    started = time.monotonic()
    if options.case is None:
        wrong = unharmed([options.kind] if options.kind else [*MUTATE, "options"])
        if wrong:
            print("NOT TAKEN", *wrong, sep="\n  ")
            return 1
    counts, lost = fuzz(numbers, options.seed, options.kind, show=options.case is not None)
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())))
    print(f"{len(numbers)} cases, seed {options.seed}, {time.monotonic() - started:.0f} s: {len(lost)} lost")
    return 1 if lost else 0


def prepare(*, texts: bool = False) -> None:
    """Import what the commands import, before the first fork; one thread, which a fork survives."""
    import importlib

    import torch

    torch.set_num_threads(1)

    from cli.main import COMMANDS as KNOWN

    for module in KNOWN.values():
        importlib.import_module(module)
    for name in ("quantize", "prune", "train", "run", "compare", "export", "doctor", "sensitivity"):
        importlib.import_module(f"compress.pipeline.{name}")
    import onnxruntime  # noqa: F401

    for name in ("transformers", "tokenizers", "openvino", "optuna") if texts else ():
        try:
            importlib.import_module(name)
        except ImportError:
            continue


if __name__ == "__main__":
    sys.exit(main())
