"""The options of training commands, made from the fields of `TrainOptions`, so that they cannot drift apart."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli.fields import given, own_fields, with_options
from compress.errors import InputError, nearest
from compress.pipeline.inputs import ModelSource
from compress.training.options import TrainOptions

SHARED = ("batch_size", "seed")  # --batch-size and --seed are options of every command


def training_options(kind: type[TrainOptions]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add an option for each field of `kind`, and --config FILE; the command receives `options` of that kind."""
    return functools.partial(_with_fields, kind)


def _with_fields(kind: type[TrainOptions], command: Callable[..., Any]) -> Callable[..., Any]:
    fields = own_fields(kind, skipped=SHARED)

    @functools.wraps(command)
    def wrapper(*, config: Path | None, data: Any, settings: Any, **rest: Any) -> Any:
        values = from_file(config) | given(rest, fields)
        if data.batch_size is not None:
            values["batch_size"] = data.batch_size
        source = click.get_current_context().get_parameter_source("seed")
        if source == click.core.ParameterSource.COMMANDLINE or "seed" not in values:
            values["seed"] = settings.seed
        options = kind.from_mapping(values)
        settings = dataclasses.replace(settings, seed=options.seed)
        return command(options=options, data=data, settings=settings, **rest)

    path = click.Path(path_type=Path, dir_okay=False)
    config = click.option(
        "--config", type=path, metavar="FILE", help="TOML file with these options; the command line wins."
    )
    return with_options(config(wrapper), fields)


def from_file(path: Path | None) -> dict[str, Any]:
    """Read the training options of a TOML file, from its table `train` where it has one.

    Raises:
        InputError: no such file, no TOML, or an option that there is not.
    """
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"configuration {str(path)!r} does not exist") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"configuration {str(path)!r} is not TOML: {error}") from error
    table = table.get("train", table)
    names = {field.name for field in dataclasses.fields(TrainOptions)}
    for key in table:
        if key.replace("-", "_") not in names:
            raise InputError(f"{str(path)!r}: unknown training option {key!r}; {nearest(key.replace('-', '_'), names)}")
    return {key.replace("-", "_"): value for key, value in table.items()}


def run_choices(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what a run needs beside its options, from --resume to --weights-format; the command receives `run: RunChoices`."""

    @functools.wraps(command)
    def wrapper(**rest: Any) -> Any:
        names = ("resume", "nproc", "metric", "tensorboard", "device", "weights_format")
        return command(run={name: rest.pop(name) for name in names}, **rest)

    decorated: Callable[..., Any] = wrapper
    decorators = [
        click.option("--resume", is_flag=True, help="Continue from OUT's last checkpoint."),
        click.option(
            "--nproc", type=int, default=1, show_default=True, metavar="N", help="Processes that train together."
        ),
        click.option(
            "--metric",
            multiple=True,
            metavar="[min:|max:]FILE:NAME",
            help="Your own metric, which decides the best epoch: (outputs, target) -> float, or a class (repeatable).",
        ),
        click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard."),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda."),
        click.option("--weights-format", default="pt", show_default=True, metavar="NAME", help="pt or safetensors."),
    ]
    for decorate in reversed(decorators):
        decorated = decorate(decorated)
    return decorated


def teacher_of(source: ModelSource, distill: str | None, teacher: str | None) -> ModelSource | None:
    """The teacher that --teacher and --distill name.

    Raises:
        InputError: weights for a file that carries its own.
    """
    if teacher is not None:
        return ModelSource(teacher, weights=distill, trust_pickle=source.trust_pickle)
    if distill is None:
        return None
    from compress.loading.models import WHOLE

    if str(source.spec).lower().endswith(WHOLE):
        raise InputError(
            f"{source.spec!r} carries its weights; name the teacher's architecture with --teacher, its weights with --distill"
        )
    return dataclasses.replace(source, weights=distill)
