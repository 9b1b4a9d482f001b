"""PyTorch's own int8 (torch.ao): the second runtime, for those who stay in PyTorch.

Deprecated by PyTorch: torch.ao.quantization is to leave torch, and its users are sent to torchao, which has no kernels
for convolutions on the CPU. It is offered while it lasts, and lives in this one file so that it can leave with it. The
way that stays is ONNX Runtime: `compress.quantize_static`, `compress.quantize_dynamic`, `compress.prepare_qat`.

Every result is an `EngineModule`: an `nn.Module` that can be called, evaluated, timed, saved with
`save_torchscript` and reloaded like any other. Static and QAT go by FX graph mode, which folds batch-norm and fuses
convolution with ReLU by itself; where FX cannot trace the module, eager mode quantizes each layer alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.batches import Batch, call, example_batch, read_batch
from compress.errors import CompressError, DataError, InputError, QuantizationError, first_words, nearest
from compress.fusion.batchnorm import fuse
from compress.loading.torchscript import EngineModule, check_engine, engine_set
from compress.progress import track
from compress.state import evaluating, unwarned
from compress.steps import Change, Step

try:
    from torch.ao import quantization as ao
    from torch.ao.quantization import quantize_fx as fx

    MISSING = ""
except ImportError as _error:  # the day PyTorch removes it
    MISSING = str(_error)

DYNAMIC_TYPES: Mapping[str, type[nn.Module]] = {"GRU": nn.GRU, "LSTM": nn.LSTM, "Linear": nn.Linear}
WEIGHT_TYPES = {"float16": torch.float16, "int8": torch.qint8}
_EAGER_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_HAVE_WEIGHTS = (nn.modules.conv._ConvNd, nn.Linear, nn.RNNBase, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention)
_ONNX = "use --runtime onnx"


@dataclass(frozen=True)
class Prepared:
    """A module with observers or fake-quantize modules in it; train or calibrate `.module`, then `convert`."""

    module: nn.Module
    engine: str
    mode: str  # "fx" or "eager"
    refusals: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()


def quantize_dynamic(
    module: nn.Module,
    *,
    weight_type: str = "int8",
    engine: str = "x86",
    op_types: Collection[str] | None = None,
    exclude: Collection[str] = (),
) -> Step:
    """Quantize Linear, LSTM and GRU with int8 (or float16) weights; activations are quantized as they come.

    Deprecated by PyTorch; `compress.quantize_dynamic` makes an ONNX file instead.

    Raises:
        QuantizationError: an unknown or unsupported weight type or layer type, or nothing to quantize.
        InputError: an engine or a name in `exclude` that is not there.
    """
    _check_available(engine)
    if weight_type not in WEIGHT_TYPES:
        raise QuantizationError(
            f"torch has no dynamic weight type {weight_type!r}; {nearest(weight_type, WEIGHT_TYPES)}"
        )
    if weight_type == "float16" and engine not in ("x86", "fbgemm"):
        raise QuantizationError(
            f"torch's engine {engine!r} has no float16 linear layer; choose x86 or fbgemm, or "
            "--runtime onnx --weight-type float16"
        )
    kinds = tuple(DYNAMIC_TYPES[_known(name, DYNAMIC_TYPES, "layer type")] for name in op_types or DYNAMIC_TYPES)
    work = copy.deepcopy(module).eval()
    left_out = _left_out(work, exclude)
    chosen = {name for name, part in work.named_modules() if type(part) in kinds and name not in left_out}
    default = ao.float16_dynamic_qconfig if weight_type == "float16" else ao.per_channel_dynamic_qconfig
    recurrent = ao.float16_dynamic_qconfig if weight_type == "float16" else ao.default_dynamic_qconfig
    # The recurrent kernels take one weight scale per matrix; so do qnnpack's linear layers.
    per_layer = {
        name: default if isinstance(work.get_submodule(name), nn.Linear) and engine != "qnnpack" else recurrent
        for name in chosen
    }
    _refuse_nothing(module, chosen, "Linear, LSTM or GRU")
    with engine_set(engine), unwarned():
        converted = ao.quantize_dynamic(work, per_layer, dtype=WEIGHT_TYPES[weight_type])
    changes = [Change(name, f"runs in {weight_type} ({_kind(module, name)})") for name in sorted(chosen)]
    reasons = {name: "excluded by name" for name in left_out}
    changes += _leftovers(module, chosen, reasons, "torch.ao has no dynamic form of it")
    return Step("quantize_dynamic (torch)", EngineModule(converted, engine), tuple(changes), (_deprecated(),))


def quantize_static(
    module: nn.Module,
    calibration: Iterable[Any],
    *,
    engine: str = "x86",
    exclude: Collection[str] = (),
    example_inputs: Any = None,
) -> Step:
    """Calibrate and convert to int8; weights per channel except on qnnpack.

    Deprecated by PyTorch; `compress.quantize_static` makes an ONNX file instead.

    Raises:
        QuantizationError: torch cannot convert the module, with its reason.
        DataError: the calibration data is empty or not finite.
        InputError: an engine or a name in `exclude` that is not there.
    """
    batches = iter(track(calibration, "calibrating"))
    first = next(batches, None)
    if first is None:
        raise DataError("the calibration data is empty; give at least one batch")
    inputs = read_batch(first) if example_inputs is None else example_batch(example_inputs)
    prepared = _prepare(module, inputs, engine, exclude, training=False)
    with evaluating(prepared.module):
        for batch in _chain(first, batches):
            read = read_batch(batch)
            if any(x.is_floating_point() and not torch.isfinite(x).all() for x in read.values):
                raise DataError("the calibration data holds NaN or infinity; clean it first")
            prepared.module(*read.in_order(module))
    return _converted(prepared, module, inputs, "quantize_static (torch)")


def prepare_qat(
    module: nn.Module,
    example_inputs: Any,
    *,
    engine: str = "x86",
    exclude: Collection[str] = (),
) -> Prepared:
    """Return the module with fake-quantize modules in it: train `.module` in your own loop, then `convert` it.

    Deprecated by PyTorch; `compress.prepare_qat` trains the graph that ships instead.

    Raises:
        QuantizationError: torch cannot prepare the module, with its reason.
        InputError: an engine or a name in `exclude` that is not there.
    """
    return _prepare(module, example_batch(example_inputs), engine, exclude, training=True)


def freeze_module(module: nn.Module, *, ranges: bool = True, statistics: bool = True) -> None:
    """In the last epochs of QAT: stop observing ranges, and let batch-norm use its running statistics."""
    if ranges:
        module.apply(ao.disable_observer)
    if statistics:
        module.apply(torch.ao.nn.intrinsic.qat.freeze_bn_stats)


def convert(prepared: Prepared, example_inputs: Any) -> Step:
    """Turn a trained `prepare_qat` result into its int8 form; `prepared` is not changed.

    Raises:
        QuantizationError: torch cannot run the converted module, with its reason.
    """
    return _converted(prepared, prepared.module, example_batch(example_inputs), "convert (torch)")


def _prepare(module: nn.Module, inputs: Batch, engine: str, exclude: Collection[str], *, training: bool) -> Prepared:
    _check_available(engine)
    work = copy.deepcopy(module).train(training)
    left_out = _left_out(work, exclude)
    refusals = tuple(
        Change(name, f"{_kind(module, name)} stays float", "excluded by name", skipped=True)
        for name in sorted(left_out)
        if isinstance(module.get_submodule(name), _HAVE_WEIGHTS)
    )
    with engine_set(engine), unwarned():
        try:
            ready = _by_fx(work, inputs, engine, left_out, training)
            return Prepared(ready, engine, "fx", refusals, (_deprecated(),))
        except Exception as error:
            reason = first_words(error)
        ready = _by_eager(copy.deepcopy(module), inputs, engine, left_out, training)
    note = f"torch.fx cannot trace the module ({reason}), so each layer is quantized alone, in eager mode"
    return Prepared(ready, engine, "eager", refusals, (_deprecated(), note))


def _by_fx(work: nn.Module, inputs: Batch, engine: str, left_out: Collection[str], training: bool) -> nn.Module:
    get: Callable[[str], Any] = ao.get_default_qat_qconfig_mapping if training else ao.get_default_qconfig_mapping
    mapping = get(engine)
    for name in left_out:
        mapping.set_module_name(name, None)
    # Rows of an embedding are looked up, not multiplied: the default asks for a type that has no kernel.
    mapping.set_object_type(nn.Embedding, None).set_object_type(nn.EmbeddingBag, None)
    return (fx.prepare_qat_fx if training else fx.prepare_fx)(work, mapping, inputs.in_order(work))


def _by_eager(work: nn.Module, inputs: Batch, engine: str, left_out: Collection[str], training: bool) -> nn.Module:
    """Every convolution and linear layer between a quantize and a dequantize of its own."""
    try:
        work = fuse(work, inputs).model
    except CompressError:
        work = copy.deepcopy(work)  # batch-norm that cannot be read stays as it is, in float
    work.train(training)
    setting = ao.get_default_qat_qconfig(engine) if training else ao.get_default_qconfig(engine)
    for name, part in list(work.named_modules()):
        if type(part) in _EAGER_LAYERS and name and name not in left_out:
            wrapped = ao.QuantWrapper(part)
            wrapped.qconfig = setting
            parent, _, child = name.rpartition(".")
            setattr(work.get_submodule(parent), child, wrapped)
    return (ao.prepare_qat if training else ao.prepare)(work, inplace=True)


def _converted(prepared: Prepared, original: nn.Module, inputs: Batch, step: str) -> Step:
    work = copy.deepcopy(prepared.module).eval()
    with engine_set(prepared.engine), unwarned():
        try:
            converted = fx.convert_fx(work) if prepared.mode == "fx" else ao.convert(work)  # type: ignore[arg-type]  # fx gives a GraphModule
            with torch.no_grad():
                call(converted, inputs)
        except Exception as error:
            raise QuantizationError(
                f"torch.ao cannot run {type(original).__name__} in int8: {first_words(error)}; {_ONNX}"
            ) from error
    quantized = _quantized_names(converted)
    _refuse_nothing(original, quantized, "convolution or linear layer that torch.ao can trace")
    changes = [Change(name, f"runs in int8 ({kind})") for name, kind in sorted(quantized.items())]
    refused = {change.layer for change in prepared.refusals}
    floats = [
        Change(name, f"{type(part).__name__} stays float", "torch.ao's default configuration leaves it", skipped=True)
        for name, part in converted.named_modules()
        if isinstance(part, _HAVE_WEIGHTS) and type(part).__module__.startswith("torch.nn.") and name not in refused
    ]
    model = EngineModule(converted, prepared.engine)
    return Step(step, model, (*changes, *prepared.refusals, *floats), prepared.notes)


def _quantized_names(module: nn.Module) -> dict[str, str]:
    """Layer → class, of those that hold packed int8 weights."""
    return {
        name.removesuffix(".module"): type(part).__name__
        for name, part in module.named_modules()
        if type(part).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized"))
        and hasattr(part, "_packed_params")
        and hasattr(part, "scale")  # the box of a linear layer's weights is a module too, without one
    }


def _leftovers(module: nn.Module, chosen: Collection[str], reasons: Mapping[str, str], otherwise: str) -> list[Change]:
    return [
        Change(name, f"{type(part).__name__} stays float", reasons.get(name, otherwise), skipped=True)
        for name, part in module.named_modules()
        if isinstance(part, _HAVE_WEIGHTS) and name not in chosen
    ]


def _left_out(module: nn.Module, exclude: Collection[str]) -> set[str]:
    known = [name for name, _ in module.named_modules() if name]
    found = set()
    for name in exclude:
        inside = {other for other in known if other == name or other.startswith(f"{name}.")}
        if not inside:
            raise InputError(f"exclude {name!r} is no layer of {type(module).__name__}; {nearest(name, known)}")
        found |= inside
    return found


def _refuse_nothing(module: nn.Module, quantized: Collection[str], wanted: str) -> None:
    if not quantized:
        raise QuantizationError(
            f"{type(module).__name__} has no {wanted}, so torch.ao has nothing to quantize; {_ONNX}"
        )


def _check_available(engine: str) -> None:
    if MISSING:
        raise QuantizationError(f"this PyTorch no longer ships torch.ao.quantization ({MISSING}); {_ONNX}")
    check_engine(engine)


def _known(name: str, names: Collection[str], what: str) -> str:
    if name not in names:
        raise QuantizationError(f"torch.ao has no dynamic {what} {name!r}; {nearest(name, names)}, or {_ONNX}")
    return name


def _kind(module: nn.Module, name: str) -> str:
    return type(module.get_submodule(name)).__name__


def _deprecated() -> str:
    return "torch.ao quantization is deprecated by PyTorch; --runtime onnx makes the file that stays"


def _chain(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest
