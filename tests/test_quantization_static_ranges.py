"""Streaming histograms, with the ranges chosen from them, against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import QuantizationError
from compress.quantization.arithmetic import dequantize, grid_for_range, quantize_to
from compress.quantization.range_table import RANGES, resolve_ranges
from compress.quantization.ranges.entropy import Entropy, best_threshold
from compress.quantization.ranges.histogram import Histogram
from compress.quantization.ranges.mean_squared_error import MeanSquaredError
from compress.quantization.ranges.minmax import MinMax
from compress.quantization.ranges.percentile import Percentile


def gaussian(count=200_000, seed=0):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def pieces(values):
    return np.array_split(values, [1, 10, 1000, len(values) // 2])


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(
        st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=30), min_size=1, max_size=6
    )
)
def test_a_histogram_counts_what_numpy_counts_however_it_is_cut(parts):
    arrays = [np.array(part, np.float32) for part in parts]
    whole, cut, merged = Histogram(64), Histogram(64), Histogram(64)
    whole.add(np.concatenate(arrays))
    for array in arrays:
        cut.add(array)
        other = Histogram(64)
        other.add(array)
        merged.merge(other)
    for found in (cut, merged):
        assert found.counts.sum() == sum(map(len, parts))
        assert (found.low, found.high) == (whole.low, whole.high)
        # Bins are powers of two wide, so each is a union of finer ones: numpy's counts over the same edges.
        values = np.concatenate(arrays).astype(np.float64)
        expected = np.bincount(
            np.clip(np.floor(values / found.width).astype(np.int64) - found.offset, 0, 63), minlength=64
        )
        assert np.abs(found.counts - expected).sum() <= 2 * np.sum(
            np.abs(values / found.width - np.rint(values / found.width)) < 1e-3
        )


def test_memory_of_a_histogram_does_not_grow():
    seen = Histogram(128)
    for scale in (1e-6, 1, 1e6):
        seen.add(gaussian(1000) * np.float32(scale))
        assert seen.counts.shape == (128,)
    assert seen.counts.sum() == 3000


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize(
    "values", [np.zeros(100), np.full(100, 3.0), np.full(100, -2.0), np.full(10, 1e-42), np.empty(0)]
)
def test_degenerate_tensors_have_a_range(name, values):
    observer = resolve_ranges(name).start()
    observer.observe(values.astype(np.float32))
    low, high = observer.range()
    assert np.isfinite([low, high]).all() and low <= high
    if values.size:
        grid = grid_for_range(low, high)
        again = dequantize(quantize_to(values.astype(np.float32), grid), grid.scale, grid.zero_point)
        np.testing.assert_allclose(again, values, atol=1e-6 + np.abs(values).max() * 0.01)


@pytest.mark.parametrize("name", RANGES)
def test_streaming_and_merging_change_nothing(name):
    values = gaussian()
    whole, streamed = resolve_ranges(name).start(), resolve_ranges(name).start()
    whole.observe(values)
    halves = resolve_ranges(name).start(), resolve_ranges(name).start()
    for index, piece in enumerate(pieces(values)):
        streamed.observe(piece)
        halves[index % 2].observe(piece)
    halves[0].merge(halves[1])
    np.testing.assert_allclose(streamed.range(), whole.range(), rtol=0.02)
    np.testing.assert_allclose(halves[0].range(), whole.range(), rtol=0.02)


def test_minmax():
    observer = MinMax().start()
    for piece in pieces(gaussian()):
        observer.observe(piece)
    assert observer.range() == (gaussian().min(), gaussian().max())


@pytest.mark.parametrize("percentile", [99.0, 99.9])
@pytest.mark.parametrize("two_sided", [True, False])
def test_percentile_is_that_of_numpy(percentile, two_sided):
    values = gaussian() if two_sided else np.abs(gaussian())
    observer = Percentile(percentile).start()
    for piece in pieces(values):
        observer.observe(piece)
    low, high = observer.range()
    tail = (100 - percentile) / (2 if two_sided else 1)
    step = observer.histogram.width
    assert abs(high - np.percentile(values, 100 - tail)) <= 2 * step
    assert abs(low - (np.percentile(values, tail) if two_sided else values.min())) <= 2 * step


def test_percentile_bounds():
    with pytest.raises(QuantizationError, match=r"percentile must be in \(50, 100\], not 1"):
        Percentile(1)


def brute_force_error(values, low, high):
    grid = grid_for_range(low, high)
    again = dequantize(quantize_to(values, grid), grid.scale, grid.zero_point)
    return float(np.mean((again - values).astype(np.float64) ** 2))


@pytest.mark.parametrize("shape", ["gaussian", "relu", "outlier", "laplace"])
def test_mse_is_near_the_best_range_there_is(shape):
    values = gaussian(50_000)
    if shape == "relu":
        values = np.maximum(values, 0)
    elif shape == "outlier":
        values[0] = 60
    elif shape == "laplace":
        values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    observer = MeanSquaredError().start()
    observer.observe(values)
    found = brute_force_error(values, *observer.range())
    lows = np.linspace(0, values.min(), 25) if values.min() < 0 else [0.0]
    best = min(brute_force_error(values, low, high) for low in lows for high in np.linspace(0.05, 1, 60) * values.max())
    assert found <= best * 1.05
    assert found <= brute_force_error(values, float(values.min()), float(values.max())) * 1.0001


def kl_by_the_book(counts, levels):
    """Migacz's loops, written as on the slide."""
    best, answer = np.inf, None
    for kept in range(levels, len(counts) + 1):
        p = counts[:kept].astype(float).copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        members = [[] for _ in range(levels)]
        for index in range(kept):
            members[index * levels // kept].append(index)
        for level in members:
            filled = [index for index in level if counts[index] > 0]
            for index in filled:
                q[index] = sum(counts[i] for i in level) / len(filled)
        p, q = p / p.sum(), q / max(q.sum(), 1e-12)
        divergence = sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q) if a > 0)
        if divergence < best:
            best, answer = divergence, kept
    return answer


def test_entropy_is_migacz():
    values = np.abs(gaussian(20_000))
    values[:20] = np.linspace(5, 12, 20)
    counts = np.histogram(values, 160)[0]
    counts[0] = counts[1]
    assert best_threshold(counts, 32) == kl_by_the_book(counts, 32)


def test_entropy_clips_outliers_that_minmax_keeps():
    values = np.abs(gaussian())
    values[0] = 40.0
    observer = Entropy().start()
    observer.observe(values)
    assert 2 < observer.range()[1] < 20


def test_entropy_is_not_led_astray_by_a_value_that_comes_again_and_again():
    """An even background behind a bias: with its spike voting, the smallest threshold of all wins."""
    values = np.abs(gaussian(100_000))
    values[::2] = 0.1234
    values[1::10] = 0.2345
    spiked, plain = Entropy().start(), Entropy().start()
    spiked.observe(values)
    plain.observe(np.delete(values, np.flatnonzero((values == np.float32(0.1234)) | (values == np.float32(0.2345)))))
    assert spiked.range()[1] > 0.7 * plain.range()[1]


def test_unknown_method():
    with pytest.raises(QuantizationError, match="unknown range method 'entrpy'; did you mean 'entropy'"):
        resolve_ranges("entrpy")
    assert resolve_ranges(Percentile(99)) == Percentile(99)
