"""GraphModule: an ONNX graph as a torch module, its weights as parameters, differentiable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from compress.counting import counted
from compress.errors import InputError, ModelError, first_words
from compress.graph.operators import FIXED_INPUTS
from compress.graph.plan import Compiler, Instruction, Plan, Replacement, is_trainable, to_torch


class GraphModule(nn.Module):
    """Executes an ONNX graph with torch functions; what is trained is written back into the graph.

    Float initializers that are weights become parameters, other constants buffers; the initializer
    "layer1.0.conv1.weight" is the parameter `layer1_0_conv1_weight` (`names` maps one to the other).
    Batch-norm keeps its inference form in `train()` too, dropout is the identity, as exported.
    Runs wherever its parameters and inputs are; shape arithmetic stays on the CPU.

    Args:
        graph: is cloned, never changed.
        replacements: values that a module computes in place of the graph's node, by value name.

    Raises:
        UnsupportedOperatorError: an operator that `OPERATORS` lacks, named with its node.

    >>> module = GraphModule(graph)              # doctest: +SKIP
    >>> loss(module(images), labels).backward()  # doctest: +SKIP
    >>> graph = module.write_back()              # doctest: +SKIP
    """

    def __init__(self, graph: ir.Model, *, replacements: Mapping[str, Replacement] | None = None) -> None:
        super().__init__()
        self.graph = prepared(graph)
        self.names: dict[str, str] = {}
        self.input_names = tuple(value.name or "" for value in self.graph.graph.inputs)
        self.output_names = tuple(value.name or "" for value in self.graph.graph.outputs)
        self.replacements = nn.ModuleDict()
        self._replaced: dict[str, tuple[str, tuple[str, ...]]] = {}  # value → (key in replacements, inputs)
        for name, change in (replacements or {}).items():
            known = (key for key, module in self.replacements.items() if module is change.module)
            key = next(known, None) or self._attribute(name, self.replacements)
            self.replacements[key] = change.module
            self._replaced[name] = (key, change.inputs)
        self._plan = self._compile(register=True)

    def _compile(self, *, register: bool) -> Plan:
        values = self.graph.graph.initializers
        trained = {name for name, value in values.items() if is_trainable(value)}
        changes = {name: Replacement(self.replacements[key], given) for name, (key, given) in self._replaced.items()}
        compiler = Compiler(self.graph, trained, changes)
        plan = compiler.compile()
        if register:
            for name in plan.tensors:
                self._register(name, compiler.known.get(name), trained)
        return plan

    def _register(self, name: str, constant: Tensor | None, trained: set[str]) -> None:
        key = self.names[name] = self._attribute(name, self)
        if name in trained:
            value = self.graph.graph.initializers[name].const_value
            assert value is not None  # is_trainable saw it
            self.register_parameter(key, nn.Parameter(to_torch(value)))
        else:
            # A constant computed here from others comes from the graph again, not from a state dict.
            self.register_buffer(key, constant, persistent=name in self.graph.graph.initializers)

    def _attribute(self, name: str, owner: nn.Module) -> str:
        key = re.sub(r"\W", "_", name) or "_"
        while hasattr(owner, key):
            key += "_"
        return key

    def forward(self, *inputs: Tensor) -> Any:
        """Run on inputs in the order of `input_names`; return the output, or a tuple of several.

        Raises:
            InputError: the number of inputs is not the graph's.
            ModelError: a node fails on these inputs; names it.
        """
        plan = self._plan
        if len(inputs) != len(plan.inputs):
            raise InputError(
                f"the graph takes {counted(len(plan.inputs), 'input')} ({', '.join(self.input_names)}), got {len(inputs)}"
            )
        values: list[Any] = plan.template.copy()
        for slot, given in zip(plan.inputs, inputs):
            values[slot] = given
        for name, slot in plan.tensors.items():
            values[slot] = getattr(self, self.names[name])
        for step in plan.instructions:
            try:
                result = step.run(*[values[i] for i in step.sources])
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError, IndexError) as error:
                raise ModelError(_failure(step, error)) from error
            if step.single:
                values[step.targets[0]] = result[0] if isinstance(result, (tuple, list)) else result
            else:
                for slot, part in zip(step.targets, result):
                    values[slot] = part
            for slot in step.dead:
                values[slot] = None
        outputs = tuple(
            values[slot] if dtype is None else values[slot].to(dtype) for slot, dtype in zip(plan.outputs, plan.dtypes)
        )
        return outputs[0] if len(outputs) == 1 else outputs

    def write_back(self) -> ir.Model:
        """Return a copy of the graph that holds the parameters as they are now."""
        graph = self.graph.clone()
        for name, key in self.names.items():
            parameter = self._parameters.get(key)
            if parameter is not None:
                set_initializer(graph, name, parameter)
        return graph

    def __getstate__(self) -> dict[str, Any]:
        # The plan holds closures and the graph mapped memory: neither can be pickled, both can be made again.
        state = self.__dict__.copy()
        state["_plan"] = None
        state["graph"] = ir.to_proto(self.graph).SerializeToString()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch gives it no types
        import onnx

        self.graph = ir.from_proto(onnx.ModelProto.FromString(state["graph"]))
        self._plan = self._compile(register=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        import copy

        duplicate = type(self).__new__(type(self))
        memo[id(self)] = duplicate
        shared = {"_plan": None, "graph": None}
        duplicate.__dict__.update(copy.deepcopy({**self.__dict__, **shared}, memo))
        duplicate.graph = self.graph.clone()
        duplicate._plan = duplicate._compile(register=False)
        return duplicate


def prepared(graph: ir.Model) -> ir.Model:
    """Return a copy with functions inlined and constants as initializers, for the compiler and for `write_back`."""
    graph = graph.clone()
    if graph.functions:
        graph = passes.InlinePass()(graph).model
    graph = passes.RemoveInitializersFromInputsPass()(graph).model
    graph = passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(graph).model
    _part_statistics(graph)
    return graph


def _part_statistics(graph: ir.Model) -> None:
    """Give what is no weight (running statistics) an initializer of its own, where an equal weight shares one with it.

    Exporters store equal tensors once: a fresh batch-norm's mean is its bias, both zeros, and would be trained with it.
    """
    for name, value in list(graph.graph.initializers.items()):
        fixed = [use for use in value.uses() if use.idx in FIXED_INPUTS.get(use.node.op_type, ())]
        if not fixed or len(fixed) == len(value.uses()) or value.const_value is None or not is_trainable(value):
            continue
        own = ir.Value(name=f"{name}_statistics", shape=value.shape, type=value.type, const_value=value.const_value)
        graph.graph.register_initializer(own)
        for use in fixed:
            use.node.replace_input_with(use.idx, own)


def set_initializer(graph: ir.Model, name: str, value: Tensor) -> None:
    """Give the initializer `name` the values of a tensor; its element type stays."""
    target = graph.graph.initializers[name]
    before = target.const_value
    if before is None:
        raise ModelError(f"initializer {name!r} has no values to replace")
    # A copy: the parameter's memory changes with the next optimizer step.
    array = value.detach().cpu()
    if before.dtype == ir.DataType.BFLOAT16:
        target.const_value = ir.tensor(array.float().numpy(), dtype=before.dtype, name=name)
        return
    target.const_value = ir.Tensor(array.numpy().astype(before.dtype.numpy(), copy=True), dtype=before.dtype, name=name)


def _failure(step: Instruction, error: Exception) -> str:
    return f"node {step.label} fails on these inputs: {first_words(error)}"
