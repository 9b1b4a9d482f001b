"""The order in which `GraphModule` executes a graph, worked out once: what to call, on what, what to drop after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from compress.errors import UnsupportedOperatorError, nearest
from compress.graph.naming import PARAMETER, SIGNATURE_KIND
from compress.graph.operator_node import OperatorNode, Run
from compress.graph.operators import FIXED_INPUTS, HOST_INPUTS, OPERATORS

DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Replacement:
    """A value that the graph's nodes do not compute, but a module does, from other values by name.

    Where the value is an initializer, all that read it read what the module makes of it.
    """

    module: torch.nn.Module
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One call: `run(*values[sources])` into `targets`; then `dead` values are dropped."""

    label: str
    run: Run
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    dead: tuple[int, ...]
    single: bool


@dataclass
class Plan:
    """Instructions over a list of slots, and what each slot holds before the first instruction."""

    instructions: list[Instruction] = field(default_factory=list)
    template: list[Tensor | None] = field(default_factory=list)  # constants that stay in host memory
    inputs: list[int] = field(default_factory=list)
    tensors: dict[str, int] = field(default_factory=dict)  # parameters and buffers, by value name
    outputs: list[int] = field(default_factory=list)
    dtypes: list[torch.dtype | None] = field(default_factory=list)  # what an integer output must be cast to


def to_torch(tensor: ir.TensorProtocol) -> Tensor:
    """Return an initializer as a torch tensor of its own; 4-bit integers as int8."""
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(tensor.numpy().view(np.uint16).copy()).view(torch.bfloat16)
    if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        return torch.from_numpy(tensor.numpy().astype(np.int8))
    return torch.from_numpy(np.array(tensor.numpy(), copy=True))


def is_trainable(value: ir.Value) -> bool:
    """Tell a weight from a constant among the initializers.

    The torch exporter marks parameters and buffers. Elsewhere: a float tensor of more than one element
    that some node reads as data (bounds, scales, running statistics are not).
    """
    tensor = value.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
        return False
    read_as_data = any(use.idx not in FIXED_INPUTS.get(use.node.op_type, ()) for use in value.uses())
    kind = value.metadata_props.get(SIGNATURE_KIND)
    if kind is not None:
        return kind == PARAMETER and read_as_data
    return read_as_data and tensor.size > 1


def check_supported(nodes: list[ir.Node]) -> None:
    """Refuse, before anything runs, a graph with operators that the table lacks.

    Raises:
        UnsupportedOperatorError: names the first such node and all missing operators.
    """
    missing = [node for node in nodes if node.domain not in DOMAINS or node.op_type not in OPERATORS]
    if not missing:
        return
    kinds = sorted({f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in missing})
    hint = nearest(missing[0].op_type, OPERATORS) if len(kinds) == 1 else f"missing: {', '.join(kinds)}"
    raise UnsupportedOperatorError(
        f"node {missing[0].name!r}: operator {missing[0].op_type} (domain {missing[0].domain or 'ai.onnx'!r}) "
        f"cannot be executed with gradients; {hint}"
    )


class Compiler:
    """Builds the plan of one graph.

    A value is *known* (computed here, once), in *host* memory (shape arithmetic: small CPU integers)
    or on the device of the inputs and weights.
    """

    def __init__(self, graph: ir.Model, trained: set[str], replacements: Mapping[str, Replacement]) -> None:
        self.graph = graph.graph
        self.opset = graph.opset_imports.get("", graph.opset_imports.get("ai.onnx", 20))
        self.trained, self.replacements = trained, replacements
        self.known: dict[str, Tensor] = {}
        self.host: set[str] = set()
        self.slots: dict[tuple[str, bool], int] = {}  # (value, host copy?) → slot
        self.changed: dict[str, int] = {}  # initializer that a module replaces → slot of the result
        self.plan = Plan()

    def compile(self) -> Plan:
        for name, value in self.graph.initializers.items():
            if name not in self.trained and value.const_value is not None:
                self.known[name] = to_torch(value.const_value)
        self.plan.inputs = [self._slot(value.name or "") for value in self.graph.inputs]
        needed = self._needed()
        check_supported([node for node in needed if not self._replaced(node)])
        calls = list(self._changed_initializers())
        calls += [call for node in needed for call in self._calls(node)]
        self.plan.outputs = [self._read(value.name or "", host=False) for value in self.graph.outputs]
        self.plan.dtypes = [_integer_dtype(value) for value in self.graph.outputs]
        self.plan.instructions = list(self._with_lifetimes(calls))
        self.plan.template += [None] * (len(self.slots) - len(self.plan.template))
        return self.plan

    def _changed_initializers(self) -> Iterator[tuple[str, Run, tuple[int, ...], tuple[int, ...], bool]]:
        for name, change in self.replacements.items():
            if name in self.trained:
                sources = tuple(self._read(given, host=False) for given in change.inputs)
                self.changed[name] = self._slot(f"{name} replaced")
                yield repr(name), change.module, sources, (self.changed[name],), True

    def _replaced(self, node: ir.Node) -> bool:
        return any(output.name in self.replacements for output in node.outputs)

    def _needed(self) -> list[ir.Node]:
        """Return the nodes that the outputs depend on once the replacements stand, in order."""
        wanted = {value.name for value in self.graph.outputs}
        needed = []
        for node in reversed(list(self.graph)):
            if not wanted & {output.name for output in node.outputs}:
                continue
            needed.append(node)
            for name in (output.name or "" for output in node.outputs):
                if name in self.replacements:
                    wanted.update(self.replacements[name].inputs)
            if not self._replaced(node):
                wanted.update(value.name for value in node.inputs if value is not None)
        return needed[::-1]

    def _calls(self, node: ir.Node) -> Iterator[tuple[str, Run, tuple[int, ...], tuple[int, ...], bool]]:
        label = f"{node.name!r} ({node.op_type})"
        for name in (output.name or "" for output in node.outputs):
            if name in self.replacements:
                change = self.replacements[name]
                sources = tuple(self._read(given, host=False) for given in change.inputs)
                yield label, change.module, sources, (self._slot(name),), True
        if self._replaced(node):
            return
        names = [None if value is None else value.name or "" for value in node.inputs]
        view = self._view(node, names)
        run = OPERATORS[node.op_type](view)
        if all(name is None or name in self.known for name in names):
            self._fold(node, run, names)
            return
        on_host = self._is_host(names)
        if on_host:
            self.host.update(output.name or "" for output in node.outputs)
        reads_numbers = HOST_INPUTS.get(node.op_type, frozenset())
        sources = tuple(self._read(name, host=on_host or index in reads_numbers) for index, name in enumerate(names))
        if node.op_type in ("Shape", "Size"):
            self.host.update(output.name or "" for output in node.outputs)
        elif not on_host:
            stray = frozenset(
                i for i, name in enumerate(names) if name in self.host and i not in reads_numbers and name is not None
            )
            if stray:
                run = moved(run, stray, reads_numbers)
        yield label, run, sources, tuple(self._slot(output.name or "") for output in node.outputs), view.outputs == 1

    def _is_host(self, names: list[str | None]) -> bool:
        given = [name for name in names if name is not None]
        return any(name in self.host for name in given) and all(
            name in self.host or name in self.known for name in given
        )

    def _view(self, node: ir.Node, names: list[str | None]) -> OperatorNode:
        return OperatorNode(
            node.op_type,
            node.name or "",
            node.version or self.opset,
            {key: attribute.value for key, attribute in node.attributes.items()},
            tuple(self.known.get(name) if name is not None else None for name in names),
            tuple(value.dtype if value is not None else None for value in node.inputs),
            tuple(name is not None for name in names),
            len([output for output in node.outputs if output.name]),
        )

    def _fold(self, node: ir.Node, run: Run, names: list[str | None]) -> None:
        with torch.no_grad():
            results = run(*(self.known[name] if name is not None else None for name in names))
        for output, result in zip(node.outputs, results if isinstance(results, (tuple, list)) else [results]):
            self.known[output.name or ""] = result

    def _slot(self, name: str, host: bool = False) -> int:
        return self.slots.setdefault((name, host), len(self.slots))

    def _read(self, name: str | None, *, host: bool) -> int:
        """Return the slot to read a value from; a constant has one in host memory, one on the device."""
        if name is None:
            return self._slot("", host=True)  # never filled: an absent input
        if name in self.changed:
            return self.changed[name]
        if name in self.known:
            slot = self._slot(name, host=host)
            if host:
                self._preset(slot, self.known[name])
            else:
                self.plan.tensors[name] = slot
            return slot
        slot = self._slot(name)
        if name in self.trained:
            self.plan.tensors[name] = slot
        return slot

    def _preset(self, slot: int, value: Tensor) -> None:
        self.plan.template += [None] * (slot + 1 - len(self.plan.template))
        self.plan.template[slot] = value

    def _with_lifetimes(
        self, calls: list[tuple[str, Run, tuple[int, ...], tuple[int, ...], bool]]
    ) -> Iterator[Instruction]:
        last: dict[int, int] = {}
        for index, (_, _, sources, targets, _) in enumerate(calls):
            last.update(dict.fromkeys((*sources, *targets), index))
        kept = {*self.plan.outputs, *self.plan.tensors.values(), *self.plan.inputs}
        for index, (label, run, sources, targets, single) in enumerate(calls):
            dead = {slot for slot in (*sources, *targets) if last[slot] == index} - kept
            constant = {
                slot for slot in dead if slot < len(self.plan.template) and self.plan.template[slot] is not None
            }
            yield Instruction(label, run, sources, targets, tuple(dead - constant), single)


def moved(run: Run, stray: frozenset[int], numbers: frozenset[int]) -> Run:
    """Return `run` with its inputs that come from shape arithmetic brought to the others' device."""

    def call(*inputs: Any) -> Any:
        device = next(
            (t.device for i, t in enumerate(inputs) if t is not None and i not in stray and i not in numbers), None
        )
        if device is None or device.type == "cpu":
            return run(*inputs)
        return run(*(t.to(device) if i in stray else t for i, t in enumerate(inputs)))

    return call


def _integer_dtype(value: ir.Value) -> torch.dtype | None:
    """Quantized tensors are carried as float; a graph output must be the integer that it is declared to be."""
    integers = {
        ir.DataType.INT8: torch.int8,
        ir.DataType.UINT8: torch.uint8,
        ir.DataType.INT16: torch.int16,
        ir.DataType.UINT16: torch.uint16,
        ir.DataType.INT32: torch.int32,
    }
    return integers.get(value.dtype) if value.dtype is not None else None
