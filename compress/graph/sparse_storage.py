"""Stores ONNX weights that are mostly zero as sparse initializers, where smaller."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from compress.files import written_beside
from compress.steps import Change

INDEX_BYTES = 8  # the standard's indices are int64


@dataclass(frozen=True)
class SparseStorage:
    """What was stored how: bytes of the file before and after, and one change for each weight looked at."""

    before_bytes: int
    after_bytes: int
    changes: tuple[Change, ...]


def store_sparse(path: str | Path) -> SparseStorage:
    """Rewrite an ONNX file in place with sparse initializers for weights that are smaller so.

    A nonzero float costs 4 bytes and 8 for its position, so this pays above two thirds of zeros. The runtime unfolds
    them when it loads the file: sparse storage makes the file smaller, not the model faster.
    """
    path = Path(path)
    before = path.stat().st_size
    model = onnx.load(path)
    graph = model.graph
    inputs = {item.name for item in graph.input}
    changes = []
    for tensor in list(graph.initializer):
        dense = numpy_helper.to_array(tensor)
        if dense.size < 64 or tensor.name in inputs:
            continue
        flat = dense.reshape(-1)
        places = np.flatnonzero(flat)
        saved = dense.nbytes - places.size * (dense.itemsize + INDEX_BYTES)
        zeros = 1 - places.size / dense.size
        values = {"sparsity": zeros, "saved_bytes": max(int(saved), 0)}
        if saved <= 0 or not places.size:
            if zeros > 0.1:
                reason = f"{zeros:.0%} zeros: smaller dense"
                changes.append(Change(tensor.name, "stored sparse", reason, skipped=True, values=values))
            continue
        sparse = onnx.helper.make_sparse_tensor(
            numpy_helper.from_array(flat[places], tensor.name),
            numpy_helper.from_array(places.astype(np.int64), f"{tensor.name}_indices"),
            list(dense.shape),
        )
        graph.initializer.remove(tensor)
        graph.sparse_initializer.append(sparse)
        changes.append(Change(tensor.name, "stored sparse", values=values))
    if any(not change.skipped for change in changes):
        with written_beside(path) as temporary:
            onnx.save(model, temporary)
    return SparseStorage(before, path.stat().st_size, tuple(changes))
