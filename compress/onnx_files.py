"""ONNX files: one reader with clear errors, one writer without half-written files."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import numpy_helper

from compress.errors import ModelError, UnsupportedOperatorError
from compress.files import written_beside
from compress.given import graph_of
from compress.taking import takes

EXTERNAL_ABOVE_BYTES = 2_000_000_000  # protobuf refuses messages of 2 GiB; the margin is for the graph itself
OLDEST_OPSET = 7  # what ONNX Runtime still runs
LARGEST_DENSE_BYTES = 2**31  # what one protobuf message can hold
_BITS = {  # of one element, by ONNX's number of its type
    number: 4
    if number in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
    else 8 * onnx.helper.tensor_dtype_to_np_dtype(number).itemsize
    for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 21, 22)
}
_ATTRIBUTE_TYPES = frozenset(onnx.AttributeProto.AttributeType.values()) - {onnx.AttributeProto.UNDEFINED}
_DEFAULT_DOMAINS = ("", "ai.onnx")


@takes()
def read_onnx(path: str | Path) -> ir.Model:
    """Read an ONNX file; tensors kept beside it as external data are mapped, not copied, sparse ones become dense.

    Raises:
        ModelError: there is no such file, it is truncated or is not ONNX, or its external data is missing.
        UnsupportedOperatorError: its opset is older or newer than what the installed onnx knows.
    """
    path = Path(path)
    graph = _parse(path)
    _check_opset(path, graph)
    _check_external_data(path, graph)
    return graph


@takes(graph=graph_of)
def save_onnx(graph: ir.Model, path: str | Path, *, external_above_bytes: int = EXTERNAL_ABOVE_BYTES) -> Path:
    """Write `graph` to `path` and return the path; on failure `path` is as it was.

    Above `external_above_bytes` of initializers they go to `path` + ".data" beside the file, because one protobuf
    message cannot hold them. `graph` is not changed.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = Path(path)
    size = sum(tensor.nbytes for _, tensor in _initializers(graph))
    large = size > external_above_bytes
    with written_beside(path, size_bytes=size) as beside, _tensors_restored(graph):
        if large:
            ir.save(graph, beside, format="protobuf", external_data=f"{path.name}.data")
        else:
            # Tensors that were mapped from another file would otherwise still point there.
            for value, tensor in _initializers(graph):
                if isinstance(tensor, ir.ExternalTensor):
                    value.const_value = _in_memory(tensor)
            ir.save(graph, beside, format="protobuf")
    return path


def file_bytes(graph: ir.Model) -> int:
    """Bytes that the file of `graph` takes, its weights alone where they are too many for one message."""
    weights = sum(tensor.nbytes for _, tensor in _initializers(graph))
    return weights if weights > EXTERNAL_ABOVE_BYTES else ir.to_proto(graph).ByteSize()


def _parse(path: Path) -> ir.Model:
    if not path.is_file():
        raise ModelError(f"ONNX file {str(path)!r} does not exist; check the path")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{str(path)!r} is truncated or is not an ONNX file; fetch or export it again") from error
    except OSError as error:
        raise ModelError(f"cannot read {str(path)!r}: {error.strerror or error}") from error
    if not proto.graph.output or not proto.opset_import:
        raise ModelError(f"{str(path)!r} is truncated or is not an ONNX file; fetch or export it again")
    try:
        _check_text(proto, but=("graph", "functions"))
        _check_names(proto.graph)
        _check_sizes(proto.graph)
        _unfold_sparse(proto.graph)
        graph = ir.from_proto(proto)
    except Exception as error:  # a file that parses and still makes no graph: whatever it lacks, the file is the cause
        reason = _innermost(error)
        raise ModelError(f"{str(path)!r} does not hold a valid ONNX graph: {reason}") from error
    ir.external_data.set_base_dir(graph.graph, str(path.parent))
    _open_sizes(graph)
    return graph


def _open_sizes(graph: ir.Model) -> None:
    """Sizes that an exporter wrote as -1 or 0 are not known: no input has them."""
    for value in (*graph.graph.inputs, *graph.graph.outputs):
        if value.shape is not None and any(isinstance(size, int) and size < 1 for size in value.shape):
            value.shape = ir.Shape([None if isinstance(size, int) and size < 1 else size for size in value.shape])


def _innermost(error: BaseException) -> str:
    """The first line of the error at the bottom: those above say only where the graph library was."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _check_names(graph: onnx.GraphProto) -> None:
    """Names are text, attributes have a type: the parser hands on damaged ones, which nothing can write again.

    Raises:
        ValueError: shows it.
    """
    for node in graph.node:
        for name in (node.name, node.op_type, node.domain, node.doc_string, *node.input, *node.output):
            _check_name(name)
        for item in node.attribute:
            _check_name(item.name)
            if item.type not in _ATTRIBUTE_TYPES:
                raise ValueError(f"the attribute {item.name!r} of node {node.name!r} has no type")
            if item.type == onnx.AttributeProto.GRAPH:
                _check_names(item.g)
        for entry in node.metadata_props:
            _check_name(entry.key)
            _check_name(entry.value)
    for named in (graph, *graph.initializer):
        _check_name(named.name)
        _check_name(named.doc_string)
    for described in (*graph.input, *graph.output, *graph.value_info):  # sizes have names, too
        _check_text(described)


def _check_text(message: Any, but: Sequence[str] = ()) -> None:
    """Every text of a small message is text, at any depth: who made the file, its domains, what it is annotated with."""
    for field, value in message.ListFields():
        if field.name in but or field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for item in (value,) if isinstance(value, (str, bytes)) or hasattr(value, "ListFields") else value:
            if field.type == field.TYPE_STRING:
                _check_name(item)
            else:
                _check_text(item)


def _check_name(name: object) -> None:
    if isinstance(name, bytes):
        raise ValueError(f"the name {name!r} is no text")


def _check_sizes(graph: onnx.GraphProto) -> None:
    """Check declared shapes against the bytes that are there, before memory is taken for them.

    Raises:
        ValueError: names the tensor.
    """
    for tensor in graph.initializer:
        if any(size < 0 for size in tensor.dims):
            raise ValueError(f"tensor {tensor.name!r} has a negative size: {list(tensor.dims)}")
        bits = _BITS.get(tensor.data_type)
        if bits and tensor.HasField("raw_data") and len(tensor.raw_data) != (math.prod(tensor.dims) * bits + 7) // 8:
            raise ValueError(
                f"tensor {tensor.name!r} of shape {list(tensor.dims)} holds {len(tensor.raw_data)} bytes, which do not fit it"
            )
    for sparse in graph.sparse_initializer:
        size = math.prod(sparse.dims) * (_BITS.get(sparse.values.data_type) or 8) // 8
        if any(size < 0 for size in sparse.dims) or size >= LARGEST_DENSE_BYTES:
            raise ValueError(
                f"sparse tensor {sparse.values.name!r} of shape {list(sparse.dims)} is too large to be unfolded"
            )


def _unfold_sparse(graph: onnx.GraphProto) -> None:
    """Make sparse initializers dense, as the runtime does: the graph library leaves them out."""
    for sparse in graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 2:  # one row of coordinates for each value; else places in the flat tensor
            places = np.ravel_multi_index(tuple(places.T), dense.shape)
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < dense.size:
            raise ValueError(f"sparse tensor {sparse.values.name!r} has values outside its shape {list(sparse.dims)}")
        dense.reshape(-1)[places] = values
        graph.initializer.append(numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _check_opset(path: Path, graph: ir.Model) -> None:
    newest = onnx.defs.onnx_opset_version()
    for domain, version in graph.opset_imports.items():
        if domain in _DEFAULT_DOMAINS and not OLDEST_OPSET <= version <= newest:
            raise UnsupportedOperatorError(
                f"{str(path)!r} uses ONNX opset {version}; opsets {OLDEST_OPSET} to {newest} can be taken: "
                + ("upgrade onnx, or export again with a lower opset" if version > newest else "export it again")
            )


def _check_external_data(path: Path, graph: ir.Model) -> None:
    tensors = [tensor for _, tensor in _initializers(graph)]
    for node in ir.traversal.RecursiveGraphIterator(graph.graph):
        tensors += [item.as_tensor() for item in node.attributes.values() if item.type == ir.AttributeType.TENSOR]
    home = path.parent.resolve()
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        data = Path(tensor.path)
        try:
            inside = data.resolve().is_relative_to(home)
        except (OSError, ValueError, RuntimeError) as error:  # a zero byte, links in a circle
            raise ModelError(f"{str(path)!r} keeps its weights in {data.name!r}, which is no name of a file") from error
        if not inside:
            raise ModelError(
                f"{str(path)!r} keeps its weights in {str(tensor.location)!r}, outside its own folder; such a file is not read"
            )
        if not data.is_file():
            raise ModelError(
                f"{str(path)!r} keeps its weights in {data.name!r}, which is not beside it; copy both files"
            )
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if data.stat().st_size < end:
            raise ModelError(f"{str(data)!r}, the weights of {path.name!r}, is truncated; fetch or export it again")


def _initializers(graph: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for part in graph.graphs():
        for value in part.initializers.values():
            if value.const_value is not None:
                yield value, value.const_value


def give_back(tensor: ir.TensorProtocol | None) -> None:
    """Let the kernel take back the pages of a tensor that is mapped from a file; they are read again where needed.

    Without this whatever looks at each weight in turn has the whole file in memory at its end.
    """
    pages = tensor.raw if isinstance(tensor, ir.ExternalTensor) else None
    if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)


def give_back_all(graph: ir.Model) -> None:
    """`give_back` for every initializer."""
    for _, tensor in _initializers(graph):
        give_back(tensor)


def _in_memory(tensor: ir.ExternalTensor) -> ir.Tensor[Any]:
    return ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=tensor.name)


@contextlib.contextmanager
def _tensors_restored(graph: ir.Model) -> Iterator[None]:
    """Writing moves tensors about; the caller's graph gets its own back."""
    before = list(_initializers(graph))
    try:
        yield
    finally:
        for value, tensor in before:
            value.const_value = tensor
