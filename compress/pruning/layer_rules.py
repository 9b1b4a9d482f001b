"""Rules of operators with parameters: weighted sums make new labels, normalization reads them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.pruning.contraction import contract_matmul
from compress.pruning.labels import FEW_GROUPS
from compress.pruning.trace import Call, Labelled, Trace, lock


def convolution(trace: Trace, call: Call) -> Tensor:
    transposed = "transpose" in call.name or bool(call.arg("transposed", False))
    inputs, weight = trace.labels(call.arg(0)), call.arg("weight")
    groups, space = call.arg("groups", 1), len(weight.shape) - 2
    channel_dim = inputs.dim() - space - 1
    columns = trace.unite_over(inputs, [dim for dim in range(inputs.dim()) if dim != channel_dim]).reshape(-1)
    rows = trace.weighted(call, weight, columns, in_dim=0 if transposed else 1, groups=groups, transposed=transposed)
    trace.attach(call.arg("bias", None), rows)
    if transposed:
        trace.count_macs(call, weight, inputs.shape[channel_dim + 1 :].numel())
    else:
        trace.count_macs(call, weight, call.shape()[channel_dim + 1 :].numel())
    return rows.reshape(-1, *[1] * space).expand(call.shape())


def linear(trace: Trace, call: Call) -> Tensor:
    inputs, weight = trace.labels(call.arg(0)), call.arg("weight")
    columns = trace.unite_over(inputs, range(inputs.dim() - 1)).reshape(-1)
    rows = trace.weighted(call, weight, columns, in_dim=1)
    trace.attach(call.arg("bias", None), rows)
    trace.count_macs(call, weight, inputs.shape[1:-1].numel())
    return rows.expand(call.shape())


def matmul(trace: Trace, call: Call) -> Tensor:
    """A product with a parameter is a linear layer; one of two activations is a contraction."""
    left, right = (call.arg(1), call.arg(2)) if call.name in ("addmm", "baddbmm") else (call.arg(0), call.arg(1))
    parameter = isinstance(right, Labelled) and right.param is not None and len(right.shape) == 2
    if parameter and isinstance(left, Labelled) and left.param is None:
        inputs = trace.labels(left)
        columns = trace.unite_over(inputs, range(inputs.dim() - 1)).reshape(-1)
        result = trace.weighted(call, right, columns, in_dim=0)
        trace.count_macs(call, right, inputs.shape[1:-1].numel())
        result = result.expand(call.shape())
    else:
        result = contract_matmul(trace, call, left, right)
    if call.name in ("addmm", "baddbmm") and isinstance(call.arg(0), Labelled):
        result = trace.meet(result, trace.labels(call.arg(0)))
    return result


def embedding(trace: Trace, call: Call) -> Tensor:
    weight = call.arg(0)
    if isinstance(weight, Labelled) and weight.param is not None and weight.labels is None:
        trace.store.lock(trace.axis(weight, 0), f"vocabulary of {weight.param}")
        trace.producers.add((weight.param, 1))
        return trace.axis(weight, 1).expand(call.shape())
    return lock(trace, call)


def recurrent(trace: Trace, call: Call) -> Any:
    """LSTM, GRU and plain RNN layers: one set of hidden labels for all layers and directions."""
    inputs, parameters = call.arg(0), call.arg("params")
    gates = {"lstm": 4, "gru": 3}.get(call.name, 1)
    biases, layers = call.arg("has_biases"), call.arg("num_layers")
    directions = 2 if call.arg("bidirectional") else 1
    stride = 4 if biases else 2
    direct = all(isinstance(item, Labelled) and item.param and item.labels is None for item in parameters)
    if call.overload != "input" or not direct or len(parameters) != stride * layers * directions:
        return lock(trace, call)
    inputs_labels = trace.labels(inputs)
    hidden = trace.axis(parameters[1], 1)
    states = call.arg("hx")
    for state in states if isinstance(states, (tuple, list)) else [states]:
        if isinstance(state, Labelled):
            trace.store.unite(trace.unite_over(trace.labels(state), [0, 1]).reshape(-1), hidden)
    columns = trace.unite_over(inputs_labels, range(inputs_labels.dim() - 1)).reshape(-1)
    for layer in range(layers):
        for direction in range(directions):
            w_ih, w_hh, *bias = parameters[(layer * directions + direction) * stride :][:stride]
            trace.store.unite(trace.axis(w_ih, 1), columns)
            trace.store.unite(trace.axis(w_hh, 1), hidden)
            for item in (w_ih, w_hh, *bias):
                trace.store.unite(trace.axis(item, 0), hidden.repeat(gates))
            for item in (w_ih, w_hh):
                trace.producers.add((item.param, 0))
                trace.count_macs(call, item, inputs_labels.shape[1 if call.arg("batch_first") else 0])
        columns = hidden.repeat(directions)
    shapes = call.shapes()
    return tuple([columns.expand(shapes[0]), *(hidden.expand(shape) for shape in shapes[1:])])


def cell(trace: Trace, call: Call) -> Any:
    """One step of an LSTM, GRU or plain RNN: the state's labels are those of the hidden units."""
    gates = {"lstm_cell": 4, "gru_cell": 3}.get(call.name, 1)
    weights = [call.arg(name) for name in ("w_ih", "w_hh")]
    if not all(isinstance(item, Labelled) and item.param and item.labels is None for item in weights):
        return lock(trace, call)
    w_ih, w_hh = weights
    hidden = trace.axis(w_hh, 1)
    states = call.arg("hx")
    for state in states if isinstance(states, (tuple, list)) else [states]:
        if isinstance(state, Labelled):
            trace.store.unite(trace.unite_over(trace.labels(state), [0]).reshape(-1), hidden)
    inputs = trace.labels(call.arg(0))
    trace.store.unite(trace.axis(w_ih, 1), trace.unite_over(inputs, range(inputs.dim() - 1)).reshape(-1))
    for item in weights:
        trace.store.unite(trace.axis(item, 0), hidden.repeat(gates))
        trace.producers.add((item.param, 0))
        trace.count_macs(call, item, 1)
    for name in ("b_ih", "b_hh"):
        trace.attach(call.arg(name, None), hidden.repeat(gates))
    shapes = call.shapes()
    return tuple(hidden.expand(shape) for shape in shapes) if len(shapes) > 1 else hidden.expand(shapes[0])


def bilinear(trace: Trace, call: Call) -> Tensor:
    """y = x₁ᵀ·W·x₂ + b with W (out, in₁, in₂): three axes of channels."""
    weight = call.arg("weight")
    if not isinstance(weight, Labelled) or weight.param is None or weight.labels is not None:
        return lock(trace, call)
    for place in (0, 1):
        inputs = trace.labels(call.arg(place))
        columns = trace.unite_over(inputs, range(inputs.dim() - 1)).reshape(-1)
        trace.store.unite(trace.axis(weight, place + 1), columns)
    rows = trace.axis(weight, 0)
    trace.producers.add((weight.param, 0))
    trace.attach(call.arg("bias", None), rows)
    trace.count_macs(call, weight, call.shape()[1:-1].numel())
    return rows.expand(call.shape())


def batch_norm(trace: Trace, call: Call) -> Any:
    inputs = trace.labels(call.arg(0))
    channels = trace.unite_over(inputs, [dim for dim in range(inputs.dim()) if dim != 1])
    for name in ("weight", "bias", "running_mean", "running_var"):
        trace.attach(call.arg(name, None), channels.reshape(-1))
    result = channels.expand(inputs.shape)
    return call.like(result)


def layer_norm(trace: Trace, call: Call) -> Any:
    inputs = trace.labels(call.arg(0))
    result = inputs
    for name in ("weight", "bias"):
        parameter = call.arg(name, None)
        if isinstance(parameter, Labelled):
            labels = trace.labels(parameter)
            result = trace.meet(result, labels)
    return call.like(result)


def group_norm(trace: Trace, call: Call) -> Any:
    inputs = trace.labels(call.arg(0))
    count = call.arg("num_groups" if call.name == "group_norm" else "group")
    channels = trace.unite_over(inputs, [dim for dim in range(inputs.dim()) if dim != 1]).reshape(-1)
    if 1 < count < channels.numel():
        trace.tie_groups(channels, count, whole=count >= FEW_GROUPS)
    for name in ("weight", "bias"):
        trace.attach(call.arg(name, None), channels)
    result = channels.reshape(1, -1, *[1] * (inputs.dim() - 2)).expand(inputs.shape)
    return call.like(result)


def prelu(trace: Trace, call: Call) -> Tensor:
    inputs, weight = trace.labels(call.arg(0)), call.arg("weight")
    if weight.shape.numel() == 1:
        return inputs
    channels = trace.unite_over(inputs, [dim for dim in range(inputs.dim()) if dim != 1])
    trace.attach(weight, channels.reshape(-1))
    return channels.expand(inputs.shape)
