"""What to prune: one frozen value, checked when it is made, passed whole to every verb of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, nn

from compress.errors import PruningError, nearest
from compress.given import batches_of
from compress.pruning.amounts import check_amount
from compress.pruning.patterns import as_patterns
from compress.pruning.scores import check_score

TARGETS = ("channels", "macs", "parameters", "latency", "blocks")
SCOPES = ("uniform", "global", "balanced", "auto")
# Fields that only channels, only masks, or neither whole blocks nor masks have a use for, with their defaults.
OF_CHANNELS = {"target": "channels", "round_to": None, "loss": None, "latency": None, "heal_s": 0, "heal_steps": None}
OF_MASKS = {"n": 2, "dim": 0, "permanent": True}
NOT_OF_BLOCKS = {"method": "l1", "scope": "uniform", "round_to": None}


@dataclass(frozen=True)
class PruneRequest:
    """What `prune` removes: `amount` of `target`, by `method`, within `scope`.

    `amount` is a fraction; with masks also a whole number of weights in each layer. A generator given as `data` is held
    as a list, because scores go through it, and then reconstruction.

    Raises:
        PruningError: a value out of range or unknown (the nearest is given), or one that would change nothing.
    """

    amount: float = 0.5
    target: str = "channels"  # what the amount is of: channels (of each layer), macs, parameters, latency, blocks
    method: str | Callable[[Tensor], Tensor] = "l1"  # l1, l2, random, batchnorm, taylor, fpgm, or a function
    scope: str = "uniform"  # the same fraction of every layer; global: all ranked together; balanced: as outputs allow;
    # auto: uniform or balanced, whichever leaves the outputs nearer
    round_to: int | None = None  # leave multiples of so many channels; None: 16, less in narrow layers
    include: tuple[str, ...] = ()  # names of layers or modules, `*` allowed; only these
    exclude: tuple[str, ...] = ()  # all but these
    data: Iterable[Any] | None = None  # batches, for taylor, reconstruction and blocks
    loss: Callable[[Any, Any], Tensor] | None = None  # what taylor follows; None: cross entropy
    latency: Callable[[nn.Module], float] | None = None  # measures a module, in any unit; for target latency
    reconstruct: bool = False  # fit the weights that stay to what their layers gave before, on `data`
    heal_s: float = 0.0  # seconds of healing at the end: outputs of the unpruned network matched, without labels
    heal_steps: int | None = None  # gradient steps of healing in place of seconds
    unlabelled: Iterable[Any] | None = None  # inputs to heal on; None: those of `data`
    bake: bool = True  # weights computed from others (weight_norm, any parametrization) become plain ones first
    seed: int = 0  # of random scores and masks
    remove_channels: bool = True  # False: masks, zeros in layers that keep their size
    n: float = 2  # masks: the norm of ln
    dim: int = 0  # masks, ln and random-structured: 0 output channels, 1 input channels
    permanent: bool = True  # masks: False leaves them attached, so that training keeps the zeros

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            object.__setattr__(self, name, as_patterns(getattr(self, name)))  # frozen, and still being made
        for name in ("data", "unlabelled"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, batches_of(getattr(self, name)))
        if self.heals and self.inputs_to_heal_on is None:
            raise PruningError("healing learns from data; pass data=… (inputs are enough), or leave heal_s out")
        if self.target not in TARGETS:
            raise PruningError(f"pruning target {self.target!r} is unknown; {nearest(str(self.target), TARGETS)}")
        if not self.remove_channels:
            self._check_masks()
            return
        check_amount(self.amount)
        self._refuse(OF_MASKS, "is of masks; leave it out, or give remove_channels=False")
        if self.target == "blocks":
            self._refuse(NOT_OF_BLOCKS, "chooses among channels; leave it out with target 'blocks'")
        if isinstance(self.method, str):
            check_score(self.method)
        if self.scope not in SCOPES:
            raise PruningError(f"pruning scope {self.scope!r} is unknown; {nearest(str(self.scope), SCOPES)}")
        if self.scope in ("balanced", "auto") and self.data is None:
            raise PruningError(
                f"scope {self.scope!r} measures what each layer costs on data; pass data=…, or choose uniform"
            )
        multiple = self.round_to
        if multiple is not None and (not isinstance(multiple, int) or multiple < 1):
            raise PruningError(f"round_to {multiple!r} is not a count of channels; give 1, 8, 16, …")

    @property
    def heals(self) -> bool:
        return bool(self.heal_s or self.heal_steps)

    @property
    def inputs_to_heal_on(self) -> Iterable[Any] | None:
        return self.data if self.unlabelled is None else self.unlabelled

    def _check_masks(self) -> None:
        if self.reconstruct:
            raise PruningError(
                "masks keep the weights that they leave; reconstruct=True fits those: leave one of the two out"
            )
        self._refuse(OF_CHANNELS, "says how channels are removed, and masks remove none; leave it out")

    def _refuse(self, defaults: dict[str, Any], why: str) -> None:
        for name, default in defaults.items():
            if getattr(self, name) != default:
                raise PruningError(f"{name} {getattr(self, name)!r} {why}")


class PruneFields(TypedDict, total=False):
    """The fields of `PruneRequest` as the keywords of a call, so that a type checker knows them too."""

    amount: float
    target: str
    method: str | Callable[[Tensor], Tensor]
    scope: str
    round_to: int | None
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    data: Iterable[Any] | None
    loss: Callable[[Any, Any], Tensor] | None
    latency: Callable[[nn.Module], float] | None
    reconstruct: bool
    heal_s: float
    heal_steps: int | None
    unlabelled: Iterable[Any] | None
    bake: bool
    seed: int
    remove_channels: bool
    n: float
    dim: int
    permanent: bool
