"""Layers with Gaussian posteriors over their weights.

Within `posterior_noise` they return `Moments`, from which the spiking layer after them samples. Outside it the same
network computes
with the posterior mean: a plain deterministic spiking network.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_positive
from lightning_snn.functional.variational import conv2d_moments, gaussian_kl, linear_moments
from lightning_snn.nn.moments import Moments, estimator

LOG_STD_RANGE = (-10.0, 2.0)


class BayesianLayer(nn.Module):
    r"""A layer with posterior ``q(w) = N(m, sigma^2)`` and prior ``N(0, prior_scale^2 / fan_in)``; biases have the
    prior N(0, 1).

    The mean keeps the names `weight` and `bias` of the layer it replaces, so that weights of a deterministic network
    load into it.

    Args:
        weight, bias: initial posterior means; bias may be None.
        fan_in: number of inputs of one output.
        std: initial posterior standard deviation of a weight, larger than 0; of a bias it is 0.1.
        prior_scale: prior standard deviation of a weight times sqrt(fan_in), larger than 0.
    """

    bias: nn.Parameter | None
    bias_log_std: nn.Parameter | None
    binary_input: bool
    """whether the input is known to hold 0 and 1 only, which saves squaring it; `SpikingBayes.prepare` finds out"""

    def __init__(self, weight: Tensor, bias: Tensor | None, fan_in: int, std: float, prior_scale: float) -> None:
        super().__init__()
        check_positive("prior_scale", prior_scale)
        self.prior_scale, self.fan_in = prior_scale, fan_in
        self.binary_input = False
        self.weight = nn.Parameter(weight.detach().clone())
        self.weight_log_std = nn.Parameter(torch.full_like(self.weight, math.log(std)))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.register_parameter(
            "bias_log_std", None if bias is None else nn.Parameter(torch.full_like(bias, math.log(0.1)))
        )

    def variances(self) -> tuple[Tensor, Tensor | None]:
        """Posterior variances of weights and biases; the log-std acts clamped to [-10, 2]."""
        weight, bias = self._log_stds()
        return (2 * weight).exp(), None if bias is None else (2 * bias).exp()

    def kl(self) -> Tensor:
        """``KL(q || prior)`` of weights and biases, a scalar in nats."""
        log_std, bias_log_std = self._log_stds()
        kl = gaussian_kl(self.weight, log_std, self.prior_scale / math.sqrt(self.fan_in))
        if self.bias is not None and bias_log_std is not None:
            kl = kl + gaussian_kl(self.bias, bias_log_std, 1.0)
        return kl

    def sample_weights(self) -> tuple[Tensor, Tensor | None]:
        """One draw of weights and biases from the posterior."""
        variance, bias_variance = self.variances()
        weight = self.weight + variance.sqrt() * torch.randn_like(self.weight)
        if self.bias is None or bias_variance is None:
            return weight, None
        return weight, self.bias + bias_variance.sqrt() * torch.randn_like(self.bias)

    def _log_stds(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight_log_std.clamp(*LOG_STD_RANGE)
        return weight, None if self.bias_log_std is None else self.bias_log_std.clamp(*LOG_STD_RANGE)


class BayesLinear(BayesianLayer):
    """`nn.Linear` with a Gaussian posterior: input `[..., N]` to `Moments` `[..., M]`, or to the mean outside
    `posterior_noise`.

    Args:
        in_features, out_features: N and M.
        bias: whether there is one.
        gain: initial means are drawn from N(0, gain^2 / fan_in), larger than 0.
        kappa: initial posterior standard deviation over the one the means are drawn with, larger than 0.
        prior_scale: see `BayesianLayer`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        gain: float = 1.0,
        kappa: float = 0.5,
        prior_scale: float = 1.0,
    ) -> None:
        mean, std = _initial(torch.Size((out_features, in_features)), gain, kappa)
        super().__init__(mean, torch.zeros(out_features) if bias else None, in_features, std, prior_scale)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, x: Tensor) -> Moments | Tensor:
        if estimator() is None:
            return F.linear(x, self.weight, self.bias)
        variance, bias_variance = self.variances()
        return Moments(*linear_moments(x, self.weight, variance, self.bias, bias_variance, self.binary_input))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class BayesConv2d(BayesianLayer):
    """`nn.Conv2d` with a Gaussian posterior: `[B, C, H, W]` to `Moments`, or to the mean outside `posterior_noise`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `nn.Conv2d`, zero
            padding.
        gain: initial means are drawn from N(0, gain^2 / fan_in), larger than 0.
        kappa: initial posterior standard deviation over the one the means are drawn with, larger than 0.
        prior_scale: see `BayesianLayer`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        kappa: float = 0.5,
        prior_scale: float = 1.0,
    ) -> None:
        # the shapes are nn.Conv2d's business
        like = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
        mean, std = _initial(like.weight.shape, gain, kappa)
        super().__init__(mean, torch.zeros(out_channels) if bias else None, like.weight[0].numel(), std, prior_scale)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, like.kernel_size
        self.stride, self.padding, self.dilation, self.groups = like.stride, like.padding, like.dilation, groups

    def forward(self, x: Tensor) -> Moments | Tensor:
        if estimator() is None:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        variance, bias_variance = self.variances()
        geometry = self.stride, self.padding, self.dilation, self.groups
        posterior = self.weight, variance, self.bias, bias_variance
        return Moments(*conv2d_moments(x, *posterior, *geometry, self.binary_input))

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] if self.padding not in (0, (0, 0)) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join([*parts, f"bias={self.bias is not None}"])


def _initial(shape: torch.Size, gain: float, kappa: float) -> tuple[Tensor, float]:
    """Means drawn from N(0, gain^2 / fan_in), and kappa times that standard deviation for the posterior's own."""
    check_positive("gain", gain)
    check_positive("kappa", kappa)
    spread = gain / math.sqrt(shape[1:].numel())
    return spread * torch.randn(shape), kappa * spread
