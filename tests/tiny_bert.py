"""A BERT of two layers with its tokenizer, saved as `save_pretrained` does: nothing is downloaded."""

import csv
import importlib
import random

import torch

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
    "not",
    "quite",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def save(folder, *, texts=160, labels=("0", "1")):
    """Write model and tokenizer to `folder`, and `reviews.csv`: review, other, stars (the model's own answer, mostly)."""
    importlib.import_module(
        "compress.loading.torchvision_ops"
    )  # transformers imports torchvision where it is installed
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # not the order of forward
        model_max_length=128,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=2,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    draw, rows = random.Random(0), []
    for _ in range(texts):
        pair = [" ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 20))) for _ in range(2)]
        with torch.no_grad():
            answer = int(model(**tokenizer(pair[0], return_tensors="pt")).logits.argmax())
        rows.append((*pair, labels[answer if draw.random() < 0.8 else 1 - answer]))
    with open(folder / "reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("review", "other", "stars"), *rows])
    return rows
