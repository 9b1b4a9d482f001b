"""`compress prune`: a smaller model, measured beside the one it came from."""

from __future__ import annotations

from pathlib import Path

import click

from cli.options import Size, data_options, examples, model_options, output_options, report_option, run_options
from cli.printing import show
from compress.pipeline.inputs import DataSource, ModelSource, Settings
from compress.pipeline.outputs import Output


@click.command(
    short_help="A smaller model: channels removed, fine-tuned if asked.",
    epilog=examples(
        "compress prune mobilenet_v3_small --input-shape 2,3,64,64 --amount 0.5 -o pruned",
        "compress prune compress.pipeline.quickstart:build --weights quickstart/weights.pt --data mnist5k"
        " --macs 0.5 --finetune-epochs 1 --distill -o half",
    ),
)
@model_options
@data_options
@output_options()
@click.option("--amount", type=float, default=0.5, show_default=True, help="Fraction to remove, of --target.")
@click.option(
    "--target", metavar="NAME", default="channels", show_default=True, help="channels, macs, parameters, latency."
)
@click.option("--latency", type=float, metavar="F", help="Remove until the measured latency fell by F.")
@click.option("--macs", type=float, metavar="F", help="Remove until the multiply-accumulates fell by F.")
@click.option(
    "--method", metavar="NAME", default="l1", show_default=True, help="l1, l2, random, batchnorm, taylor, fpgm."
)
@click.option("--scope", metavar="NAME", default="uniform", show_default=True, help="uniform, or global.")
@click.option(
    "--round-to", type=int, metavar="N", help="Leave multiples of N channels; default 16, less in narrow layers."
)
@click.option("--include", metavar="NAME", multiple=True, help="Prune these layers only; * allowed (repeatable).")
@click.option("--exclude", metavar="NAME", multiple=True, help="Leave this layer whole; * allowed (repeatable).")
@click.option("--recalibrate", is_flag=True, help="Measure batch-norm statistics anew after pruning.")
@click.option("--masks", is_flag=True, help="Zero single weights; methods l1, random, ln, random-structured, 2:4.")
@click.option("--n", type=float, default=2, show_default=True, help="Masks: the norm of ln.")
@click.option("--dim", type=int, default=0, show_default=True, help="Masks: 0 output channels, 1 input channels.")
@click.option("--schedule", metavar="NAME", default="one-shot", show_default=True, help="one-shot, linear, agp.")
@click.option("--steps", type=click.IntRange(1), default=5, show_default=True, help="Steps of a schedule.")
@click.option(
    "--finetune-epochs", type=click.IntRange(0), default=0, metavar="N", help="Train on, spread over the steps."
)
@click.option("--lr", type=float, default=0.01, show_default=True, help="Learning rate of fine-tuning.")
@click.option("--distill", is_flag=True, help="Fine-tune with the unpruned model as teacher.")
@click.option(
    "--config", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="TOML: how to fine-tune."
)
@click.option("--sparse-storage", is_flag=True, help="Store mostly-zero weights sparse where that is smaller.")
@click.option("--metric", metavar="MODULE:NAME", help="Your own metric: (outputs, target) -> float, or a class.")
@click.option("--max-drop", type=float, metavar="POINTS", help="Budget: most top-1 points that may be lost.")
@click.option("--require-speedup", type=click.FloatRange(0, min_open=True), metavar="X", help="Budget: least speed-up.")
@click.option("--max-size", type=Size(), help="Budget: largest file, such as 5MB.")
@report_option
@run_options
def command(
    source: ModelSource,
    data: DataSource,
    output: Output,
    amount: float,
    target: str,
    latency: float | None,
    macs: float | None,
    method: str,
    scope: str,
    round_to: int | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    masks: bool,
    n: float,
    dim: int,
    schedule: str,
    steps: int,
    recalibrate: bool,
    finetune_epochs: int,
    lr: float,
    distill: bool,
    config: Path | None,
    sparse_storage: bool,
    metric: str | None,
    max_drop: float | None,
    require_speedup: float | None,
    max_size: int | None,
    report: Path | None,
    settings: Settings,
) -> None:
    """Remove channels from MODEL, really: the same class with smaller layers, no hints needed.

    Heads, groups, residuals and concatenations are found by themselves, and the result is held to the original with
    those channels zeroed. Reload it with `compress export MODEL --weights OUT/weights.pt`. --verbose lists every layer.
    """
    from cli.training_options import _from_file
    from compress.errors import InputError
    from compress.pipeline.closing import Gates
    from compress.pipeline.prune import PruneOptions, prune
    from compress.training.options import TrainOptions

    if latency is not None and macs is not None:
        raise InputError("--latency and --macs are two targets; give one of them")
    if latency is not None or macs is not None:
        target, amount = ("latency", latency) if latency is not None else ("macs", macs or 0.0)  # type: ignore[assignment]
    train = TrainOptions.from_mapping({"lr": lr, "seed": settings.seed, **_from_file(config)})
    options = PruneOptions(
        amount=int(amount) if masks and amount >= 2 and amount == int(amount) else amount,
        target=target,
        method=method,
        scope=scope,
        round_to=round_to,
        include=include,
        exclude=exclude,
        masks=masks,
        n=n,
        dim=dim,
        schedule=schedule,
        steps=steps,
        recalibrate=recalibrate,
        finetune_epochs=finetune_epochs,
        distill=distill,
        train=train,
        sparse_storage=sparse_storage,
    )
    gates = Gates(max_drop=max_drop, require_speedup=require_speedup, max_size=max_size)
    result = prune(source, data, output=output, options=options, gates=gates, metric=metric, settings=settings)
    show(result, settings, report)
