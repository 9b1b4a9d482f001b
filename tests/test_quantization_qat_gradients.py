"""Fake quantization: values on ONNX's grid, gradients as the formulas and an independent kernel give them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import QuantizationError
from compress.quantization.arithmetic import dequantize, quantize
from compress.quantization.fake_quantize import FakeQuantize, WeightFakeQuantize, fake_quantize


def values(*shape, spread=3.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * spread


@pytest.mark.parametrize(("low", "high", "zero"), [(0, 255, 0), (0, 255, 131), (-128, 127, -7), (-64, 64, 0)])
def test_values_are_those_of_the_arithmetic(low, high, zero):
    x = torch.cat([values(500), torch.tensor([0.0, 0.15, 0.25, -0.25, 99.0, -99.0])])
    codes = quantize(x.numpy(), 0.1, zero, low=low, high=high, dtype="int32")
    expected = dequantize(codes, np.float32(0.1), zero)
    for grad in (False, True):
        actual = fake_quantize(x.clone().requires_grad_(grad), torch.tensor(0.1), zero, low, high)
        np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-3, 10), zero=st.integers(0, 255), seed=st.integers(0, 99))
def test_error_is_at_most_half_a_step(scale, zero, seed):
    low, high = -zero * scale, (255 - zero) * scale
    x = torch.empty(64).uniform_(low, high, generator=torch.Generator().manual_seed(seed))
    y = fake_quantize(x, torch.tensor(scale), zero, 0, 255)
    assert (y - x).abs().max() <= scale / 2 * (1 + 1e-3)
    torch.testing.assert_close(fake_quantize(y, torch.tensor(scale), zero, 0, 255), y)  # idempotent


@pytest.mark.parametrize("zero", [0, 100])
def test_gradient_is_the_analytic_one(zero):
    scale, upstream = torch.tensor(0.02, requires_grad=True), values(400, spread=1.0)
    x = values(400).requires_grad_()
    fake_quantize(x, scale, zero, 0, 255).backward(upstream)
    v = x.detach() / scale.detach()
    low, high = float(-zero), float(255 - zero)
    inside = (v > low) & (v < high)
    assert 0.1 < inside.float().mean() < 0.9  # both branches are seen
    torch.testing.assert_close(x.grad, upstream * inside)
    by_scale = torch.where(inside, v.round() - v, v.clamp(low, high))
    torch.testing.assert_close(scale.grad, (upstream * by_scale).sum(), rtol=1e-4, atol=1e-4)


def test_gradient_is_that_of_torchs_own_kernel():
    x, upstream = values(4, 300), values(4, 300, spread=1.0)
    for axis, shape in ((None, (1,)), (0, (4,))):
        mine, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours = torch.linspace(0.01, 0.03, math.prod(shape)).requires_grad_()
        other = ours.detach().clone().requires_grad_()
        fake_quantize(mine, ours if axis is not None else ours.reshape(()), 0, -127, 127, axis=axis).backward(upstream)
        zeros = torch.zeros_like(other)
        if axis is None:
            y = torch._fake_quantize_learnable_per_tensor_affine(theirs, other, zeros, -127, 127, 1.0)
        else:
            y = torch._fake_quantize_learnable_per_channel_affine(theirs, other, zeros, axis, -127, 127, 1.0)
        y.backward(upstream)
        # They let the gradient through up to half a step outside the range, LSQ does not.
        v = x / other.detach().reshape(-1, 1)
        edge = (v.abs() > 127) & (v.abs() < 127.5)
        torch.testing.assert_close(mine.grad[~edge], theirs.grad[~edge])
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_scale_gradient_against_finite_differences_of_the_surrogate(axis):
    """With c = round(v) - v held constant, y(s) = s · clamp(x / s + c, n, p) has LSQ's derivative."""
    x, upstream = values(3, 5, 7).double(), values(3, 5, 7, spread=1.0).double()
    count = 1 if axis is None else x.shape[axis]
    shape = [-1 if i == axis else 1 for i in range(3)]
    scale = torch.linspace(0.03, 0.05, count).double()
    given = scale.clone().requires_grad_()
    fake_quantize(x, given if axis is not None else given.reshape(()), 0, -50, 60, axis=axis).backward(upstream)
    inside = (x / scale.reshape(shape)).clamp(-50, 60)
    offset = inside.round() - inside

    def surrogate(s):
        s = s.reshape(shape)
        v = x / s
        kept = torch.where((v > -50) & (v < 60), v + offset, v.clamp(-50, 60))
        return (upstream * s * kept).reshape(3, 5, 7)

    step = 1e-7
    for index in range(count):
        change = torch.zeros_like(scale)
        change[index] = step
        slope = (surrogate(scale + change).sum() - surrogate(scale - change).sum()) / (2 * step)
        torch.testing.assert_close(given.grad.reshape(-1)[index], slope, rtol=1e-4, atol=1e-4)


def test_learned_scale_moves_as_lsq_moves_it():
    """One SGD step on the ratio changes the scale by lr · g · ∂L/∂s, g = 1/sqrt(N · p)."""
    x, upstream = values(8, 50), values(8, 50, spread=1.0)
    module = FakeQuantize(torch.tensor(0.02), 0, 0, 255)
    module(x).backward(upstream)
    scale = torch.tensor(0.02, requires_grad=True)
    fake_quantize(x, scale, 0, 0, 255).backward(upstream)
    torch.optim.SGD(module.parameters(), 1e-4).step()
    expected = 0.02 - 1e-4 * scale.grad / math.sqrt(50 * 255)
    assert 1e-3 < abs(float(expected.detach()) / 0.02 - 1) < 0.9
    torch.testing.assert_close(module.scale, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("limit", "count", "share"), [(127, 144, 127**-2), (7, 36, 7**-2), (7, 4096, (7 * 4096) ** -0.5)]
)
def test_learned_weight_scale_takes_lsqs_step_or_that_of_one_weight(limit, count, share):
    x, upstream = values(3, count), values(3, count, spread=1.0).flip(0)
    scale = x.abs().amax(1) / limit
    module = WeightFakeQuantize(scale, limit, axis=0)
    module(x).backward(upstream)
    plain = scale.clone().requires_grad_()
    fake_quantize(x, plain, 0, -limit, limit, axis=0).backward(upstream)
    torch.optim.SGD(module.parameters(), 0.1).step()
    torch.testing.assert_close(module.scale, scale - 0.1 * share * plain.grad, rtol=1e-5, atol=0)


@pytest.mark.parametrize("limit", [7, 127])
def test_calibrated_weight_scale_moves_no_faster_than_its_weights(limit):
    """Relative to their size. With LSQ's g alone the 8-bit scales moved 36 times as fast, and ran away."""
    x, upstream = values(64, 144), values(64, 144, spread=1.0).flip(0)
    module = WeightFakeQuantize(x.abs().amax(1) / limit, limit, axis=0)
    module(x).backward(upstream)
    of_weights = upstream.square().mean().sqrt() / x.square().mean().sqrt()
    assert module.ratio.grad.square().mean().sqrt() < of_weights


def test_gradient_pulls_a_scale_to_the_better_one():
    x = values(4096, spread=1.0)
    module = FakeQuantize(torch.tensor(0.2), 8, 0, 15)
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    errors = []
    for _ in range(150):
        optimizer.zero_grad()
        errors.append((module(x) - x).square().mean())
        errors[-1].backward()
        optimizer.step()
    best = min(
        float((fake_quantize(x, torch.tensor(s), 8, 0, 15) - x).square().mean()) for s in np.linspace(0.1, 0.8, 141)
    )
    assert float(errors[0]) > 2 * best
    assert float(errors[-1].detach()) < 1.05 * best


def test_range_that_stands_for_a_clip_never_exceeds_it():
    """An int8 output whose range is ReLU6: the scale may be learned down, not past 6."""
    module = FakeQuantize(torch.tensor(6 / 255), 0, 0, 255, bounds=(0.0, 6.0))
    optimizer = torch.optim.SGD(module.parameters(), 100.0)
    x = values(100).abs() * 4
    for _ in range(5):
        optimizer.zero_grad()
        (-module(x).sum()).backward()  # larger is better: pushes the scale up
        optimizer.step()
        assert module(x).max() <= 6 * (1 + 1e-6)
    assert module.scale == pytest.approx(6 / 255)
    observed = FakeQuantize(torch.tensor(5 / 255), 0, 0, 255, scales="observed", bounds=(0.0, 6.0), momentum=1.0)
    observed(torch.tensor([-9.0, 50.0]))
    assert float(observed.scale) == pytest.approx(6 / 255)
    assert int(observed.zero_point) == 0


def test_observed_range_is_a_moving_average():
    module = FakeQuantize(torch.tensor(2 / 255), 0, 0, 255, scales="observed", momentum=0.25)
    module(torch.tensor([-4.0, 6.0]))
    low, high = -4 * 0.25, 2 * 0.75 + 6 * 0.25
    assert float(module.scale) == pytest.approx((high - low) / 255)
    assert int(module.zero_point) == round(-low / (high - low) * 255)
    module.eval()(torch.tensor([-100.0, 100.0]))
    assert float(module.scale) == pytest.approx((high - low) / 255)  # eval() does not observe


def test_observed_weight_follows_its_largest_value():
    module = WeightFakeQuantize(torch.ones(2), 127, scales="observed", axis=0)
    module(torch.tensor([[1.0, -2.0], [0.0, 0.0]]))
    assert module.scale.tolist() == pytest.approx([2 / 127, 2.0**-40])


def test_pruned_weights_stay_zero():
    weight = torch.nn.Parameter(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))
    module = WeightFakeQuantize(torch.tensor(0.1), 127, zeros=weight.detach() == 0)
    module(weight).sum().backward()
    assert weight.grad.tolist() == [[0, 1], [1, 0]]
    with torch.no_grad():
        weight.add_(0.5)  # what momentum or weight decay may do
    assert module(weight).tolist() == [[0, pytest.approx(1.5)], [pytest.approx(2.5), 0]]
    assert module.masked(weight).tolist() == [[0, 1.5], [2.5, 0]]


def test_frozen_scale_stays():
    module = FakeQuantize(torch.tensor(0.02), 0, 0, 255)
    optimizer = torch.optim.SGD(module.parameters(), 1e-5, momentum=0.9)
    x = values(100)

    def step():
        optimizer.zero_grad()
        module(x.requires_grad_()).square().sum().backward()
        optimizer.step()
        return float(module.scale)

    first = step()
    assert first != pytest.approx(0.02, rel=1e-6)
    module.freeze()
    assert [step(), step()] == [first, first]
    module.unfreeze()
    step()
    assert step() != first


def test_unknown_scales():
    with pytest.raises(QuantizationError, match="unknown scales 'learnt'; did you mean 'learned'"):
        FakeQuantize(torch.tensor(1.0), 0, 0, 255, scales="learnt")
