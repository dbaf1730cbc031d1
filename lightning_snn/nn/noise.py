"""Contexts that select the use of a posterior in a run: as the noise of spikes, as draws of weights, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.estimators import Estimator, estimator_named
from lightning_snn.functional.noisy_lif import NOISE_MODES, NoiseMode
from lightning_snn.nn.run_context import recomputes, run_values, values_set

Observer = Callable[[nn.Module, Tensor], None]


@dataclass(frozen=True)
class SpikeNoise:
    """Options of spiking layers that fire by the noise of their input current.

    Attributes:
        estimator: gradient estimator, for Gaussian noise.
        mode: "moment", "step" or "trace", see `functional.noisy_lif`.
        generator: source of the noise; None is torch's default.
        observe: called with each noisy layer and its standardized pre-activations, shape of its folded input.
        drawn: drawn currents `[T, B, ...]` by layer: an observer adds a layer as a key before its call and removes it
            after the call. The value stays None if the layer draws no current.
    """

    estimator: Estimator
    mode: NoiseMode = "moment"
    generator: torch.Generator | None = None
    observe: Observer | None = None
    drawn: dict[nn.Module, Tensor | None] = field(default_factory=dict)

    def receiver(self, layer: nn.Module) -> Callable[[Tensor], None] | None:
        """Return the function that stores the drawn current of a layer, None if no observer requested it."""
        return partial(self.drawn.__setitem__, layer) if layer in self.drawn else None


@dataclass(frozen=True)
class WeightDraws:
    """Draws of K networks from the posterior, run in parallel on a batch that holds K copies of the samples.

    Attributes:
        count: number of draws K; the batch is `[T * K * B, ...]`, ordered by draw and then by sample within a step.
        generator: source of the draws; None is torch's default.
        drawn: draws `[K, ...]` by parameter, so further calls of a layer, and layers that share a parameter, use the
            same draws.
    """

    count: int
    generator: torch.Generator | None = None
    drawn: dict[nn.Parameter, Tensor] = field(default_factory=dict)


@contextmanager
def posterior_noise(
    estimator: float | Estimator | None = 0.5,
    mode: NoiseMode = "moment",
    generator: torch.Generator | None = None,
    observe: Observer | None = None,
) -> Iterator[None]:
    """Enter a context in which Bayesian layers return mean and variance and spiking layers fire by that noise.

    Args:
        estimator: gradient estimator, for Gaussian noise; a number is the lambda of IW-ST. None disables the noise.
        mode: "moment", "step" or "trace", see `functional.noisy_lif`.
        generator: source of the noise; None is torch's default.
        observe: called with each noisy layer and its standardized pre-activations ``(U - threshold) / sqrt(Q)``.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> network = nn.Sequential(lightning_snn.nn.GaussianNoise(0.5), LIF())
        >>> with posterior_noise(estimator=0.5):
        ...     spikes = run(network, torch.rand(10, 2, 4))
    """
    made = None
    if estimator is not None:
        check_choice("mode", mode, NOISE_MODES)
        made = SpikeNoise(estimator_named(estimator), mode, generator, observe)
    with values_set(noise=made):
        yield


@contextmanager
def weight_draws(count: int, generator: torch.Generator | None = None) -> Iterator[None]:
    """Enter a context in which Bayesian layers compute with draws of their weights.

    The draws are the same at all time steps and for all samples. Draw k acts on the k-th copy of the batch, whose rows
    are `[T * count * B, ...]`.

    Args:
        count: number of draws K, at least 1.
        generator: source of the draws; None is torch's default.

    Example:
        >>> layer = lightning_snn.methods.bayes.BayesLinear(4, 3)
        >>> with weight_draws(2):
        ...     layer(torch.rand(2 * 5, 4)).shape
        torch.Size([10, 3])
    """
    check_integer("count", count)
    with values_set(noise=WeightDraws(count, generator)):
        yield


def spike_noise() -> SpikeNoise | None:
    """Return the noise of the enclosing `posterior_noise`, None outside one.

    Raises:
        RuntimeError: in the second call by activation checkpointing if the noise has a generator of its own, because
            checkpointing repeats draws from torch's default generator only.
    """
    noise = run_values().noise
    if not isinstance(noise, SpikeNoise):
        return None
    if noise.generator is not None and recomputes():
        raise RuntimeError(
            "Expected noise from torch's default generator with activation checkpointing, which draws it again, but "
            "got a generator. Use `torch.manual_seed`, and `generator=None`"
        )
    return noise


def draws() -> WeightDraws | None:
    """Return the draws of the enclosing `weight_draws`, None outside one."""
    noise = run_values().noise
    return noise if isinstance(noise, WeightDraws) else None
