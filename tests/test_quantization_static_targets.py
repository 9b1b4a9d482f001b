"""Targets by name and by processor; weights that keep inside 16 bits in pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.errors import QuantizationError
from compress.quantization import targets
from compress.quantization.pairs import as_rows, from_rows, largest_pairs, pair_scales, shrink_pairs
from compress.quantization.static import prepare, quantize_static
from compress.quantization.targets import TARGETS, cpu_flags, resolve_target, weight_limit
from compress.runtimes.onnxruntime import Session


def test_targets_by_name(monkeypatch):
    assert resolve_target("arm64").activation_signed and not resolve_target("x86-avx2").activation_signed
    assert resolve_target("x86-vnni").weight_bits == 8 and resolve_target("any").weight_bits == 7
    assert resolve_target("qnnpack") is TARGETS["arm64"]
    monkeypatch.setattr(targets, "detect", lambda: "x86-vnni")
    assert resolve_target("fbgemm") is TARGETS["x86-vnni"] is resolve_target("auto")
    monkeypatch.setattr(targets, "detect", lambda: "arm64")
    assert resolve_target("fbgemm") is TARGETS["x86-avx2"]
    with pytest.raises(QuantizationError, match="unknown target 'x86-avx'; did you mean 'x86-avx2'"):
        resolve_target("x86-avx")


@pytest.mark.parametrize(
    "machine, flags, expected",
    [
        ("x86_64", "avx2 fma", "x86-avx2"),
        ("x86_64", "avx2 avx512_vnni", "x86-vnni"),
        ("AMD64", "avx2 avx_vnni", "x86-vnni"),
        ("aarch64", "asimd", "arm64"),
        ("riscv64", "", "any"),
    ],
)
def test_the_processor_is_read(monkeypatch, tmp_path, machine, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(targets.platform, "machine", lambda: machine)
    monkeypatch.setattr(targets, "cpu_flags", lambda: cpu_flags(tmp_path / "cpuinfo"))
    assert targets.detect() == expected


def test_weight_bits():
    assert [weight_limit(bits) for bits in (8, 7, 4)] == [127, 64, 7]
    assert 255 * weight_limit(7) * 2 < 2**15  # two products fit
    with pytest.raises(QuantizationError, match="weight_bits must be 4 to 8, not 9"):
        weight_limit(9)


def worst_16_bit_sum(row):
    """Brute force: every pair, every activation of its two extremes."""
    row = [int(value) for value in row] + [0] * (len(row) % 2)
    return max(abs(a * x + b * y) for a, b in zip(row[::2], row[1::2]) for x in (0, 255) for y in (0, 255))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-127, 127), min_size=1, max_size=9))
def test_shrunk_pairs_cannot_overflow(row):
    codes = np.array([row], np.int8)
    shrunk = shrink_pairs(codes)
    assert shrunk.dtype == np.int8 and worst_16_bit_sum(shrunk[0]) <= 2**15 - 1
    assert np.all(np.sign(shrunk) * np.sign(codes) >= 0) and np.all(np.abs(shrunk) <= np.abs(codes))
    if worst_16_bit_sum(row) <= 255 * 128:
        np.testing.assert_array_equal(shrunk, codes)
    assert largest_pairs(codes)[0] * 255 == worst_16_bit_sum(row)


def test_scales_of_pairs_are_finer_than_seven_bits_and_exact_ones_shrink_nothing():
    rows = np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32)
    seven_bits = np.abs(rows).max(1) / 64
    scales, exact = pair_scales(rows), pair_scales(rows, exact=True)
    assert np.all(scales <= exact) and np.all(exact <= seven_bits * 1.02) and scales.mean() < 0.8 * seven_bits.mean()
    codes = np.rint(rows / exact[:, None]).astype(np.int32)
    np.testing.assert_array_equal(shrink_pairs(codes), codes)


@pytest.mark.parametrize("layer", [nn.Conv2d(5, 4, 3), nn.Conv2d(6, 4, 1, groups=2), nn.Linear(7, 3)])
def test_rows_are_undone(layer):
    shape = (2, 7) if isinstance(layer, nn.Linear) else (2, layer.in_channels, 8, 8)
    graph, _ = prepare(layer.eval(), [], example_inputs=(torch.randn(shape),))
    node = next(node for node in graph.graph if node.op_type in ("Conv", "Gemm"))
    weight = node.inputs[1].const_value.numpy()
    np.testing.assert_array_equal(from_rows(node, as_rows(node, weight), weight.shape), weight)


@pytest.mark.parametrize("channels, kernel", [(8, 1), (3, 3), (5, 3), (16, 3)])
def test_adversarial_weights_are_exact_on_this_machine(channels, kernel):
    """All weights large and of one sign, all activations at the top: the case that saturates."""
    layer = nn.Conv2d(channels, 4, kernel).eval()
    with torch.no_grad():
        layer.weight.copy_(torch.rand_like(layer.weight) * 0.1 + 0.9)
    data = [torch.rand(2, channels, 6, 6), torch.ones(1, channels, 6, 6)]
    graph = quantize_static(layer, data, target="any", threads=1).model
    inputs = torch.ones(1, channels, 6, 6)
    expected = layer(inputs).detach().numpy()
    np.testing.assert_allclose(Session(graph, threads=1).run(inputs)[0], expected, rtol=0.015)
