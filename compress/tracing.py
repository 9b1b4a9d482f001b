"""The one door to `torch.export`: one thread at a time, and torch's own state given back when it fails there.

While it runs, torch.export patches `nn.Module.__call__` and keeps stacks of modes for the whole process; two at once
break each other ("Trying to pop empty mode stack"), and one that fails can leave the patches in place.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

_ALONE = threading.RLock()
_PATCHED = ("__call__", "__getattr__", "__setattr__", "_call_impl", "register_buffer", "register_parameter")
_ABSENT = object()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Hold torch's tracing machinery for a block; other threads of this process wait."""
    with _ALONE:
        own = {name: vars(nn.Module).get(name, _ABSENT) for name in _PATCHED}
        fast_attention = torch.backends.mha.get_fastpath_enabled()
        try:
            yield
        finally:
            for name, value in own.items():
                if vars(nn.Module).get(name, _ABSENT) is value:
                    continue
                if value is _ABSENT:
                    delattr(nn.Module, name)
                else:
                    setattr(nn.Module, name, value)
            torch.backends.mha.set_fastpath_enabled(fast_attention)


def traced(
    module: nn.Module,
    positional: tuple[Any, ...],
    named: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    strict: bool = False,
) -> torch.export.ExportedProgram:
    """`torch.export.export`, alone; whatever it raises passes."""
    with tracing():
        return torch.export.export(module, positional, named, dynamic_shapes=dynamic_shapes, strict=strict)
