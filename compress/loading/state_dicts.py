"""State dicts: reading them from checkpoint files, loading them with every misfit named."""

from __future__ import annotations

import argparse
import collections
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import WeightsError
from compress.loading.fitting import fit_to_state_dict, put_plain_layers, remove_missing_blocks
from compress.metadata import KEY, from_text

# Where training scripts put the state dict, the likeliest first.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "module",
    "network",
    "weights",
    "params",
    "state",
    "ema",
)
PREFIXES = ("module.", "_orig_mod.")  # DataParallel and DDP; torch.compile
SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", ".safetensors")
_SHOWN = 3  # keys named per kind of misfit


def read_state_dict(path: str | Path, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """Read the state dict that a checkpoint file holds, however deep it is wrapped.

    Prefixes that DataParallel and `torch.compile` add to every name are stripped. Only plain tensors are unpickled
    (`weights_only=True`) unless `trust_pickle`, which runs whatever code the file contains.

    Raises:
        WeightsError: no such file, not a checkpoint, no state dict inside, or a pickle without `trust_pickle`.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights file {str(path)!r} does not exist; check the path")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path, trust_pickle=trust_pickle)
    if isinstance(content, nn.Module):
        content = content.state_dict()
    state = _unwrap(content)
    if not state:
        raise WeightsError(
            f"{str(path)!r} holds no state dict, but {_described(content)}; choose another --weights file"
        )
    return _without_prefixes(state)


def load_state_dict(module: nn.Module, state: Mapping[str, Tensor], source: str = "weights") -> tuple[str, ...]:
    """Load `state` into `module` (in place: the module is one that the caller has just built).

    Counters that old checkpoints lack (`num_batches_tracked`) may be missing. Where every name fits and only shapes
    differ, the module's layers are first cut to the checkpoint's sizes, as a pruned checkpoint needs; attributes and
    buffers that no file holds follow what it says of them, and blocks that were removed in it are removed here. Returns
    sentences for the user: which blocks, and where that cut the network's own outputs.

    Raises:
        WeightsError: names or shapes do not fit; lists missing, unexpected and misshapen keys, shortened.
    """
    state = _renamed_to_fit(module, state)
    removed = remove_missing_blocks(module, state)
    put_plain_layers(module, state)
    put_plain_layers(module, state)
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected]
    misshapen = [key for key in expected if key in state and expected[key].shape != state[key].shape]
    notes: tuple[str, ...] = ()
    if removed:
        notes = (f"{source}: without {_shortened(list(removed))}, which were removed in it",)
    if missing or unexpected:
        raise WeightsError(_misfit(module, state, missing, unexpected, misshapen, source))
    notes += _fit(module, state, misshapen, source)
    _check_plain(module, state, source)
    module.load_state_dict(dict(state), strict=False)  # every key was compared above; only counters may be missing
    return notes


def _check_plain(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors whose values are not there, or would be lost on the way into the module's own."""
    for name, own in module.state_dict().items():
        value = state.get(name)
        if not isinstance(value, Tensor) or not isinstance(own, Tensor):
            continue
        kind = (
            "sparse"
            if value.layout != torch.strided
            else "quantized"
            if value.is_quantized
            else "without values (device meta)"
            if value.is_meta
            else "complex"
            if value.is_complex() and not own.is_complex()
            else ""
        )
        if kind:
            raise WeightsError(f"{source}: {name!r} is {kind}, and the model wants plain {own.dtype}; save it as such")


def read_pickle(path: Path, *, trust_pickle: bool) -> Any:
    """Return what `torch.save` wrote to `path`: tensors only, unless `trust_pickle`.

    Raises:
        WeightsError: the file is not a checkpoint, or holds Python objects and `trust_pickle` is False.
    """
    try:
        whole = not _is_torchscript(path)
    except Exception as error:  # what zipfile raises for damaged bytes depends on the bytes
        raise _not_a_checkpoint(path) from error
    if not whole:
        raise WeightsError(
            f"{str(path)!r} is a TorchScript archive; save model.state_dict() or torch.export.save instead"
        )
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except pickle.UnpicklingError as error:
        if not trust_pickle and _is_pickle(path):
            raise WeightsError(
                f"{str(path)!r} holds Python objects besides tensors, and unpickling those can run any code; "
                "pass --trust-pickle if you trust where it comes from"
            ) from error
        raise _not_a_checkpoint(path) from error
    except (AttributeError, ModuleNotFoundError) as error:  # a pickled class whose code is not here
        raise WeightsError(
            f"{str(path)!r} needs code that is not here ({error}); save its state_dict() instead"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # likewise
        raise _not_a_checkpoint(path) from error


def _not_a_checkpoint(path: Path) -> WeightsError:
    return WeightsError(f"{str(path)!r} is not a checkpoint, or is truncated; fetch or save it again")


def _is_pickle(path: Path) -> bool:
    """Say whether the file is a whole archive or pickle: a truncated one also names globals that are not allowed."""
    if zipfile.is_zipfile(path):
        return True
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            for _ in range(4):  # torch's old format: magic number, protocol, machine, object; raw storages follow
                if file.tell() < size:
                    collections.deque(pickletools.genops(file), maxlen=0)  # reads the stream, runs nothing
        except Exception:  # what a stream of other bytes raises depends on the bytes
            return False
    return size > 0


def _harmless() -> list[Any]:
    """What training scripts put beside the weights, and that runs no code: options, NumPy figures."""
    figures = [np.dtype, np.float32(0).__reduce__()[0], *{type(np.dtype(code)) for code in "?bhilBHILefd"}]
    return [argparse.Namespace, *figures]


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = collections.OrderedDict((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            listed = from_text((file.metadata() or {}).get(KEY, ""))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{str(path)!r} is not a safetensors file, or is truncated; fetch or save it again"
        ) from error
    if listed is not None:
        state._metadata = listed  # type: ignore[attr-defined]  # torch sets it, undeclared
    return state


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unwrap(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        return {}
    tensors = _like(
        content,
        {key: value.detach() for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)},
    )
    # A state dict may carry a few other entries (a version, a counter); a checkpoint may carry a few tensors.
    inner: dict[str, Tensor] = {}
    for wrapper in WRAPPERS:
        value = content.get(wrapper)
        inner = value.state_dict() if isinstance(value, nn.Module) else _unwrap(value)
        if inner:
            break
    return inner if len(inner) > len(tensors) else tensors


def _like(content: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` with the module names that `content`, where PyTorch made it, carries as `_metadata`."""
    known = getattr(content, "_metadata", None)
    if not isinstance(known, Mapping):
        return state
    kept = collections.OrderedDict(state)
    kept._metadata = known  # type: ignore[attr-defined]  # as nn.Module.state_dict does
    return kept


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for _ in PREFIXES:  # one may sit inside the other
        for prefix in PREFIXES:
            carrying = sum(key.startswith(prefix) for key in state)
            if carrying and carrying >= len(state) - 1:  # an averaged model has one name of its own, `n_averaged`
                state = _stripped(state, prefix)
    return state


def _stripped(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state dict under `prefix`, its metadata with it."""
    renamed = _like(state, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    known = getattr(renamed, "_metadata", None)
    if known is not None:
        renamed._metadata = {  # type: ignore[attr-defined]  # torch sets it, undeclared
            f"{name}.".removeprefix(prefix)[:-1]: value  # the entry of the wrapped module itself has no dot
            for name, value in known.items()
            if f"{name}.".startswith(prefix)
        }
    return renamed


def _renamed_to_fit(module: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Strip one common first name (Lightning's `model.`) where the module's own names then appear."""
    expected = module.state_dict().keys()
    first = {key.partition(".")[0] + "." for key in state}
    if len(first) != 1 or expected & state.keys():
        return state
    stripped = _stripped(state, next(iter(first)))
    return stripped if expected & stripped.keys() else state


def _fit(module: nn.Module, state: Mapping[str, Tensor], misshapen: list[str], source: str) -> tuple[str, ...]:
    try:
        return tuple(f"{source}: {note}" for note in fit_to_state_dict(module, state))
    except WeightsError as error:
        raise WeightsError(f"{_misfit(module, state, [], [], misshapen, source)} ({error})") from error


def _misfit(
    module: nn.Module,
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    misshapen: list[str],
    source: str,
) -> str:
    expected = module.state_dict()
    shapes = [f"{key} is {_shape(state[key])}, expected {_shape(expected[key])}" for key in misshapen]
    kinds = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    listed = "; ".join(f"{len(keys)} {kind} ({_shortened(keys)})" for kind, keys in kinds if keys)
    fitting = sum(key in state and expected[key].shape == state[key].shape for key in expected)
    verdict = "belong to another architecture than" if fitting * 2 < len(expected) else "do not fit"
    return f"{source} {verdict} {type(module).__name__}: {listed}; name the model that they were saved from"


def _shortened(keys: list[str]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")


def _shape(tensor: Tensor) -> str:
    return "×".join(str(size) for size in tensor.shape) or "scalar"


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict of {_shortened([str(key) for key in content]) or 'nothing'}"
    return f"a {type(content).__name__}"
