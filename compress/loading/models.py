"""Models: what the user names becomes a module, an exported program or a graph."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from compress.batches import Batch, parameters_of, read_batch
from compress.errors import InputError, ModelError, WeightsError, first_line
from compress.given import model_of
from compress.loading.callables import import_callable
from compress.loading.data import Data
from compress.loading.declared import Declared, check_complete
from compress.loading.loaded import BATCH, LoadedModel, TensorSpec
from compress.loading.state_dicts import SUFFIXES, load_state_dict, read_pickle, read_state_dict
from compress.loading.untrusted import load_checked
from compress.loading.whole_modules import check_ultralytics, module_in
from compress.onnx_files import read_onnx
from compress.state import copied, seeded, unlogged
from compress.taking import takes

DEFAULT_WEIGHTS = "DEFAULT"
WHOLE = (".onnx", ".pt2", ".torchscript")  # files that hold a model with its weights
RESULTS = ("model.onnx", "model.pt2", "model.torchscript")  # what a command leaves in its folder


@takes()
def load(
    spec: str | Path | nn.Module | ir.Model,
    *,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> nn.Module | ir.Model:
    """Load the model that `spec` names: a module in eval mode, or a graph for an `.onnx` file.

    See `open_model`, which also tells the input's shape and preprocessing. A UserWarning says where a checkpoint has
    fewer outputs than the architecture.
    """
    loaded = open_model(spec, weights=weights, model_args=model_args, trust_pickle=trust_pickle)
    for note in loaded.notes:
        warnings.warn(note, stacklevel=2)
    model: nn.Module | ir.Model = loaded.model
    return model


def open_model(
    spec: str | Path | nn.Module | ir.Model,
    *,
    weights: str | Path | None = None,
    model_args: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """Open the model that `spec` names, with its weights.

    Args:
        spec: a torchvision name, `timm:NAME`, `hf:FOLDER` (or id) of transformers, `ultralytics:FILE`, `package.module:factory`, `file.py:factory`, a `.pt2` exported program,
            an `.onnx` file, or with `trust_pickle` a file that holds a whole pickled module.
            A module or graph that is there already passes through; with `weights`, a copy of the module gets them.
        weights: a checkpoint file; or DEFAULT (torchvision also: the name of one of its weights) to download.
            Without weights they are random, and the same each time.
        model_args: keyword arguments of the factory.
        trust_pickle: unpickle Python objects and read programs unchecked, both of which can run any code.
        seed: of random weights.

    Raises:
        ModelError: the model is unknown, cannot be built or read.
        WeightsError: the weights cannot be read, or belong to another architecture.
    """
    arguments = dict(model_args or {})
    spec = model_of(spec)
    if isinstance(spec, nn.Module):
        return _given(spec, weights, arguments, trust_pickle)
    if isinstance(spec, ir.Model):
        if weights is not None or arguments:
            raise ModelError("a graph carries its own weights; leave weights and model_args out")
        return _graph(spec.graph.name or "graph", spec, None)
    spec = _file_in(str(spec))
    if spec.startswith("ultralytics:"):
        check_ultralytics(spec)
        spec = spec.partition(":")[2]
    suffix = Path(spec).suffix.lower()
    if suffix in WHOLE:
        if weights is not None or arguments:
            raise ModelError(f"{spec!r} carries its own weights; leave --weights and --model-arg out")
        if suffix == ".torchscript":
            from compress.loading.torchscript import load_torchscript

            module = load_torchscript(spec, trusted=trust_pickle).eval()
            return LoadedModel(Path(spec).stem, module, "module", Path(spec))
        if suffix == ".onnx":
            return _graph(Path(spec).stem, read_onnx(spec), Path(spec))
        return _exported(Path(spec), trust_pickle)
    if suffix in SUFFIXES and ":" not in spec:
        return _pickled(Path(spec), weights, trust_pickle)
    return _built(spec, weights, arguments, trust_pickle, seed)


def _file_in(spec: str) -> str:
    """A folder that a command left stands for its model file.

    Raises:
        ModelError: a folder without one.
    """
    if ":" in spec or not Path(spec).is_dir():
        return spec
    for name in RESULTS:
        if (Path(spec) / name).is_file():
            return str(Path(spec) / name)
    if (Path(spec) / "config.json").is_file():
        raise ModelError(f"{spec!r} is a folder of transformers; name it as hf:{spec}")
    raise ModelError(f"{spec!r} is a folder without a model; it would be {' or '.join(RESULTS)} in it")


def example_inputs(
    loaded: LoadedModel,
    *,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | None = None,
    declared: Sequence[Declared] = (),
    data: Data | None = None,
    batch: int = BATCH,
    seed: int = 0,
) -> Batch:
    """Return a batch to trace, check or time `loaded` with.

    Their shape is that of `declared` inputs, by name, else `input_shape` (batch included; several shapes for several inputs), else that of `data`, whose samples
    they then are, else what the model's source tells. Without data floats are normal and integers 0 or 1.

    Raises:
        InputError: a shape that is not positive, or none of the three is there.
    """
    if declared:
        return _declared_batch(loaded, declared, batch, seed)
    if input_shape is None and data is not None:
        part = next(part for part in ("calibration", "train", "test") if getattr(data, part) is not None)
        return replace(read_batch(next(iter(data.loader(part, batch_size=batch)))), target=None)
    specs = loaded.inputs
    if input_shape is None and loaded.example is not None:
        return loaded.example
    if input_shape is not None:
        shapes = _shapes(input_shape)
    elif specs and all(None not in spec.shape[1:] for spec in specs):
        shapes = tuple(_with_batch(spec.shape, batch) for spec in specs)
    elif loaded.input_shape is not None:
        shapes = ((batch, *loaded.input_shape[1:]),)
    else:
        raise InputError(f"the input shape of {loaded.name!r} is not known; give {_how_to_declare(specs)}, or --data")
    if math.prod(max(shapes, key=math.prod)) * 4 > _memory_bytes():
        raise InputError(
            f"inputs of shape {shapes} are larger than this machine's memory; give a smaller --input-shape"
        )
    dtypes = [spec.dtype for spec in specs] or [data.input_dtype if data is not None else loaded.input_dtype]
    generator = torch.Generator().manual_seed(seed)
    values = [_random(shape, dtypes[min(index, len(dtypes) - 1)], generator) for index, shape in enumerate(shapes)]
    return Batch.of(values)


def _declared_batch(loaded: LoadedModel, declared: Sequence[Declared], batch: int, seed: int) -> Batch:
    """Stand-ins for the declared inputs, and for those of a file that tells their sizes."""
    specs = {spec.name: spec for spec in loaded.inputs}
    unknown = [spec.name for spec in loaded.inputs if None in spec.shape[1:]]
    names, needed = (list(specs), unknown) if specs else ((), ()) if loaded.kind == "onnx" else _parameters(loaded)
    check_complete(declared, names, needed, repr(loaded.name))
    generator = torch.Generator().manual_seed(seed)
    given = {
        one.name: one.tensor(specs[one.name].dtype if one.name in specs else loaded.input_dtype, generator)
        for one in declared
    }
    samples = next((len(value) for value in given.values() if value.dim()), batch)
    others = {
        name: _random(_with_batch(spec.shape, samples), spec.dtype, generator)
        for name, spec in specs.items()
        if name not in given
    }
    found = {**given, **others}
    return Batch.of({name: found[name] for name in (names or found) if name in found})


def _parameters(loaded: LoadedModel) -> tuple[Sequence[str], Sequence[str]]:
    names, needed, open_ended = parameters_of(loaded.model)
    return (() if open_ended else names), needed


def _how_to_declare(specs: Sequence[TensorSpec]) -> str:
    if len(specs) < 2:
        return "--input-shape, as in 2,3,224,224"
    sizes = (",".join("N" if size is None else str(size) for size in spec.shape) for spec in specs)
    return " ".join(f"--input {spec.name}:{shape}" for spec, shape in zip(specs, sizes)) + " (a number for each N)"


def _memory_bytes() -> int:
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):  # no such figure on this system
        return 2**62


def _given(module: nn.Module, weights: str | Path | None, arguments: dict[str, Any], trust_pickle: bool) -> LoadedModel:
    """A module that is there already: as it is, or a copy with other weights."""
    name = type(module).__name__
    if arguments:
        raise ModelError(f"{name} is built already; leave model_args out")
    if weights is None:
        return LoadedModel(name, module, "module")
    if weights == DEFAULT_WEIGHTS:
        raise WeightsError(f"{name} has no default weights to download; give a checkpoint file")
    twin = copied(module).eval()
    state = read_state_dict(weights, trust_pickle=trust_pickle)
    return LoadedModel(name, twin, "module", notes=load_state_dict(twin, state, f"weights {str(weights)!r}"))


def _built(
    spec: str, weights: str | Path | None, arguments: dict[str, Any], trust_pickle: bool, seed: int
) -> LoadedModel:
    source, _, name = spec.rpartition(":")
    if spec.endswith(".py"):
        raise ModelError(f"{spec!r} is a Python file; name its function too, as in {spec}:build")
    with seeded(seed):
        if spec.startswith("hf:"):
            from compress.loading.transformers_models import build as build_transformers

            if weights == DEFAULT_WEIGHTS:
                raise WeightsError(f"{spec!r} has its weights in the folder; leave --weights out")
            loaded = build_transformers(spec.partition(":")[2], arguments)
        elif source == "timm":
            from compress.loading.timm_models import build

            loaded = build(name, pretrained=weights == DEFAULT_WEIGHTS, arguments=arguments)
        elif source:
            if weights == DEFAULT_WEIGHTS:
                raise WeightsError(f"{spec!r} has no default weights to download; give --weights FILE")
            loaded = LoadedModel(name, _call(spec, arguments), "module")
        else:
            from compress.loading.torchvision_models import build as build_torchvision

            loaded = build_torchvision(spec, weights, arguments)
    if weights is not None and not _downloaded(source, weights):
        state = read_state_dict(weights, trust_pickle=trust_pickle)
        loaded = replace(
            loaded, notes=(*loaded.notes, *load_state_dict(loaded.model, state, f"weights {str(weights)!r}"))
        )
    loaded.model.eval()
    return loaded


def _downloaded(source: str, weights: str | Path) -> bool:
    if weights == DEFAULT_WEIGHTS:
        return True
    # torchvision's own names, such as IMAGENET1K_V2, were answered while the model was built
    return not source and not Path(weights).suffix and not Path(weights).exists()


def _call(spec: str, arguments: dict[str, Any]) -> nn.Module:
    factory = import_callable(spec)
    if isinstance(factory, nn.Module):
        return factory
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise ModelError(f"{spec!r} cannot be called: {error}; give its arguments as --model-arg key=value") from error
    except ValueError:  # a builtin without a signature
        pass
    try:
        module = factory(**arguments)
    except Exception as error:
        raise ModelError(f"model factory {spec!r} failed: {first_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"model factory {spec!r} returned a {type(module).__name__}; return a torch.nn.Module")
    return module


def _pickled(path: Path, weights: str | Path | None, trust_pickle: bool) -> LoadedModel:
    if not path.is_file():
        raise ModelError(f"model file {str(path)!r} does not exist; check the path")
    content = read_state_dict(path) if path.suffix == ".safetensors" else read_pickle(path, trust_pickle=trust_pickle)
    module, notes = module_in(content, path)
    if module is None:
        raise ModelError(
            f"{str(path)!r} holds weights, not a model; name the architecture and pass the file as --weights {path.name}"
        )
    if weights is not None:
        state = read_state_dict(weights, trust_pickle=trust_pickle)
        notes += load_state_dict(module, state, f"weights {str(weights)!r}")
    return LoadedModel(path.stem, module, "module", path, notes=notes)


def _exported(path: Path, trust_pickle: bool) -> LoadedModel:
    if not path.is_file():
        raise ModelError(f"exported program {str(path)!r} does not exist; check the path")
    try:
        with unlogged():  # torch logs a traceback of what it raises
            program = torch.export.load(path) if trust_pickle else load_checked(path)
        module = program.module()
    except ModelError:
        raise
    except Exception as error:  # an archive of another kind or version fails in many ways
        raise ModelError(
            f"{str(path)!r} is not an exported program that this torch {torch.__version__} reads, or is truncated "
            f"({first_line(error)}); save it again with torch.export.save"
        ) from error
    specs = tuple(_program_inputs(program))
    return LoadedModel(
        path.stem, module, "exported", path, _first_shape(specs), _first_dtype(specs), None, specs, program
    )


def _program_inputs(program: Any) -> list[TensorSpec]:
    user = [item.arg.name for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"]
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [(name, values[name]) for name in user if isinstance(values.get(name), Tensor)]
    return [
        TensorSpec(name, tuple(size if isinstance(size, int) else None for size in value.shape), value.dtype)
        for name, value in tensors
    ]


def _graph(name: str, graph: ir.Model, path: Path | None) -> LoadedModel:
    specs = []
    for value in graph.graph.inputs:
        if value.name in graph.graph.initializers:  # old files list their weights among the inputs
            continue
        shape = () if value.shape is None else value.shape
        sizes = tuple(size if isinstance(size, int) else None for size in shape)
        specs.append(TensorSpec(value.name or "", sizes, _torch_dtype(value.dtype)))
    return LoadedModel(name, graph, "onnx", path, _first_shape(specs), _first_dtype(specs), None, tuple(specs))


def _torch_dtype(dtype: ir.DataType | None) -> torch.dtype:
    try:
        return torch.from_numpy(np.empty(0, dtype.numpy())).dtype if dtype is not None else torch.float32
    except TypeError:  # types that numpy or torch has not, such as strings
        return torch.float32


def _first_shape(specs: Sequence[TensorSpec]) -> tuple[int, ...] | None:
    if not specs or not specs[0].shape or None in specs[0].shape[1:]:
        return None
    return _with_batch(specs[0].shape, BATCH)


def _first_dtype(specs: Sequence[TensorSpec]) -> torch.dtype:
    return specs[0].dtype if specs else torch.float32


def _with_batch(shape: tuple[int | None, ...], batch: int) -> tuple[int, ...]:
    return tuple(batch if size is None else size for size in shape)


def _shapes(given: Sequence[Any]) -> tuple[tuple[int, ...], ...]:
    shapes = (tuple(given),) if not given or isinstance(given[0], int) else tuple(tuple(item) for item in given)
    for shape in shapes:
        if not shape or any(not isinstance(size, int) or size < 1 for size in shape):
            raise InputError(
                f"input shape {shape!r} cannot be used; give positive sizes, batch first, as in 2,3,224,224"
            )
    return shapes


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)
