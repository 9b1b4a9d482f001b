"""nn.RNN as ONNX's own operator, one node for all steps; the exporter's form has a copy of the layer for each step.

rnn(x, h, [W, R, bW, bR])    RNN(x, W, R, [bW, bR], h), h' = act(W·x + bW + R·h + bR), act Tanh or Relu

https://onnx.ai/onnx/operators/onnx__RNN.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnxscript
import torch

ATEN = torch.ops.aten
op: Any = onnxscript.opset18  # whose typed methods know no lists for small constants


def _rnn(activation: str) -> Callable[..., Any]:
    # The exporter reads these annotations to tell inputs from attributes.
    def run(
        x: Any,
        hx: Any,
        params: Sequence[Any],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        directions = 2 if bidirectional else 1
        each = 4 if has_biases else 2  # tensors of one direction of one layer
        states = []
        if batch_first:
            x = op.Transpose(x, perm=[1, 0, 2])
        for layer in range(num_layers):
            first = layer * directions * each
            own = [params[first + at * each : first + (at + 1) * each] for at in range(directions)]
            weights, recurrent = (_stacked([part[place] for part in own]) for place in (0, 1))
            biases = _stacked([op.Concat(*part[2:], axis=0) for part in own]) if has_biases else None
            start = op.Slice(hx, [layer * directions], [(layer + 1) * directions], [0])
            outputs, last = op.RNN(
                x,
                weights,
                recurrent,
                biases,
                None,
                start,
                activations=[activation] * directions,
                direction="bidirectional" if bidirectional else "forward",
                hidden_size=hx.shape[2],
            )
            # (steps, directions, batch, hidden) → (steps, batch, directions · hidden)
            x = op.Reshape(op.Transpose(outputs, perm=[0, 2, 1, 3]), [0, 0, -1])
            states.append(last)
        return (op.Transpose(x, perm=[1, 0, 2]) if batch_first else x), (
            op.Concat(*states, axis=0) if len(states) > 1 else states[0]
        )

    return run


def _stacked(tensors: list[Any]) -> Any:
    rows = [op.Unsqueeze(tensor, [0]) for tensor in tensors]
    return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]


TRANSLATIONS: Mapping[Any, Callable[..., Any]] = {
    ATEN.rnn_tanh.input: _rnn("Tanh"),
    ATEN.rnn_relu.input: _rnn("Relu"),
}
