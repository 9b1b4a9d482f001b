"""ONNX LSTM, GRU, RNN as torch's own recurrent kernels.

ONNX stacks the gates as  i o f c  (LSTM) and  z r h  (GRU); torch as  i f c o  and  r z n.
Both give Y[t, direction, batch, hidden].
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.graph.operator_node import Builder, OperatorNode, Run

# Where each of torch's gates stands among ONNX's.
ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


def recurrent(node: OperatorNode) -> Run:
    """Build an LSTM, GRU or RNN of one layer, in any direction, with its optional initial states."""
    kind, hidden = node.op_type, node.attribute("hidden_size")
    direction, batch_first = node.attribute("direction", "forward"), bool(node.attribute("layout", 0))
    function = _function(node)

    def run(
        x: Tensor,
        weight: Tensor,
        recurrence: Tensor,
        bias: Tensor | None = None,
        lengths: Tensor | None = None,
        first: Tensor | None = None,
        cell: Tensor | None = None,
        peepholes: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        x = x.transpose(0, 1) if batch_first else x
        x = x.flip(0) if direction == "reverse" else x
        directions = weight.shape[0]
        states = [_state(given, x, directions, hidden, batch_first) for given in (first, cell)]
        flat = _parameters(weight, recurrence, bias, ORDERS[kind], hidden)
        y, *last = function(x, states if kind == "LSTM" else states[0], flat, directions == 2)
        y = y.reshape(*y.shape[:2], directions, hidden).transpose(1, 2)
        y = y.flip(0) if direction == "reverse" else y
        if batch_first:
            return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
        return (y, *last)

    return run


def _function(node: OperatorNode) -> Run:
    kind, directions = node.op_type, 2 if node.attribute("direction") == "bidirectional" else 1
    if node.has(4):
        raise node.refuse("sequence_lens")
    if node.has(7):
        raise node.refuse("a peephole connection")
    if node.attribute("clip") is not None or node.attribute("input_forget", 0):
        raise node.refuse("clip or input_forget")
    given = tuple(node.attribute("activations", DEFAULTS[kind] * directions))
    names = tuple(name.capitalize() for name in given)
    if kind == "RNN" and set(names) == {"Relu"}:
        return _native(torch.rnn_relu)
    if names != DEFAULTS[kind] * directions:
        raise node.refuse(f"activations {', '.join(given)}")
    if kind == "GRU" and not node.attribute("linear_before_reset", 0):
        return _gru_reset_first
    kernels: dict[str, Run] = {"LSTM": torch.lstm, "GRU": torch.gru, "RNN": torch.rnn_tanh}
    return _native(kernels[kind])


def _native(function: Run) -> Run:
    def run(x: Tensor, state: Tensor | list[Tensor], flat: list[Tensor], both: bool) -> tuple[Tensor, ...]:
        return function(x, state, flat, True, 1, 0.0, False, both, False)

    return run


def _state(given: Tensor | None, x: Tensor, directions: int, hidden: int, batch_first: bool) -> Tensor:
    if given is None:
        return x.new_zeros(directions, x.shape[1], hidden)
    return given.transpose(0, 1).contiguous() if batch_first else given


def _parameters(
    weight: Tensor, recurrence: Tensor, bias: Tensor | None, order: tuple[int, ...], hidden: int
) -> list[Tensor]:
    """Return torch's flat list (input weight, recurrent weight, two biases) for each direction."""
    gates, flat = len(order), []
    for i in range(weight.shape[0]):
        biases = weight.new_zeros(2 * gates * hidden) if bias is None else bias[i]
        for stacked in (weight[i], recurrence[i], *biases.chunk(2)):
            parts = stacked.reshape(gates, hidden, *stacked.shape[1:])
            flat.append(torch.cat([parts[gate] for gate in order]))
    return flat


def _gru_reset_first(x: Tensor, state: Tensor, flat: list[Tensor], both: bool) -> tuple[Tensor, Tensor]:
    """Run a GRU whose reset gate acts before the recurrent product (linear_before_reset=0).

    h' = tanh(W x + b + R (r*h) + c),  h ← (1 - z) h' + z h
    """
    outputs, last = [], []
    for i in range(2 if both else 1):
        weight, recurrence, bias, offset = flat[4 * i : 4 * i + 4]
        steps = x.flip(0) if i else x
        inputs, h, seen = torch.nn.functional.linear(steps, weight, bias + offset), state[i], []
        r_and_z, candidate = recurrence.split([2 * h.shape[-1], h.shape[-1]])
        for step in inputs:
            gates, new = step.split([2 * h.shape[-1], h.shape[-1]], -1)
            r, z = torch.sigmoid(gates + h @ r_and_z.t()).chunk(2, -1)
            h = (1 - z) * torch.tanh(new + (r * h) @ candidate.t()) + z * h
            seen.append(h)
        y = torch.stack(seen)
        outputs.append(y.flip(0) if i else y)
        last.append(h)
    return torch.cat(outputs, -1), torch.stack(last)


RECURRENT: dict[str, Builder] = {"GRU": recurrent, "LSTM": recurrent, "RNN": recurrent}
