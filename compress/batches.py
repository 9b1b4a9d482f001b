"""What a batch is: inputs by name, a target, a number of samples; the one reader of whatever a loader yields.

A loader of named inputs (a mapping) feeds a model by name, one of unnamed inputs (a tensor, a tuple) in order:

    x                          one input
    (x, y)                     one input, its target
    ((x1, x2), y)              two inputs in the order of `forward`
    {"a": x1, "b": x2, "y": y} two inputs by name; a target stands under one of `TARGETS`
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import DataError, InputError, ModelError

TARGETS = ("labels", "label", "target", "targets", "y")


@dataclass(frozen=True)
class Batch:
    """Some samples for a model. `inputs` of an unnamed batch stand under "0", "1" … and are fed in that order.

    Each input has the samples in dimension 0, but for scalars (a sampling rate), which all samples share. `target` is
    a tensor where the loader gave numbers, and what it gave (boxes of a detector) otherwise; None where there is none.
    """

    inputs: Mapping[str, Tensor]
    target: Any = None
    samples: int = 0
    named: bool = False
    paired: bool = field(default=False, repr=False)  # read from a pair (x, y): what a message may explain

    @classmethod
    def of(cls, inputs: Any, target: Any = None) -> Batch:
        """A batch of one tensor, a sequence of them (fed in order), a mapping of them (fed by name), or a batch."""
        if isinstance(inputs, Batch):
            return inputs if target is None else replace(inputs, target=target)
        named = is_mapping(inputs)
        values = dict(inputs.items()) if named else dict(enumerate(_sequence(inputs)))
        # Columns of words (names, texts) beside the numbers are no inputs.
        words = [name for name, value in values.items() if named and _is_words(value)]
        if words and len(words) < len(values):
            _warn_dropped("any model", tuple(map(str, words)), ("text is no number",))
            values = {name: value for name, value in values.items() if name not in words}
        found = {str(name): _tensor(value, str(name)) for name, value in values.items() if value is not None}
        if not found:
            raise DataError("a batch holds no input; yield (inputs, target), with inputs a tensor or a tuple of them")
        return cls(found, target, _samples(found.values()), named)

    @property
    def values(self) -> tuple[Tensor, ...]:
        """The inputs in the order in which they were given."""
        return tuple(self.inputs.values())

    def map(self, change: Callable[[Tensor], Tensor], target: Callable[[Any], Any] | None = None) -> Batch:
        """The same batch with every input (and the target) changed."""
        inputs = {name: change(value) for name, value in self.inputs.items()}
        aim = self.target if target is None or self.target is None else target(self.target)
        return replace(self, inputs=inputs, target=aim, samples=_samples(inputs.values()))

    def part(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop` of it; what all samples share stays whole."""
        count = self.samples

        def cut(value: Any) -> Any:
            return value[start:stop] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

        return self.map(cut, lambda target: _each(target, cut, count))

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device, nested targets included."""

        def moved(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        return self.map(moved, lambda target: _each(target, moved, None))

    def arguments(self, model: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """Positional and keyword arguments for a module's forward.

        Raises:
            InputError: names that do not fit forward's parameters, both sides named.
        """
        by_keyword = keyword_only(model)
        if not self.named and not by_keyword:
            return self.values, {}
        names, needed, open_ended = parameters_of(model)
        if open_ended and not names:
            return (), dict(self.inputs)
        if not names:  # forward(*args): there is no name to go by
            return self.values, {}
        bound = self.bound(names, needed=needed, whose=type(model).__name__)
        # In the order of forward: as long as none is left out they may go by position, which every module takes.
        ordered = {name: bound[name] for name in names if name in bound}
        if list(ordered) == list(names[: len(ordered)]) and not by_keyword & set(ordered):
            return tuple(ordered.values()), {}
        return (), ordered

    def in_order(self, model: nn.Module) -> tuple[Tensor, ...]:
        """The inputs in the order in which a module's forward, and so its exported program, gets them."""
        positional, named = self.arguments(model)
        return positional or tuple(named.values())

    def bound(self, names: Sequence[str], *, needed: Iterable[str] | None = None, whose: str) -> dict[str, Tensor]:
        """The inputs under a model's own names: by name where they have any, else in order.

        Args:
            names: what the model takes, in its order.
            needed: those that it cannot do without (default: all).
            whose: the model, for messages.

        Raises:
            InputError: an input too many or too few, or names of which none fits; both sides are named.
        """
        required = list(names if needed is None else needed)
        if not self.named:
            return self._in_order(names, required, whose)
        found = {name: self.inputs[name] for name in names if name in self.inputs}
        missing = [name for name in required if name not in found]
        extra = [name for name in self.inputs if name not in found]
        if len(self.inputs) == 1 and len(required or names[:1]) == 1 and not found:
            return {(required or list(names))[0]: self.values[0]}  # one input for the one place: no name is needed
        if missing or not found:
            raise InputError(
                f"{whose} takes {_listed(names)}, and the data gives {_listed(self.inputs)}: "
                f"{_listed(missing or list(names))} {'is' if len(missing) == 1 else 'are'} missing; "
                "name the data's inputs as the model does"
            )
        if extra:
            _warn_dropped(whose, tuple(extra), tuple(names))
        return found

    def in_order_of(self, names: Sequence[str], *, whose: str) -> tuple[Tensor, ...]:
        """The inputs in the order of a runtime's `names`, refused like `bound` refuses them."""
        bound = self.bound(names, whose=whose)
        return tuple(bound[name] for name in names)

    def _in_order(self, names: Sequence[str], required: Sequence[str], whose: str) -> dict[str, Tensor]:
        count = len(self.inputs)
        if count > len(names) or any(name not in names[:count] for name in required):
            takes = f"{len(names)} input{'s' * (len(names) != 1)} ({', '.join(names)})"
            hint = "; a pair is (inputs, target): give ((x1, x2), y)" if self.paired and count < len(names) else ""
            raise InputError(f"{whose} takes {takes}, got {count}{hint}")
        return dict(zip(names, self.values))


def read_batch(raw: Any) -> Batch:
    """Read what a loader yields (see the forms at the top of this file); a `Batch` is returned as it is.

    Arrays and lists of numbers become tensors, targets too; integer targets of shape (N, 1) are class numbers (N,).

    Raises:
        DataError: it is none of these forms.
    """
    if isinstance(raw, Batch):
        return raw
    if is_mapping(raw):
        key = next((name for name in TARGETS if name in raw), None)
        inputs = {name: value for name, value in raw.items() if name != key}
        return Batch.of(inputs, None if key is None else read_target(raw[key]))
    if isinstance(raw, (tuple, list)) and not _is_numbers(raw):
        if len(raw) == 2:
            batch = Batch.of(raw[0], None if raw[1] is None else read_target(raw[1]))
            return replace(batch, paired=isinstance(raw[1], (Tensor, np.ndarray)))
        if len(raw) == 1:
            return Batch.of(raw[0])
        raise DataError(
            f"a batch of {len(raw)} items cannot be read; yield (inputs, target), with inputs a tensor or a tuple of them"
        )
    return Batch.of(raw)


def example_batch(value: Any) -> Batch:
    """Example inputs as a batch: tensors or arrays (one, a sequence, a mapping), a batch, or the shape of one float input.

    >>> example_batch((2, 3, 8, 8)).values[0].shape
    torch.Size([2, 3, 8, 8])

    Raises:
        InputError: it is none of these.
    """
    if isinstance(value, (tuple, list)) and value and all(type(size) is int for size in value):
        if min(value) < 1:
            raise InputError(f"example inputs of shape {tuple(value)}: every size must be at least 1, the batch first")
        return Batch.of(torch.randn(*value, generator=torch.Generator().manual_seed(0)))
    try:
        return Batch.of(value)
    except DataError as error:
        raise InputError(
            f"example inputs are a tensor, a sequence or a mapping of tensors, or a shape; got {type(value).__name__}"
        ) from error


def read_target(value: Any) -> Any:
    """A target as a tensor where it is made of numbers, as it is otherwise.

    >>> read_target([[3], [1]])
    tensor([3, 1])
    """
    if isinstance(value, (list, tuple)) and not _is_numbers(value):
        return value
    if isinstance(value, (np.ndarray, np.generic, list, tuple, int, float)):
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            return value
        value = torch.as_tensor(array)
    if not isinstance(value, Tensor):
        return value
    if not value.is_floating_point() and value.dtype != torch.bool:
        value = value.long()
        if value.dim() == 2 and value.shape[1] == 1:
            value = value[:, 0]
    return value


def call(model: nn.Module, batch: Batch) -> Any:
    """Run a module on a batch: unnamed inputs in order, named ones by name."""
    positional, named = batch.arguments(model)
    return model(*positional, **named)


def parameters_of(model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Names of forward's parameters, those without a default, and whether it takes any keyword."""
    inner = _unwrapped(model)
    own = getattr(inner, "input_names", None)  # a graph as a module takes its graph's inputs
    if isinstance(own, tuple):
        return own, own, False
    placed = getattr(inner, "graph", None)
    if isinstance(inner, torch.fx.GraphModule) and placed is not None:
        names = tuple(str(node.target) for node in placed.nodes if node.op == "placeholder")
        return names, names, False
    parameters = _of_forward(inner)
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_ONLY)
    plain = [item for item in parameters if item.kind in kinds]
    return (
        tuple(item.name for item in plain),
        tuple(item.name for item in plain if item.default is inspect.Parameter.empty),
        any(item.kind == inspect.Parameter.VAR_KEYWORD for item in parameters),
    )


def keyword_only(model: nn.Module) -> frozenset[str]:
    """Names of forward's parameters that stand behind `*`: they cannot go by position."""
    parameters = _of_forward(_unwrapped(model))
    return frozenset(item.name for item in parameters if item.kind == inspect.Parameter.KEYWORD_ONLY)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module whose forward is written by hand: inside torch.compile's wrapper, inside those of processes."""
    inner: Any = getattr(model, "_orig_mod", None) or model
    wraps = isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel))
    found: nn.Module = _unwrapped(inner.module) if wraps else inner
    return found


def _of_forward(module: nn.Module) -> Sequence[inspect.Parameter]:
    """Forward's parameters; none where Python cannot tell them."""
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return ()


def known_length(batches: Any) -> int | None:
    """How many batches there are; None where that is not known (a generator, a loader over a stream)."""
    try:
        return len(batches)
    except TypeError:
        return None


def first_samples(batches: Iterable[Any], samples: int, *, called: str = "data") -> Batch:
    """The first `samples` samples of `batches`, which messages call `called`, as one batch.

    Raises:
        DataError: there are none.
    """
    taken = list(first_batches(batches, samples))
    if not taken:
        raise DataError(f"the {called} is empty; give at least one batch")
    return joined(taken).part(0, samples)


def first_batches(batches: Iterable[Any], samples: int) -> Iterator[Batch]:
    """The first batches, whole, until there are `samples` samples."""
    seen = 0
    for raw in batches:
        batch = read_batch(raw)
        yield batch
        seen += batch.samples
        if seen >= samples:
            return


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches as one, without targets; their inputs must agree in all but the number of samples."""
    first = batches[0]

    def join(name: str, value: Tensor) -> Tensor:
        return torch.cat([batch.inputs[name] for batch in batches]) if value.dim() else value

    inputs = {name: join(name, value) for name, value in first.inputs.items()}
    return replace(first, inputs=inputs, target=None, samples=sum(batch.samples for batch in batches))


def is_mapping(value: Any) -> bool:
    """A mapping, or what behaves as one (a tokenizer's BatchEncoding is none by type)."""
    return isinstance(value, Mapping) or (hasattr(value, "keys") and hasattr(value, "__getitem__"))


def _warn_dropped(whose: str, extra: tuple[str, ...], names: tuple[str, ...]) -> None:
    # Python shows one warning of a text once, however many batches say it.
    warnings.warn(
        f"the data's {_listed(extra)} {'is' if len(extra) == 1 else 'are'} no input of {whose} "
        f"({', '.join(names)}) and left out",
        stacklevel=2,
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, (tuple, list)) and not _is_numbers(value):
        return value
    return (value,)


def _is_numbers(value: Sequence[Any]) -> bool:
    """A list of numbers, or of lists of them: what NumPy can make an array of."""
    if not value:
        return False
    first = value[0]
    if isinstance(first, (list, tuple)):
        return isinstance(value, list) and _is_numbers(first)
    return isinstance(first, (int, float, np.generic)) and not isinstance(first, Tensor)


def _is_words(value: Any) -> bool:
    return isinstance(value, (str, bytes)) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, (str, bytes)) for item in value)
    )


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            return torch.as_tensor(array)
    except (ValueError, TypeError):
        pass
    where = "" if name.isdigit() else f" {name!r}"
    raise DataError(
        f"input{where} of a batch is a {type(value).__name__}, not numbers; yield (inputs, target), with inputs a "
        "tensor or a tuple of them"
    )


def _samples(values: Iterable[Tensor]) -> int:
    return next((len(value) for value in values if value.dim()), 1)


def _each(value: Any, change: Callable[[Any], Any], count: int | None) -> Any:
    """Change the tensors in a target; a list of one item for each of `count` samples is cut as a whole."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(item, change, count) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_each(item, change, count) for item in value)
    return value


def resized_batch(batch: Batch, samples: int) -> Batch:
    """Repeat or cut a batch to exactly `samples`; what all samples share stays as it is."""
    return batch.map(lambda value: resized(value, samples) if value.dim() and len(value) == batch.samples else value)


def resized(value: Tensor, batch: int) -> Tensor:
    """Repeat or cut `value` along the batch to exactly `batch` samples."""
    if value.dim() == 0 or len(value) == batch:
        return value
    repeats = -(-batch // len(value))
    return value.repeat(repeats, *([1] * (value.dim() - 1)))[:batch].contiguous()


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """What a model returned (a tensor, tuples, lists, mappings, data classes that torch knows) as its tensors, in order.

    Raises:
        ModelError: there is no tensor in it.
    """
    found = tuple(leaf for leaf in leaves_of(outputs) if isinstance(leaf, Tensor))
    if not found:
        raise ModelError(f"the model returned no tensor but {type(outputs).__name__}")
    return found


def leaves_of(outputs: Any) -> Iterator[Tensor | np.ndarray]:
    """The tensors and arrays in what a model returned, in order; what is neither (None, numbers) is passed over."""
    if isinstance(outputs, (Tensor, np.ndarray)):
        yield outputs
    elif isinstance(outputs, Mapping):  # those of transformers as well, which leave None out
        for value in outputs.values():
            yield from leaves_of(value)
    elif isinstance(outputs, (tuple, list)):
        for value in outputs:
            yield from leaves_of(value)
    else:
        for leaf in torch.utils._pytree.tree_leaves(outputs):
            if leaf is not outputs:
                yield from leaves_of(leaf)
