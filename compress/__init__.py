"""Model compression for PyTorch: prune, quantize, and measure the file that ships."""

import importlib
from typing import Any

__version__ = "0.2.0"

# Public name → the module that defines it. Imported on first use, so that `import compress` stays light.
_HOMES = {
    "Augmentation": "compress.loading.augmentation",
    "Change": "compress.steps",
    "CompressError": "compress.errors",
    "Data": "compress.loading.data",
    "DataSource": "compress.pipeline.inputs",
    "FinetuneOptions": "compress.training.options",
    "FitResult": "compress.training.loop",
    "Gates": "compress.pipeline.gates",
    "GraphModule": "compress.graph.module",
    "Measurement": "compress.steps",
    "Metric": "compress.measures.own",
    "ModelSource": "compress.pipeline.inputs",
    "Output": "compress.pipeline.outputs",
    "Pipeline": "compress.pipeline.pipeline",
    "Preprocessing": "compress.loading.preprocessing",
    "PruneRequest": "compress.pruning.request",
    "QATSchedule": "compress.quantization.qat",
    "QuantizeOptions": "compress.pipeline.quantize_options",
    "Recipe": "compress.pipeline.recipe",
    "Report": "compress.reporting.report",
    "SearchOptions": "compress.pipeline.search.options",
    "Settings": "compress.pipeline.inputs",
    "Step": "compress.steps",
    "TrainOptions": "compress.training.options",
    "adaround": "compress.quantization.adaround",
    "benchmark": "compress.evaluation.latency",
    "compare": "compress.pipeline.compare",
    "compare_reports": "compress.reporting.changes",
    "convert": "compress.quantization.qat",
    "evaluate": "compress.evaluation.accuracy",
    "export": "compress.graph.exporting",
    "finetune": "compress.pipeline.train",
    "fit": "compress.training.loop",
    "fuse": "compress.fusion.batchnorm",
    "heal": "compress.pruning.healing",
    "load": "compress.loading.models",
    "open_data": "compress.loading.data",
    "prepare_qat": "compress.quantization.qat",
    "prune": "compress.pruning.prune",
    "prune_iteratively": "compress.pruning.iterative",
    "prune_sizes": "compress.pruning.sizes",
    "quantize": "compress.pipeline.quantize",
    "quantize_dynamic": "compress.quantization.dynamic",
    "quantize_float16": "compress.quantization.half",
    "quantize_static": "compress.quantization.static",
    "quantize_tuned": "compress.quantization.tuned",
    "quantize_weight_only": "compress.quantization.weight_only",
    "quickstart": "compress.pipeline.quickstart",
    "read_onnx": "compress.onnx_files",
    "read_report": "compress.reporting.reading",
    "run": "compress.pipeline.run",
    "save_onnx": "compress.onnx_files",
    "search": "compress.pipeline.search.searching",
    "sensitivity": "compress.quantization.sensitivity",
    "train": "compress.pipeline.train",
}

__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'compress' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
