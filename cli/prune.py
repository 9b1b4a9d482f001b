"""`compress prune`: a smaller model, measured beside the one it came from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.fields import Amounts, given, own_fields, with_options
from cli.help import Grouped
from cli.options import (
    data_options,
    examples,
    gate_options,
    measure_options,
    model_options,
    output_options,
    precision_option,
    report_option,
    run_options,
)
from cli.printing import show
from cli.training_options import from_file
from compress.errors import InputError
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output
from compress.pipeline.prune_options import PruneOptions
from compress.training.options import FinetuneOptions

if TYPE_CHECKING:
    from compress.measures.opening import Measures
    from compress.pipeline.gates import Gates

SHORT = ("latency", "macs")  # --macs 0.4 is --target macs --amount 0.4


def prune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each field of `PruneOptions`, and those of fine-tuning; the command receives `options`."""
    fields = own_fields(PruneOptions)

    @functools.wraps(command)
    def wrapper(*, seed: int, lr: float | None, config: Path | None, **rest: Any) -> Any:
        values = given(rest, fields)
        values |= _target({name: rest.pop(name) for name in SHORT}, values)
        amount = values.get("amount")
        if values.get("masks") and isinstance(amount, float) and amount >= 2 and amount == int(amount):
            values["amount"] = int(amount)  # a number of weights, not a share of them
        typed = {} if lr is None else {"lr": lr}
        if (typed or config) and not values.get("finetune_epochs"):
            name = "lr" if typed else "config"
            raise InputError(f"--{name} says how to fine-tune; give --finetune-epochs as well")
        train = FinetuneOptions.from_mapping({"seed": seed, **from_file(config), **typed})
        return command(options=PruneOptions(**values, train=train), seed=seed, **rest)

    path = click.Path(path_type=Path, dir_okay=False)
    tuning = [
        click.option("--lr", type=float, help="Learning rate of fine-tuning; default: what fits."),
        click.option("--config", type=path, metavar="FILE", help="TOML: how to fine-tune."),
        click.option(
            "--latency", type=Amounts(), help="Remove until the measured latency fell by F; several as --macs."
        ),
        click.option(
            "--macs",
            type=Amounts(),
            help="Remove until the multiply-accumulates fell by F; 0.2,0.4 makes a model each.",
        ),
    ]
    decorated: Callable[..., Any] = wrapper
    for decorate in reversed(tuning):
        decorated = decorate(decorated)
    return with_options(decorated, fields)


def _target(short: dict[str, float | tuple[float, ...] | None], values: dict[str, Any]) -> dict[str, Any]:
    typed = {name: value for name, value in short.items() if value is not None}
    if len(typed) > 1:
        raise InputError("--latency and --macs are two targets; give one of them")
    for name in typed:
        if other := next((option for option in ("target", "amount") if option in values), None):
            raise InputError(f"--{name} says target and amount at once; leave --{other} out")
    return next(({"target": name, "amount": value} for name, value in typed.items()), {})


@click.command(
    cls=Grouped,
    short_help="A smaller model: channels removed, fine-tuned if asked.",
    epilog=examples(
        "compress prune resnet18 --input-shape 2,3,64,64 --amount 0.5 -o pruned",
        "compress prune compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --macs 0.5 --finetune-epochs 1 --distill -o half",
    ),
)
@model_options
@data_options
@output_options()
@prune_options
@measure_options
@gate_options("Budget")
@report_option
@run_options
@precision_option
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    options: PruneOptions,
    measures: Measures,
    gates: Gates,
    report: tuple[Path, ...],
    settings: Settings,
) -> None:
    """Remove channels from MODEL, really: the same class with smaller layers, no hints needed.

    Heads, groups, residuals and concatenations are found by themselves, and the result is held to the original with
    those channels zeroed. Reload it with `compress export MODEL --weights OUT/weights.pt`. --verbose lists every layer.
    """
    from compress.pipeline.prune import prune

    result = prune(source, data, output=output, options=options, gates=gates, metric=measures, settings=settings)
    show(result, settings, report)
