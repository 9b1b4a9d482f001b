"""Options that several commands share, gathered into the pipeline's small values."""

from __future__ import annotations

import ast
import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.help import completing
from compress.errors import InputError
from compress.measures.homes import HOMES
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.runtimes.runtime import RUNTIMES, find_runtime

Function = Callable[..., Any]


class Shape(click.ParamType):
    """Comma-separated dimensions, batch first: 2,3,224,224."""

    name = "N,C,H,W"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            shape = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a shape; write whole numbers such as 2,3,224,224", param, ctx)
        if min(shape) < 1:
            self.fail(f"{value!r} has a dimension below 1", param, ctx)
        return shape


class Numbers(click.ParamType):
    """Comma-separated numbers, one for each channel: 0.485,0.456,0.406."""

    name = "X[,X…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers; write them as 0.485,0.456,0.406", param, ctx)


class Size(click.ParamType):
    """A file size: 5MB, 300kB, 1.5MiB or plain bytes."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        from compress.pipeline.gates import parse_size

        try:
            return parse_size(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)


def key_values(_: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, Any]:
    """Turn repeated `key=value` into a dict of plain values."""
    found: dict[str, Any] = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{text!r} is not key=value", param=param)
        found[key.strip()] = plain_value(value.strip())
    return found


def plain_value(text: str) -> Any:
    """Read a Python literal, or true, false, none in any case; anything else is text.

    >>> plain_value("(8, 16)"), plain_value("True"), plain_value("true"), plain_value("relu")
    ((8, 16), True, True, 'relu')
    """
    if text.lower() in ("true", "false", "none"):
        text = text.capitalize()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it raises, by its manual
        return text


MODEL = [
    click.option("--weights", metavar="FILE", help="State dict or checkpoint; DEFAULT downloads torchvision's own."),
    click.option("--model-arg", metavar="K=V", multiple=True, callback=key_values, help="Argument of the factory."),
    click.option("--input-shape", type=Shape(), help="Batch first; default: the data's, else the weights'."),
    click.option(
        "--input", "inputs", multiple=True, metavar="NAME:SHAPE[:TYPE]", help="One of several inputs: state:2,1,128."
    ),
    click.option(
        "--trust-pickle", is_flag=True, help="Load whole pickled modules, programs unchecked (they may run any code)."
    ),
]
DATA = [
    click.option(
        "--data",
        metavar="SPEC",
        help="mnist5k, digits, imagefolder:DIR, text:FILE.csv?text=…&label=…, FILE.npz, module:factory.",
    ),
    click.option("--classes", type=click.Path(path_type=Path), metavar="FILE", help="Class order, one name a line."),
    click.option("--resize", type=click.IntRange(1), metavar="N", help="Short side of images."),
    click.option("--crop", type=click.IntRange(1), metavar="N", help="Centre crop."),
    click.option("--mean", type=Numbers(), help="Mean for each channel, of values in [0, 1]."),
    click.option("--std", type=Numbers(), help="Standard deviation for each channel."),
    click.option(
        "--calibration-samples",
        type=click.IntRange(1),
        metavar="N",
        help="Most samples that calibrate; default: 512, an eighth of the training samples where that is less.",
    ),
    click.option(
        "--test-samples", type=click.IntRange(1), metavar="N", help="Measure accuracy on N only, drawn with --seed."
    ),
    click.option("--batch-size", type=click.IntRange(1), metavar="N", help="Samples in a batch."),
]
RUN = [
    click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of the runtime; default: all cores."),
    click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Seed of every random draw."),
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, nothing else."),
    click.option("-q", "--quiet", is_flag=True, help="No progress."),
    click.option("-v", "--verbose", is_flag=True, help="Everything done and refused; tracebacks."),
]


def _remember_overwrite(ctx: click.Context, _: click.Parameter, value: bool) -> bool:
    ctx.meta["compress.overwrite"] = value
    return value


def _check_reports(ctx: click.Context, _: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Refuse before any work a report file of an unknown kind, one that exists already, or one that is named twice."""
    for path in paths:
        from compress.files import check_file_writable
        from compress.reporting.report import check_suffix

        check_suffix(path)
        check_file_writable(path, overwrite=ctx.meta.get("compress.overwrite", False))
    if len({path.absolute() for path in paths}) < len(paths):
        raise InputError(f"--report names {str(paths[-1])!r} twice; name each file once")
    return paths


# Eager: --report is checked against it, wherever the two stand on the command line.
OVERWRITE = click.option(
    "--overwrite", is_flag=True, is_eager=True, callback=_remember_overwrite, help="Replace what is there."
)
REPORT = click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    multiple=True,
    callback=_check_reports,
    help="Also write it as .md, .json or .html (repeatable).",
)


def _with(options: list[Function], wrapper: Function) -> Function:
    for option in reversed(options):
        wrapper = option(wrapper)
    return wrapper


def model_options(command: Function) -> Function:
    """Add MODEL and its options; the command receives `source: ModelSource`."""

    @functools.wraps(command)
    def wrapper(*, model: str, **rest: Any) -> Any:
        return command(source=_model_source(model, rest), **rest)

    return _with([click.argument("model", metavar="MODEL"), *MODEL], wrapper)


def optional_model_options(command: Function) -> Function:
    """The same, for a command that can get its model otherwise; `source` is then None."""

    @functools.wraps(command)
    def wrapper(*, model: str | None, **rest: Any) -> Any:
        source = _model_source(model or "", rest)
        return command(source=source if model else None, **rest)

    return _with([click.argument("model", metavar="[MODEL]", required=False), *MODEL], wrapper)


def models_options(command: Function) -> Function:
    """Add MODEL… (several) and the same options; the command receives `sources: list[ModelSource]`."""

    @functools.wraps(command)
    def wrapper(*, models: tuple[str, ...], **rest: Any) -> Any:
        source = _model_source(models[0], rest)
        return command(sources=[ModelSource(**{**vars(source), "spec": spec}) for spec in models], **rest)

    return _with([click.argument("models", metavar="MODEL...", nargs=-1, required=True), *MODEL], wrapper)


def _model_source(spec: str, rest: dict[str, Any]) -> ModelSource:
    return ModelSource(
        spec=spec,
        weights=rest.pop("weights"),
        model_args=rest.pop("model_arg"),
        input_shape=rest.pop("input_shape"),
        trust_pickle=rest.pop("trust_pickle"),
        inputs=rest.pop("inputs"),
    )


def data_options(command: Function) -> Function:
    """Add --data and the options that shape it; the command receives `data: DataSource`."""

    @functools.wraps(command)
    def wrapper(*, data: str | None, **rest: Any) -> Any:
        names = ("classes", "resize", "crop", "mean", "std", "calibration_samples", "test_samples", "batch_size")
        return command(data=DataSource(spec=data, **{name: rest.pop(name) for name in names}), **rest)

    return _with(DATA, wrapper)


def run_options(command: Function) -> Function:
    """Add --threads --seed --json --quiet --verbose; the command receives `settings: Settings`."""

    @functools.wraps(command)
    def wrapper(*, threads: int | None, seed: int, as_json: bool, quiet: bool, verbose: bool, **rest: Any) -> Any:
        from compress.progress import set_quiet

        set_quiet(quiet)
        configure_logging(quiet=quiet, verbose=verbose)
        settings = Settings(threads=threads, seed=seed, json=as_json, quiet=quiet, verbose=verbose)
        return command(settings=settings, **rest)

    return _with(RUN, wrapper)


def output_options(what: str = "folder", *, required: bool = True) -> Function:
    """Add -o and --overwrite; the command receives `output: Output` (None where not given)."""

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def wrapper(*, out: Path | None, overwrite: bool, **rest: Any) -> Any:
            return command(output=Output(out, overwrite=overwrite) if out else None, **rest)

        place = click.option(
            "-o",
            "--out",
            type=click.Path(path_type=Path),
            required=required,
            metavar="OUT",
            help=f"The {what} to write.",
        )
        return _with([place, OVERWRITE], wrapper)

    return decorate


MEASURES = [
    click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="[min:|max:]FILE:NAME",
        help="Your own metric, which then decides: (outputs, target) -> float on all samples, or a class, torchmetrics' too; "
        "or a figure of the task by name (repeatable).",
    ),
    click.option(
        "--task",
        type=completing(("auto", *HOMES)),
        default="auto",
        metavar="NAME",
        help=f"How outputs and targets are read: auto (with a note), {', '.join(HOMES)}.",
    ),
    click.option(
        "--ignore-label", type=int, metavar="N", help="Targets with this label count in no figure (255 of masks)."
    ),
]


def measure_options(command: Function) -> Function:
    """Add --metric --task --ignore-label; the command receives `measures: Measures`, metrics found and opened."""

    @functools.wraps(command)
    def wrapper(*, metrics: tuple[str, ...], task: str, ignore_label: int | None, **rest: Any) -> Any:
        from compress.measures.opening import open_measures

        return command(measures=open_measures(metrics or None, task=task, ignore_label=ignore_label), **rest)

    return _with(MEASURES, wrapper)


LIMITS = ("max_drop", "require_speedup", "max_size", "max_latency")


def gate_options(what: str) -> Function:
    """Add the limits (named `what` in their help); the command receives `gates: Gates`."""

    def decorate(command: Function) -> Function:
        @functools.wraps(command)
        def wrapper(**rest: Any) -> Any:
            from compress.pipeline.gates import Gates

            return command(gates=Gates(**{name: rest.pop(name) for name in LIMITS}), **rest)

        positive = click.FloatRange(0, min_open=True)
        limits = [
            click.option(
                "--max-drop",
                metavar="X[%]",
                help=f"{what}: most that may be lost of the figure that decides, in its unit (points of top-1), or in % of it.",
            ),
            click.option("--require-speedup", type=positive, metavar="X", help=f"{what}: least speed-up."),
            click.option("--max-size", type=Size(), help=f"{what}: largest file, such as 5MB."),
            click.option(
                "--max-latency", type=positive, metavar="MS", help=f"{what}: longest median run, in ms, here."
            ),
        ]
        return _with(limits, wrapper)

    return decorate


def runtime_option(command: Function) -> Function:
    """Add --runtime to a command that measures; it travels in the command's `settings: Settings`."""

    @functools.wraps(command)
    def wrapper(*, runtime: str, settings: Settings, **rest: Any) -> Any:
        if runtime != "auto":
            find_runtime(runtime).check()
        return command(settings=dataclasses.replace(settings, runtime=runtime), **rest)

    listed = ", ".join(f"{name} ({', '.join(runtime.suffixes)})" for name, runtime in RUNTIMES.items())
    words = f"What runs the files: {listed}; auto: each that is installed, a row for each."
    option = click.option("--runtime", default="onnxruntime", show_default=True, metavar="NAME", help=words)
    return option(precision_option(wrapper))


def precision_option(command: Function) -> Function:
    """Add --float-precision to a command that measures; it travels in the command's `settings: Settings`."""

    @functools.wraps(command)
    def wrapper(*, float_precision: str, settings: Settings, **rest: Any) -> Any:
        return command(settings=dataclasses.replace(settings, float_precision=float_precision), **rest)

    words = (
        "In what float layers compute: float32, bf16, fp16, where the runtime offers it (OpenVINO); said in each row."
    )
    option = click.option("--float-precision", default="float32", show_default=True, metavar="NAME", help=words)
    return option(wrapper)


def report_option(command: Function) -> Function:
    """Add --report FILE (several), checked at once; the command receives `report: tuple[Path, ...]`."""
    return _with([REPORT], command)


def overwrite_option(command: Function) -> Function:
    """Add --overwrite to a command whose only file is that of --report."""

    @functools.wraps(command)
    def wrapper(*, overwrite: bool, **rest: Any) -> Any:
        return command(**rest)

    return _with([OVERWRITE], wrapper)


def configure_logging(*, quiet: bool, verbose: bool) -> None:
    """Silence the libraries below, so that stdout stays ours and stderr stays readable."""
    import logging
    import warnings

    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING if verbose else logging.ERROR, format="%(name)s: %(message)s"
    )
    if not verbose:
        warnings.filterwarnings("ignore")


def examples(*lines: str) -> str:
    """Format an epilog of example commands, printed as they stand."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
