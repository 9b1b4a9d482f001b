"""The options of training commands, made from the fields of `TrainOptions`, so that they cannot drift apart."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compress.errors import InputError, nearest
from compress.training.options import TrainOptions

SHARED = ("batch_size", "seed")  # --batch-size and --seed are options of every command
KINDS = {"int": click.INT, "float": click.FLOAT, "str": click.STRING}


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field, and --config FILE; the command receives `options: TrainOptions`."""

    @functools.wraps(command)
    def wrapper(*, config: Path | None, data: Any, settings: Any, **rest: Any) -> Any:
        given = {field.name: rest.pop(field.name) for field in _own_fields()}
        values = _from_file(config) | {name: value for name, value in given.items() if value not in (None, ())}
        if data.batch_size is not None:
            values["batch_size"] = data.batch_size
        source = click.get_current_context().get_parameter_source("seed")
        if source == click.core.ParameterSource.COMMANDLINE or "seed" not in values:
            values["seed"] = settings.seed
        options = TrainOptions.from_mapping(values)
        settings = dataclasses.replace(settings, seed=options.seed)
        return command(options=options, data=data, settings=settings, **rest)

    path = click.Path(path_type=Path, dir_okay=False)
    decorators = [*(_option(field) for field in _own_fields())]
    decorators.append(
        click.option("--config", type=path, metavar="FILE", help="TOML file with these options; the command line wins.")
    )
    for decorate in reversed(decorators):
        wrapper = decorate(wrapper)
    return wrapper


def _own_fields() -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(TrainOptions) if field.name not in SHARED]


def _option(field: dataclasses.Field) -> Callable[..., Any]:
    """The option of one field. Its default stays None, so that a file's value can be told from one typed."""
    name = field.name.replace("_", "-")
    text = field.metadata["help"][0].upper() + field.metadata["help"][1:]
    kind = str(field.type).removesuffix(" | None")
    if kind == "bool":
        return click.option(f"--{name}/--no-{name}", field.name, default=None, help=f"{text}.")
    if kind.startswith("tuple"):
        return click.option(f"--{name}", field.name, multiple=True, metavar="NAME", help=f"{text} (repeatable).")
    choices = field.metadata.get("choices")
    metavar = "|".join(choices) if choices and len(choices) < 5 else None
    default = "" if field.default is None else f" [default: {field.default}]"
    return click.option(f"--{name}", field.name, type=KINDS[kind], metavar=metavar, help=f"{text}.{default}")


def _from_file(path: Path | None) -> dict[str, Any]:
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
    """Add what a run needs beside its options: --resume, --nproc, --tensorboard, --device, --weights-format."""
    decorators = [
        click.option("--resume", is_flag=True, help="Continue from OUT's last checkpoint."),
        click.option(
            "--nproc", type=int, default=1, show_default=True, metavar="N", help="Processes that train together."
        ),
        click.option("--tensorboard", is_flag=True, help="Write OUT/tensorboard."),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda."),
        click.option("--weights-format", default="pt", show_default=True, metavar="NAME", help="pt or safetensors."),
    ]
    for decorate in reversed(decorators):
        command = decorate(command)
    return command
