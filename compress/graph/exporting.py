"""From a PyTorch module to an ONNX graph in memory, checked against PyTorch in ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.batches import Batch, call, example_batch, parameters_of
from compress.errors import CompressError, ExportError, InputError, ParityError
from compress.files import check_writable
from compress.given import model_of
from compress.graph.decompositions import decomposed
from compress.graph.dimensions import BATCH, SEQUENCE, Axes, Dynamic, Wanted, name_dimensions, resized, sizes
from compress.graph.folding import fold_constants, infer_shapes
from compress.graph.naming import name_after_modules
from compress.graph.opset import check_opset, opset_of
from compress.graph.parity import Parity, check_parity, compare
from compress.graph.recurrent import TRANSLATIONS
from compress.onnx_files import EXTERNAL_ABOVE_BYTES, read_onnx, save_onnx
from compress.runtimes.onnxruntime import Session, weight_bytes
from compress.state import evaluating, quietly
from compress.steps import Change, Step
from compress.taking import takes
from compress.tracing import exact_zeros, traced, tracing

SIZES_CHECKED = 2  # of each free dimension, besides the example's


@takes()
def export(
    model: nn.Module | torch.export.ExportedProgram,
    example_inputs: Any,
    *,
    path: str | Path | None = None,
    dynamic: Dynamic = None,
    dynamic_batch: bool = True,
    opset: int | None = None,
    check: bool = True,
    parity_inputs: Any = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> Step:
    """Turn a module, as it behaves in eval mode, into an ONNX graph.

    `example_inputs` are tensors or arrays, one, in the order of `forward`, or a mapping by name; or the shape of the one
    input. The graph's inputs have forward's names.

    Dimension 0 of every input becomes dynamic where the model allows it, and dimension 1 of integer inputs of rank 2 (token
    ids) too; where it does not, the graph takes exactly the example's size, and the step's notes say why. `dynamic` says
    otherwise: "none", "batch", "batch,sequence", "x:0,2,3", {"x": (0, 2, 3)}; what is asked for and cannot be is an error
    (but for the batch). `dynamic_batch=False` is "none". `opset`: of the file, 13 to the newest that the exporter and ONNX
    Runtime share.

    With `check`, ONNX Runtime and PyTorch must agree on `parity_inputs` (default: the example), and on inputs where the
    free dimensions have other sizes. The module is not touched and shares no memory with the graph. `threads` are ONNX
    Runtime's for that check. `path` also writes the file; above 2 GB the graph maps its weights from there.

    Raises:
        InputError: the model rejects the example's shape; `dynamic` or `opset` cannot be.
        ExportError: `torch.export` or the ONNX exporter cannot take the model, with their own reason.
        ParityError: the graph computes something else, naming the worst output.
        OutputError: `path` exists and `overwrite` is False, or cannot be written.
    """
    if path is not None:
        check_writable(path, overwrite=overwrite)
    wanted = Wanted.of(dynamic if dynamic_batch else False)
    check_opset(opset)
    model = model_of(model)
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    if not isinstance(module, nn.Module):
        raise InputError(f"export takes a torch.nn.Module, not a {type(module).__name__}")
    inputs = example_batch(example_inputs)
    outputs = run_example(module, inputs)
    checks = example_batch(parity_inputs) if parity_inputs is not None else inputs
    with tracing(), evaluating(module), quietly():
        job = _Job(module, inputs, checks, outputs, check=check, opset=opset, threads=threads)
        graph, parity, notes = _export_best(job, wanted)
    if path is not None:
        save_onnx(graph, path)
        Session(path, threads=threads)  # as its user will load it
    if path is not None and weight_bytes(graph) > EXTERNAL_ABOVE_BYTES:
        graph = read_onnx(path)  # maps its weights: a second copy of so large a model is not made
    else:
        _own_tensors(graph)  # last: until here module and graph are in memory once
    values = {"max_difference": parity.difference, "worst_output": parity.output} if parity else {}
    batch = "dynamic" if _is_dynamic(graph) else "static"
    return Step("export", graph, (Change(_name(module), f"exported, {batch} batch", values=values),), notes)


def to_graph(model: nn.Module | ir.Model | str | Path, example_inputs: Any = None) -> ir.Model:
    """Return `model` as a graph of the caller's own: a module is exported, a graph cloned, a file read.

    Raises:
        InputError: a module without example inputs, or something that is no model.
        ExportError, ParityError, ModelError: as `export` and `read_onnx`.
    """
    model = model_of(model)
    if isinstance(model, ir.Model):
        return model.clone()
    if isinstance(model, (str, Path)):
        return read_onnx(model)
    if not isinstance(model, (nn.Module, torch.export.ExportedProgram)):
        raise InputError(f"a model is a torch module, an ONNX graph or a path to one, got {type(model).__name__}")
    if example_inputs is None:
        raise InputError("a torch module needs example_inputs (one batch of 2) to become an ONNX graph")
    return export(model, example_inputs).model


def run_example(module: nn.Module, inputs: Batch) -> Any:
    """Run `module` once in eval mode, without gradients; a model that rejects the inputs says so in one line.

    Raises:
        InputError: the model raised, with its reason and the shapes given.
    """
    try:
        with evaluating(module):
            return call(module, inputs)
    except CompressError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in inputs.values)
        raise InputError(
            f"{_name(module)} rejects inputs of shape {shapes}: {reason_of(error)}; give --input-shape as the model takes it"
        ) from error


def reason_of(error: BaseException) -> str:
    """The one line of an exception, or of the cause beneath it, that says what went wrong."""
    while error.__cause__ is not None and not _is_torch_export(error):
        error = error.__cause__
    text = str(error)
    fixed = re.search(r"your code specialized it to be a constant \((\d+)\)", text)
    if fixed:
        return f"its code fixes the batch to {fixed[1]}"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("File ")]
    # Torch pads its reasons with advertisement for its own logs.
    useful = [line for line in lines if not re.match(r"(For more|The following call|To debug|Set TORCH|\^)", line)]
    text = next(iter(useful), type(error).__name__)
    if text.endswith(":") and len(useful) > 1:
        text = f"{text} {useful[1]}"
    return text[:300].rstrip(". ")


@dataclass(frozen=True)
class _Job:
    """What every try at one export shares."""

    module: nn.Module
    inputs: Batch
    checks: Batch
    outputs: Any
    check: bool
    opset: int | None
    threads: int | None

    @property
    def names(self) -> tuple[list[str], list[str]]:
        return _input_names(self.module, self.inputs), _output_names(self.outputs)


def _export_best(job: _Job, wanted: Wanted) -> tuple[ir.Model, Parity | None, tuple[str, ...]]:
    """The graph with the most free dimensions of what is wanted that works and agrees; notes say what is fixed, and why."""
    named = dict(zip(job.names[0], job.inputs.in_order(job.module)))
    samples = job.inputs.samples
    axes = wanted.axes_of(named, samples)
    if wanted.given:
        return _exactly(job, axes, sizes(named, axes))
    longer = Wanted(named=(BATCH, SEQUENCE)).axes_of(named, samples)
    if longer == axes:
        return _batch_or_fixed(job, axes)
    try:
        return *_free(job, longer), ()
    except CompressError as error:
        reason = reason_of(error.__cause__ or error).replace("the batch", "it")
    graph, parity, notes = _batch_or_fixed(job, axes)
    relaxed = _relaxed(job, graph, longer)
    if relaxed is not None:
        return relaxed, parity, notes
    length = sizes(named, longer)[SEQUENCE]
    note = f"the graph takes inputs of length exactly {length}, because with a dynamic length {reason}"
    return graph, parity, (*notes, note)


def _exactly(job: _Job, axes: Axes, others: Mapping[str, int]) -> tuple[ir.Model, Parity | None, tuple[str, ...]]:
    """The graph with just the free dimensions that the user named; `others` are their present sizes, without the batch."""
    if not others:
        return _batch_or_fixed(job, axes)
    try:
        return *_free(job, axes), ()
    except CompressError as error:
        relaxed = _without(job, axes, others)
        if relaxed is not None:
            return relaxed
        shown = ", ".join(f"{name} ({size} here)" for name, size in others.items())
        reason = reason_of(error.__cause__ or error).replace("the batch", "it")
        raise ExportError(
            f"{_name(job.module)} cannot keep {shown} dynamic: {reason}; leave that out of what is to be dynamic"
        ) from error


def _without(
    job: _Job, axes: Axes, others: Mapping[str, int]
) -> tuple[ir.Model, Parity | None, tuple[str, ...]] | None:
    """The graph traced with some of its free dimensions fixed, and declared free behind that; None where none holds.

    Fixed are the `others`, or the first dimension (a recurrent layer may have its steps there, and the batch second), or all.
    """
    for fixed in ({*others}, {BATCH}, {BATCH, *others}):
        left = {name: {at: size for at, size in found.items() if size not in fixed} for name, found in axes.items()}
        try:
            graph, parity = _free(job, left)
        except CompressError:
            continue
        relaxed = _relaxed(job, graph, axes)
        if relaxed is not None:
            return relaxed, parity, ()
    return None


def _batch_or_fixed(job: _Job, axes: Axes) -> tuple[ir.Model, Parity | None, tuple[str, ...]]:
    """The graph with a free batch where `axes` has it and that works and agrees, else with all sizes as they are."""
    note: tuple[str, ...] = ()
    if any(axes.values()):
        try:
            return *_free(job, axes), ()
        except CompressError as error:
            reason = reason_of(error.__cause__ or error)
        note = (f"the graph takes batches of exactly {job.inputs.samples}, because with a dynamic batch {reason}",)
    graph = _to_onnx(job, job.inputs, {})
    checks = _static_checks(job.inputs, job.checks)
    if not job.check:
        return graph, None, note
    return graph, _agree(job.module, Session(graph, threads=job.threads), checks, job.names[1]), note


def _relaxed(job: _Job, graph: ir.Model, axes: Axes) -> ir.Model | None:
    """The graph with further dimensions declared free, where it holds at other sizes; else None.

    `torch.export` fixes the length of a recurrent layer, which ONNX's own takes at any.
    """
    free = graph.clone()
    for value in free.graph.inputs:
        for axis, name in axes.get(str(value.name), {}).items():
            if value.shape is not None and isinstance(value.shape[axis], int):
                value.shape = ir.Shape([name if place == axis else size for place, size in enumerate(value.shape)])
    for part in free.graphs():
        for node in part:
            for value in node.outputs:
                value.shape = None  # what was worked out for one length
    try:
        infer_shapes(free)
        session = Session(free, threads=job.threads)
        for batch in _other_sizes(job, axes):
            _agree(job.module, session, batch, job.names[1])
    except CompressError:
        return None
    return free


def _free(job: _Job, axes: Axes) -> tuple[ir.Model, Parity | None]:
    """A graph with the dimensions `axes` free, held against PyTorch at the caller's sizes and at others."""
    module, checks = job.module, job.checks
    is_free = any(0 in found for found in axes.values())
    graph = _to_onnx(job, _batch_of_two(module, job.inputs) if is_free else job.inputs, axes)
    if not job.check:
        return graph, None
    # The reference is the caller's own batch, then other sizes: one that is baked in shows only there.
    batches = [checks, *(_other_batch(module, checks) if is_free else []), *_other_sizes(job, axes)]
    session = Session(graph, threads=job.threads)
    return graph, _worst([_agree(module, session, batch, job.names[1]) for batch in batches])


def _other_sizes(job: _Job, axes: Axes) -> Iterator[Batch]:
    """The inputs with each free dimension (but the batch) at two other sizes that the module itself takes."""
    names, batch = job.names[0], job.checks
    values = dict(zip(names, batch.in_order(job.module)))
    ordered = Batch.of(values)
    for symbol, size in sizes(values, axes).items():
        found = 0
        for other in dict.fromkeys((size + 3, max(2, size - 1), max(2, size // 2), size * 2, size + 32)):
            changed = resized(ordered, names, axes, symbol, other)
            if other == size or not _takes(job.module, changed):
                continue
            yield changed
            found += 1
            if found == SIZES_CHECKED:
                break
        if found < SIZES_CHECKED:
            raise ExportError(f"the model itself takes no other {symbol} than {size}")


def _takes(module: nn.Module, batch: Batch) -> bool:
    try:
        call(module, batch)
    except Exception:  # whatever the user's own forward raises: it does not take these sizes
        return False
    return True


def _to_onnx(job: _Job, inputs: Batch, axes: Axes) -> ir.Model:
    module = job.module
    program = decomposed(_trace(module, inputs, axes))
    try:
        with exact_zeros():
            exported = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                optimize=True,
                opset_version=job.opset,
                custom_translation_table=dict(TRANSLATIONS),
            )
    except Exception as error:
        raise ExportError(
            f"the ONNX exporter cannot take {_name(module)}: {_converter_reason(error)}; "
            "replace that operation in the model"
        ) from error
    assert exported is not None
    graph = exported.model
    _plain_tensors(graph)
    _rename(graph, *job.names)
    name_dimensions(graph, axes)
    fold_constants(graph)
    name_after_modules(graph)
    if job.opset is not None and opset_of(graph) != job.opset:
        raise ExportError(
            f"{_name(module)} cannot be written with opset {job.opset}: an operator that it needs came with opset "
            f"{opset_of(graph)}; choose that with opset={opset_of(graph)} (--opset {opset_of(graph)})"
        )
    return graph


def _trace(module: nn.Module, inputs: Batch, axes: Axes) -> torch.export.ExportedProgram:
    """Export by running the module (most models), else by reading its bytecode, which keeps `len(x)` symbolic."""
    failure: Exception | None = None
    for strict in (False, True):
        fresh = inputs.map(lambda x: x.detach().clone())  # torch.export leaves marks that a second try would obey
        try:
            positional, named = fresh.arguments(module)
            shapes = _dynamic_shapes(_input_names(module, inputs), positional or named, axes)
            return traced(module, positional, named, dynamic_shapes=shapes, strict=strict)
        except Exception as error:
            failure = failure or error
    raise ExportError(
        f"torch.export cannot take {_name(module)}: {reason_of(failure or Exception())}; rewrite that line of its "
        "forward, or give a model without data-dependent control flow"
    ) from failure


def _dynamic_shapes(names: Sequence[str], arguments: tuple[Tensor, ...] | dict[str, Tensor], axes: Axes) -> Any:
    if not any(axes.values()):
        return None
    shapes = {name: dict.fromkeys(axes.get(name, {}), torch.export.Dim.DYNAMIC) for name in names}
    return shapes if isinstance(arguments, dict) else tuple(shapes.values())


def _batch_of_two(module: nn.Module, inputs: Batch) -> Batch:
    """A batch of one would be taken for a constant; repeat it where the model takes two."""
    if inputs.samples != 1:
        return inputs
    doubled = inputs.map(lambda x: torch.cat([x, x]) if x.ndim and x.shape[0] == 1 else x)
    try:
        call(module, doubled)
    except Exception:  # the model's own refusal of two samples: the export will say why
        return inputs
    return doubled


def _other_batch(module: nn.Module, inputs: Batch) -> list[Batch]:
    """The same inputs with one sample more, where the model itself takes them."""
    larger = inputs.map(lambda x: torch.cat([x, x[:1]]) if x.ndim and x.shape[0] == inputs.samples else x)
    try:
        call(module, larger)
    except Exception:  # no other batch to check: PyTorch itself rejects it
        return []
    return [larger]


def _static_checks(inputs: Batch, checks: Batch) -> Batch:
    same = len(inputs.inputs) == len(checks.inputs) and all(
        a.shape == b.shape for a, b in zip(inputs.values, checks.values)
    )
    return checks if same else inputs


def _agree(module: nn.Module, session: Session, inputs: Batch, names: Sequence[str]) -> Parity:
    feeds = [x for name, x in zip(_input_names(module, inputs), inputs.in_order(module)) if name in session.input_names]
    reference = call(module, inputs)
    shown = session.output_names if len(feeds) == len(inputs.inputs) else names
    try:
        return check_parity(lambda *_: reference, lambda *_: session.run(*feeds), inputs, output_names=shown)
    except ParityError:
        again = call(module, inputs)
        if compare(lambda *_: reference, lambda *_: again, inputs).agrees:
            raise
        raise ExportError(
            f"{_name(module)} gives other outputs each time it is called on the same inputs, in eval mode too: it draws random "
            "numbers (dropout with training=True, noise); make them depend on self.training"
        ) from None


def _worst(parities: Sequence[Parity]) -> Parity | None:
    return max(parities, key=lambda parity: parity.excess, default=None)


def _plain_tensors(graph: ir.Model) -> None:
    """Every weight as an array that still shares memory with the module, under the name of its value."""
    for part in graph.graphs():
        for value in part.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                array = np.asarray(tensor.numpy(), order="C")
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)


def _own_tensors(graph: ir.Model) -> None:
    """Copy every weight: the exporter's share memory with the module, which may train on."""
    for part in graph.graphs():
        for value in part.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                value.const_value = ir.Tensor(tensor.numpy().copy(), dtype=tensor.dtype, name=value.name)


def _rename(graph: ir.Model, input_names: list[str], output_names: list[str]) -> None:
    taken: dict[str | None, ir.Value] = {value.name: value for node in graph.graph for value in node.outputs}
    taken.update(graph.graph.initializers)
    for values, names in ((graph.graph.inputs, input_names), (graph.graph.outputs, output_names)):
        if len(values) != len(names) or len(set(map(id, values))) != len(values):
            continue  # an output that is another one too keeps the exporter's name
        for value, name in zip(values, names):
            other = taken.get(name)
            if other is not None and other is not value:
                other.name = f"{name}_inner"
            if value not in graph.graph.inputs or values is graph.graph.inputs:
                value.name = name


def _is_dynamic(graph: ir.Model) -> bool:
    shapes = [value.shape for value in graph.graph.inputs if value.shape is not None]
    return any(len(shape) and not isinstance(shape[0], int) for shape in shapes)


def _input_names(module: nn.Module, inputs: Batch) -> list[str]:
    """The parameter names of `forward`, else the data's; `input`, `input_1` … where neither has any."""
    positional, named = inputs.arguments(module)
    if named:
        return list(named)
    count = len(positional)
    names = list(parameters_of(module)[0][:count])
    if len(names) == count:
        return names
    return ["input" if count == 1 else f"input_{index}" for index in range(count)]


def _output_names(outputs: Any) -> list[str]:
    """`output`; keys of a dictionary; else `output_0`, `output_1` … over all tensors, nested ones included."""
    if isinstance(outputs, Mapping) and all(isinstance(value, Tensor) for value in outputs.values()):
        return [str(key) for key in outputs]
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    if len(leaves) == 1:
        return ["output"]
    return [f"output_{index}" for index in range(len(leaves))]


def _converter_reason(error: BaseException) -> str:
    """The exporter's own words: which operator it has no translation for, else its first line."""
    text = str(error)
    chain: BaseException | None = error
    while chain is not None:
        found = re.search(r"No ONNX function found for <OpOverload\(op='([^']+)', overload='([^']+)'\)>", str(chain))
        if found:
            return f"it has no ONNX form of the operator {found[1]} ({found[2]})"
        text, chain = str(chain) or text, chain.__cause__
    return reason_of(error)


def _is_torch_export(error: BaseException) -> bool:
    return type(error).__module__.startswith(
        ("torch._export", "torch.export", "torch._dynamo", "torch.fx.experimental")
    )


def _name(module: nn.Module) -> str:
    return type(module).__name__
