"""A network run value by value on held samples, so that what a layer sees is at hand without a run from the start.

The exported program is executed node by node for a few batches of one size, as far as is asked for. Only what later nodes
read is held. Parameters and buffers are the module's own: a layer that is fitted on the way is used as fitted from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node
from torch.utils import _pytree as pytree

from compress.batches import Batch, call
from compress.pruning.channels import export_program
from compress.pruning.verifying import difference, tensors_of

SAME = 1e-4  # largest difference from the module's own outputs, relative
LAYER_CALLS = ("aten.conv1d.", "aten.conv2d.", "aten.conv3d.", "aten.linear.")
# What leaves values as they are in eval mode.
_TRANSPARENT = (
    "aten.dropout.",
    "aten.clone.",
    "aten.contiguous.",
    "aten.detach.",
    "aten.alias.",
    "aten.feature_dropout.",
)

Watch = Callable[[Tensor, int], None]  # a value, and the number of the batch that it is of


@dataclass(frozen=True)
class Place:
    """One layer in a program: its call, the batch-norm right behind it, the addition that its branch ends in."""

    node: Node
    batchnorm: Node | None = None
    addition: Node | None = None
    other: Node | None = None  # what the branch is added to

    @property
    def source(self) -> Any:
        return self.node.args[0]


class Replay:
    """One module's program, and how far each batch has come in it."""

    def __init__(self, module: nn.Module, batch: Batch) -> None:
        """Export `module` at the size of `batch`.

        Raises:
            ExportError: it cannot be exported.
            ValueError: the program does not give what the module gives.
        """
        program = export_program(module, batch)
        self.module, self.graph = module, program.graph_module
        self.nodes = [node for node in self.graph.graph.nodes if node.op == "call_function"]
        self.index = {node: place for place, node in enumerate(self.nodes)}
        self.known: dict[Node, Any] = {}  # the same for every batch
        self.owners: dict[Node, str] = {}  # parameters and buffers by name
        self.user: list[Node] = []
        self._read_inputs(program)
        self.last = self._last_uses()
        self.position = 0
        self.values: list[dict[Node, Any]] = []
        self.watched: dict[Node, Watch] = {}
        outputs = [spec.kind == OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs]
        self._check(batch, outputs)

    def _read_inputs(self, program: Any) -> None:
        tensors: dict[str, Any] = dict(self.module.named_parameters(remove_duplicate=False))
        tensors |= dict(self.module.named_buffers(remove_duplicate=False))
        placeholders = {node.name: node for node in self.graph.graph.nodes if node.op == "placeholder"}
        for spec in program.graph_signature.input_specs:
            node = placeholders[spec.arg.name]
            if spec.kind == InputKind.USER_INPUT:
                self.user.append(node)
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.known[node], self.owners[node] = tensors[spec.target], spec.target
            else:
                self.known[node] = program.constants[spec.target]
        for node in self.graph.graph.nodes:
            if node.op == "get_attr":
                value: Any = self.graph
                for part in str(node.target).split("."):
                    value = getattr(value, part)
                self.known[node] = value

    def _last_uses(self) -> dict[Node, int]:
        last: dict[Node, int] = {}
        for place, node in enumerate(self.nodes):
            for used in node.all_input_nodes:
                last[used] = place
        for node in self.graph.graph.nodes:
            if node.op == "output":
                last |= dict.fromkeys(node.all_input_nodes, len(self.nodes))
        return last

    def _check(self, batch: Batch, is_output: Sequence[bool]) -> None:
        """Hold the program to the module on one batch."""
        self.add(batch)
        self.advance(len(self.nodes))
        values = self.values.pop()
        self.position = 0
        results = next(node for node in self.graph.graph.nodes if node.op == "output").args[0]
        given = [
            values.get(item, self.known.get(item)) if isinstance(item, Node) else item
            for item, wanted in zip(results, is_output)
            if wanted
        ]
        wanted = tensors_of(call(self.module, batch))
        given = [item for item in given if isinstance(item, Tensor)]
        if len(given) != len(wanted) or difference(given, wanted) > SAME:
            raise ValueError("the program computes something else")

    def add(self, batch: Batch) -> None:
        """Let one more batch come to where the others are."""
        positional, named = batch.arguments(self.module)
        leaves = pytree.tree_leaves((positional, named))
        if len(leaves) != len(self.user):
            raise ValueError("the program takes other inputs")
        self.values.append(dict(zip(self.user, leaves)))
        self._run(len(self.values) - 1, 0, self.position)

    def advance(self, stop: int) -> None:
        """Run every batch up to, and without, the node of that number."""
        if stop > self.position:
            for number in range(len(self.values)):
                self._run(number, self.position, stop)
            self.position = stop

    def value(self, node: Node, number: int) -> Any:
        return self.known[node] if node in self.known else self.values[number][node]

    def has(self, node: Node) -> bool:
        """Whether a value is there: computed, and still to be read by a node to come."""
        return node in self.known or (bool(self.values) and node in self.values[0])

    def elements(self, place: int) -> int:
        """Elements that one batch holds before the node of that number runs."""
        made = [node for node in self.nodes[:place] if self.last.get(node, -1) >= place]
        made += [node for node in self.user if self.last.get(node, -1) >= place]
        return sum(value.numel() for node in made if isinstance(value := node.meta.get("val"), Tensor))

    def _run(self, number: int, start: int, stop: int) -> None:
        values = self.values[number]

        def read(node: Node) -> Any:
            return self.known[node] if node in self.known else values[node]

        for place in range(start, stop):
            node = self.nodes[place]
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), read)
            values[node] = node.target(*args, **kwargs)
            if node in self.watched:
                self.watched[node](values[node], number)
            for used in (node, *node.all_input_nodes):
                if self.last.get(used, -1) <= place:
                    values.pop(used, None)

    # -- where layers stand
    def places(self, names: Mapping[str, int]) -> dict[str, Place]:
        """Where layers are called, by name, in running order: those whose weight (by id) one plain call reads."""
        calls: dict[str, list[Node]] = {}
        names_of = {tensor: name for name, tensor in names.items()}
        for node in self.nodes:
            if str(node.target).startswith(LAYER_CALLS) and isinstance(node.args[1], Node):
                name = names_of.get(id(self.known.get(node.args[1])))
                if name is not None:
                    calls.setdefault(name, []).append(node)
        return {name: self._place(found[0]) for name, found in calls.items() if len(found) == 1}

    def _place(self, node: Node) -> Place:
        after, last = _only_reader(node), node
        batchnorm = None
        if after is not None and self._normalizes(after, node):
            batchnorm, last = after, after
            after = _only_reader(after)
        while after is not None and str(after.target).startswith(_TRANSPARENT) and after.args[0] is last:
            last, after = after, _only_reader(after)
        if after is None or not str(after.target).startswith(("aten.add.Tensor", "aten.add_.Tensor")):
            return Place(node, batchnorm)
        others = [item for item in after.args[:2] if item is not last]
        plain = after.kwargs.get("alpha", 1) == 1 and len(others) == 1 and isinstance(others[0], Node)
        if not plain or _shape(others[0]) != _shape(node) or _shape(after) != _shape(node):
            return Place(node, batchnorm)
        return Place(node, batchnorm, after, others[0])  # type: ignore[arg-type]  # they are nodes: matched above

    def _normalizes(self, node: Node, layer: Node) -> bool:
        """Whether it is a batch-norm with statistics of its own over the outputs of `layer`."""
        if (
            not str(node.target).startswith("aten.batch_norm.")
            or node.args[0] is not layer
            or node.args[5] is not False
        ):
            return False
        mean = node.args[3]
        flat = str(layer.target).startswith("aten.linear.") and len(_shape(layer)) != 2
        return isinstance(mean, Node) and mean in self.owners and len(mean.users) == 1 and not flat


def _only_reader(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def replays(pair: Sequence[nn.Module], batch: Batch) -> tuple[Replay, ...] | None:
    """A replay of each module, or None where one of them cannot be run so."""
    try:
        return tuple(Replay(module, batch) for module in pair)
    except Exception:  # whatever torch.export or an operator raises: there is another way
        return None
