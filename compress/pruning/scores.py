"""Which channels matter least: one score for each class of channels that go together.

l1, l2      norms of the filters that make the channel (Li et al. 2017)
random      the yardstick
batchnorm   |γ| of the batch-norm that scales the channel (Liu et al. 2017)
taylor      |Σ w·∂L/∂w| over the columns that read the channel: the first-order change of the loss when they are
            zeroed, which is what removal does (Molchanov et al. 2019); needs data
fpgm        distance to the other filters of the layer (He et al. 2019): what others can replace goes first
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from compress.batches import call, read_batch
from compress.errors import PruningError, nearest
from compress.pruning.channels import Channels
from compress.pruning.score_table import SCORES
from compress.state import evaluating

OfFilters = Callable[[Tensor], Tensor]  # (n, everything else of one filter) → (n,)


@dataclass(frozen=True)
class Given:
    """What a score may look at besides the network."""

    data: Iterable[object] | None = None
    loss: Callable[[Tensor, Tensor], Tensor] | None = None  # None: cross entropy
    seed: int = 0


def l1_norm(filters: Tensor) -> Tensor:
    return filters.abs().sum(1)


def l2_norm(filters: Tensor) -> Tensor:
    return filters.norm(dim=1)


def geometric_median(filters: Tensor) -> Tensor:
    """Sum of the distances to all other filters."""
    return torch.cdist(filters, filters).sum(1)


def score_classes(
    module: nn.Module,
    channels: Channels,
    method: str | OfFilters = "l1",
    given: Given = Given(),
) -> tuple[np.ndarray, list[str]]:
    """Return the score of every class by its root (others 0), and notes for the user.

    Scores are the mean over the layers that make the channel, each scaled to a mean of one, so that they can be
    compared across layers (`scope="global"`).

    Raises:
        PruningError: the method is unknown, or needs data and got none.
    """
    if not isinstance(method, str):
        return _filters(module, channels, _checked(method)), []
    check_score(method)
    score = SCORES[method]
    if score.needs and given.data is None:
        raise PruningError(f"score {method!r} needs {score.needs}; pass --data (data=…), or choose l1")
    if not score.whole:
        return _filters(module, channels, _checked(score.load())), []
    found: tuple[np.ndarray, list[str]] = score.load()(module, channels, given)
    return found


def check_score(method: str) -> None:
    """Raise PruningError for a name that is not in the table; the nearest is given."""
    if method not in SCORES:
        raise PruningError(f"pruning score {method!r} is unknown; {nearest(method, SCORES)}")


def at_random(module: nn.Module, channels: Channels, given: Given) -> tuple[np.ndarray, list[str]]:
    """Draw a score for each class."""
    return np.random.default_rng(given.seed).random(channels.root.size), []


def _checked(score: OfFilters) -> OfFilters:
    """A score held to one finite number for each filter."""

    def checked(filters: Tensor) -> Tensor:
        values = score(filters)
        if not isinstance(values, Tensor) or values.shape != filters.shape[:1] or not values.isfinite().all():
            name = getattr(score, "__name__", type(score).__name__)
            raise PruningError(
                f"pruning score {name} must return one finite number for each of {len(filters)} filters "
                "(the rows of its argument)"
            )
        return values

    return checked


def _cross_entropy(output: object, target: Tensor) -> Tensor:
    if not isinstance(output, Tensor):
        raise PruningError(
            f"score 'taylor' follows cross entropy, and the model returns {type(output).__name__}, not one tensor; "
            "pass loss=function(output, target), or choose l1"
        )
    return nn.functional.cross_entropy(output, target)


class _Means:
    """Means of values by class."""

    def __init__(self, size: int) -> None:
        self.total, self.count = np.zeros(size), np.zeros(size)

    def add(self, roots: np.ndarray, values: np.ndarray) -> None:
        np.add.at(self.total, roots, values)
        np.add.at(self.count, roots, 1)

    def result(self) -> np.ndarray:
        return np.divide(self.total, self.count, out=np.zeros_like(self.total), where=self.count > 0)


def _scaled(values: Tensor) -> np.ndarray:
    array = values.detach().double().cpu().numpy()
    mean = array.mean()
    return array / mean if mean > 0 else array


def _filters(module: nn.Module, channels: Channels, function: OfFilters) -> np.ndarray:
    state = dict(module.named_parameters(remove_duplicate=False))
    means = _Means(channels.root.size)
    for name, dim in channels.producers:
        filters = state[name].detach().movedim(dim, 0).flatten(1).float()
        means.add(channels.axes[name, dim], _scaled(function(filters)))
    return means.result()


def batchnorm(module: nn.Module, channels: Channels, given: Given) -> tuple[np.ndarray, list[str]]:
    """|γ| of the batch-norm that scales each class; l1 where none does."""
    means = _Means(channels.root.size)
    for path, part in module.named_modules():
        name = f"{path}.weight" if path else "weight"
        if isinstance(part, nn.modules.batchnorm._NormBase) and part.weight is not None and (name, 0) in channels.axes:
            means.add(channels.axes[name, 0], _scaled(part.weight.abs()))
    scores, found = means.result(), means.count > 0
    without = [family.name for family in channels.families if family.classes.size and not found[family.classes].all()]
    notes = []
    if without:
        fallback = _filters(module, channels, l1_norm)
        scores = np.where(found, scores, fallback)
        notes.append(f"no batch-norm scales {len(without)} of the families ({without[0]}, …): scored by l1 there")
    return scores, notes


def taylor(module: nn.Module, channels: Channels, given: Given) -> tuple[np.ndarray, list[str]]:
    """Mean over batches of |Σ w·g| over everything that reads a class."""
    loss = given.loss or _cross_entropy
    state = dict(module.named_parameters(remove_duplicate=False))
    made = set(channels.producers)
    readers = [key for key in channels.axes if key not in made and key[0] in state and state[key[0]].dim() > 1]
    required_grad = {name: state[name].requires_grad for name, _ in readers}
    wanted = [state[name] for name, _ in readers]
    total, batches = np.zeros(channels.root.size), 0
    try:
        for parameter in wanted:
            parameter.requires_grad_(True)
        with evaluating(module):
            for raw in given.data or ():
                batch = read_batch(raw)
                if batch.target is None:
                    raise PruningError("score 'taylor' needs targets beside the inputs; yield (inputs, target)")
                with torch.enable_grad():
                    value = loss(call(module, batch), batch.target)
                    grads = torch.autograd.grad(value, wanted, allow_unused=True)
                change = np.zeros(channels.root.size)
                for (name, dim), parameter, grad in zip(readers, wanted, grads):
                    if grad is not None:
                        effect = (parameter.detach() * grad).movedim(dim, 0).flatten(1).sum(1)
                        np.add.at(change, channels.axes[name, dim], effect.double().cpu().numpy())
                total += np.abs(change)
                batches += 1
    finally:
        for name, flag in required_grad.items():
            state[name].requires_grad_(flag)
    if not batches:
        raise PruningError("score 'taylor' got no batch; the data is empty")
    return total / batches, []
