"""Fake quantization: values rounded to their int8 grid in float, with gradients for values and scales.

    v  = x / s                                   n = low - z,  p = high - z      (codes around the zero point)
    y  = s · round(clamp(v, n, p))               round: to nearest, ties to even, as ONNX Runtime does

Straight through: rounding counts as the identity, so
    ∂y/∂x = 1 where n < v < p, else 0
    ∂y/∂s = round(v) - v where n < v < p, else n or p           (LSQ: Esser et al. 2020, section 2.1)
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from compress.errors import QuantizationError, nearest
from compress.graph.operators_quantize import RoundThrough
from compress.quantization.arithmetic import SMALLEST_SCALE

SCALES = ("learned", "observed", "fixed")
SMALLEST_RATIO = 2.0**-7  # a learned scale may shrink to this share of the calibrated one
NO_BOUNDS = (-math.inf, math.inf)


class _FakeQuantize(torch.autograd.Function):
    """y above. A scale with several values is shaped to broadcast against x, so is its gradient."""

    # Elementary kernels rather than torch.fake_quantize_*: those are not vectorized on the CPU.
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: float, high: float, factor: float) -> Tensor:
        v = x / scale
        y = torch.clamp(v, low, high).round_().mul_(scale)
        ctx.save_for_backward(v, y, scale)
        ctx.limits = low, high, factor
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        v, y, scale = ctx.saved_tensors
        low, high, factor = ctx.limits
        to_x = torch.ops.aten.hardtanh_backward(gradient, v, low, high)
        if not ctx.needs_input_grad[1]:
            return to_x, None, None, None, None
        inside = torch.clamp(v, low, high)
        error = inside.round().sub_(inside)  # round(v) - v inside, 0 outside
        outside = gradient - to_x  # 0 inside
        if scale.dim() == 0:
            total = torch.dot(gradient.flatten(), error.flatten()) + torch.dot(outside.flatten(), y.flatten()) / scale
        else:
            axes = [axis for axis, size in enumerate(scale.shape) if size == 1]
            total = error.mul_(gradient).add_(outside.mul_(y).div_(scale)).sum(axes, keepdim=True)
        return to_x, total * factor, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: int, low: int, high: int, *, axis: int | None = None, factor: float = 1.0
) -> Tensor:
    """Round `x` to the grid of `scale` and `zero_point`, codes `low` … `high`, with the gradients above.

    Args:
        scale: one value, or one for each index along `axis`.
        factor: multiplies the gradient that reaches `scale`.
    """
    if axis is not None:
        scale = scale.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
    if not torch.is_grad_enabled() or not (x.requires_grad or scale.requires_grad):
        return (x / scale).clamp_(low - zero_point, high - zero_point).round_().mul_(scale)
    return _FakeQuantize.apply(x, scale, float(low - zero_point), float(high - zero_point), factor)


class FakeQuantize(nn.Module):
    """One grid of the int8 graph while it is trained.

    `scales` says where the scale comes from:
        fixed      stays as calibrated
        observed   moving average of minimum and maximum (activations), of max |w| (weights)
        learned    a parameter, by LSQ; the zero point stays, so a range that starts at 0 still does
    `observing` and `quantizing` switch the two halves; `state_dict` carries them.

    A learned scale is s = s0 · r: the parameter `ratio` (r, first 1) is learned and s0, the calibrated scale, kept.
    Its gradient is g · ∂L/∂s / s0 with LSQ's g = 1/sqrt(values · high), for weights never above 1/high² (see
    `WeightFakeQuantize`): a step of SGD then moves s by lr · g · ∂L/∂s, and a step of Adam, whose size does not
    depend on the gradient's, is a share of s.

    Args:
        scale: as calibrated; several values are one for each index along `axis`.
        bounds: what the range must stay within, because it does the work of a ReLU or clip.
        momentum: weight of the newest batch in the moving average.
    """

    zero_point: Tensor
    unit: Tensor
    held: Tensor

    def __init__(
        self,
        scale: Tensor,
        zero_point: int,
        low: int,
        high: int,
        *,
        scales: str = "learned",
        axis: int | None = None,
        bounds: tuple[float, float] = NO_BOUNDS,
        momentum: float = 0.05,
    ) -> None:
        super().__init__()
        if scales not in SCALES:
            raise QuantizationError(f"unknown scales {scales!r}; {nearest(scales, SCALES)}")
        scale = scale.detach().clone().float()
        self.low, self.high, self.axis, self.scales = low, high, axis, scales
        self.bounds, self.momentum = bounds, momentum
        self.observing, self.quantizing = scales != "fixed", True
        self._zero = int(zero_point)
        self.register_buffer("zero_point", torch.tensor(zero_point, dtype=torch.int32))
        self.register_buffer("unit", scale)
        if scales == "learned":
            self.ratio = nn.Parameter(torch.ones_like(scale))
            # The ratio at which it was frozen. Not by requires_grad: DDP wants a gradient from every parameter.
            self.register_buffer("held", torch.ones_like(scale))

    # --- the grid now ---

    @property
    def scale(self) -> Tensor:
        """The scale in use, without gradient."""
        if self.scales != "learned":
            return self.unit
        ratio = self.ratio.detach() if self.observing else self.held
        return self.unit * torch.clamp(ratio, SMALLEST_RATIO, self._largest_ratio())

    def _largest_ratio(self) -> Any:
        """The ratio at which the range reaches `bounds`."""
        limits = [
            bound / code
            for bound, code in zip(self.bounds, (self.low - self._zero, self.high - self._zero))
            if code != 0 and math.isfinite(bound)
        ]
        return None if not limits else (min(limits) / self.unit)

    def freeze(self) -> None:
        """Keep the scale as it is from now on."""
        if self.scales == "learned" and self.observing:
            self.held.copy_(self.ratio.detach())
        self.observing = False

    def unfreeze(self) -> None:
        """Observe, or learn, again."""
        self.observing = self.scales != "fixed"

    # --- running ---

    def forward(self, x: Tensor) -> Tensor:
        if self.observing and self.training and self.scales == "observed":
            self._observe(x.detach())
        if not self.quantizing:
            return x if self.bounds == NO_BOUNDS else torch.clamp(x, *self.bounds)
        scale, factor = self.unit, 1.0
        if self.scales == "learned" and self.observing:
            with torch.no_grad():
                self.ratio.clamp_(SMALLEST_RATIO, None)
                largest = self._largest_ratio()
                if largest is not None:
                    self.ratio.copy_(torch.minimum(self.ratio, largest))
            scale = _learned(self.unit, self.ratio)
            factor = self._share(x)
        elif self.scales == "learned":
            scale = self.unit * self.held
            if dist.is_available() and dist.is_initialized():
                scale = scale + 0.0 * self.ratio  # see `held`
        return fake_quantize(x, scale, self._zero, self.low, self.high, axis=self.axis, factor=factor)

    def _share(self, x: Tensor) -> float:
        """LSQ's g; the values of an activation are the features of one sample."""
        count = x.numel() // self.unit.numel() if self.axis is not None or not x.dim() else x[:1].numel()
        return 1.0 / math.sqrt(max(count, 1) * self.high)

    def _observe(self, x: Tensor) -> None:
        low, high = torch.aminmax(x)
        if dist.is_available() and dist.is_initialized():
            both = torch.stack([-low, high])
            dist.all_reduce(both, dist.ReduceOp.MAX)
            low, high = -both[0], both[1]
        known_low, known_high = (self.unit * (code - self._zero) for code in (self.low, self.high))
        low = torch.lerp(known_low, low, self.momentum).clamp(max(self.bounds[0], -3e38), 0.0)
        high = torch.lerp(known_high, high, self.momentum).clamp(0.0, min(self.bounds[1], 3e38))
        self.unit.copy_(((high - low) / (self.high - self.low)).clamp(min=SMALLEST_SCALE))
        self._zero = int(torch.round(self.low - low / self.unit).clamp(self.low, self.high))
        self.zero_point.fill_(self._zero)

    # --- saving ---

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.observing, self.quantizing])

    def set_extra_state(self, state: Tensor) -> None:
        self.observing, self.quantizing = (bool(flag) for flag in state)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._zero = int(self.zero_point)


class WeightFakeQuantize(FakeQuantize):
    """The symmetric grid of a weight, codes -limit … limit; weights that were zero stay zero.

    LSQ's g is meant for a scale that clips nothing, or a good share of many weights. A calibrated scale clips exactly
    the largest weight of each channel, whose derivative, ±limit, outweighs all the others. With g = 1/limit² the
    range t = s · limit moves by lr · ∂L/∂t, which is the step of that one weight; g is never larger.

    Args:
        zeros: where the weight is pruned (True); None where nothing is.
    """

    kept: Tensor | None

    def __init__(
        self,
        scale: Tensor,
        limit: int,
        *,
        scales: str = "learned",
        axis: int | None = None,
        zeros: Tensor | None = None,
    ) -> None:
        super().__init__(scale, 0, -limit, limit, scales=scales, axis=axis)
        self.register_buffer("kept", None if zeros is None else ~zeros)

    def _share(self, x: Tensor) -> float:
        # The values of one scale: of a channel, or of the whole weight.
        return 1.0 / max(math.sqrt(max(x.numel() // self.unit.numel(), 1) * self.high), self.high**2)

    def masked(self, weight: Tensor) -> Tensor:
        """Return the weight with its pruned elements at zero, whatever the optimizer made of them."""
        return weight if self.kept is None else weight * self.kept

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.masked(x))

    def on_grid(self, weight: Tensor) -> Tensor:
        """Return the weight as it ships: its codes times its scale."""
        with torch.no_grad():
            return fake_quantize(self.masked(weight), self.scale, 0, self.low, self.high, axis=self.axis)

    def _observe(self, x: Tensor) -> None:
        axes = [i for i in range(x.dim()) if self.axis is None or i != self.axis % x.dim()]
        largest = x.abs().amax(axes) if axes else x.abs()
        self.unit.copy_((largest / self.high).clamp(min=SMALLEST_SCALE))


class BiasFakeQuantize(nn.Module):
    """A bias on the grid of the int32 accumulator that it is added to: s = s_x · s_w, straight through.

    Without it a layer's output differs from the file's by half of that, enough to round some of it the other way.
    """

    def __init__(self, activation: FakeQuantize, weight: FakeQuantize) -> None:
        super().__init__()
        self._grids = (activation, weight)  # in a tuple: they are submodules elsewhere

    def forward(self, bias: Tensor) -> Tensor:
        activation, weight = self._grids
        if not weight.quantizing or not activation.quantizing:
            return bias
        scale = activation.scale * weight.scale
        return RoundThrough.apply(bias / scale) * scale


class _Learned(torch.autograd.Function):
    """s = s0 · r, with the gradient of r divided by s0 in place of multiplied (see FakeQuantize)."""

    @staticmethod
    def forward(ctx: Any, unit: Tensor, ratio: Tensor) -> Tensor:
        ctx.save_for_backward(unit)
        return unit * ratio

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (unit,) = ctx.saved_tensors
        return None, gradient / unit


def _learned(unit: Tensor, ratio: Tensor) -> Tensor:
    return _Learned.apply(unit, ratio)
