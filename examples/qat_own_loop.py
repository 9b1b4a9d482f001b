"""Quantization-aware training in a training loop of one's own.

python examples/qat_own_loop.py --epochs 3
"""

import argparse
from pathlib import Path

import torch
from digit_net import build

import compress
from compress.state import seeded


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3, help="of float training, then of quantization-aware training")
    parser.add_argument("--out", type=Path, default=Path("qat.onnx"))
    arguments = parser.parse_args(argv)

    data = compress.open_data("digits")
    with seeded(0):
        module = build()
    train(module, data, arguments.epochs, lr=0.05)

    # An ordinary module, whose graph is the one that ships: batch-norm is folded, quantizers stand where the file has them.
    quantized = compress.prepare_qat(module.eval(), data.loader("calibration"))
    train(quantized, data, arguments.epochs, lr=0.005)

    step = compress.convert(quantized, data.loader("test"))
    path = compress.save_onnx(step.model, arguments.out)
    print(step.notes[-1])
    top1 = compress.evaluate(path, data.loader("test")).top1
    print(f"{path}: {path.stat().st_size / 1000:.1f} kB, top-1 {top1:.2%}")
    return top1


def train(module, data, epochs, lr):
    """Nothing in here knows about quantization."""
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    loader = data.loader("train", shuffle=True)
    module.train()
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            loss = torch.nn.functional.cross_entropy(module(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss) * len(x)
        print(f"epoch {epoch}: loss {total / len(data.train):.4f}")
    module.eval()


if __name__ == "__main__":
    main()
