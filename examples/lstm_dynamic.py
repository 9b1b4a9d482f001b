"""A recurrent classifier, quantized dynamically: no calibration data is needed.

python examples/lstm_dynamic.py
"""

import argparse
from pathlib import Path

import onnx
import torch
from torch import nn

import compress
from compress.state import seeded


class Tagger(nn.Module):
    """Token ids (N, L) → scores of five classes, from a bidirectional LSTM's last states."""

    def __init__(self, vocabulary=2000, width=128):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, ids):
        _, (hidden, _) = self.lstm(self.embedding(ids))
        return self.head(hidden.transpose(0, 1).flatten(1))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("lstm"))
    arguments = parser.parse_args(argv)

    with seeded(0):
        module = Tagger(width=arguments.width).eval()
        ids = torch.randint(0, 2000, (64, 20))
    exported = compress.export(module, (ids[:2],), path=arguments.out / "float.onnx", overwrite=True)
    step = compress.quantize_dynamic(exported.model)
    compress.save_onnx(step.model, arguments.out / "int8.onnx")
    for change in step.changes:
        print(f"{change.layer}: {change.action}{' — ' + change.reason if change.reason else ''}")

    sizes = [(arguments.out / name).stat().st_size / 1000 for name in ("float.onnx", "int8.onnx")]
    agreement = compress.evaluate(arguments.out / "int8.onnx", [ids], baseline=arguments.out / "float.onnx").agreement
    print(f"{sizes[0]:.0f} kB → {sizes[1]:.0f} kB; {agreement:.1%} of the classes are the same")
    operators = {node.op_type for node in onnx.load(arguments.out / "int8.onnx").graph.node}
    return operators, sizes


if __name__ == "__main__":
    main()
