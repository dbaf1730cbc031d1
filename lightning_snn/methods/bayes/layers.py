"""Layers with Gaussian posteriors over their weights.

Within `posterior_noise` they return `Moments`, from which the spiking layer after them samples. Within `weight_draws`
they compute with draws of their weights. Outside both the same network computes with the posterior mean: a plain
deterministic spiking network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_positive
from lightning_snn.functional.lif import PendingState, Reset, leaky_integrate, lif
from lightning_snn.functional.surrogate import Surrogate, SurrogateName
from lightning_snn.functional.variational import Values, gaussian_kl, linear_moments
from lightning_snn.nn.folding import time_steps, unfold
from lightning_snn.nn.moments import Moments
from lightning_snn.nn.neurons import Neuron, RecurrentLIF
from lightning_snn.nn.noise import SpikeNoise, WeightDraws, draws, spike_noise
from lightning_snn.nn.stateful import PerChannel

LOG_STD_RANGE = (-10.0, 2.0)
_BIAS_STD = 0.1


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

    weight: nn.Parameter
    bias: nn.Parameter | None
    bias_log_std: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, fan_in: int, std: float, prior_scale: float) -> None:
        super().__init__()
        self._give_posterior(weight, bias, fan_in, std, prior_scale)

    def _give_posterior(self, weight: Tensor, bias: Tensor | None, fan_in: int, std: float, prior_scale: float) -> None:
        check_positive("prior_scale", prior_scale)
        self.prior_scale, self.fan_in = prior_scale, fan_in
        self.weight = nn.Parameter(weight.detach().clone())
        self.weight_log_std = nn.Parameter(torch.full_like(self.weight, math.log(std)))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.register_parameter(
            "bias_log_std", None if bias is None else nn.Parameter(torch.full_like(bias, math.log(_BIAS_STD)))
        )

    def variances(self) -> tuple[Tensor, Tensor | None]:
        """Posterior variances of weights and biases; the log-std acts clamped to [-10, 2]."""
        weight, bias = self._log_stds()
        return (2 * weight).exp(), None if bias is None else (2 * bias).exp()

    def kl(self) -> Tensor:
        """``KL(q || prior)`` of weights and biases, a scalar in nats."""
        return torch.stack(list(self.kl_terms().values())).sum()

    def kl_terms(self) -> dict[nn.Parameter, Tensor]:
        """``KL(q || prior)`` in nats of the weights and of the biases, by their posterior means."""
        log_std, bias_log_std = self._log_stds()
        terms = {self.weight: gaussian_kl(self.weight, log_std, self.prior_scale / math.sqrt(self.fan_in))}
        if self.bias is not None and bias_log_std is not None:
            terms[self.bias] = gaussian_kl(self.bias, bias_log_std, 1.0)
        return terms

    def sample_weights(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """One draw of weights and biases from the posterior."""
        weights, biases = self.draw(WeightDraws(1, generator))
        return weights[0], None if biases is None else biases[0]

    def draw(self, draws: WeightDraws) -> tuple[Tensor, Tensor | None]:
        """K draws of the weights `[K, ...]` and of the biases `[K, M]`; the same ones at every call with `draws`."""
        for mean, log_std in zip((self.weight, self.bias), self._log_stds(), strict=True):
            if mean is not None and log_std is not None and mean not in draws.drawn:
                shape = (draws.count, *mean.shape)
                noise = torch.randn(shape, dtype=mean.dtype, device=mean.device, generator=draws.generator)
                draws.drawn[mean] = torch.addcmul(mean, noise, log_std.exp())
        return draws.drawn[self.weight], None if self.bias is None else draws.drawn[self.bias]

    def _log_stds(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight_log_std.clamp(*LOG_STD_RANGE)
        return weight, None if self.bias_log_std is None else self.bias_log_std.clamp(*LOG_STD_RANGE)


class BayesianMap(BayesianLayer):
    """A Bayesian layer that is linear in its input: what `BayesLinear` and the convolutions share.

    Attributes:
        input_values: what the input is known to hold: "real" numbers, "spikes" (0, 1) or "signs" (-1, 1), which saves
            squaring it; `SpikingBayes.prepare` finds out.
        targets: the neurons whose membrane potential receives the output of this layer alone, where that is known;
            noise mode "trace" needs it.
    """

    input_values: Values = "real"
    targets: tuple[Neuron, ...] = ()  # a tuple hides it from nn.Module, so that it is no child of two parents

    def forward(self, x: Tensor | Moments) -> Moments | Tensor:
        noise, drawn = spike_noise(), draws()
        if noise is not None:
            return self._moments(x, noise)
        if isinstance(x, Moments):
            raise RuntimeError(f"{type(self).__name__} was given a Gaussian activation outside `posterior_noise`")
        if drawn is not None:
            return self._drawn(x, drawn)
        return self.linear_map(x, self.weight, self.bias)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} defines no linear_map")

    def _linear_map_of_draws(self, x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
        """Draw k of the weights on the k-th slice of `x` `[K, rows, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no _linear_map_of_draws")

    def _moments(self, x: Tensor | Moments, noise: SpikeNoise) -> Moments:
        variance, bias_variance = self.variances()
        posterior = self.weight, variance, self.bias, bias_variance
        if isinstance(x, Moments):
            return Moments(*linear_moments(x.mean, *posterior, x_variance=x.variance, apply=self.linear_map))
        if noise.mode == "trace" and self.targets:
            return self._trace_moments(x, variance, bias_variance)
        return Moments(*linear_moments(x, *posterior, self.input_values, apply=self.linear_map))

    def _trace_moments(self, x: Tensor, variance: Tensor, bias_variance: Tensor | None) -> Moments:
        """Mean of the current, and variance of the membrane that one weight sample gives over the sequence."""
        beta = self.targets[0].value("beta")
        if isinstance(beta, Tensor) and beta.dim() > 0:
            raise ValueError(
                f'Expected one decay for all neurons of a layer with noise mode "trace", but got {len(beta)}: the '
                "trace of an input is shared by the neurons that it reaches"
            )
        sequence = unfold(x, self)
        trace = leaky_integrate(sequence, beta).flatten(0, 1)
        spread = self.linear_map(trace.square(), variance, None)
        if bias_variance is not None:
            # a bias is an input that is always 1
            ones = torch.ones(sequence.shape[0], 1, dtype=x.dtype, device=x.device)
            trace_of_bias = leaky_integrate(ones, beta).square()
            steps = spread.unflatten(0, (sequence.shape[0], -1))
            bias_variance = bias_variance.view(-1, *(1,) * (self.weight.dim() - 2))
            spread = (steps + trace_of_bias.view(-1, *(1,) * spread.dim()) * bias_variance).flatten(0, 1)
        return Moments(self.linear_map(x, self.weight, self.bias), spread)

    def _drawn(self, x: Tensor, drawn: WeightDraws) -> Tensor:
        steps, weights = time_steps() or 1, self.draw(drawn)
        copies = x.unflatten(0, (steps, drawn.count, -1)).transpose(0, 1)  # [K, T, B, ...]
        outputs = self._linear_map_of_draws(copies.flatten(1, 2), *weights)
        return outputs.unflatten(1, (steps, -1)).transpose(0, 1).flatten(0, 2)


class BayesLinear(BayesianMap):
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

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def _linear_map_of_draws(self, x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
        rows = x.flatten(1, -2)
        products = torch.bmm(rows, weights.mT) if biases is None else torch.baddbmm(biases[:, None], rows, weights.mT)
        return products.unflatten(1, x.shape[1:-1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class _BayesConv(BayesianMap):
    """What Bayesian convolutions of one and two dimensions share.

    Attributes:
        plain: torch's layer of that dimension, whose shapes are taken.
    """

    plain: ClassVar[type[nn.Conv1d] | type[nn.Conv2d]]

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
        plain = self.plain(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)  # type: ignore[arg-type]
        mean, std = _initial(plain.weight.shape, gain, kappa)
        super().__init__(mean, torch.zeros(out_channels) if bias else None, mean[0].numel(), std, prior_scale)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = plain.kernel_size, plain.stride
        self.padding, self.dilation = plain.padding, plain.dilation

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._convolve(x, weight, bias, self.groups)

    def _linear_map_of_draws(self, x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
        count = x.shape[0]
        # one convolution with a group per draw
        side_by_side = x.transpose(0, 1).flatten(1, 2)
        flat_biases = None if biases is None else biases.flatten()
        outputs = self._convolve(side_by_side, weights.flatten(0, 1), flat_biases, count * self.groups)
        return outputs.unflatten(1, (count, -1)).transpose(0, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        convolution = F.conv1d if weight.dim() == 3 else F.conv2d
        return convolution(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] if self.padding not in (0, (0,), (0, 0)) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join([*parts, f"bias={self.bias is not None}"])


class BayesConv1d(_BayesConv):
    """`nn.Conv1d` with a Gaussian posterior: `[B, C, L]` to `Moments`, or to the mean outside `posterior_noise`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `nn.Conv1d`, zero
            padding.
        gain, kappa, prior_scale: see `BayesLinear`.
    """

    plain = nn.Conv1d


class BayesConv2d(_BayesConv):
    """`nn.Conv2d` with a Gaussian posterior: `[B, C, H, W]` to `Moments`, or to the mean outside `posterior_noise`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `nn.Conv2d`, zero
            padding.
        gain, kappa, prior_scale: see `BayesLinear`.
    """

    plain = nn.Conv2d


class BayesRecurrentLIF(BayesianLayer, RecurrentLIF):
    """`RecurrentLIF` with a Gaussian posterior over its recurrent weights: the noise of the spikes of step t - 1 joins
    that of the input current of step t.

    Args:
        features, beta, threshold, reset, detach_reset, surrogate, learn_beta, learn_threshold, channels: as in
            `RecurrentLIF`.
        gain, kappa, prior_scale: see `BayesLinear`; the fan-in is `features`.
    """

    gain = 1.0
    noise_modes = ("moment", "step")
    noisy_weights = True

    def __init__(
        self,
        features: int,
        beta: PerChannel = 0.9,
        threshold: PerChannel = 1.0,
        reset: Reset = "subtract",
        detach_reset: bool = False,
        surrogate: SurrogateName | Surrogate = "arctangent",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        channels: int | None = None,
        gain: float = 0.5,
        kappa: float = 0.5,
        prior_scale: float = 1.0,
    ) -> None:
        RecurrentLIF.__init__(
            self, features, beta, threshold, reset, detach_reset, surrogate, learn_beta, learn_threshold, channels
        )
        mean, std = _initial(self.weight.shape, gain, kappa)
        self._give_posterior(mean, None, features, std, prior_scale)

    def charge(self, x: Tensor, state: PendingState) -> PendingState:
        drawn = draws()
        if drawn is None:
            return super().charge(x, state)
        weights = self.draw(drawn)[0].to(x.dtype)
        received = torch.bmm(state.spikes.unflatten(0, (drawn.count, -1)), weights.mT).flatten(0, 1)
        return PendingState(self.value("beta", x) * state.membrane + x + received, state.spikes)

    def scan(self, x: Tensor, state: PendingState | None = None) -> tuple[Tensor, PendingState]:
        """Run a sequence `[T, B, ...]`, with the posterior mean or, within `weight_draws`, with the drawn weights."""
        drawn = draws()
        if drawn is None:
            return super().scan(x, state)
        if state is not None:
            raise ValueError("Expected argument `state` to be None within `weight_draws`, but got a state")
        parameters = self.parameters_for(x[0])
        copies = zip(x.unflatten(1, (drawn.count, -1)).unbind(1), self.draw(drawn)[0], strict=True)
        runs = [lif(copy, *parameters, self.dynamics, recurrent=weight) for copy, weight in copies]
        spikes, states = zip(*runs, strict=True)
        return torch.cat(spikes, 1), PendingState(*(torch.cat(parts) for parts in zip(*states, strict=True)))

    def noisy_scan(self, mean: Tensor, variance: Tensor, noise: SpikeNoise) -> tuple[Tensor, Tensor]:
        return self._fused_noisy_scan(mean, variance, noise, self.weight, self.variances()[0])


def _initial(shape: Sequence[int], gain: float, kappa: float) -> tuple[Tensor, float]:
    """Means drawn from N(0, gain^2 / fan_in), and kappa times that standard deviation for the posterior's own."""
    check_positive("gain", gain)
    check_positive("kappa", kappa)
    spread = gain / math.sqrt(math.prod(shape[1:]))
    return spread * torch.randn(*shape), kappa * spread
