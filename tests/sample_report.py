"""One report with everything that a report can hold, for the tests of its forms."""

from compress.reporting.report import Gate, Report
from compress.steps import Change, Measurement, Step

FLOAT = Measurement(
    "float",
    path="out/float.onnx",
    size_bytes=4_000_000,
    p50_ms=10.0,
    speedup=1.0,
    top1=0.9195,
    samples=2000,
    macs=10**6,
    extra={"class_right": {"0": 9, "1": 9}, "class_total": {"0": 10, "1": 10}, "confusions": [[0, 1, 1]]},
)
INT8 = Measurement(
    "int8",
    path="out/model.onnx",
    size_bytes=1_000_000,
    p50_ms=4.0,
    speedup=2.5,
    top1=0.917,
    agreement=0.99,
    samples=2000,
    extra={
        "top1_interval": [0.904, 0.929],
        "class_right": {"0": 7, "1": 9},
        "class_total": {"0": 10, "1": 10},
        "confusions": [[0, 1, 3]],
    },
)
STEP = Step(
    "quantize",
    model=object(),
    changes=(
        Change("conv1", "quantized"),
        Change("conv2", "quantized"),
        Change("mean", "written as GlobalAveragePool", "it is one"),
        Change("gru", "quantized", reason="the runtime has no int8 GRU", skipped=True),
    ),
    notes=("weights keep to 7 bits",),
)
DETAILS = {
    "classes": ["cat & dog", "fish"],
    "layers": [
        {"name": "conv1/Conv", "operator": "QLinearConv", "microseconds": 12.0},
        {"name": "conv1/Conv", "noise": 0.0123},
        {"name": "conv1/Conv", "sensitivity": 0.00456},
        {"name": "conv1.weight", "error": 0.011},
        {"name": "layer1", "channels_before": 64, "channels_after": 32},
        {"name": "layer1.weight", "sparsity": 0.25},
    ],
    "histograms": [
        {
            "name": "conv1.weight",
            "what": "float weights",
            "counts": [0, 4, 9, 1],
            "low": -1.0,
            "high": 1.0,
            "marks": [0.5],
        }
    ],
}
GATES = (
    Gate("max-drop", "int8", 0.25, 0.5, " points", True),
    Gate("require-speedup", "int8", 2.5, 3.0, "×", False),
)


def sample(**changed: object) -> Report:
    """The report, with some of its parts replaced."""
    parts = {"rows": (FLOAT, INT8), "steps": (STEP,), "gates": GATES, "notes": ("a note",), "details": DETAILS}
    return Report(**{**parts, "files": {"model": "out/model.onnx"}, **changed})  # type: ignore[arg-type]
