"""The one door to transformers: models and tokenizers out of folders that `save_pretrained` wrote, or by id."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from compress.batches import Batch
from compress.counting import counted
from compress.errors import ModelError, first_line
from compress.loading.loaded import LoadedModel
from compress.loading.preprocessing import Preprocessing, from_image_processor
from compress.state import unlogged

Found = TypeVar("Found")
WEIGHTS = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
# Ending of the architecture that a config names → the auto class that builds it with its head.
AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSemanticSegmentation": "AutoModelForSemanticSegmentation",
    "ForAudioClassification": "AutoModelForAudioClassification",
    "Model": "AutoModel",
}
PROCESSOR = "preprocessor_config.json"
LENGTH = 16  # tokens of the example that traces a text model: any other length is free afterwards
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")


def build(source: str, arguments: Mapping[str, Any]) -> LoadedModel:
    """Load the model of a folder, or id, with the class for the task that its config names, in float32.

    `arguments` go to `from_pretrained` (num_labels=3, attn_implementation="eager").

    Raises:
        ModelError: transformers is missing; no config, no weights, an architecture that has no auto class.
    """
    transformers = _library(source)
    _check_folder(source)
    config = _quietly(source, lambda: transformers.AutoConfig.from_pretrained(source))
    named = (config.architectures or [""])[0]
    ending = next((ending for ending in AUTO_CLASSES if named.endswith(ending)), None)
    if ending is None:
        raise ModelError(
            f"the config of {source!r} names {named or 'no architecture'}, which is no task that can be loaded; known: "
            f"…{', …'.join(AUTO_CLASSES)}"
        )
    if getattr(config, "use_cache", None):
        config.use_cache = False  # a graph has no state between calls
    kind = getattr(transformers, AUTO_CLASSES[ending])
    keywords = {"config": config, "dtype": torch.float32, "output_loading_info": True, **arguments}
    model, info = _quietly(source, lambda: kind.from_pretrained(source, **keywords))
    missing = sorted(info.get("missing_keys", ()))
    notes = (
        (
            f"{counted(len(missing), 'weight is', 'weights are')} not in {source!r}, set at random: {', '.join(missing[:3])}",
        )
        if missing
        else ()
    )
    return LoadedModel(
        Path(source).name,
        model.eval(),
        "module",
        Path(source) if Path(source).is_dir() else None,
        example=_example(config, getattr(model, "main_input_name", "input_ids"), source),
        notes=notes,
        tokenizer=source,
        preprocessing=_preprocessing(source),
    )


def open_tokenizer(source: str) -> Any:
    """Load the tokenizer of a folder, or id.

    Raises:
        ModelError: transformers or the tokenizer is missing.
    """
    transformers = _library(source)
    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(f"{source!r} holds no tokenizer ({', '.join(_TOKENIZER_FILES[:2])}); save it there too")
    return _quietly(source, lambda: transformers.AutoTokenizer.from_pretrained(source))


def _preprocessing(source: str) -> Preprocessing | None:
    """What the folder's image processor does to an image; None where there is none."""
    path = Path(source) / PROCESSOR
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(
            f"hf:{source}: {PROCESSOR} is no JSON ({first_line(error)}); save the processor again"
        ) from error
    return from_image_processor(config) if isinstance(config, Mapping) else None


def longest(tokenizer: Any, source: str) -> int | None:
    """The most tokens that the model of the tokenizer's folder takes; None where neither says."""
    limits = [tokenizer.model_max_length]
    config = Path(source) / "config.json"
    if config.is_file():
        limits.append(json.loads(config.read_text()).get("max_position_embeddings") or 0)
    found = [limit for limit in limits if 0 < limit < 10**6]  # a tokenizer without a limit gives 10^30
    return min(found, default=None)


def _library(source: str) -> Any:
    with contextlib.suppress(ModelError):  # transformers imports torchvision where it is installed: through our door
        importlib.import_module("compress.loading.torchvision_ops")
    try:
        import transformers
    except ImportError as error:
        raise ModelError(f"hf:{source} needs transformers; pip install compress[hf]") from error
    return transformers


def _check_folder(source: str) -> None:
    path = Path(source)
    if not path.is_dir():
        if path.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1 or not source:
            raise ModelError(f"hf:{source}: {source!r} is no folder; give the folder that save_pretrained wrote")
        return
    if not (path / "config.json").is_file():
        has = [name for name in _TOKENIZER_FILES if (path / name).is_file()]
        what = "holds a tokenizer but no model (config.json)" if has else "holds no model (config.json)"
        raise ModelError(f"{source!r} {what}; save the model there with save_pretrained")
    if not any((path / name).is_file() for name in WEIGHTS):
        raise ModelError(f"{source!r} holds a config but no weights ({WEIGHTS[0]}); save the model there again")


def _quietly(source: str, call: Callable[[], Found]) -> Found:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with unlogged():
            return call()
    except Exception as error:  # damaged files, ids that are not there, no network: each raises its own
        raise ModelError(f"hf:{source} cannot be loaded: {first_line(error)}; check the folder or the id") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _example(config: Any, main: str, source: str) -> Batch | None:
    generator = torch.Generator().manual_seed(0)
    if main == "input_ids":
        length = min(LENGTH, getattr(config, "max_position_embeddings", LENGTH) or LENGTH)
        ids = torch.randint(0, config.vocab_size, (2, length), generator=generator)
        values: dict[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "token_type_ids" in _model_inputs(source):
            values["token_type_ids"] = torch.zeros_like(ids)
        return Batch.of(values)
    size = getattr(config, "image_size", None)
    if main == "pixel_values" and size:
        height, width = (size, size) if isinstance(size, int) else size
        shape = (2, getattr(config, "num_channels", 3), height, width)
        return Batch.of({main: torch.randn(shape, generator=generator)})
    return None


def _model_inputs(source: str) -> tuple[str, ...]:
    """The inputs that the folder's tokenizer makes, so that a file exported without data takes what the data will have."""
    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        return ()
    try:
        return tuple(open_tokenizer(source).model_input_names)
    except ModelError:
        return ()
