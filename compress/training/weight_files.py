"""Writing a model's weights alone, as a `.pt` state dict or `.safetensors`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compress.errors import OutputError
from compress.files import native_file, written_beside
from compress.metadata import KEY, to_text


def save_weights(module: nn.Module, path: str | Path) -> Path:
    """Write the state dict of `module`, with what pruning noted in its metadata; the ending decides the format.

    Raises:
        OutputError: another ending, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise OutputError(f"weights file {path.name!r} must end in .pt, .pth or .safetensors")
    state = module.state_dict()
    for name, value in state.items():
        state[name] = value.detach().cpu().clone()
    with written_beside(path, size_bytes=sum(value.nbytes for value in state.values())) as beside:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            described = {"format": "pt", KEY: to_text(state)}
            save_file({name: value.contiguous() for name, value in state.items()}, beside, described)
        else:
            with native_file(beside) as file:
                torch.save(state, file)
    return path
