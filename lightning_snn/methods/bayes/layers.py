"""Layers with Gaussian posteriors over their weights.

Within `posterior_noise` they return `Moments`, from which the next spiking layer samples. Within `weight_draws` they
compute with draws of their weights. Outside both they compute with the posterior mean, as a plain deterministic layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_snn.checks import check_positive
from lightning_snn.functional.dynamics import PendingState, Reset
from lightning_snn.functional.lif import leaky_integrate, lif
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
    r"""Base of the layers with a Gaussian posterior ``q(w) = N(m, sigma^2)`` over their weights.

    The prior is ``N(0, prior_scale^2 / fan_in)`` for weights and N(0, 1) for biases. The posterior means have the names
    `weight` and `bias` of the layer they replace, so the weights of a deterministic network can be loaded.

    Args:
        weight: initial posterior means of the weights.
        bias: initial posterior means of the biases, or None.
        fan_in: number of inputs of an output.
        std: initial posterior standard deviation of the weights, larger than 0; that of the biases is 0.1.
        prior_scale: prior standard deviation of the weights times sqrt(fan_in), larger than 0.

    Raises:
        ValueError: if `prior_scale` is not larger than 0.

    Example:
        >>> layer = BayesianLayer(torch.zeros(3, 4), None, fan_in=4, std=0.5, prior_scale=1.0)
        >>> layer.kl().item()  # the prior has the standard deviation 1 / sqrt(4)
        0.0
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    bias_log_std: nn.Parameter | None

    def __init__(self, weight: Tensor, bias: Tensor | None, fan_in: int, std: float, prior_scale: float) -> None:
        super().__init__()
        self._set_posterior(weight, bias, fan_in, std, prior_scale)

    def _set_posterior(self, weight: Tensor, bias: Tensor | None, fan_in: int, std: float, prior_scale: float) -> None:
        check_positive("prior_scale", prior_scale)
        self.prior_scale, self.fan_in = prior_scale, fan_in
        self.weight = nn.Parameter(weight.detach().clone())
        self.weight_log_std = nn.Parameter(torch.full_like(self.weight, math.log(std)))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
        self.register_parameter(
            "bias_log_std", None if bias is None else nn.Parameter(torch.full_like(bias, math.log(_BIAS_STD)))
        )

    def variances(self) -> tuple[Tensor, Tensor | None]:
        """Return the posterior variances of weights and biases, with the log-std clamped to [-10, 2]."""
        weight, bias = self._log_stds()
        return (2 * weight).exp(), None if bias is None else (2 * bias).exp()

    def kl(self) -> Tensor:
        """Return ``KL(q || prior)`` of weights and biases, a scalar in nats."""
        return torch.stack(list(self.kl_terms().values())).sum()

    def kl_terms(self) -> dict[nn.Parameter, Tensor]:
        """Return ``KL(q || prior)`` in nats of the weights and of the biases, with the posterior means as keys."""
        log_std, bias_log_std = self._log_stds()
        terms = {self.weight: gaussian_kl(self.weight, log_std, self.prior_scale / math.sqrt(self.fan_in))}
        if self.bias is not None and bias_log_std is not None:
            terms[self.bias] = gaussian_kl(self.bias, bias_log_std, 1.0)
        return terms

    def sample_weights(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Draw weights and biases from the posterior.

        Args:
            generator: source of the draw; None is torch's default.
        """
        weights, biases = self.draw(WeightDraws(1, generator))
        return weights[0], None if biases is None else biases[0]

    def draw(self, draws: WeightDraws) -> tuple[Tensor, Tensor | None]:
        """Return K draws of the weights `[K, ...]` and of the biases `[K, M]`, the same at every call with `draws`."""
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
    """Base of the Bayesian layers that are linear in their input: `BayesLinear` and the convolutions.

    A subclass defines `linear_map`.

    Attributes:
        input_values: values of the input: "real" numbers, "spikes" (0, 1) or "signs" (-1, 1), with which it need not be
            squared; `SpikingBayes.prepare` sets it.
        targets: neurons that receive the output of this layer and of no other one, if known; noise mode "trace" needs
            them.

    Example:
        >>> class Scale(BayesianMap):
        ...     def linear_map(self, x, weight, bias):
        ...         return x * weight
        >>> layer = Scale(torch.ones(4), None, fan_in=1, std=0.1, prior_scale=1.0)
        >>> layer(torch.rand(2, 4)).shape
        torch.Size([2, 4])
    """

    input_values: Values = "real"
    targets: tuple[Neuron, ...] = ()  # a tuple, so nn.Module does not register the neurons as children

    def forward(self, x: Tensor | Moments) -> Moments | Tensor:
        noise, drawn = spike_noise(), draws()
        if noise is not None:
            return self._moments(x, noise)
        if isinstance(x, Moments):
            raise RuntimeError(f"{type(self).__name__} received a Gaussian activation outside `posterior_noise`")
        if drawn is not None:
            return self._drawn(x, drawn)
        return self.linear_map(x, self.weight, self.bias)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the map of the input with the given weights and biases, linear in all three."""
        raise NotImplementedError(f"{type(self).__name__} defines no linear_map")

    def _linear_map_of_draws(self, x: Tensor, weights: Tensor, biases: Tensor | None) -> Tensor:
        """Apply draw k of the weights to the k-th slice of `x` `[K, rows, ...]`."""
        raise NotImplementedError(f"{type(self).__name__} defines no _linear_map_of_draws")

    def _moments(self, x: Tensor | Moments, noise: SpikeNoise) -> Moments:
        variance, bias_variance = self.variances()
        posterior = self.weight, variance, self.bias, bias_variance
        if isinstance(x, Moments):
            return Moments(*linear_moments(x.expectation, *posterior, x_variance=x.variance, apply=self.linear_map))
        if noise.mode == "trace" and self.targets:
            return self._trace_moments(x, variance, bias_variance)
        return Moments(*linear_moments(x, *posterior, self.input_values, apply=self.linear_map))

    def _trace_moments(self, x: Tensor, variance: Tensor, bias_variance: Tensor | None) -> Moments:
        """Return the mean of the current and the variance of the membrane potential under static weight samples.

        The variance is exact for the membrane potential before resets only.
        """
        beta = self.targets[0].value("beta")
        if isinstance(beta, Tensor) and beta.dim() > 0:
            raise ValueError(
                f'Expected one decay for all neurons of a layer with noise mode "trace", but got {len(beta)} decays'
            )
        sequence = unfold(x, self)
        trace = leaky_integrate(sequence, beta).flatten(0, 1)
        membrane_variance = self.linear_map(trace.square(), variance, None)
        if bias_variance is not None:
            # a bias is an input that is always 1
            ones = torch.ones(sequence.shape[0], 1, dtype=x.dtype, device=x.device)
            trace_of_bias = leaky_integrate(ones, beta).square()
            steps = membrane_variance.unflatten(0, (sequence.shape[0], -1))
            bias_variance = bias_variance.view(-1, *(1,) * (self.weight.dim() - 2))
            trace_of_bias = trace_of_bias.view(-1, *(1,) * membrane_variance.dim())
            membrane_variance = (steps + trace_of_bias * bias_variance).flatten(0, 1)
        return Moments(self.linear_map(x, self.weight, self.bias), membrane_variance)

    def _drawn(self, x: Tensor, drawn: WeightDraws) -> Tensor:
        steps, weights = time_steps() or 1, self.draw(drawn)
        copies = x.unflatten(0, (steps, drawn.count, -1)).transpose(0, 1)  # [K, T, B, ...]
        outputs = self._linear_map_of_draws(copies.flatten(1, 2), *weights)
        return torch.unflatten(outputs, 1, (steps, -1)).transpose(0, 1).flatten(0, 2)


class BayesLinear(BayesianMap):
    """`nn.Linear` with a Gaussian posterior.

    Args:
        in_features: number of inputs N.
        out_features: number of outputs M.
        bias: add a bias.
        gain: initial means are drawn from N(0, gain^2 / fan_in), larger than 0.
        kappa: initial posterior standard deviation over that with which the means are drawn, larger than 0.
        prior_scale: see `BayesianLayer`.

    Raises:
        ValueError: if `gain`, `kappa` or `prior_scale` is not larger than 0.

    Shape:
        `[..., N]` to `[..., M]`: `Moments` within `posterior_noise`, a tensor outside.

    Example:
        >>> layer = BayesLinear(4, 3)
        >>> layer(torch.rand(2, 4)).shape
        torch.Size([2, 3])
        >>> with lightning_snn.nn.posterior_noise():
        ...     layer(torch.rand(2, 4))
        Moments(shape=(2, 3))
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
        return torch.unflatten(products, 1, x.shape[1:-1])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class _BayesConv(BayesianMap):
    """Base of the Bayesian convolutions over one and two dimensions.

    Attributes:
        plain: torch's layer with the same number of dimensions.
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
        return torch.unflatten(outputs, 1, (count, -1)).transpose(0, 1)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        convolution = F.conv1d if weight.dim() == 3 else F.conv2d
        return convolution(x, weight, bias, self.stride, self.padding, self.dilation, groups)

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"]
        parts += [f"padding={self.padding}"] if self.padding not in (0, (0,), (0, 0)) else []
        parts += [f"groups={self.groups}"] if self.groups != 1 else []
        return ", ".join([*parts, f"bias={self.bias is not None}"])


class BayesConv1d(_BayesConv):
    """`nn.Conv1d` with a Gaussian posterior.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in `nn.Conv1d`, with zero
            padding.
        gain, kappa, prior_scale: see `BayesLinear`.

    Shape:
        `[B, C, L]` to `[B, M, L']`: `Moments` within `posterior_noise`, a tensor outside.

    Example:
        >>> BayesConv1d(2, 8, kernel_size=3, padding=1)(torch.rand(5, 2, 16)).shape
        torch.Size([5, 8, 16])
    """

    plain = nn.Conv1d


class BayesConv2d(_BayesConv):
    """`nn.Conv2d` with a Gaussian posterior.

    Takes the arguments of `BayesConv1d`, with those of `nn.Conv2d` in place of `nn.Conv1d`.

    Shape:
        `[B, C, H, W]` to `[B, M, H', W']`: `Moments` within `posterior_noise`, a tensor outside.

    Example:
        >>> BayesConv2d(2, 8, kernel_size=3, padding=1)(torch.rand(5, 2, 6, 6)).shape
        torch.Size([5, 8, 6, 6])
    """

    plain = nn.Conv2d


class BayesRecurrentLIF(BayesianLayer, RecurrentLIF):
    """`RecurrentLIF` with a Gaussian posterior over its recurrent weights.

    The variance that the spikes of step t - 1 cause adds to that of the input current of step t.

    Args:
        features, beta, threshold, reset, detach_reset, surrogate, learn_beta, learn_threshold, channels: as in
            `RecurrentLIF`.
        gain, kappa, prior_scale: see `BayesLinear`; the fan-in is `features`.

    Raises:
        ValueError: if an argument is outside its range.

    Shape:
        input and output `[T*B, features]`.

    Example:
        >>> layer = BayesRecurrentLIF(8)
        >>> with lightning_snn.nn.posterior_noise():
        ...     run(layer, torch.rand(5, 2, 8)).shape
        torch.Size([5, 2, 8])
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
        self._set_posterior(mean, None, features, std, prior_scale)

    def charge(self, x: Tensor, state: PendingState) -> PendingState:
        drawn = draws()
        if drawn is None:
            return super().charge(x, state)
        weights = self.draw(drawn)[0].to(x.dtype)
        received = torch.bmm(state.spikes.unflatten(0, (drawn.count, -1)), weights.mT).flatten(0, 1)
        return PendingState(self.value("beta", x) * state.membrane + x + received, state.spikes)

    def scan(self, x: Tensor, state: PendingState | None = None) -> tuple[Tensor, PendingState]:
        """Run a sequence `[T, B, ...]` with the posterior mean, or with the drawn weights within `weight_draws`."""
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
    """Draw means from N(0, gain^2 / fan_in) and return them with the initial standard deviation of the posterior."""
    check_positive("gain", gain)
    check_positive("kappa", kappa)
    std = gain / math.sqrt(math.prod(shape[1:]))
    return std * torch.randn(*shape), kappa * std
