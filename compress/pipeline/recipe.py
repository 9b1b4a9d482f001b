"""A recipe: one TOML file, read strictly into the values that the stages take."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import InputError, nearest
from compress.measures.opening import Measures, open_measures
from compress.measures.tasks import check_task
from compress.pipeline.gates import Gates, parse_size
from compress.pipeline.inputs import DataSource, ModelSource
from compress.pipeline.prune_options import PruneOptions
from compress.pipeline.quantize_options import QuantizeOptions
from compress.pipeline.search.options import SearchOptions
from compress.pruning.score_table import SCORES
from compress.runtimes.runtime import check_precision_name, names
from compress.training.options import FinetuneOptions, TrainOptions


@dataclass(frozen=True)
class EvaluateOptions:
    """How the result is measured. `metric` may be several, the first of which decides; see `open_measures`.

    `runtime` is what runs the files (empty: the one that the stages made them for), `float_precision` in what their float
    layers compute there.
    """

    metric: str | tuple[str, ...] | None = None
    task: str = "auto"
    ignore_label: int | None = None
    rounds: int = 50
    batch: int = 1
    runtime: str = ""
    float_precision: str = "float32"

    def __post_init__(self) -> None:
        check_task(self.task)
        if self.runtime and self.runtime not in names(graphs_only=True):
            raise InputError(f"unknown runtime {self.runtime!r}; {nearest(self.runtime, names(graphs_only=True))}")
        check_precision_name(self.float_precision)

    def measures(self) -> Measures:
        """What is asked for, opened.

        Raises:
            InputError: a metric that cannot be found.
        """
        return open_measures(self.metric, task=self.task, ignore_label=self.ignore_label)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on. A stage that is None is left out; the order of the stages is fixed.

    `distill` (of the table finetune) trains against the float model as it was before pruning.
    """

    model: ModelSource
    data: DataSource = field(default_factory=DataSource)
    prune: PruneOptions | None = None
    finetune: TrainOptions | None = None
    distill: bool = False
    quantize: QuantizeOptions | None = None
    evaluate: EvaluateOptions = field(default_factory=EvaluateOptions)
    gates: Gates = field(default_factory=Gates)
    search: SearchOptions | None = None
    out: str | None = None
    seed: int = 0
    threads: int | None = None


# Table of the file → the value it is read into.
TABLES: dict[str, type] = {
    "model": ModelSource,
    "data": DataSource,
    "prune": PruneOptions,
    "finetune": FinetuneOptions,
    "quantize": QuantizeOptions,
    "evaluate": EvaluateOptions,
    "gates": Gates,
    "search": SearchOptions,
}
TOP = {"out": str, "seed": int, "threads": int | None}
# Keys that are read besides the fields of a table's class.
EXTRA = {"finetune": {"distill": bool}}
# Types that a recipe takes less of than the class: it makes one model.
NARROWER = {"prune": {"amount": float}}
# Fields that another table says, or that a later stage would undo.
ELSEWHERE = {"prune": {"train", "sparse_storage"}, "search": {"resume"}}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `table.key=value`, as on the command line.

    Raises:
        InputError: the file cannot be read, or a table, key or value is wrong; names the line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # a name with a zero byte; bytes that are no text
        raise InputError(f"recipe {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_recipe(text, name=str(path), overrides=overrides)


def parse_recipe(text: str, *, name: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from its text (see `read_recipe`)."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name}: not TOML: {error}") from error
    places = Places(name, text)
    for override in overrides:
        _override(content, override, places)
    for key, value in content.items():
        known = [*TABLES, *TOP]
        if key not in known:
            raise InputError(f"{places.of(None, key)}: unknown {_kind(value)} {key!r}; {nearest(key, known)}")
        if key in TABLES and not isinstance(value, dict):
            raise InputError(f"{places.of(None, key)}: {key!r} is a table; write [{key}] on a line of its own")
    if "model" not in content:
        raise InputError(f'{name}: there is no table [model]; it needs at least spec = "…"')
    return _build(content, places)


def _kind(value: Any) -> str:
    return "table" if isinstance(value, dict) else "key"


@dataclass
class Places:
    """Where each key of the file stands, for messages."""

    name: str
    text: str
    overridden: set[tuple[str | None, str]] = field(default_factory=set)

    def of(self, table: str | None, key: str) -> str:
        """Return "file:line" of a key (or "--set table.key"); the file alone where it cannot be found."""
        if (table, key) in self.overridden:
            return f"--set {table}.{key}" if table else f"--set {key}"
        current: str | None = None
        for number, line in enumerate(self.text.splitlines(), 1):
            if header := re.match(r"\s*\[\s*([\w.\-\"']+)\s*\]", line):
                current = header[1].strip("\"'")
                if table is None and current.split(".")[0] == key:
                    return f"{self.name}:{number}"
            elif (table == current or (table and current == f"{table}.{key}")) and re.match(
                rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]", line
            ):
                return f"{self.name}:{number}"
        return self.name


def _override(content: dict[str, Any], override: str, places: Places) -> None:
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > 2:
        raise InputError(f"--set {override!r} is not table.key=value; write it as --set prune.amount=0.4")
    table = keys[0] if len(keys) == 2 else None
    known = table is None or table in TABLES
    places.overridden.add((table, keys[-1]))
    if not known:
        raise InputError(f"--set {override!r}: unknown table {table!r}; {nearest(str(table), TABLES)}")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        value = text.strip()  # --set quantize.method=static, without TOML's quotes
    home = content.setdefault(table, {}) if table else content
    home[keys[-1]] = value


def _build(content: dict[str, Any], places: Places) -> Recipe:
    values: dict[str, Any] = {}
    for table, kind in TABLES.items():
        if table not in content:
            continue
        given = dict(content[table])
        for key, hint in EXTRA.get(table, {}).items():
            if key in given:
                values[key] = _converted(given.pop(key), hint, table, key, places)
        values[table] = _read_table(given, kind, table, places)
    for key, kind_of in TOP.items():
        if key in content:
            values[key] = _converted(content[key], kind_of, None, key, places)
    return Recipe(**values)


def _read_table(given: Mapping[str, Any], kind: type, table: str, places: Places) -> Any:
    hints = typing.get_type_hints(kind) | NARROWER.get(table, {})
    names = [item.name for item in dataclasses.fields(kind) if item.name not in ELSEWHERE.get(table, ())]
    values = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in names:
            known = [*names, *EXTRA.get(table, {})]
            raise InputError(f"{places.of(table, key)}: unknown key {key!r} in [{table}]; {nearest(name, known)}")
        values[name] = _converted(value, hints[name], table, key, places)
    missing = [
        item.name
        for item in dataclasses.fields(kind)
        if item.name not in values
        and item.default is dataclasses.MISSING
        and item.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise InputError(f"{places.of(None, table)}: [{table}] needs {missing[0]!r}")
    try:
        return kind(**values)
    except InputError as error:  # the value's own checks: say where it came from
        guilty = next((key for key in given if key.replace("-", "_") in str(error)), None)
        place = places.of(table, guilty) if guilty else places.of(None, table)
        raise InputError(f"{place}: {error}") from error


def _converted(value: Any, hint: Any, table: str | None, key: str, places: Places) -> Any:
    if table == "gates" and key.replace("-", "_") == "max_size" and isinstance(value, str):
        try:
            return parse_size(value)
        except InputError as error:
            raise InputError(f"{places.of(table, key)}: gates.max_size {error}") from None
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        found = _as(value, option)
        if found is not None:
            return found[0]
    full = f"{table}.{key}" if table else key
    raise InputError(f"{places.of(table, key)}: {full} must be {_words(hint)}, got {value!r}")


def _as(value: Any, hint: Any) -> tuple[Any] | None:
    """Return (value,) as the type asks, None where it is of another."""
    if hint is Any:  # what Python callers may give as a value, a recipe names
        return (value,) if isinstance(value, str) else None
    if hint is Path:
        return (Path(value),) if isinstance(value, str) else None
    if hint is float:
        return (float(value),) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if hint in (int, bool, str):
        return (value,) if type(value) is hint else None
    origin, parameters = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = [_as(item, parameters[0]) for item in value] if isinstance(value, list) else [None]
        return (tuple(item[0] for item in items if item),) if all(items) else None
    if origin is not None and issubclass(origin, Mapping):
        return (dict(value),) if isinstance(value, dict) else None
    return None


WORDS = {
    Any: "text in quotes",
    int: "a whole number",
    float: "a number",
    str: "text in quotes",
    bool: "true or false",
    Path: "a path in quotes",
}


def _words(hint: Any) -> str:
    options = (
        [option for option in typing.get_args(hint) if option is not type(None)]
        if isinstance(hint, types.UnionType)
        else [hint]
    )
    return " or ".join(
        WORDS.get(option, "a list of " + WORDS.get((typing.get_args(option) or (Any,))[0], "values"))
        for option in options
    )


COMMENTED = """\
# A recipe for `compress run`. Tables that are absent are stages left out; their order is fixed:
# load, prune, finetune, fuse and export, quantize, evaluate. Paths are relative to the current folder.
# Try `compress run {name} --dry-run` first; `--set prune.amount=0.4` overrides a value.

out = "{out}"
seed = 0
# threads = 1                   # of the runtime and of training; default: all cores

[model]
spec = {spec}
{weights}
# model_args = {{ width = 32 }}   # arguments of the factory
# input_shape = [2, 3, 224, 224]

[data]
spec = {data}
# resize = 256                  # images: short side, then centre crop; default: the weights' own preprocessing
# crop = 224
# mean = [0.485, 0.456, 0.406]
# std = [0.229, 0.224, 0.225]
# calibration_samples = 512     # most that calibrate; default: 512, an eighth of the training samples where that is less

{prune}[prune]
{prune}amount = 0.5                     # of what `target` says
{prune}target = "channels"              # channels, macs, parameters, latency, blocks
{prune}method = "l1"                    # {scores}
{prune}# reconstruct = false            # do not fit the weights that stay to what their layers gave before

{prune}[finetune]                       # the options of `compress finetune`
{prune}epochs = 4
{prune}lr = 0.01
{prune}distill = true                   # learn from the unpruned model too

[quantize]
method = "static"               # static, dynamic, qat
ranges = "minmax"               # minmax, percentile, entropy, mse
# target = "auto"               # auto, any, x86-vnni, x86-avx2, arm64, tensorrt
# exclude = ["head/Gemm"]       # stays float
# tune_latency = true           # time int8 and float forms here; figures then differ from run to run

[gates]                         # exit code 3 where one is not met; the files are saved all the same
max_drop = 1.0                  # in the unit of what decides: points of top-1; "1%" is a share of it
# require_speedup = 1.5
# max_size = "5MB"
"""


def commented_recipe(
    *,
    spec: str,
    data: str,
    weights: str | None = None,
    out: str = "runs/first",
    name: str = "recipe.toml",
    prune: bool = True,
) -> str:
    """Return the text of a commented recipe that runs as it stands."""

    def quoted(value: str) -> str:
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

    line = f"weights = {quoted(weights)}" if weights else '# weights = "checkpoint.pt"'
    text = COMMENTED.format(
        name=name,
        out=out,
        spec=quoted(spec),
        data=quoted(data),
        weights=line,
        prune="" if prune else "# ",
        scores=", ".join(SCORES),
    )
    parse_recipe(text)
    return text
