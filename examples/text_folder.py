"""A text classifier out of a folder of transformers: exported for any length, quantized, held against the folder's own model.

python examples/text_folder.py bert --data "text:reviews.csv?text=review&label=stars"
python examples/text_folder.py                          # saves a tiny BERT with a tokenizer and a table first
"""

import argparse
import csv
import random
from pathlib import Path

import torch

from compress.loading.transformers_models import open_tokenizer
from compress.pipeline.inputs import ModelSource
from compress.pipeline.quantize import quantize
from compress.pipeline.quantize_options import QuantizeOptions

WORDS = [
    "good",
    "great",
    "fine",
    "lovely",
    "bad",
    "awful",
    "poor",
    "dull",
    "film",
    "plot",
    "actor",
    "scene",
    "the",
    "a",
    "was",
    "and",
    "very",
]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--data", help="as in `compress quantize --data`")
    parser.add_argument("--method", choices=("dynamic", "static"), default="dynamic")
    parser.add_argument("--out", type=Path, default=Path("text"))
    arguments = parser.parse_args(argv)

    folder, data = arguments.folder, arguments.data
    if folder is None:
        folder = write_folder(arguments.out.with_name(f"{arguments.out.name}_bert"))
        data = f"text:{folder / 'reviews.csv'}?text=review&label=stars"
    report = quantize(
        ModelSource(f"hf:{folder}"), data, output=arguments.out, options=QuantizeOptions(method=arguments.method)
    )
    for row in report.rows:
        print(f"{row.name}: {row.size_bytes / 1000:.0f} kB, top-1 {row.top1:.1%}")
    tokens = open_tokenizer(str(folder))("a lovely film", return_tensors="np")
    print("inputs of the file:", ", ".join(tokens))
    return report


def write_folder(folder):
    """A BERT of one layer and a tokenizer of words, as `save_pretrained` leaves them, with a table of reviews."""
    import compress.loading.torchvision_ops  # noqa: F401, I001  # before transformers, which imports torchvision
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", *WORDS]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", model_input_names=["input_ids", "attention_mask"]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, initializer_range=0.3, **shape)
    BertForSequenceClassification(config).save_pretrained(folder)
    draw = random.Random(0)
    with (folder / "reviews.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["review", "stars"])
        for _ in range(120):
            chosen = [draw.choice(WORDS) for _ in range(draw.randint(3, 20))]
            table.writerow([" ".join(chosen), int(sum(WORDS.index(word) < 4 for word in chosen) > 1)])
    return folder


if __name__ == "__main__":
    main()
