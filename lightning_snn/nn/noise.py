"""What a run of a Bayesian network does with its posterior: ignore it, let it be the spike noise, or draw weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lightning_snn.checks import check_choice, check_integer
from lightning_snn.functional.estimators import Estimator, estimator_named
from lightning_snn.functional.noisy_lif import NOISE_MODES, NoiseMode

Observer = Callable[[nn.Module, Tensor], None]


@dataclass(frozen=True)
class SpikeNoise:
    """How spiking layers fire by the noise of what drives them.

    Attributes:
        estimator: of the gradient, for Gaussian noise.
        mode: "moment", "step" or "trace", see `functional.noisy_lif`.
        generator: source of the noise; None is torch's default.
        observe: called with every noisy layer and its standardized pre-activations, shape of its folded input.
        drawn: drawn currents `[T, B, ...]` of the layers that are keys: an observer enters a layer before its call and
            takes the current out after it. It stays None where no current is drawn.
    """

    estimator: Estimator
    mode: NoiseMode = "moment"
    generator: torch.Generator | None = None
    observe: Observer | None = None
    drawn: dict[nn.Module, Tensor | None] = field(default_factory=dict)

    def receiver(self, layer: nn.Module) -> Callable[[Tensor], None] | None:
        """Return where a layer that draws its current hands it out, None if nobody asked for it."""
        return partial(self.drawn.__setitem__, layer) if layer in self.drawn else None


@dataclass(frozen=True)
class WeightDraws:
    """K networks drawn from the posterior, run side by side on a batch that holds K copies of the samples.

    Attributes:
        count: K; the batch is `[T * K * B, ...]`, the draw being the slower index within a step.
        generator: source of the draws; None is torch's default.
        drawn: the draws `[K, ...]` of each parameter, so that a layer that is called twice keeps them, and layers
            that share a parameter share its draws.
    """

    count: int
    generator: torch.Generator | None = None
    drawn: dict[nn.Parameter, Tensor] = field(default_factory=dict)


_noise: ContextVar[SpikeNoise | WeightDraws | None] = ContextVar("noise", default=None)


@contextmanager
def posterior_noise(
    estimator: float | Estimator | None = 0.5,
    mode: NoiseMode = "moment",
    generator: torch.Generator | None = None,
    observe: Observer | None = None,
) -> Iterator[None]:
    """Within this context Bayesian layers pass on mean and variance, and the spiking layers they drive fire by that
    noise.

    Args:
        estimator: of the gradient, for Gaussian noise; a number is the lambda of IW-ST. None switches the noise off.
        mode: "moment", "step" or "trace", see `functional.noisy_lif`.
        generator: source of the noise; None is torch's default.
        observe: called with every noisy layer and its standardized pre-activations ``(U - threshold) / sqrt(Q)``.

    Raises:
        ValueError: if an argument is outside its range.
    """
    made = None
    if estimator is not None:
        check_choice("mode", mode, NOISE_MODES)
        made = SpikeNoise(estimator_named(estimator), mode, generator, observe)
    yield from _entered(made)


@contextmanager
def weight_draws(count: int, generator: torch.Generator | None = None) -> Iterator[None]:
    """Within this context every Bayesian layer computes with `count` draws of its weights, kept over time steps and
    shared by all samples: draw k acts on the k-th copy of the batch, whose rows are `[T * count * B, ...]`.
    """
    check_integer("count", count)
    yield from _entered(WeightDraws(count, generator))


def spike_noise() -> SpikeNoise | None:
    """The noise of the enclosing `posterior_noise`; None outside it."""
    noise = _noise.get()
    return noise if isinstance(noise, SpikeNoise) else None


def draws() -> WeightDraws | None:
    """The draws of the enclosing `weight_draws`; None outside it."""
    noise = _noise.get()
    return noise if isinstance(noise, WeightDraws) else None


def _entered(noise: SpikeNoise | WeightDraws | None) -> Iterator[None]:
    token = _noise.set(noise)
    try:
        yield
    finally:
        _noise.reset(token)
