"""The rules: what each operator does to the labels of channels (those with parameters: `layer_rules.py`).

    data movement        runs as it stands, on the label tensors
    element by element   unites the labels that meet
    weighted sums        (convolution, linear, embedding, recurrent) read input labels, make output labels
    contractions         unite what is summed against each other; whole heads where there are heads
    normalization        attaches its parameters to the labels that they scale
    reductions           forget the labels of what is summed
    anything else        locks the labels it reads, with its name as the reason

`RULES` is the table. A rule takes the trace and the call, and returns the labels of the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from compress.pruning.contraction import attend, contract_einsum
from compress.pruning.labels import NONE, concatenate, core, first_along, shrink, varying
from compress.pruning.layer_rules import (
    batch_norm,
    bilinear,
    cell,
    convolution,
    embedding,
    group_norm,
    layer_norm,
    linear,
    matmul,
    prelu,
    recurrent,
)
from compress.pruning.trace import Call, Labelled, Trace, lock


def pointwise(trace: Trace, call: Call) -> Tensor:
    """Element-wise: labels that meet are united; the result carries the first operand that has any."""
    operands = [trace.labels(operand) for operand in call.labelled()]
    result = operands[0]
    for labels in operands[1:]:
        result = trace.meet(result, labels)
    return trace.settle(result.expand(call.shape()))


def same(trace: Trace, call: Call) -> Tensor:
    """The result has the labels of the first operand."""
    return trace.labels(call.arg(0)).expand(call.shape())


def movement(trace: Trace, call: Call) -> Any:
    """Data movement: the operator itself, run on labels."""
    if call.name in ("view", "_unsafe_view"):  # labels are laid out otherwise than values: a view may need a copy
        return _moved(trace, call, trace.labels(call.arg(0)).reshape(call.shape()))
    return _moved(trace, call, call.run(trace.labels))


def _moved(trace: Trace, call: Call, result: Any) -> Any:
    if isinstance(result, (tuple, list)):
        return type(result)(_moved(trace, call, item) for item in result)
    result = trace.settle(result)
    if len(varying(result)) > 1:
        trace.boxes.append((call.node, result))
    return result


def cat(trace: Trace, call: Call) -> Tensor:
    tensors = [trace.labels(item) for item in call.arg("tensors")]
    tensors = [item for item in tensors if item.dim() > 1 or item.numel()]
    return _moved(trace, call, concatenate(tensors, call.arg("dim", 0)))


def stack(trace: Trace, call: Call) -> Tensor:
    dim = call.arg("dim", 0)
    tensors = [trace.labels(item) for item in call.arg("tensors")]
    dim = dim if dim >= 0 else dim + tensors[0].dim() + 1
    return _moved(trace, call, concatenate([item.unsqueeze(dim) for item in tensors], dim))


def pad(trace: Trace, call: Call) -> Tensor:
    """Padding along channels is a literal of the forward code: the added ones must stay."""
    labels, widths = trace.labels(call.arg(0)), call.arg("pad")
    padded = [labels.dim() - 1 - index // 2 for index, width in enumerate(widths) if width]
    moved = set(padded) & set(varying(labels))
    if not moved:
        return first_along(labels, padded).expand(call.shape())
    mode = call.arg("mode", "constant")
    if mode != "constant" or any(width < 0 for width in widths):
        return lock(trace, call)
    result = torch.nn.functional.pad(labels, widths, value=-2)
    fresh = result == -2
    spots = trace.store.new(int(fresh.sum()))
    result = result.masked_scatter(fresh, spots)
    trace.store.lock(spots, f"zeros padded along channels by a fixed count in {call.where()}")
    return _moved(trace, call, result)


def divided(trace: Trace, call: Call) -> Any:
    """chunk, split, unbind, select: pieces keep equal counts, so channels at the same place go together."""
    labels = trace.labels(call.arg(0))
    dim = call.arg("dim", 0) % labels.dim()
    if dim in varying(labels):
        size = labels.shape[dim]
        pieces = _pieces(call, size)
        if pieces is not None:
            if pieces > 1 and size % pieces == 0:
                parts = labels.unflatten(dim, (pieces, size // pieces))
                trace.store.unite(core(parts.narrow(dim, 0, 1)), core(parts))
            elif pieces > 1:
                trace.store.lock(labels, f"divided into unequal parts by {call.name} in {call.where()}")
    return movement(trace, call)


def _pieces(call: Call, size: int) -> int | None:
    """How many equal parts the call divides the dimension into; None where the parts are unequal lists."""
    if call.name in ("unbind", "select"):
        return size
    if call.name in ("chunk", "tensor_split"):
        count = call.arg("chunks" if call.name == "chunk" else "sections")
        return count if isinstance(count, int) else None
    sizes = call.arg(1)
    if isinstance(sizes, int):
        return -(-size // sizes)
    return len(sizes) if len(set(sizes)) == 1 else None


def index(trace: Trace, call: Call) -> Tensor:
    """Indexing by known positions moves labels; by positions that depend on the data it must not mix channels."""
    labels, indices = trace.labels(call.arg(0)), call.arg(1)
    unknown = [item for item in indices if isinstance(item, Labelled)]
    if not unknown:
        return movement(trace, call)
    dims = [dim for dim, item in enumerate(indices) if item is not None]
    if set(dims) & set(varying(labels)):
        if call.arg(0).param is None:
            return lock(trace, call)
        labels = trace.unite_over(labels, dims)  # rows of a table: any of them may be read
    kept = [dim for dim in range(labels.dim()) if dim not in dims]
    flat = core(first_along(labels, dims).squeeze(tuple(dims)))
    shape = call.shape()
    # Adjacent indices: their result stands where they stood; otherwise first.
    lead = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    width = len(shape) - len(kept)
    return flat.reshape(flat.shape[:lead] + (1,) * width + flat.shape[lead:]).expand(shape)


def created(trace: Trace, call: Call) -> Tensor:
    """A new tensor that only borrows the type of its operand: a constant."""
    fills = {"new_zeros": 0.0, "new_ones": 1.0}
    value = call.arg("fill_value", fills.get(call.name, 0.0))
    return torch.full(call.shape(), value, dtype=call.node.meta["val"].dtype)


def copy_into(trace: Trace, call: Call) -> Tensor:
    """`x[...] = y`: labels are written where the values are (label tensors alias as values do)."""
    target, source = trace.labels(call.arg(0)), trace.labels(call.arg(1))
    source = source.expand(target.shape)
    if bool((core(target) == NONE).all()) and 0 not in [s for s, n in zip(target.stride(), target.shape) if n > 1]:
        return target.copy_(source)
    trace.store.unite(core(target), core(source))
    return target


def spatial(trace: Trace, call: Call) -> Any:
    """Pooling and resampling: channel by channel, positions mixed."""
    inputs = trace.labels(call.arg(0))
    digits = re.search(r"([123])d", call.name)
    space = int(digits.group(1)) if digits else inputs.dim() - 2
    small = trace.unite_over(inputs, range(inputs.dim() - space, inputs.dim()))
    return call.like(small)


def along(trace: Trace, call: Call) -> Any:
    """Softmax, cumulative sums, sorting: fine where they do not run along channels.

    Over branches of the same channels (labels change along others too), a channel leaves all branches or none.
    """
    labels = trace.labels(call.arg(0))
    dim = call.arg("dim", -1) % max(labels.dim(), 1)
    if varying(labels) == [dim]:
        return lock(trace, call)
    return call.like(trace.unite_over(labels, [dim]))


def reduction(trace: Trace, call: Call) -> Any:
    """Sums, means and norms. Over channels, the result leaves removed ones out, as normalization does."""
    labels = trace.labels(call.arg(0))
    dims = call.arg("dim", None)
    dims = [dims] if isinstance(dims, int) else dims
    dims = [dim % labels.dim() for dim in dims] if dims else list(range(labels.dim()))
    summed = [dim for dim in varying(labels) if dim in dims]
    others = [dim for dim in varying(labels) if dim not in dims]
    if summed and others:  # several heads: a whole head stays or goes
        labels = trace.unite_over(labels, summed)
    elif summed:
        trace.reduced.append(call.node)
        labels = torch.full_like(first_along(labels, summed), NONE)
    labels = first_along(labels, dims)
    if not call.arg("keepdim", False):
        labels = labels.squeeze(tuple(dims)) if labels.dim() else labels
    return call.like(labels)


def glu(trace: Trace, call: Call) -> Tensor:
    labels = trace.labels(call.arg(0))
    dim = call.arg("dim", -1) % labels.dim()
    first, second = labels.chunk(2, dim)
    trace.store.unite(core(first), core(second))
    return shrink(first)


def einsum(trace: Trace, call: Call) -> Tensor:
    result = contract_einsum(trace, call)
    return lock(trace, call) if result is None else result


def attention(trace: Trace, call: Call) -> Tensor:
    result = attend(trace, call)
    return lock(trace, call) if result is None else result


def _table(rule: Callable[[Trace, Call], Any], names: str) -> dict[str, Callable[[Trace, Call], Any]]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Callable[[Trace, Call], Any]] = {
    # PyTorch tags most element-wise operators as such (`Call.is_pointwise`); these it does not.
    **_table(
        pointwise,
        "where masked_fill _prelu_kernel hardswish hardsigmoid hardtanh relu6 leaky_relu elu selu celu mish silu gelu "
        "softplus softshrink hardshrink softsign tanhshrink logsigmoid log_sigmoid threshold relu clamp addcmul addcdiv "
        "lerp",
    ),
    **_table(
        movement,
        "view reshape _unsafe_view view_as permute transpose t swapaxes swapdims movedim moveaxis flatten unflatten "
        "squeeze unsqueeze expand expand_as broadcast_to repeat tile repeat_interleave slice narrow roll flip "
        "index_select diagonal unfold pixel_shuffle pixel_unshuffle channel_shuffle atleast_1d atleast_2d atleast_3d mT "
        "numpy_T adjoint rot90 ravel",
    ),
    **_table(divided, "chunk split split_with_sizes unbind select tensor_split"),
    **_table(
        same,
        "dropout alpha_dropout feature_dropout feature_alpha_dropout native_dropout contiguous clone alias detach to "
        "_to_copy type_as lift_fresh_copy lift_fresh lift float double half bfloat16 zeros_like ones_like "
        "full_like fill zero triu tril rrelu bernoulli empty_like rand_like randn_like",
    ),
    **_table(convolution, "conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d"),
    **_table(matmul, "matmul mm bmm addmm baddbmm"),
    **_table(
        batch_norm, "batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm instance_norm"
    ),
    **_table(layer_norm, "layer_norm native_layer_norm rms_norm _fused_rms_norm"),
    **_table(group_norm, "group_norm native_group_norm"),
    **_table(
        spatial,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool2d_with_indices "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_trilinear3d "
        "upsample_linear1d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa lp_pool2d "
        "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    ),
    **_table(along, "softmax _softmax log_softmax _log_softmax cumsum cumprod sort argsort"),
    **_table(
        reduction,
        "sum mean var std amax amin linalg_vector_norm norm logsumexp nansum nanmean",
    ),
    **_table(recurrent, "lstm gru rnn_tanh rnn_relu"),
    **_table(created, "new_zeros new_ones new_full new_empty"),
    **_table(cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    "linear": linear,
    "bilinear": bilinear,
    "cat": cat,
    "concat": cat,
    "concatenate": cat,
    "stack": stack,
    "pad": pad,
    "constant_pad_nd": pad,
    "index": index,
    "copy": copy_into,
    "embedding": embedding,
    "prelu": prelu,
    "glu": glu,
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
}


def rule_for(call: Call) -> Callable[[Trace, Call], Any]:
    """Find the rule of a call: by name, else by the tag that PyTorch gives to element-wise operators."""
    if call.name in RULES:
        return RULES[call.name]
    return pointwise if call.is_pointwise() else lock
