"""Seeding of a run, with every random state given back at its end."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from compress.state import seeded


@contextlib.contextmanager
def reproducible(seed: int, *, deterministic: bool = False) -> Iterator[None]:
    """Seed Python, NumPy, torch and CUDA for a block; with `deterministic`, allow no other algorithms."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with seeded(seed):
        torch.cuda.manual_seed_all(seed)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses to be deterministic
            torch.backends.cudnn.benchmark = False
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = benchmark
            if deterministic and workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)


def random_states(device: torch.device) -> dict[str, Any]:
    """Return every random state of this process, as plain values and tensors that `weights_only` can read."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_states(states: dict[str, Any], device: torch.device) -> None:
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and states["cuda"] is not None:
        torch.cuda.set_rng_state(states["cuda"], device)
