"""An ONNX file that some other framework wrote, quantized without any PyTorch module.

python examples/foreign_onnx.py model.onnx --data images.npz
python examples/foreign_onnx.py                         # writes a small file of its own first
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import compress
from compress.loading.models import example_inputs, open_model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--data", help="calibration samples, as in `compress quantize --data`; default: random")
    parser.add_argument("--input-shape", type=int, nargs="+", help="batch first, where the file does not tell")
    parser.add_argument("--out", type=Path, default=Path("foreign"))
    arguments = parser.parse_args(argv)

    path = arguments.model or write_elsewhere(arguments.out / "elsewhere.onnx")
    loaded = open_model(path)
    data = compress.open_data(arguments.data) if arguments.data else None
    inputs = example_inputs(loaded, input_shape=arguments.input_shape, data=data)
    generator = torch.Generator().manual_seed(0)
    noise = [inputs.map(lambda x: torch.randn(x.shape, generator=generator)) for _ in range(16)]
    step = compress.quantize_static(loaded.model, data.loader("calibration") if data else noise)
    result = compress.save_onnx(step.model, arguments.out / "int8.onnx")
    rows = compress.benchmark({"float": path, "int8": result}, inputs, rounds=10)
    agreement = compress.evaluate(result, noise, baseline=path).agreement
    for note in step.notes:
        print(note)
    print(f"{len(step.done)} operators in int8, {len(step.skipped)} in float")
    print(f"{path.stat().st_size / 1000:.0f} kB → {result.stat().st_size / 1000:.0f} kB, ×{rows['int8'].speedup:.2f}")
    print(f"{agreement:.1%} of the classes are the same")
    return path, result


def write_elsewhere(path):
    """A small image classifier of an old opset, written node by node with the `onnx` package."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.normal(0, 0.2, (32, 3, 3, 3)),
        "bias": rng.normal(0, 0.1, 32),
        "matrix": rng.normal(0, 0.1, (32, 10)),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel", "bias"], ["features"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["features"], ["active"], name="relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "matrix"], ["scores"], name="classifier"),
    ]
    graph = helper.make_graph(
        nodes,
        "elsewhere",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6), path)
    return path


if __name__ == "__main__":
    main()
