"""The state of one propagation of labels, which the rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from compress.pruning.labels import FEW_GROUPS, NONE, LabelStore, core, shrink, varying


@dataclass
class Labelled:
    """A tensor of the program by its labels. `param` names the parameter whose elements it moves, if it is one.

    A parameter as it stands has `labels` None: as a weight only its axes are labelled, which costs nothing.
    `made_of` names all the parameters that it is computed from; None where an input of the model has a part in it.
    """

    labels: Tensor | None
    shape: torch.Size
    param: str | None = None
    made_of: frozenset[str] | None = None
    elementwise: bool = False  # each element is computed from one of each operand: nothing is summed


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one call: those of a weight (per position), or of two activations."""

    node: Node
    param: str | None
    positions: float  # times the number of elements of the weight that remain
    operands: tuple[Tensor, ...] = ()


class Call:
    """One call of the program, its arguments bound to the names of the operator's schema."""

    def __init__(self, node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.node, self.target, self.args, self.kwargs = node, target, args, kwargs
        self.name = target._schema.name.split("::")[1]
        self.name = self.name.rstrip("_") if not self.name.startswith("__") else self.name
        self.overload = target._overloadname
        names = [argument.name for argument in target._schema.arguments]
        self.bound = {**dict(zip(names, args)), **kwargs}
        self._names = names
        self._defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}

    def arg(self, name: str | int, default: Any = None) -> Any:
        key = self._names[name] if isinstance(name, int) else name
        if key in self.bound:
            return self.bound[key]
        fallback = self._defaults.get(key)
        return default if fallback is None else fallback

    def labelled(self, every: bool = False) -> Iterator[Labelled]:
        for value in [*self.args, *self.kwargs.values()]:
            if isinstance(value, Labelled):
                yield value
            elif isinstance(value, (tuple, list)) and every:
                yield from (item for item in value if isinstance(item, Labelled))

    def run(self, convert: Callable[[Any], Any]) -> Any:
        def mapped(value: Any) -> Any:
            if isinstance(value, Labelled):
                return convert(value)
            return type(value)(mapped(item) for item in value) if isinstance(value, (tuple, list)) else value

        return self.target(*map(mapped, self.args), **{name: mapped(value) for name, value in self.kwargs.items()})

    def shapes(self) -> list[torch.Size]:
        value = self.node.meta["val"]
        return [item.shape for item in (value if isinstance(value, (tuple, list)) else [value])]

    def shape(self) -> torch.Size:
        return self.shapes()[0]

    def like(self, labels: Tensor) -> Any:
        """Expand labels over the call's result; of several, those of another shape (statistics) are NONE.

        A label without dimensions holds all of them.
        """
        value = self.node.meta["val"]
        if not isinstance(value, (tuple, list)):
            return labels.expand(value.shape) if isinstance(value, Tensor) else value
        rest = torch.full((), NONE) if labels.dim() else labels
        same = [item.shape == value[0].shape for item in value]
        return tuple((labels if ok else rest).expand(item.shape) for ok, item in zip(same, value))

    def is_pointwise(self) -> bool:
        if torch.Tag.pointwise in self.target.tags:
            return True
        plain = getattr(torch.ops.aten, self.name, None)
        return plain is not None and any(
            torch.Tag.pointwise in getattr(plain, overload).tags for overload in plain.overloads()
        )

    def where(self) -> str:
        return module_of(self.node) or "the model's forward"


def _length(labels: Tensor, dim: int, dims: int) -> int:
    """The length along a dimension of the broadcast shape, before broadcasting."""
    own = dim - (dims - labels.dim())
    return labels.shape[own] if own >= 0 else 1


def module_of(node: Node) -> str:
    """Return the path of the innermost module whose forward made the node; '' for the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((path.split("@")[0] for path, _ in reversed(list(stack.values()))), "")


class Trace:
    """Labels of one module: of the axes of its parameters, and what the rules noted along the way."""

    def __init__(self, shapes: dict[str, torch.Size], whole_groups: bool = True) -> None:
        self.store = LabelStore()
        self.shapes = shapes
        self._axes: dict[tuple[str, int], Tensor] = {}
        self._elements: dict[str, Tensor] = {}
        self.boxes: list[tuple[Node, Tensor]] = []
        self.broadcasts: list[tuple[Tensor, Tensor]] = []
        self.heads: list[tuple[Node, Tensor, Tensor]] = []
        self.reduced: list[Node] = []
        self.owners: list[tuple[Tensor, Tensor]] = []  # labels (n) → labels of elements (n, m) that go with them
        self.work: list[Work] = []
        self.producers: set[tuple[str, int]] = set()  # axes along which a layer makes channels
        self.made_by_slices: list[Tensor] = []  # outputs of layers whose weight is a piece of a parameter
        self.composed: list[
            tuple[Tensor, Tensor, Tensor]
        ] = []  # rows, columns and elements (rows, columns, …) of kernels
        self.together = whole_groups  # of a grouped convolution, where there are many, go at once

    # -- parameters ---------------------------------------------------------------------------------------------
    def axis(self, weight: Labelled, dim: int) -> Tensor:
        """Return the labels of a parameter's indices along one dimension."""
        assert weight.param is not None
        key = (weight.param, dim)
        if key not in self._axes:
            self._axes[key] = self.store.new(self.shapes[weight.param][dim])
        return self._axes[key]

    @property
    def axes(self) -> dict[tuple[str, int], Tensor]:
        return self._axes

    def elements(self, weight: Labelled) -> Tensor:
        """Return the labels of a parameter's elements (for one dimension, those of its axis)."""
        assert weight.param is not None
        if len(self.shapes[weight.param]) == 1:
            return self.axis(weight, 0)
        if weight.param not in self._elements:
            shape = self.shapes[weight.param]
            self._elements[weight.param] = self.store.new(shape.numel()).reshape(shape)
        return self._elements[weight.param]

    @property
    def element_labels(self) -> dict[str, Tensor]:
        return self._elements

    def is_labelled(self, value: Any) -> bool:
        return isinstance(value, Labelled)

    def labels(self, value: Any) -> Tensor:
        """Return the labels of a value; a tensor known from the start (a constant) has none."""
        if isinstance(value, Labelled):
            return self.elements(value) if value.labels is None else value.labels
        if isinstance(value, Tensor):
            return torch.full((1,) * max(value.dim(), 1), NONE).reshape((1,) * value.dim()).expand(value.shape)
        return torch.full((), NONE)

    def held(self, reason: str) -> Tensor:
        """Return one label that stays and says why; without dimensions, so that it expands over anything."""
        label = self.store.new(1).reshape(())
        self.store.lock(label, reason)
        return label

    # -- uniting ------------------------------------------------------------------------------------------------
    def settle(self, labels: Tensor) -> Tensor:
        """Shrink labels; where they change along several dimensions, first replace them by their roots."""
        labels = shrink(labels)
        return shrink(self.store.roots(labels)) if len(varying(labels)) > 1 else labels

    def unite_over(self, labels: Tensor, dims: Iterable[int]) -> Tensor:
        """Unite labels along dimensions, and return them with those cut to length 1."""
        for dim in dims:
            if labels.shape[dim] > 1 and labels.stride(dim) != 0:
                first = labels.narrow(dim, 0, 1)
                # NONE in the first slice must not hide the labels behind it.
                best = core(labels).amax(dim, keepdim=True) if bool((core(first) == NONE).any()) else core(first)
                self.store.unite(best, core(labels))
                shape = list(first.shape)
                labels = best.expand(shape)
            else:
                labels = labels.narrow(dim, 0, 1)
        return labels

    def meet(self, first: Tensor, second: Tensor) -> Tensor:
        """Unite the labels of two operands of an element-wise operation; return those of the result.

        An operand of length 1 where the other changes is broadcast there: a mask or an attention map scales all
        channels alike, so nothing is united with it. Where it also changes along a shared dimension (a scale per
        head, against channels within heads), what goes together depends on unions to come; `broadcasts` keeps it.
        """
        shape = torch.broadcast_shapes(first.shape, second.shape)
        a, b = core(first.expand(shape)), core(second.expand(shape))
        if bool((b == NONE).all()):
            return first.expand(shape)
        if bool((a == NONE).all()):
            return second.expand(shape)
        changes_a, changes_b = set(varying(a)), set(varying(b))
        broadcast_a = {dim for dim in changes_b - changes_a if _length(first, dim, len(shape)) == 1}
        broadcast_b = {dim for dim in changes_a - changes_b if _length(second, dim, len(shape)) == 1}
        if not broadcast_a and not broadcast_b:
            self.store.unite(a, b)
        elif broadcast_a and broadcast_b:
            for labels in (a, b):
                self.store.lock(labels, "two kinds of channels meet element by element")
        elif broadcast_a and changes_a:
            self.broadcasts.append((a, b))
        elif broadcast_b and changes_b:
            self.broadcasts.append((b, a))
        wide, other = (b, a) if broadcast_a or (not broadcast_b and len(changes_b) > len(changes_a)) else (a, b)
        return shrink(torch.where(wide == NONE, other, wide)).expand(shape)

    def attach(self, parameter: Any, channels: Tensor) -> None:
        """Let a vector (bias, scale, running mean) go with the channels that it belongs to."""
        if not isinstance(parameter, Labelled):
            return
        labels = self.labels(parameter)
        self.store.unite(labels.reshape(-1), channels)

    def tie_groups(self, channels: Tensor, groups: int, *, whole: bool) -> None:
        """Unite channels so that groups stay equal: each group as a whole, or the same place of every group."""
        grouped = channels.reshape(groups, -1)
        self.store.unite(grouped[:, :1] if whole else grouped[:1], grouped)

    def weighted(
        self,
        call: Call,
        weight: Any,
        columns: Tensor,
        *,
        in_dim: int,
        groups: int = 1,
        transposed: bool = False,
    ) -> Tensor:
        """A weighted sum: note which labels each column reads; return the labels of the outputs."""
        if not isinstance(weight, Labelled) or weight.param is None:
            if isinstance(weight, Labelled) and weight.elementwise and groups == 1:
                return self._composed_weight(call, weight, columns, in_dim)
            return self._computed_weight(call, weight, columns, in_dim, groups)
        if weight.labels is not None:
            return self._derived_weight(call, weight, columns, in_dim, groups)
        reads, makes = self.axis(weight, in_dim), self.axis(weight, 1 - in_dim)
        self.producers.add((weight.param, 1 - in_dim))
        if groups == 1:
            self.store.unite(reads, columns)
            return makes
        if transposed:  # weight (in, out per group)
            self.store.unite(reads, columns)
            return self._grouped_transposed(columns, makes, groups)
        if columns.numel() == groups or (self.together and groups >= FEW_GROUPS):
            # One group, inputs and outputs, stays or goes; the weight's columns within a group stay.
            self.store.unite(columns.reshape(groups, -1)[:, :1], columns.reshape(groups, -1))
            self.store.unite(columns.reshape(groups, -1)[:, :1], makes.reshape(groups, -1))
            self.store.lock(reads, f"columns within the groups of {weight.param}")
        else:
            self.tie_groups(makes, groups, whole=False)
            self.store.unite(reads.reshape(1, -1), columns.reshape(groups, -1))
        return makes

    def _grouped_transposed(self, columns: Tensor, makes: Tensor, groups: int) -> Tensor:
        outputs = self.store.new(groups * makes.numel())
        if columns.numel() == groups or (self.together and groups >= FEW_GROUPS):
            self.tie_groups(columns, groups, whole=True)
            self.store.unite(columns.reshape(groups, -1)[:, :1], outputs.reshape(groups, -1))
            self.store.lock(makes, "columns within the groups of a transposed convolution")
        else:
            self.tie_groups(columns, groups, whole=False)
            self.store.unite(makes.reshape(1, -1), outputs.reshape(groups, -1))
        return outputs

    def _derived_weight(self, call: Call, weight: Labelled, columns: Tensor, in_dim: int, groups: int) -> Tensor:
        """A weight that is a slice, a transpose or the like of a parameter: its elements go with rows and columns."""
        labels = self.labels(weight)
        if groups != 1 or labels.dim() < 2:
            return self._computed_weight(call, weight, columns, in_dim, groups)
        reads = labels.movedim(in_dim, 0).reshape(columns.numel(), -1)
        makes = self.store.new(labels.shape[1 - in_dim])
        self.owners.append((columns, reads))
        self.owners.append((makes, labels.movedim(1 - in_dim, 0).reshape(makes.numel(), -1)))
        self.made_by_slices.append(makes)
        return makes

    def _composed_weight(self, call: Call, weight: Labelled, columns: Tensor, in_dim: int) -> Tensor:
        """A scaled, masked or summed kernel: the elements of all it is made of go with its rows and columns."""
        makes = self._derived_weight(call, weight, columns, in_dim, 1)
        self.composed.append((makes, columns, self.labels(weight).movedim(in_dim, 1)))
        for name in sorted(weight.made_of or ()):
            if self.shapes[name] == weight.shape:
                self.producers.add((name, 1 - in_dim))
                self.store.unite(self.axis(Labelled(None, weight.shape, name), 1 - in_dim), makes)
        return makes

    def _computed_weight(self, call: Call, weight: Any, columns: Tensor, in_dim: int, groups: int) -> Tensor:
        """A weight that forward computes (normalized, standardized, generated) is left alone."""
        reason = f"weight computed in {call.where()}"
        self.store.lock(columns, reason)
        if isinstance(weight, Labelled):
            self.store.lock(self.labels(weight), reason)
        count = weight.shape[1 - in_dim] * (groups if in_dim == 0 and groups > 1 else 1)
        rows = self.store.new(count)
        self.store.lock(rows, reason)
        if isinstance(weight, Labelled):
            self._list_as_kept(weight, 1 - in_dim, reason)
        return rows

    def _list_as_kept(self, weight: Labelled, out_dim: int, reason: str) -> None:
        """Name the parameter that a computed weight stands for: the one of its shape."""
        for name in sorted(weight.made_of or ()):
            if self.shapes[name] == weight.shape:
                if name.rpartition(".")[2] != "weight":
                    reason = "its weight is computed from other parameters (parametrization)"
                self.producers.add((name, out_dim))
                self.store.lock(self.axis(Labelled(None, weight.shape, name), out_dim), reason, foremost=True)

    # -- cost ---------------------------------------------------------------------------------------------------
    def count_macs(self, call: Call, weight: Any, positions: float) -> None:
        if not isinstance(weight, Labelled):
            return
        if weight.param is None and weight.labels is not None:  # computed: all of it stays
            self.work.append(Work(call.node, None, positions * weight.shape.numel(), (weight.labels,)))
        elif weight.labels is None:
            self.work.append(Work(call.node, weight.param, positions))

    def count_activation_macs(self, call: Call, macs: float, operands: tuple[Tensor, ...]) -> None:
        if all(operand.made_of is not None for operand in call.labelled(every=True)):
            return  # a weight is being computed: once, not for each sample
        batch = call.shape()[0] if call.shape() else 1
        self.work.append(Work(call.node, None, macs / max(batch, 1), operands))


def lock(trace: Trace, call: Call) -> Any:
    """What we know nothing about keeps all the channels that it reads, and all that it makes.

    With an activation among its operands it is a layer, and its weights are listed as such.
    """
    reason = f"read by {call.name} in {call.where()}"
    operands = list(call.labelled(every=True))
    layer = any(operand.made_of is None for operand in operands)
    for operand in operands:
        if operand.param is None:
            trace.store.lock(trace.labels(operand), reason)
            continue
        dims = len(trace.shapes[operand.param])
        trace.store.lock(trace.elements(operand), reason)
        for dim in range(dims):
            trace.store.lock(trace.axis(operand, dim), reason)
        if layer and dims > 1 and operand.made_of:
            trace.producers.add((operand.param, 0))
    return call.like(trace.held(reason))
