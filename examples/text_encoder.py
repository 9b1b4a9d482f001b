"""A transformer text encoder with an attention mask, static int8 beside dynamic int8.

python examples/text_encoder.py --layers 4
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import compress
from compress.evaluation.runners import open_runner
from compress.state import seeded


class Encoder(nn.Module):
    """Token ids and mask (N, L) → one unit vector for each sentence, the mean over its words."""

    def __init__(self, layers, width=64, vocabulary=1000, longest=128):
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(longest, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, activation="gelu", norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, ids, mask):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        x = self.encoder(x, src_key_padding_mask=mask == 0)
        kept = mask.unsqueeze(-1).float()
        return nn.functional.normalize((x * kept).sum(1) / kept.sum(1), dim=1)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("encoder"))
    arguments = parser.parse_args(argv)

    with seeded(0):
        module = Encoder(arguments.layers).eval()
        ids = torch.randint(1, 1000, (arguments.sentences, 24))
        lengths = torch.randint(5, 25, (arguments.sentences, 1))
    mask = (torch.arange(24) < lengths).long()
    batches = [((ids[start : start + 16], mask[start : start + 16]), None) for start in range(0, len(ids), 16)]

    exported = compress.export(module, (ids[:2], mask[:2]), path=arguments.out / "float.onnx", overwrite=True)
    steps = {
        "dynamic": compress.quantize_dynamic(exported.model),
        "static": compress.quantize_static(exported.model, batches),
    }
    with torch.no_grad():
        expected = module(ids, mask)
    similarity = {}
    for name, step in steps.items():
        path = compress.save_onnx(step.model, arguments.out / f"{name}.onnx")
        runner = open_runner(path)
        vectors = torch.cat([runner(*inputs)[0] for inputs, _ in batches])
        similarity[name] = float((vectors * expected).sum(1).mean())
        print(f"{name}: {path.stat().st_size / 1000:.0f} kB, mean cosine with float {similarity[name]:.4f}")
    return similarity


if __name__ == "__main__":
    main()
