"""Texts in tables, `text:FILE.csv?text=COLUMN&label=COLUMN`: tokenized once, padded batch by batch.

    text:reviews.csv?text=review&label=stars           one text, its class
    text:pairs.tsv?text=premise,hypothesis&label=y     two texts
    text:a.jsonl?text=t&label=y&test=b.jsonl           the test part in a file of its own
    …&tokenizer=FOLDER                                 where the model is no hf: folder; &length=128 cuts

Labels are class numbers, or names, in the order of the model's config where it knows them all, else sorted; numbers with
a fraction are values to predict.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compress.errors import DataError, nearest
from compress.loading.parts import Parts

SEPARATORS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*SEPARATORS, ".jsonl")
OPTIONS = ("text", "label", "test", "tokenizer", "length")
_LABEL = "LABEL_"  # what a config calls classes without names


@dataclass(frozen=True)
class Table:
    """What `text:` was given, read."""

    path: Path
    columns: tuple[str, ...]
    label: str | None
    test: Path | None
    tokenizer: str | None
    length: int | None


class TextDataset(Dataset[Any]):
    """Token ids of each text, as the tokenizer made them, with its label (None without)."""

    def __init__(self, encodings: Sequence[Mapping[str, list[int]]], y: Tensor | None) -> None:
        self.encodings, self.y = encodings, y

    def __len__(self) -> int:
        return len(self.encodings)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = dict(self.encodings[index])
        if self.y is not None:
            sample["labels"] = self.y[index]
        return sample


class Padding:
    """Samples as one batch, as long as the longest of them."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        inputs = [{name: value for name, value in sample.items() if name != "labels"} for sample in samples]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt").items())
        if "labels" in samples[0]:
            batch["labels"] = torch.stack([sample["labels"] for sample in samples])
        return batch


def open_texts(spec: str, *, tokenizer: str | None, classes: tuple[str, ...] | None) -> Parts:
    """Read a table of texts; `tokenizer` is the model's folder, `classes` the order of the classes.

    Raises:
        DataError: no such file, column or tokenizer; an empty text column; labels that are neither numbers nor names.
        ModelError: the tokenizer cannot be loaded.
    """
    from compress.loading.transformers_models import longest, open_tokenizer

    table = read_spec(spec)
    source = table.tokenizer or tokenizer
    if source is None:
        raise DataError(f"text:{spec} needs a tokenizer; name the model as hf:FOLDER, or add &tokenizer=FOLDER")
    encoder = open_tokenizer(source)
    limit = table.length or longest(encoder, source)
    files = {"whole" if table.test is None else "train": table.path, **({"test": table.test} if table.test else {})}
    rows = {part: list(_rows(path, table)) for part, path in files.items()}
    labels = [row[1] for found in rows.values() for row in found]
    names = classes or _names(labels, source)
    parts: dict[str, Any] = {}
    for part, found in rows.items():
        encoded = [_encoded(encoder, texts, limit) for texts, _ in found]
        y = None if table.label is None else _targets([label for _, label in found], names, files[part])
        parts[part] = TextDataset(encoded, y)
    targets = [part.y for part in parts.values() if part.y is not None and not part.y.is_floating_point()]
    count = len(names) if names else max((int(y.max()) + 1 for y in targets if len(y)), default=None)
    return Parts(table.path.name, **parts, classes=names, num_classes=count, collate=Padding(encoder))


def read_spec(spec: str) -> Table:
    """Read FILE?text=…&label=….

    Raises:
        DataError: an unknown option or kind of file, or no text column.
    """
    name, _, query = spec.partition("?")
    path, given = Path(name), dict(parse_qsl(query, keep_blank_values=True))
    for key in given:
        if key not in OPTIONS:
            raise DataError(f"text:{spec}: unknown option {key!r}; {nearest(key, OPTIONS)}")
    for file in (path, *([Path(given["test"])] if "test" in given else [])):
        if file.suffix not in SUFFIXES:
            raise DataError(f"text:{spec}: {file.name!r} is none of {', '.join(SUFFIXES)}")
        if not file.is_file():
            raise DataError(f"text file {str(file)!r} does not exist; check the path")
    length = given.get("length")
    if length is not None and not (length.isdigit() and int(length) > 0):
        raise DataError(f"text:{spec}: length {length!r} is no positive number of tokens")
    columns = tuple(column for column in given.get("text", "text").split(",") if column)
    if len(columns) not in (1, 2):
        raise DataError(f"text:{spec}: text names {len(columns)} columns; give one, or two as in text=a,b")
    return Table(
        path,
        columns,
        given.get("label"),
        Path(given["test"]) if "test" in given else None,
        given.get("tokenizer"),
        int(length) if length else None,
    )


def _rows(path: Path, table: Table) -> Iterator[tuple[tuple[str, ...], Any]]:
    wanted = (*table.columns, *([table.label] if table.label else ()))
    for number, row in enumerate(_records(path), 1):
        for column in wanted:
            if row.get(column) is None:
                known = [str(key) for key in row if key]
                raise DataError(f"row {number} of {path.name!r} has no column {column!r}; {nearest(column, known)}")
        yield tuple(str(row[column]) for column in table.columns), row[table.label] if table.label else None


def _records(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if path.suffix in SEPARATORS:
                yield from csv.DictReader(file, delimiter=SEPARATORS[path.suffix])
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"line {number} of {path.name!r} is no JSON object")
                    yield row
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise DataError(f"{path.name!r} is not a table of texts in UTF-8: {error}") from error


def _encoded(tokenizer: Any, texts: tuple[str, ...], limit: int | None) -> Mapping[str, list[int]]:
    return dict(tokenizer(*texts, truncation=limit is not None, max_length=limit).items())


def _names(labels: Sequence[Any], source: str) -> tuple[str, ...] | None:
    """Names of classes where labels are words: the config's order where it has them all, else sorted."""
    words = {str(label) for label in labels if label is not None}
    if not words or all(_number(word) is not None for word in words):
        return None
    config = Path(source) / "config.json"
    known = json.loads(config.read_text()).get("id2label") or {} if config.is_file() else {}
    ordered = tuple(known[key] for key in sorted(known, key=int))
    if ordered and not all(name.startswith(_LABEL) for name in ordered) and words <= set(ordered):
        return ordered
    return tuple(sorted(words))


def _targets(labels: Sequence[Any], names: tuple[str, ...] | None, path: Path) -> Tensor:
    if names is not None:
        places = {name: place for place, name in enumerate(names)}
        for number, label in enumerate(labels, 1):
            if str(label) not in places:
                raise DataError(f"row {number} of {path.name!r} has the label {label!r}; {nearest(str(label), names)}")
        return torch.tensor([places[str(label)] for label in labels])
    numbers = [_number(str(label)) for label in labels]
    found = [number for number in numbers if number is not None]
    if len(found) < len(numbers):
        raise DataError(f"row {numbers.index(None) + 1} of {path.name!r} has no label; fill it, or leave the row out")
    if all(number == int(number) for number in found) and not any("." in str(label) for label in labels):
        if found and min(found) < 0:
            raise DataError(f"labels of {path.name!r} go down to {int(min(found))}; class numbers start at 0")
        return torch.tensor([int(number) for number in found])
    return torch.tensor(found)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
