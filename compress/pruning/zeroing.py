"""The reference that removal is held to: the model with all readers of it zeroed.

Convolutions, linear and recurrent layers and products of activations read zeros; normalization and reductions
over channels leave the removed ones out of their statistics. Nothing is made smaller here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Interpreter, Node

from compress.batches import Batch
from compress.pruning.channels import Channels
from compress.pruning.labels import core, kept_places
from compress.pruning.trace import Labelled

READERS = frozenset(
    [
        "conv1d",
        "conv2d",
        "conv3d",
        "convolution",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "linear",
        "matmul",
        "mm",
        "bmm",
        "addmm",
        "baddbmm",
        "einsum",
        "scaled_dot_product_attention",
        "lstm",
        "gru",
        "rnn_tanh",
        "rnn_relu",
        "lstm_cell",
        "gru_cell",
        "rnn_tanh_cell",
        "rnn_relu_cell",
        "bilinear",
    ]
)
NORMALIZERS = frozenset(["layer_norm", "native_layer_norm", "rms_norm", "group_norm", "native_group_norm"])


def zeroed_outputs(
    module: nn.Module, channels: Channels, removed: np.ndarray, inputs: Batch | tuple[Tensor, ...]
) -> Any:
    """Run the unpruned module on `inputs` with everything zeroed that reads a class in `removed`."""
    return zeroed_nodes(module, channels, removed, inputs, keep=False)[0]


def zeroed_nodes(
    module: nn.Module, channels: Channels, removed: np.ndarray, inputs: Batch | tuple[Tensor, ...], *, keep: bool = True
) -> tuple[Any, dict[Node, Any]]:
    """The same; and, with `keep`, what the layers gave on the way."""
    graph = channels.program.graph_module
    state = {**channels.program.constants, **dict(module.named_buffers(remove_duplicate=False))}
    state.update(module.named_parameters(remove_duplicate=False))
    values = []
    given = iter(Batch.of(inputs).in_order(module))
    for spec in channels.program.graph_signature.input_specs:
        values.append(state[spec.target] if spec.target is not None else next(given))
    interpreter = _Zeroing(graph, channels, channels.gone(removed), keep)
    with torch.no_grad():
        return interpreter.run(*values), interpreter.kept


class _Zeroing(Interpreter):
    def __init__(self, graph: Any, channels: Channels, gone: np.ndarray, keep: bool) -> None:
        super().__init__(graph)
        self.keep = keep
        self.kept: dict[Node, Any] = {}
        self.channels = channels
        self.gone = torch.from_numpy(gone)

    def run_node(self, node: Node) -> Any:
        result = self._run(node)
        if self.keep and isinstance(result, Tensor) and node.op == "call_function":
            self.kept[node] = result
        return result

    def _run(self, node: Node) -> Any:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            return super().run_node(node)
        name = node.target._schema.name.split("::")[1].rstrip("_")
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            args = (self._masked(node.args[0], args[0]), args[1], self._recurrent(node.args[2], args[2]), *args[3:])
            return node.target(*args, **kwargs)
        if name in READERS:
            masked = torch.fx.node.map_arg(node.args, lambda item: self._masked(item, self.env[item]))
            return node.target(*masked, **kwargs)
        if node in self.channels.reduced:
            keep = self._kept(node.args[0])
            return node.target(_take(args[0], keep), *args[1:], **kwargs)
        if name in NORMALIZERS:
            keep = self._kept(node.args[0])
            if keep:
                return self._normalize(name, keep, args, kwargs)
        return super().run_node(node)

    def _labels(self, node: Node) -> Tensor | None:
        found = self.channels.labels.get(node)
        return found.labels if isinstance(found, Labelled) and found.param is None else None

    def _masked(self, node: Any, value: Any) -> Any:
        labels = self._labels(node)
        if labels is None or not isinstance(value, Tensor):
            return value
        gone = self.gone[core(labels)]
        # Not a product: what was removed may be infinite.
        return torch.where(gone, torch.zeros((), dtype=value.dtype), value) if bool(gone.any()) else value

    def _kept(self, node: Any) -> dict[int, Tensor]:
        labels = self._labels(node)
        return kept_places(labels, self.gone) if labels is not None else {}

    def _recurrent(self, nodes: Any, weights: Any) -> list[Tensor]:
        """The hidden units that go are zeroed in the columns that read them."""
        result = []
        for node, weight in zip(nodes, weights):
            labelled = self.channels.labels[node]
            roots = self.channels.axes.get((labelled.param, 1))
            if weight.dim() == 2 and roots is not None:
                weight = torch.where(self.gone[torch.from_numpy(roots)], 0.0, weight)
            result.append(weight)
        return result

    def _normalize(self, name: str, keep: dict[int, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Normalize the part that stays, and put it back in its place."""
        value = args[0]
        part = _take(value, keep)
        bound = dict(zip(("weight", "bias", "eps"), args[2:])) | kwargs
        weight, bias, eps = bound.get("weight"), bound.get("bias"), bound.get("eps", 1e-5)
        if name == "group_norm":
            count, channels = args[1], value.shape[1]
            groups = sorted({int(place) * count // channels for place in keep[1]})
            weight, bias = (item[keep[1]] if item is not None else None for item in (weight, bias))
            normal: Any = F.group_norm(part, len(groups), weight, bias, eps)
        else:
            width = len(args[1])
            offset = value.dim() - width
            inner = {dim - offset: places for dim, places in keep.items() if dim >= offset}
            weight, bias = (_take(item, inner) if item is not None else None for item in (weight, bias))
            shape = list(part.shape[offset:])
            if name == "rms_norm":
                normal = F.rms_norm(part, shape, weight, bound.get("eps", None))
            else:
                normal = F.layer_norm(part, shape, weight, bias, eps)
        for dim, places in keep.items():
            shape = list(normal.shape)
            shape[dim] = value.shape[dim]
            normal = torch.zeros(shape, dtype=value.dtype).index_copy_(dim, places, normal)
        return normal


def _take(value: Tensor, keep: dict[int, Tensor]) -> Tensor:
    for dim, places in keep.items():
        value = value.index_select(dim, places)
    return value
