"""Rate rules of layers without a membrane: linear maps, dropout, max-pooling, elementwise functions, delays."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.utils import _pair, _single

from lightning_snn.functional.rate import argmax_offsets, max_pool_of_rates, recorded
from lightning_snn.methods.rate.rules import Commutes, Plan, RateRule, WindowMean, concatenated, register_rate_rule
from lightning_snn.nn.delays import SynapticDelays
from lightning_snn.nn.divisive import DivisiveNormalization
from lightning_snn.nn.residual import GaussianNoise
from lightning_snn.nn.scale import Scale
from lightning_snn.nn.sign import Sign
from lightning_snn.nn.spike_gate import SpikeGate


class DropoutRule(RateRule):
    """Rule of dropout: one mask per sample for all steps and the rate pass."""

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.mask: Tensor | None = None

    def collect(self, x: Tensor) -> Tensor:
        if not self.module.training:
            return x
        sequence = x.unflatten(0, (1 if self.plan.streaming else self.plan.steps, -1))
        if self.mask is None:
            self.mask = self.plain(torch.ones_like(sequence[0]))
        masked: Tensor = sequence * self.mask
        return masked.flatten(0, 1)

    def replay(self, x: Tensor) -> Tensor:
        if self.mask is None:
            return x
        masked: Tensor = x.unflatten(0, (self.plan.windows, -1)) * self.mask
        return masked.flatten(0, 1)


class MaxPoolRule(RateRule):
    """Rule of max-pooling: the recorded mean, with a gradient to each input by its share of steps as the maximum."""

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        assert isinstance(module, (nn.MaxPool1d, nn.MaxPool2d))
        # pooling over one dimension is that of an image with a single row
        self.flat = isinstance(module, nn.MaxPool1d)
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        sizes_of_row = (1, 1, 0, 1)
        self.kernel, self.stride, self.padding, self.dilation = (
            (of_row, *_single(size)) if self.flat else _pair(size)
            for size, of_row in zip(sizes, sizes_of_row, strict=True)
        )
        self.mean = WindowMean(plan)
        self.shares: list[Tensor] = []
        self.steps = 0

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        return "return_indices" if getattr(module, "return_indices", False) else None

    def collect(self, x: Tensor) -> Tensor:
        plane = x.unsqueeze(-2) if self.flat else x
        y, indices = F.max_pool2d(
            plane,
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
            ceil_mode=bool(self.module.ceil_mode),
            return_indices=True,
        )
        self.mean.add(y)
        offsets = argmax_offsets(indices, plane.shape[-1], self.kernel, self.stride, self.padding, self.dilation)
        for offset in offsets.unflatten(0, (1 if self.plan.streaming else self.plan.steps, -1)).unbind(0):
            if self.steps % self.plan.length == 0:
                batch, channels, *size = offset.shape
                positions = self.kernel[0] * self.kernel[1]
                # scatter_add_ supports no narrower type on some devices
                wide = torch.promote_types(x.dtype, torch.float32)
                self.shares.append(torch.zeros(batch, channels, positions, *size, dtype=wide, device=x.device))
            share = torch.full_like(self.shares[-1][:, :, :1], 1 / self.plan.length)
            if (weights := self.plan.step_weights(self.steps, len(share), share.dtype)) is not None:
                share = weights.view(-1, *(1,) * (share.dim() - 1)).expand_as(share)
            self.shares[-1].scatter_add_(2, offset.unsqueeze(2), share)
            self.steps += 1
        return y.squeeze(-2) if self.flat else y

    def replay(self, x: Tensor) -> Tensor:
        y = max_pool_of_rates(
            x.unsqueeze(-2) if self.flat else x,
            self.mean.value,
            concatenated(self.shares),
            self.kernel,
            self.stride,
            self.padding,
            self.dilation,
        )
        return y.squeeze(-2) if self.flat else y


class ElementwiseRule(RateRule):
    """Rule of elementwise functions: the recorded mean of the values and the mean of the derivatives."""

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.value, self.slope = WindowMean(plan), WindowMean(plan)

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        return f"parameter {trained[0]} would get no gradient" if trained else None

    def collect(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            # a copy, because the module may work in place
            leaf = x.detach().clone().requires_grad_()
            y = self.plain(leaf * 1)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        self.value.add(y.detach())
        self.slope.add(slope)
        return y.detach()

    def replay(self, x: Tensor) -> Tensor:
        return recorded(x, self.value.value, self.slope.value)


class DelaysRule(RateRule):
    """Rule of delays: the recorded means.

    The gradient of a copy with delay d is weighted by the share of the inputs of a window that arrive within it. If
    windows are linked, the others arrive in later windows.
    """

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.mean = WindowMean(plan)
        self.past: tuple[Tensor, ...] | None = None

    def collect(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, SynapticDelays)
        if self.plan.streaming:
            y, self.past = self.module.step(x, self.past)
        else:
            y = self.plain(x)
        self.mean.add(y)
        return y

    def replay(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, SynapticDelays)
        counts = self.plan.valid_counts(len(x))
        if counts is None:
            late = [self._late(x, delay) for delay in self.module.delays]
        else:
            length = counts.to(x.dtype).view(-1, *(1,) * (x.dim() - 1))
            late = [x * ((length - delay).clamp(min=0) / length) for delay in self.module.delays]
        value = self.mean.value
        return recorded(torch.cat(late, 1), value, torch.ones((), dtype=value.dtype, device=value.device))

    def _late(self, x: Tensor, delay: int) -> Tensor:
        """Return the share of the rates `[K*B, ...]` of a copy that arrives in its window, or, if linked, in all."""
        length = self.plan.length
        if not self.plan.link:
            return x * (max(length - delay, 0) / length)
        whole, rest = divmod(delay, length)
        return self._shifted(x, whole) * (1 - rest / length) + self._shifted(x, whole + 1) * (rest / length)

    def _shifted(self, x: Tensor, windows: int) -> Tensor:
        """Return the rates of earlier windows, 0 before the first one."""
        rows = min(windows, self.plan.windows) * (len(x) // self.plan.windows)
        return torch.cat([torch.zeros_like(x[:rows]), x[: len(x) - rows]])


class DivisiveNormalizationRule(RateRule):
    """Rule of divisive normalization: the recorded means, with the mean slope of each input for a constant divisor."""

    masks_padding = True

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        super().__init__(module, plan)
        self.mean, self.slope = WindowMean(plan), WindowMean(plan)
        self.past: tuple[Tensor, Tensor] | None = None

    def collect(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, DivisiveNormalization)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            if self.plan.streaming:
                y, self.past = self.module.step(leaf, self.past)
            else:
                y = self.plain(leaf)
            (slope,) = torch.autograd.grad(y.sum(), leaf)
        self.mean.add(y.detach())
        self.slope.add(slope)
        return y.detach()

    def replay(self, x: Tensor) -> Tensor:
        return recorded(x, self.mean.value, self.slope.value)


class SpikeGateRule(RateRule):
    """Rule of products of spikes, which have none: their rate depends on which spikes coincide."""

    @classmethod
    def refusal(cls, module: nn.Module, one_step_windows: bool) -> str | None:
        return "the rate of a product of spikes is not the product of their rates: add them, or use SurrogateGradient"


_COMMUTING: tuple[type[nn.Module], ...] = (
    *(nn.Linear, nn.Flatten, nn.Unflatten, nn.Identity, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.Fold, nn.Unfold),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    Scale,
    GaussianNoise,  # the identity outside `posterior_noise`
)
_ELEMENTWISE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, Sign),
)
for _kind in _COMMUTING:
    register_rate_rule(_kind, Commutes)
for _kind in _ELEMENTWISE:
    register_rate_rule(_kind, ElementwiseRule)
for _kind in (nn.MaxPool1d, nn.MaxPool2d):
    register_rate_rule(_kind, MaxPoolRule)
for _kind in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
    register_rate_rule(_kind, DropoutRule)
register_rate_rule(SynapticDelays, DelaysRule)
register_rate_rule(DivisiveNormalization, DivisiveNormalizationRule)
register_rate_rule(SpikeGate, SpikeGateRule)
