"""The job behind `--method qat`: the int8 graph trained as it will ship, taught by the float model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from compress.counting import counted
from compress.graph.module import GraphModule
from compress.pipeline.inputs import Opened
from compress.pipeline.rehearsal import rehearse_training
from compress.quantization.qat import QATSchedule, convert, prepare_qat
from compress.steps import Step
from compress.training.distributed import pick_device
from compress.training.loop import fit
from compress.training.options import FinetuneOptions, TrainOptions

if TYPE_CHECKING:
    from compress.pipeline.quantize_options import QuantizeOptions

EPOCHS = 2
# Adam: folded into their convolutions, batch-norm's channels differ in size by up to 10^6, and SGD's one rate is near
# instability for some while others stand still. ResNet-20 with 4-bit weights won back all it lost, by SGD 42 to 63 %.
OPTIMIZER, LEARNING_RATE = "adam", 1e-4
BATCH = 64


def quantize_qat(graph: Any, opened: Opened, options: QuantizeOptions) -> Step:
    """Calibrate, train on the training part with the float model as teacher, convert.

    Ranges are frozen for the last half of the epochs, so that the weights settle on a grid that stands still.

    Raises:
        InputError: there is no training or calibration data.
    """
    training = qat_training(options, opened.seed)
    epochs = training.epochs
    teacher: nn.Module = opened.model if isinstance(opened.model, nn.Module) else GraphModule(graph)
    pick_device(options.device)
    rehearse_training(opened, GraphModule(graph), training, teacher=teacher)
    prepared = prepare_qat(
        graph,
        opened.calibration(),
        scales=options.scales,
        options=options.static(),
        example_inputs=opened.inputs,
    )
    schedule = QATSchedule(freeze_ranges_from=(epochs + 1) // 2 if epochs > 1 else None)
    result = fit(
        prepared,
        opened.data,
        training,
        teacher=teacher,
        device=options.device,
        before_epoch=[lambda run: schedule.apply(run.module, run.epoch)],
    )
    step = convert(result.module)
    trained = f"trained for {counted(len(result.history), 'epoch')} as the int8 graph"
    return Step(step.name, step.model, step.changes, (*step.notes, trained, *result.notes))


def qat_training(options: QuantizeOptions, seed: int) -> TrainOptions:
    """How the int8 graph is trained: from what static quantization gave, which is kept where training does not help."""
    return FinetuneOptions(
        epochs=options.epochs or EPOCHS,
        optimizer=OPTIMIZER,
        lr=options.lr or LEARNING_RATE,
        batch_size=BATCH,
        loss=options.loss,
        seed=seed,
    )
