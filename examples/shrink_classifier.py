"""A torchvision classifier to a measured int8 file.

python examples/shrink_classifier.py mobilenet_v3_small --data imagefolder:photos --weights DEFAULT
python examples/shrink_classifier.py                    # random weights, random images: size and speed only
"""

import argparse
from pathlib import Path

import torch

import compress
from compress.loading.models import example_inputs, open_model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mobilenet_v3_small")
    parser.add_argument("--weights", help="checkpoint file, or DEFAULT for torchvision's own")
    parser.add_argument("--data", help="as in `compress quantize --data`")
    parser.add_argument("--side", type=int, default=224, help="of random images, where there is no data")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("shrunk"))
    arguments = parser.parse_args(argv)

    loaded = open_model(arguments.model, weights=arguments.weights)
    if arguments.data:
        data = compress.open_data(arguments.data, preprocessing=loaded.preprocessing)
        calibration, inputs = data.loader("calibration"), example_inputs(loaded, data=data)
    else:
        data = None
        inputs = example_inputs(loaded, input_shape=(2, 3, arguments.side, arguments.side))
        calibration = [torch.randn_like(inputs.values[0]) for _ in range(4)]

    exported = compress.export(loaded.model, inputs, path=arguments.out / "float.onnx", overwrite=True)
    step = compress.quantize_static(exported.model, calibration)
    compress.save_onnx(step.model, arguments.out / "int8.onnx")
    print(f"{len(step.done)} operators run in int8; in float stay:")
    for change in step.skipped:
        print(f"  {change.layer}: {change.reason}")

    files = {"float": arguments.out / "float.onnx", "int8": arguments.out / "int8.onnx"}
    rows = compress.benchmark(files, inputs, rounds=arguments.rounds)
    for name, row in rows.items():
        size = files[name].stat().st_size / 1e6
        print(f"{name:>6}: {size:6.2f} MB  {row.p50_ms:7.2f} ms  ×{row.speedup:.2f}")
        if data is not None:
            print(f"        top-1 {compress.evaluate(files[name], data.loader('test')).top1:.2%}")
    return files


if __name__ == "__main__":
    main()
