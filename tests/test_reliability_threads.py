"""Several threads at once: exports wait for each other, nothing of torch or logging stays changed."""

import logging
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from onnxscript.rewriter import _matcher
from torch import nn

import compress
from compress.errors import ExportError
from compress.state import quiet_logger, slow_attention, unlogged
from compress.tracing import exact_zeros, tracing


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)).eval()


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


X = torch.ones(2, 3, 8, 8)


def process_state():
    return (
        nn.Module.__call__,
        nn.Module.__getattr__,
        torch.backends.mha.get_fastpath_enabled(),
        logging.root.manager.disable,
        logging.getLogger("onnx_ir").level,
        logging.getLogger("onnx_ir").disabled,
        _matcher.math,
        sys.stdout,
        sys.stderr,
    )


def job(number):
    kind = number % 4
    if kind == 0:
        return compress.export(network(number), X).model.graph.num_nodes()
    if kind == 1:
        return compress.prune(network(number), X, amount=0.5).model[0].out_channels
    if kind == 2:
        with pytest.raises(ExportError, match="cannot take Branches"):
            compress.export(Branches(), X)
        return "refused"
    graph = compress.export(network(number), X).model
    return compress.quantize_static(graph, [(X, None)]).model.graph.num_nodes() > graph.graph.num_nodes()


def test_threads_do_what_one_does():
    alone = [job(number) for number in range(4)]
    before = process_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(job, range(4)))
    assert together == alone
    assert process_state() == before


def test_borrowed_settings_return_whoever_leaves_first():
    before = process_state()
    for borrow in (unlogged, slow_attention, exact_zeros, lambda: quiet_logger("onnx_ir")):
        first, second = borrow(), borrow()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert process_state() != before  # the second still needs it
        second.__exit__(None, None, None)
        assert process_state() == before


@pytest.mark.parametrize("first_out", ["borrower", "tracer"])
def test_tracing_keeps_what_was_before_those_who_borrow(first_out):
    before = process_state()
    borrower, tracer = slow_attention(), tracing()
    borrower.__enter__()
    tracer.__enter__()
    torch.backends.mha.set_fastpath_enabled(True)  # as a trace may
    both = [borrower, tracer] if first_out == "borrower" else [tracer, borrower]
    both[0].__exit__(None, None, None)
    if first_out == "tracer":
        assert not torch.backends.mha.get_fastpath_enabled()  # still borrowed
    both[1].__exit__(None, None, None)
    assert process_state() == before


def test_torch_export_has_one_door():
    package = Path(compress.__file__).parent
    found = [path.name for path in package.rglob("*.py") if re.search(r"torch\.export\.export\(", path.read_text())]
    assert found == ["tracing.py"]
