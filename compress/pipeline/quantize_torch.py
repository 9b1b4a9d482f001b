"""The job behind `quantize --runtime torch`: PyTorch's int8, measured like any other file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from compress.counting import counted
from compress.errors import InputError, nearest
from compress.loading.torchscript import SUFFIX, save_torchscript
from compress.measures.opening import Measures
from compress.pipeline.closing import closing_report
from compress.pipeline.gates import Gates
from compress.pipeline.inputs import Opened, Settings, open_inputs
from compress.pipeline.job import Delivery, Job
from compress.pipeline.outputs import Output, output_folder
from compress.pipeline.rehearsal import rehearsed
from compress.quantization import torch_native
from compress.quantization.targets import resolve_target
from compress.reporting.report import Report
from compress.steps import Step

if TYPE_CHECKING:
    from compress.pipeline.quantize_options import QuantizeOptions

ENGINES = ("fbgemm", "onednn", "qnnpack", "x86")
EPOCHS = 2
LEARNING_RATE = 1e-3  # a trained model is only nudged
BATCH = 64


def quantize_torch(
    model: Any,
    data: Any = None,
    *,
    output: Output,
    options: QuantizeOptions,
    gates: Gates | None = None,
    measures: Measures | None = None,
    settings: Settings | None = None,
) -> Report:
    """Quantize a module with torch.ao and leave `model.torchscript` and its reports in a folder.

    Raises:
        CompressError: one line for whatever cannot be used; an `.onnx` model, which torch.ao cannot take, among them.
    """
    settings = settings or Settings()
    if options.method not in METHODS:
        raise InputError(f"--runtime torch has no method {options.method!r}; {nearest(options.method, METHODS)}")
    if options.op_types and options.method != "dynamic":
        raise InputError(f"--runtime torch chooses no --op-types with method {options.method}; leave it out")
    engine = engine_of(options.target)
    opened = open_inputs(model, data, settings)
    if not isinstance(opened.model, nn.Module):
        raise InputError(f"{opened.name!r} is an ONNX graph, which PyTorch cannot quantize; use --runtime onnx")
    job = rehearsed(Job(opened, settings, output, gates or Gates(), measures or Measures()))
    with output_folder(output) as folder:
        step = METHODS[options.method](opened, options, engine)
        path = save_torchscript(step.model, folder.path / f"model{SUFFIX}", opened.inputs)
        made = Delivery(
            {f"{opened.name} float32": opened.model, f"int8 ({engine})": path},
            f"{opened.name}, {options.method} int8 by torch.ao, engine {engine}",
            steps=[step],
            files={"model": str(path)},
        )
        report = closing_report(job, made)
        # Packed weights are no parameters: what counts as none was not counted.
        rows = tuple(
            row if row.parameters else dataclasses.replace(row, parameters=None, sparsity=None) for row in report.rows
        )
        return folder.save_report(dataclasses.replace(report, rows=rows))


def engine_of(target: str) -> str:
    """The engine that a target means: its own name, else this machine's (x86 or qnnpack)."""
    if target in ENGINES:
        return target
    return "qnnpack" if resolve_target(target).activation_signed else "x86"


def _dynamic(opened: Opened, options: QuantizeOptions, engine: str) -> Step:
    return torch_native.quantize_dynamic(
        opened.model,
        weight_type=options.weight_type,
        engine=engine,
        op_types=options.op_types or None,
        exclude=options.exclude,
    )


def _static(opened: Opened, options: QuantizeOptions, engine: str) -> Step:
    return torch_native.quantize_static(
        opened.model, opened.calibration(), engine=engine, exclude=options.exclude, example_inputs=opened.inputs
    )


def _qat(opened: Opened, options: QuantizeOptions, engine: str) -> Step:
    from compress.pipeline.rehearsal import rehearse_training
    from compress.training.loop import fit
    from compress.training.options import TrainOptions

    epochs = options.epochs or EPOCHS
    training = TrainOptions(
        epochs=epochs,
        optimizer="sgd",
        lr=options.lr or LEARNING_RATE,
        batch_size=BATCH,
        loss=options.loss,
        seed=opened.seed,
    )
    rehearse_training(opened, opened.model, training, teacher=opened.model)
    prepared = torch_native.prepare_qat(opened.model, opened.inputs, engine=engine, exclude=options.exclude)

    def freeze(run: Any) -> None:
        """From the middle on ranges stand still, so that the weights can settle between them."""
        if epochs > 1 and run.epoch >= (epochs + 1) // 2:
            torch_native.freeze_module(run.module)

    result = fit(
        prepared.module,
        opened.data,
        training,
        teacher=opened.model,
        before_epoch=[freeze],
    )
    step = torch_native.convert(dataclasses.replace(prepared, module=result.module.cpu()), opened.inputs)
    return dataclasses.replace(step, notes=(*step.notes, f"trained for {counted(epochs, 'epoch')} with simulated int8"))


METHODS: Mapping[str, Callable[[Opened, Any, str], Step]] = {"dynamic": _dynamic, "qat": _qat, "static": _static}
