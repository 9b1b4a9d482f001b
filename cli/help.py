"""How a command's help is laid out: options in groups, rare ones behind --help-all, values completed in the shell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

# Group → the parameters that stand in it, in the order of the help. A parameter that is named nowhere stands under
# "Options", where those of the one command belong.
GROUPS: dict[str, tuple[str, ...]] = {
    "Model": ("weights", "model_arg", "input_shape", "inputs", "trust_pickle"),
    "Data": (
        *("data", "classes", "resize", "crop", "mean", "std", "calibration_samples", "test_samples", "batch_size"),
        *("shuffle", "workers", "drop_last", "pin_memory", "crop_padding", "flip", "mixup"),
    ),
    "Training": (
        *("epochs", "finetune_epochs", "loss", "label_smoothing", "lr", "optimizer", "momentum", "nesterov"),
        *("weight_decay", "scheduler", "warmup_epochs", "step_size", "gamma", "plateau_patience", "min_lr"),
        *("clip_norm", "clip_value", "accumulate", "precision", "recompute", "ema_decay", "evaluate_on", "monitor"),
        *("patience", "min_delta", "checkpoint_every", "device", "nproc", "sync_batchnorm"),
        *("find_unused_parameters", "deterministic", "config", "metric", "keep", "hold_zeros", "optimizer_args"),
        *("scheduler_args", "checkpoint_minutes"),
    ),
    "Distillation": ("distill", "teacher", "distill_weight", "temperature", "feature_layers", "feature_weight"),
    "Measures": ("metrics", "task", "ignore_label"),
    "Limits": ("max_drop", "require_speedup", "max_size", "max_latency"),
    "Output": ("out", "overwrite", "resume", "report", "as_json", "quiet", "verbose", "tensorboard", "weights_format"),
    "Run": ("threads", "seed", "runtime", "float_precision"),
}
# Shown by --help-all only: right as they are for nearly everyone.
RARE = {
    *("drop_last", "pin_memory", "shuffle", "workers", "recompute", "find_unused_parameters", "sync_batchnorm"),
    *("min_delta", "checkpoint_every", "deterministic", "clip_value", "nesterov", "step_size", "gamma"),
    *("plateau_patience", "min_lr", "feature_layers", "feature_weight", "weights_format", "accumulate", "evaluate_on"),
    *(
        "optimizer_args",
        "scheduler_args",
        "checkpoint_minutes",
        "momentum",
        "ema_decay",
        "precision",
        "mixup",
        "crop_padding",
        "n",
        "dim",
        "sparse_storage",
    ),
}


class Grouped(click.Command):
    """A command whose --help names the common options by group, and whose --help-all names every one."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if any(parameter.name in RARE for parameter in self.params):
            self.params.append(_help_all())

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything = ctx.meta.get("compress.help_all", False)
        shown = [item for item in self.get_params(ctx) if everything or item.name not in RARE]
        for title, parameters in grouped(shown):
            rows = [row for item in parameters if isinstance(item, click.Option) and (row := item.get_help_record(ctx))]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def grouped(parameters: Sequence[click.Parameter]) -> list[tuple[str, list[click.Parameter]]]:
    """The parameters by group: the command's own first, then the groups of the table in its order."""
    named = {item.name: item for item in parameters}
    known = {name for names in GROUPS.values() for name in names}
    own = [item for item in parameters if item.name not in known]
    groups = [(title, [named[name] for name in names if name in named]) for title, names in GROUPS.items()]
    return [(title, found) for title, found in [("Options", own), *groups] if found]


def _help_all() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value and not ctx.resilient_parsing:
            ctx.meta["compress.help_all"] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    return click.Option(
        ["--help-all"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the rare options too.",
    )


def completing(choices: Sequence[str]) -> Any:
    """A click type for one of `choices` or a value of the user's own: completed in the shell, checked where it is read."""
    return _Completed(choices)


class _Completed(click.ParamType):
    name = "text"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self.choices if choice.startswith(incomplete)]
