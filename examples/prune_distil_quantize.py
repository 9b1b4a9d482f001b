"""Train a network, remove channels, win the accuracy back from the original, ship int8.

python examples/prune_distil_quantize.py
python examples/prune_distil_quantize.py --epochs 20 --amount 0.6
"""

import argparse
from pathlib import Path

from digit_net import build

import compress
from compress.loading.models import example_inputs, open_model
from compress.state import seeded


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--amount", type=float, default=0.5, help="fraction of the multiply-accumulates to remove")
    parser.add_argument("--out", type=Path, default=Path("distilled"))
    arguments = parser.parse_args(argv)

    data = compress.open_data("digits")
    with seeded(0):
        module = build()
    inputs = example_inputs(open_model(module), data=data)
    options = compress.TrainOptions(epochs=arguments.epochs, batch_size=64)

    teacher = compress.fit(module, data, options).module
    pruned = compress.prune(teacher, inputs, amount=arguments.amount, target="macs")
    for change in pruned.done:
        print(f"{change.layer}: {change.action}")
    # The teacher is the network as it was before pruning.
    student = compress.fit(pruned.model, data, options, teacher=teacher).module

    fused = compress.fuse(student, inputs)
    quantized = compress.quantize_static(fused.model, data.loader("calibration"))
    targets = {
        "trained": compress.export(teacher, inputs, path=arguments.out / "trained.onnx", overwrite=True),
        "pruned": compress.export(pruned.model, inputs, path=arguments.out / "pruned.onnx", overwrite=True),
        "distilled": compress.export(student, inputs, path=arguments.out / "distilled.onnx", overwrite=True),
        "int8": compress.save_onnx(quantized.model, arguments.out / "int8.onnx"),
    }
    top1 = {}
    for name in targets:
        path = arguments.out / f"{name}.onnx"
        top1[name] = compress.evaluate(path, data.loader("test")).top1
        print(f"{name:>10}: {path.stat().st_size / 1000:6.1f} kB  top-1 {top1[name]:.2%}")
    return top1


if __name__ == "__main__":
    main()
