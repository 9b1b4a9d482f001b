"""The options of pruning: one frozen dataclass whose field names are the command's and the recipe's."""

from __future__ import annotations

from dataclasses import dataclass, field

from compress.errors import InputError
from compress.options import check_fields, choice, option
from compress.pruning.amounts import check_amounts
from compress.pruning.score_table import SCORES
from compress.runtimes.runtime import names
from compress.tables import listed
from compress.training.options import FinetuneOptions, TrainOptions


@dataclass(frozen=True)
class PruneOptions:
    """How to prune. `--finetune-epochs` on the command line is `finetune_epochs` here and in a recipe.

    `amount` is a fraction of `target`, or several, each of which makes a model; with `masks`, a fraction of weights or a
    whole number of them. `finetune_epochs`
    are spread over the steps of the schedule, and `train` says how.
    """

    amount: float | tuple[float, ...] = option(
        0.5, "fraction to remove; several (0.2,0.4) make a model each", several=True
    )
    target: str = option("channels", "what --amount is of: channels, macs, parameters, latency, blocks", metavar="NAME")
    method: str = option("l1", f"score; the least go first: {listed(SCORES)}", metavar="NAME")
    scope: str | None = option(
        None,
        "how much goes from where: uniform (of each layer), global (one ranking), balanced (as the outputs allow), auto "
        "(uniform or balanced, the nearer; default where weights are fitted to a target of MACs, parameters or latency)",
        metavar="NAME",
    )
    round_to: int | None = option(
        None, "leave multiples of N channels; default 16, less in narrow layers", idle={"masks": (True,)}, metavar="N"
    )
    include: tuple[str, ...] = option((), "prune these layers only; * allowed")
    exclude: tuple[str, ...] = option((), "leave this layer whole; * allowed")
    reconstruct: bool | None = option(
        None, "fit the weights that stay to what their layers gave before (default: where there is --data)"
    )
    heal: float | None = option(
        None,
        "minutes of training without labels to give again what the unpruned model gave (default: 2 where weights are "
        "fitted and --finetune-epochs is not given; 0: none)",
        low=0,
        idle={"masks": (True,)},
        metavar="MINUTES",
    )
    heal_steps: int | None = option(
        None,
        "gradient steps of healing in place of minutes: the file is then the same on a slower machine",
        low=1,
        idle={"masks": (True,)},
        metavar="N",
    )
    recalibrate: bool = option(False, "measure batch-norm statistics anew after pruning", only_on=True)
    masks: bool = option(False, "zero single weights; methods l1, random, ln, random-structured, 2:4", only_on=True)
    n: float = option(2, "masks: the norm of ln", idle={"masks": (False,)})
    dim: int = option(0, "masks: 0 output channels, 1 input channels", idle={"masks": (False,)})
    schedule: str = option("one-shot", "how the amount grows: one-shot, linear, agp", metavar="NAME")
    steps: int = option(5, "steps of a schedule", low=1, idle={"schedule": ("one-shot",)})
    finetune_epochs: int = option(0, "train on, spread over the steps", low=0, metavar="N")
    distill: bool = option(False, "fine-tune with the unpruned model as teacher", only_on=True)
    train: TrainOptions = field(default_factory=FinetuneOptions)
    runtime: str = choice(
        "onnxruntime",
        "what shall run the file, and measures --latency: onnxruntime (or onnx), openvino, auto (the faster here)",
        names(graphs_only=True),
        metavar="NAME",
    )
    sparse_storage: bool = option(False, "store mostly-zero weights sparse where that is smaller", only_on=True)

    def __post_init__(self) -> None:
        check_fields(self, "pruning")
        if self.heal is not None and self.heal_steps is not None:
            raise InputError("--heal says for how long, --heal-steps how far; give one of them")
        if isinstance(self.amount, tuple):
            object.__setattr__(self, "amount", check_amounts(self.amount))  # frozen, and still being made

    @property
    def sizes(self) -> tuple[float, ...]:
        """The amounts, the least first; one where one model is made."""
        return self.amount if isinstance(self.amount, tuple) else (self.amount,)
